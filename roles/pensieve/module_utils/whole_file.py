"""Files that are replaced as a whole or not at all, and their digests."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            total.update(block)
    return total.hexdigest()


def staged(path: Path, content: bytes, mode: int, uid: int, gid: int) -> Path:
    """Write a file beside the one whose place it will take, with mode and owner. Nothing is left when that fails."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(mode)
        if (uid, gid) != (os.geteuid(), os.getegid()):
            os.chown(name, uid, gid)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return Path(name)


def write(path: Path, content: bytes, mode: int, uid: int, gid: int) -> None:
    """Put a file in place at once, with mode and owner, and on the disk. Nothing appears when that fails."""
    made = staged(path, content, mode, uid, gid)
    try:
        made.replace(path)
    except BaseException:
        made.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # its new name, before what is done next
    finally:
        os.close(folder)


def write_like(path: Path, content: bytes, other: Path) -> None:
    """Put a file in place at once, with the mode and owner of another, which may be the one that it replaces."""
    status = other.stat()
    write(path, content, status.st_mode & 0o7777, status.st_uid, status.st_gid)
