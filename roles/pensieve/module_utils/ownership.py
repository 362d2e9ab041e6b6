"""Whose a home is, and what in it may be believed, run or written.

The owner of a home is asked first, and no link of anybody else's is followed on the way. What lies below belongs to
the owner, or to root, whom everybody has to believe; and it is run as the owner.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import grp
import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = 0
NOGROUP = 65534

LINKS = 40
"""Links that are followed on one way, as many as Linux follows."""

FOLDERS = 200_000
"""Folders of one environment that are looked at. Pensieve with all that it can use has some ten thousand."""

TEXT = 1 << 20
"""Bytes of a text file of an environment."""


class ForeignError(PermissionError):
    """A file, a folder or a link on the way to one belongs to somebody else, or others may write it."""


def name_of(uid: int) -> str:
    """Login name of a user, or the number where there is none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def require_owner(path: Path | str, status: os.stat_result, *owners: int) -> None:
    """Raise ForeignError unless one of these users owns what has this status."""
    if status.st_uid not in owners:
        wanted = " or ".join(name_of(uid) for uid in dict.fromkeys(owners))
        raise ForeignError(errno.EPERM, f"it belongs to {name_of(status.st_uid)}, not to {wanted}", str(path))


def steps(path: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """What lies on the way to a path from / on, and at its end: folders and links, each with its own status."""
    here, pending, links = Path("/"), list(reversed(path.absolute().parts[1:])), 0
    while pending:
        name = pending.pop()
        here = here.parent if name == ".." else here / name
        status = here.lstat()
        yield here, status
        if stat.S_ISLNK(status.st_mode):
            links += 1
            if links > LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
            target = here.readlink()
            pending += reversed(target.parts[1:] if target.is_absolute() else target.parts)
            here = Path("/") if target.is_absolute() else here.parent


def owner_of(home: Path) -> int:
    """The user who owns a home. Links to it count when they are this user's or root's.

    Raises:
        FileNotFoundError: there is no such folder.
        ForeignError: a link on the way is somebody else's.
    """
    way = list(steps(home))
    owner = way[-1][1].st_uid
    for step, status in way:
        if stat.S_ISLNK(status.st_mode):
            require_owner(step, status, owner, ROOT)
    return owner


@functools.cache
def _others_in(gid: int, uid: int) -> bool:
    """Whether a group has members other than a user and root; many systems give each user one of their own."""
    try:
        members = set(grp.getgrgid(gid).gr_mem)
    except KeyError:
        members = set()
    members |= {one.pw_name for one in pwd.getpwall() if one.pw_gid == gid}
    return bool(members - {name_of(uid), name_of(ROOT)})


def _has_list(path: Path | str) -> bool:
    """Whether an access control list names users or groups beside the owner's; the group's bits are their most then."""
    try:
        return bool(os.getxattr(path, "system.posix_acl_access", follow_symlinks=False))
    except OSError:
        return False


def _require_closed(path: Path | str, status: os.stat_result, uid: int, shared: bool = False) -> None:
    """Raise ForeignError where others than a user and root could put something else in the place of this.

    `shared`: it is a folder on the way, where others may add names of their own, as in /tmp.
    """
    require_owner(path, status, uid, ROOT)
    mode = status.st_mode
    if stat.S_ISLNK(mode) or shared and stat.S_ISDIR(mode) and mode & stat.S_ISVTX:
        return
    by_group = mode & stat.S_IWGRP and (_others_in(status.st_gid, uid) or _has_list(path))
    if by_group or mode & stat.S_IWOTH:
        raise ForeignError(errno.EPERM, "others may write it", str(path))


class _Environment:
    """What an environment's interpreter runs, looked at for others than a user and root who could change it.

    Each file is looked at before what it names is believed, and read as the user.
    """

    def __init__(self, uid: int) -> None:
        self.uid = uid
        self.ways: dict[str, Path | None] = {}
        self.below: set[str] = set()

    def require_way(self, path: str | Path) -> Path | None:
        """Look at what leads to a path, and at its end; where that is, None where there is nothing and nobody else
        could put something there.
        """
        if str(path) in self.ways:
            return self.ways[str(path)]
        end, status = Path("/"), os.lstat("/")
        try:
            for end, status in steps(Path(path)):
                _require_closed(end, status, self.uid, shared=True)
        except (FileNotFoundError, NotADirectoryError):
            _require_closed(end, status, self.uid)
            self.ways[str(path)] = None
            return None
        self.ways[str(path)] = end
        return end

    def require_linked(self, link: Path) -> Path | None:
        """The same for a link in a folder that was looked at; quick where many lead into one folder."""
        try:
            target = link.parent / link.readlink()
        except FileNotFoundError:  # it went meanwhile
            return None
        place = self.require_way(target.parent) if target.name != ".." else None
        if place is None:
            return self.require_way(link)
        end = place / target.name
        try:
            status = end.lstat()
        except FileNotFoundError:
            return self.require_way(link)
        if stat.S_ISLNK(status.st_mode):
            return self.require_way(link)
        _require_closed(end, status, self.uid)
        return end

    def entries(self, folder: str | Path) -> Iterator[tuple[str, os.stat_result]]:
        """What lies in a folder, with its status, looked at unless it is a link."""
        entries = []
        with contextlib.suppress(PermissionError, FileNotFoundError), os.scandir(folder) as found:
            for entry in found:
                # Who may not look there runs nothing from there; and what goes meanwhile is run by nobody.
                with contextlib.suppress(FileNotFoundError):
                    entries.append((entry.path, entry.stat(follow_symlinks=False)))
        for path, status in entries:
            # Nothing is imported from a socket, a pipe or a device.
            if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
                _require_closed(path, status, self.uid)
            yield path, status

    def require_folder(self, folder: str | Path) -> Path | None:
        """Look at a folder in which others may not add names either; where it is."""
        place = self.require_way(folder)
        if place is None or not place.is_dir():
            return None
        _require_closed(place, place.lstat(), self.uid)
        return place

    def require_files(self, folder: Path) -> None:
        """Look at a folder and what lies in it, not below."""
        if place := self.require_folder(folder):
            for path, status in self.entries(place):
                if stat.S_ISLNK(status.st_mode):
                    self.require_linked(Path(path))

    def require_below(self, folder: str | Path) -> None:
        """Look at everything in a folder, and where the links in it lead."""
        pending = [str(folder)]
        while pending:
            place = self.require_folder(pending.pop())
            inner = [str(place)] if place else []
            while inner:
                here = inner.pop()
                if here in self.below:
                    continue
                self.below.add(here)
                if len(self.below) > FOLDERS:
                    raise ForeignError(errno.EFBIG, f"it has more than {FOLDERS} folders", str(folder))
                for path, status in self.entries(here):
                    if stat.S_ISLNK(status.st_mode):
                        end = self.require_linked(Path(path))
                        if end is not None and end.is_dir():
                            pending.append(str(end))
                    elif stat.S_ISDIR(status.st_mode):
                        inner.append(path)

    def lines(self, file: Path) -> list[str]:
        """Lines of a text file; none where the user cannot read it."""
        try:
            with acting_as(self.uid), os.fdopen(os.open(file, os.O_RDONLY | os.O_NONBLOCK), "rb") as opened:
                if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
                    return []
                text = opened.read(TEXT + 1)
        except OSError:
            return []
        if len(text) > TEXT:
            raise ForeignError(errno.EFBIG, f"it has more than {TEXT} bytes", str(file))
        return text.decode("utf-8", "replace").replace("\r", "").split("\n")

    def require_prefix(self, prefix: Path) -> None:
        """Look at an environment, or at the Python that one was made from.

        Source: Python's documentation of `site`.
        """
        self.require_folder(prefix)
        self.require_folder(prefix / "bin")
        if (prefix / "pyvenv.cfg").exists():  # or else the programs there are not Pensieve's
            self.require_files(prefix / "bin")
        for libraries in prefix.glob("lib*"):
            self.require_files(libraries)
            for library in (*libraries.glob("python*"), *libraries.glob("pypy*")):
                self.require_packages(library)

    def require_packages(self, library: Path) -> None:
        """Look at a folder of packages, and at the folders that its .pth files name."""
        self.require_below(library)
        for file in (*library.glob("*-packages/*.pth"), *library.glob("*.pth")):
            for number, line in enumerate(self.lines(file), 1):
                if not line.strip() or line.startswith(("#", "import ", "import\t")):
                    continue
                try:
                    self.require_below(file.parent / line.rstrip())
                except (OSError, ValueError) as error:
                    if isinstance(error, ForeignError):
                        raise
                    # Not what the line says: the file need not be a list of folders.
                    raise ForeignError(errno.EINVAL, f"line {number} names no folder", str(file)) from None


def require_own_environment(venv: Path, uid: int, home: Path) -> None:
    """Raise ForeignError where others than a user and root may change what an environment's interpreter runs.

    That is the interpreter, `pyvenv.cfg`, all programs and packages however deep, those of the Python that it was made
    from, the folders that `.pth` files name, and the folders above each of them; the packages of the
    user's home and the system's where the environment has them, too. Not what the code there does.
    """
    looked = _Environment(uid)
    try:
        python = looked.require_way(venv / "bin" / "python")
        looked.require_way(venv / "pyvenv.cfg")
        settings = {
            key.strip().lower(): value.strip()
            for key, mark, value in (line.partition("=") for line in looked.lines(venv / "pyvenv.cfg"))
            if mark
        }
        looked.require_prefix(venv)
        prefixes = [] if python is None else [python.parent.parent]
        if settings.get("home"):
            made_from = Path(settings["home"])
            prefixes.append(made_from.parent)
            for program in made_from.glob("python3*"):
                if end := looked.require_way(program):
                    prefixes.append(end.parent.parent)
        for prefix in dict.fromkeys(prefixes):
            looked.require_prefix(prefix)
        if settings.get("include-system-site-packages", "true").lower() == "true":
            for library in home.glob(".local/lib/python*"):
                looked.require_packages(library)
            if Path("/usr") in prefixes:
                for library in Path("/usr/local/lib").glob("python*"):
                    looked.require_packages(library)
    except ForeignError:
        raise
    except (OSError, ValueError) as error:  # whatever keeps from looking must not let it pass
        reason = getattr(error, "strerror", None) or "a name that cannot be"
        raise ForeignError(
            getattr(error, "errno", None) or errno.EINVAL,
            f"it cannot be followed: {reason}",
            str(getattr(error, "filename", None) or venv),
        ) from None


def _groups(uid: int) -> tuple[int, list[int]]:
    """Group of a user and all of them; nobody's where the system does not know this user."""
    try:
        user = pwd.getpwuid(uid)
    except KeyError:
        return NOGROUP, [NOGROUP]
    return user.pw_gid, os.getgrouplist(user.pw_name, user.pw_gid)


def running_as(uid: int) -> dict[str, Any]:
    """What makes subprocess run a program of a user's as this user, where this process is root and the user is not."""
    if os.geteuid() != ROOT or uid == ROOT:
        return {}
    group, groups = _groups(uid)
    return {"user": uid, "group": group, "extra_groups": groups, "start_new_session": True}


@contextlib.contextmanager
def acting_as(uid: int) -> Iterator[None]:
    """Touch files as a user, where this process is root and the user is not."""
    if os.geteuid() != ROOT or uid == ROOT:
        yield
        return
    before, (group, groups) = (os.getegid(), os.getgroups()), _groups(uid)
    os.setgroups(groups)
    os.setegid(group)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(ROOT)
        os.setegid(before[0])
        os.setgroups(before[1])
