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


def _lines(file: Path) -> list[str]:
    """Lines of a text file of an environment; none where there is no such file."""
    try:
        with file.open(encoding="utf-8", errors="replace") as text:
            return text.read(1 << 20).splitlines()
    except OSError:
        return []


def _folders_of(prefix: Path) -> Iterator[Path]:
    """Folders that the interpreter below a prefix imports from. Source: Python's documentation of `site`."""
    for library in prefix.glob("lib*/python*"):
        yield library
        for file in library.glob("*-packages/*.pth"):
            for line in _lines(file):
                if line.strip() and not line.startswith(("#", "import ", "import\t")):
                    yield file.parent / line.strip()


def _prefixes_of(venv: Path) -> Iterator[Path]:
    """An environment, and the Python that it was made from."""
    yield venv
    for line in _lines(venv / "pyvenv.cfg"):
        key, _, value = line.partition("=")
        if key.strip().lower() == "home" and value.strip():
            yield Path(value.strip()).parent


def _entries(folder: str) -> list[os.DirEntry[str]]:
    """What lies in a folder; nothing where this user may not look, who runs nothing from there either."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except (FileNotFoundError, PermissionError):
        return []


class _Closed:
    """What was found to be closed to others than a user and root."""

    def __init__(self, uid: int) -> None:
        self.uid = uid
        self.seen: set[Path] = set()
        self.below: set[str] = set()

    def require_way(self, path: Path) -> Path | None:
        """Look at what leads to a path, and at its end; where that is, None where there is nothing."""
        end = None
        try:
            for end, status in steps(path):
                if end not in self.seen:
                    _require_closed(end, status, self.uid, shared=True)
                    self.seen.add(end)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except ForeignError:
            raise
        except OSError as error:  # a link that leads round in a circle hides nothing that stands beside it
            raise ForeignError(error.errno, f"it cannot be followed: {error.strerror}", str(path)) from error
        return end

    def require_below(self, folder: Path) -> None:
        """Look at everything in a folder, and where the links in it lead."""
        pending = [folder]
        while pending:
            place = self.require_way(pending.pop())
            if place is None or not place.is_dir():
                continue
            _require_closed(place, place.stat(), self.uid)
            inner = [str(place)]
            while inner:
                here = inner.pop()
                if here in self.below:
                    continue
                self.below.add(here)
                if len(self.below) > FOLDERS:
                    raise ForeignError(errno.EFBIG, f"it has more than {FOLDERS} folders", str(folder))
                for entry in _entries(here):
                    if entry.is_symlink():
                        pending.append(Path(entry.path))
                        continue
                    with contextlib.suppress(FileNotFoundError):
                        _require_closed(entry.path, entry.stat(follow_symlinks=False), self.uid)
                    if entry.is_dir(follow_symlinks=False):
                        inner.append(entry.path)


def require_own_environment(venv: Path, uid: int) -> None:
    """Raise ForeignError where others than a user and root may change what an environment's interpreter runs.

    That is the interpreter, `pyvenv.cfg`, all packages however deep, those of the Python that `pyvenv.cfg` names, the
    folders that `.pth` files name, and the folders above each of them.
    """
    closed = _Closed(uid)
    closed.require_way(venv / "bin" / "python")
    closed.require_way(venv / "pyvenv.cfg")
    # Each folder is looked at before the next is asked for, and so before the names in its .pth files are believed.
    for prefix in _prefixes_of(venv):
        for folder in _folders_of(prefix):
            closed.require_below(folder)


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
