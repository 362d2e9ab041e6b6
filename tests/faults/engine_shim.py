"""The library that makes calls fail (``engine_shim.c``), and what it shares with whoever has loaded it."""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
import struct
import subprocess
from enum import IntEnum
from pathlib import Path

SOURCE = Path(__file__).with_name("engine_shim.c")
VARIABLE = "FAULTS_CONTROL"

_UNDO = struct.Struct("qQQqqq")
_WRITTEN = 0


class Kind(IntEnum):
    """Kinds of faults, as ``engine_shim.c`` numbers them. It also says what each does."""

    NONE = 0
    EIO = 1
    FULL = 2
    KILL = 3
    TORN = 4
    POWER = 5
    CUT = 6
    UNHEARD = 7
    GONE = 8


_FILE, _ROOM, _WRITE, _SEND, _ANSWERED = 1, 2, 4, 8, 16
_APPLIES = {
    Kind.EIO: _FILE,
    Kind.FULL: _ROOM,
    Kind.KILL: _FILE | _SEND,
    Kind.TORN: _WRITE,
    Kind.POWER: _FILE,
    Kind.CUT: _SEND,
    Kind.UNHEARD: _ANSWERED,
    Kind.GONE: _SEND,
}


def missing_reason() -> str | None:
    """Why the library cannot be made here, or None."""
    return None if shutil.which("gcc") else "no gcc in the PATH"


def build(folder: Path) -> Path:
    """Make the library."""
    library = folder / "shim.so"
    subprocess.run(
        ["gcc", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", str(library), str(SOURCE), "-ldl"],
        check=True,
    )
    return library


class Call:
    """One call that was counted."""

    def __init__(self, line: bytes) -> None:
        number, sort, name, what = line.split(b"\t", 3)
        self.number, self._sort = int(number), int(sort)
        self.told = f"{name.decode()} {what.decode(errors='replace').strip()}"

    def takes(self, kind: Kind) -> bool:
        """Whether a kind of fault can strike it."""
        return bool(self._sort & _APPLIES[kind])


class _Shared(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int) for name in ("armed", "kind", "trace", "port", "struck", "lasting")),
        *((name, ctypes.c_long) for name in ("count", "wanted")),
        *((name, ctypes.c_char * 512) for name in ("folder", "told")),
    )


class Control:
    """What the library looks at, in a file that all processes of an operation have mapped."""

    def __init__(self, path: Path) -> None:
        """``path`` is what the variable FAULTS_CONTROL names; it is made if need be."""
        self._path = path
        with path.open("a+b") as file:
            os.ftruncate(file.fileno(), ctypes.sizeof(_Shared))
            self._shared = _Shared.from_buffer(mmap.mmap(file.fileno(), ctypes.sizeof(_Shared)))
        self._trace, self._undo = (path.with_name(path.name + suffix) for suffix in (".trace", ".undo"))

    def arm(self, folder: Path, port: int, kind: Kind = Kind.NONE, wanted: int = 0) -> None:
        """Count from here on, and let the call of that number fail. Without a kind, the calls are noted."""
        self._trace.unlink(missing_ok=True)
        self._undo.unlink(missing_ok=True)
        shared = self._shared
        shared.count = shared.struck = shared.lasting = 0
        shared.kind, shared.wanted, shared.port = kind, wanted, port
        shared.trace = kind is Kind.NONE
        shared.folder, shared.told = os.fsencode(folder), b""
        shared.armed = 1

    def disarm(self) -> None:
        """Count no more; nothing fails any more."""
        self._shared.armed = 0

    @property
    def count(self) -> int:
        """Calls that were counted."""
        return int(self._shared.count)

    @property
    def told(self) -> str:
        """The call that was struck; empty if none was."""
        return bytes(self._shared.told).decode(errors="replace") if self._shared.struck else ""

    def calls(self) -> list[Call]:
        """What was counted."""
        return [Call(line) for line in self._trace.read_bytes().splitlines()] if self._trace.exists() else []

    def take_back(self, folder: Path) -> None:
        """Let files of a folder lose what was not flushed, as a power cut may."""
        if not self._undo.exists():
            return
        noted = self._undo.read_bytes()
        records = []
        at = 0
        while at < len(noted):
            what, device, inode, size, place, length = _UNDO.unpack_from(noted, at)
            at += _UNDO.size + length
            records.append((what, (device, inode), size, place, noted[at - length : at]))
        files = {(s.st_dev, s.st_ino): file for file in folder.rglob("*") if (s := file.lstat()) and file.is_file()}
        settled: set[tuple[int, int]] = set()
        for what, identity, size, place, old in reversed(records):
            if what != _WRITTEN:
                settled.add(identity)
            elif identity not in settled and identity in files:
                with files[identity].open("r+b") as file:
                    file.seek(place)
                    file.write(old)
                    file.truncate(size)
