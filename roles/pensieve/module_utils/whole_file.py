"""Files of the user who works here: read as they are, and replaced as a whole or not at all; and their digests.

A file is reached below a handle of its folder. Links are followed where they are the user's own or root's, so that a
person may keep things elsewhere. A file of somebody else is none of ours, whatever leads to it, and none is given away.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ansible.module_utils.ownership import LINKS, ROOT, ForeignError, name_of, require_owner

LIMIT = 1 << 26
"""Bytes of a file that is read as a whole: settings, sources, a manifest, a journal of many years."""


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            total.update(block)
    return total.hexdigest()


@contextlib.contextmanager
def folder_of(path: Path, uid: int | None = None) -> Iterator[tuple[int, str]]:
    """The folder of a file, opened, and the name that it has there, which is no link.

    Args:
        path: need not be there, but its folder.
        uid: whose folders and links count beside root's; by default those of this process.

    Raises:
        FileNotFoundError: there is no such folder.
        ForeignError: something on the way is somebody else's.
    """
    owners = (os.geteuid() if uid is None else uid, ROOT)
    pending, links = list(reversed(path.absolute().parts[1:])), 0
    here = os.open("/", os.O_PATH | os.O_DIRECTORY)
    try:
        while True:
            if not pending:
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
            name = pending.pop()
            try:
                found = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=here)
            except FileNotFoundError:
                if pending:
                    raise
                break
            try:
                status = os.fstat(found)
                if stat.S_ISLNK(status.st_mode):
                    require_owner(path, status, *owners)
                    links += 1
                    if links > LINKS:
                        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
                    target = Path(os.readlink("", dir_fd=found))
                    pending += reversed(target.parts[1:] if target.is_absolute() else target.parts)
                    if target.is_absolute():
                        here = _exchanged(here, os.open("/", os.O_PATH | os.O_DIRECTORY))
                elif pending:
                    if not stat.S_ISDIR(status.st_mode):
                        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
                    require_owner(path, status, *owners)
                    here, found = _exchanged(here, found), -1
                else:
                    break
            finally:
                if found >= 0:
                    os.close(found)
        yield here, name
    finally:
        os.close(here)


def _exchanged(old: int, new: int) -> int:
    """Close a handle, and give the one that takes its place."""
    os.close(old)
    return new


def status_in(folder: int, name: str) -> os.stat_result | None:
    """Status of what has a name in a folder, of a link itself; None when there is nothing."""
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _own(path: Path, folder: int, name: str) -> os.stat_result | None:
    """Status of a file that may be replaced; None when it is not there."""
    status = status_in(folder, name)
    if status is None:
        return None
    if not stat.S_ISREG(status.st_mode):
        raise ForeignError(errno.EPERM, "it is no file", str(path))
    require_owner(path, status, os.geteuid())
    return status


def status_of(path: Path) -> os.stat_result:
    """Status of a file that this process may replace.

    Raises:
        FileNotFoundError, ForeignError: it may not, or there is none.
    """
    with folder_of(path) as (folder, name):
        status = _own(path, folder, name)
    if status is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    return status


def head(path: Path, size: int, uid: int | None = None) -> bytes:
    """The first bytes of a file of a user's; by default of one that this process' user or root owns.

    Raises:
        OSError: FileNotFoundError, ForeignError, …
    """
    with opened(path, uid) as file:
        return file.read(size)


def read(path: Path, uid: int | None = None) -> bytes:
    """All of it.

    Raises:
        OSError: as `head`; EFBIG where it is longer than LIMIT.
    """
    content = head(path, LIMIT + 1, uid)
    if len(content) > LIMIT:
        raise OSError(errno.EFBIG, f"it has more than {LIMIT} bytes", str(path))
    return content


@contextlib.contextmanager
def opened(path: Path, uid: int | None = None) -> Iterator[BinaryIO]:
    """The same, opened to be read."""
    with folder_of(path, uid) as (folder, name):
        handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise ForeignError(errno.EPERM, "it is no file", str(path))
        require_owner(path, status, *((os.geteuid(), ROOT) if uid is None else (uid,)))
        yield file


class Staged:
    """A file that lies beside the place that it will take, with content and mode. It is on the disk."""

    def __init__(self, path: Path, content: bytes, mode: int, gid: int | None = None, uid: int | None = None) -> None:
        """Write it as the user of this process. Nothing is left when that fails.

        Args:
            path: where it will be; a link to a file stays, and the file is replaced.
            content: all of it.
            mode: permissions.
            gid: its group, by default that of this process.
            uid: its owner, who has to be this process' user: nothing is given away.

        Raises:
            OSError: no room, no right; ForeignError: what lies there is somebody else's, or would be.
        """
        if uid not in (None, os.geteuid()):
            raise ForeignError(errno.EPERM, f"it would belong to {name_of(uid or 0)}", str(path))
        self.path = path
        with contextlib.ExitStack() as held:
            self._folder, self._name = held.enter_context(folder_of(path))
            _own(path, self._folder, self._name)
            self._part = f".{self._name}.{secrets.token_hex(4)}"
            new = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            handle = os.open(self._part, new, 0o600, dir_fd=self._folder)
            held.callback(self._remove)
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                if gid is not None and gid != os.fstat(handle).st_gid:
                    os.fchown(handle, -1, gid)
                os.fchmod(handle, mode)
                os.fsync(handle)
            self._held = held.pop_all()

    def _remove(self) -> None:
        if self._part:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._part, dir_fd=self._folder)

    def put(self) -> None:
        """Let it take its place, on the disk, too."""
        os.replace(self._part, self._name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        self._part = ""  # and nothing is left to remove
        flush(self._folder)

    def close(self) -> None:
        """Remove it, unless it has taken its place."""
        self._held.close()


@contextlib.contextmanager
def appending(path: Path) -> Iterator[tuple[int, int]]:
    """A file that is read and added to, made where there is none, and its folder; both opened."""
    with folder_of(path) as (folder, name):
        _own(path, folder, name)
        handle = os.open(name, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600, dir_fd=folder)
        try:
            require_owner(path, os.fstat(handle), os.geteuid())
            yield folder, handle
        finally:
            os.close(handle)


def make_folder(path: Path, mode: int = 0o700) -> None:
    """Make a folder, and those above it, unless it is there."""
    try:
        with folder_of(path) as (folder, name), contextlib.suppress(FileExistsError):
            os.mkdir(name, mode, dir_fd=folder)
    except FileNotFoundError:
        make_folder(path.parent, 0o777)
        make_folder(path, mode)


def flush(folder: int) -> None:
    """Have the names of a folder's files on the disk."""
    handle = os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=folder)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write(path: Path, content: bytes, mode: int, gid: int | None = None) -> None:
    """Put a file in place at once, as the user of this process, and on the disk. Nothing appears when that fails."""
    made = Staged(path, content, mode, gid)
    with contextlib.closing(made):
        made.put()


def write_like(path: Path, content: bytes, other: Path) -> None:
    """Put a file in place at once, with the mode and group of another, which may be the one that it replaces."""
    status = status_of(other)
    write(path, content, stat.S_IMODE(status.st_mode), status.st_gid)


def rename(path: Path, name: str) -> None:
    """Give what is this process' user's another name in its folder; a link to it stays, and leads nowhere then."""
    with folder_of(path) as (folder, old):
        require_owner(path, os.stat(old, dir_fd=folder, follow_symlinks=False), os.geteuid())
        os.rename(old, name, src_dir_fd=folder, dst_dir_fd=folder)


def remove(path: Path) -> None:
    """Remove a file of this process' user, if it is there; a link to it stays."""
    with folder_of(path) as (folder, name):
        if _own(path, folder, name) is not None:
            os.unlink(name, dir_fd=folder)
