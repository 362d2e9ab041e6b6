"""The write-ahead log of a SQLite file: which pages were written since a moment, and what stands in them.

While a read transaction of that moment is held, no frame that was written after it can leave the log:

* A checkpoint copies into the file no frame beyond the oldest one that a reader needs, and resets nothing before all
  is copied. So while the reader reads from the log, the log only grows.
* When all of the log had been copied before the moment, the reader reads from the file alone. A checkpoint then
  copies nothing at all (it would change the file under the reader), but a writer may begin the log anew, with other
  salts in its head. That happens once at most: it needs a log that was copied wholly, and nothing is copied any more.

So the pages written since the moment are those of the frames that carry the salts of the log's head, and, if the
salts are those from before the moment, that come after the last frame of then. `Mark.read` is asked *before* the
moment: commits that fall in between make the set larger than it must be, never smaller.

Formats: https://www.sqlite.org/walformat.html and https://www.sqlite.org/fileformat2.html#walformat
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .pages import DamagedError, Ints

_FILE_HEAD, _FRAME_HEAD, _INDEX_HEAD = 32, 24, 48
_MAGIC = 0x377F0682  # the lowest bit tells the byte order of checksums


def wal_of(database: Path) -> Path:
    """Where the log of a database is."""
    return _beside(database, "wal")


def log_bytes(database: Path) -> int:
    """Size of the log; 0 where there is none. It goes with the last connection, at any moment."""
    try:
        return wal_of(database).stat().st_size
    except FileNotFoundError:
        return 0


def _beside(database: Path, what: str) -> Path:
    """What SQLite keeps beside the file itself, not beside a link to it."""
    file = database.resolve()
    return file.with_name(f"{file.name}-{what}")


@dataclass(frozen=True)
class Mark:
    """How far the log was: its salts (16 hexadecimal digits) and its last committed frame."""

    salts: str
    frames: int

    @classmethod
    def read(cls, database: Path) -> Mark:
        """Read the index of the log, which is there while anybody has the database open. Raises DamagedError."""
        shared = _beside(database, "shm")
        for _ in range(1000):
            with shared.open("rb") as stream:
                first, second = stream.read(_INDEX_HEAD), stream.read(_INDEX_HEAD)
            if len(second) == _INDEX_HEAD and first == second and first[12]:
                frames = int(np.frombuffer(first, np.uint32, 1, 16)[0])
                return cls(first[32:40].hex(), frames)
        raise DamagedError(f"{shared} does not hold the index of a log")


class Log:
    """The log of a database at rest."""

    def __init__(self, database: Path, mark: Mark) -> None:
        """Read which pages were written since ``mark``. Raises DamagedError, OSError."""
        wal = wal_of(database)
        self.written: Ints = np.empty(0, np.int64)
        self._places: dict[int, int] = {}
        self._data: npt.NDArray[np.uint8] = np.empty((0, 0), np.uint8)
        if log_bytes(database) < _FILE_HEAD + _FRAME_HEAD:
            if mark.frames:
                raise DamagedError(f"{wal} is gone")
            return
        with wal.open("rb") as stream:
            head = stream.read(_FILE_HEAD)
        if int.from_bytes(head[:4], "big") & ~1 != _MAGIC:
            raise DamagedError(f"{wal} is no write-ahead log")
        salts, width = head[16:24], _FRAME_HEAD + int.from_bytes(head[8:12], "big")
        count = (wal.stat().st_size - _FILE_HEAD) // width
        self._data = np.memmap(wal, np.uint8, "r", _FILE_HEAD, (count, width))
        heads = np.array(self._data[:, :_FRAME_HEAD])
        ours = (heads[:, 8:16] == np.frombuffer(salts, np.uint8)).all(axis=1)
        committed = Mark.read(database)
        last = committed.frames if committed.salts == salts.hex() else 0
        if last > count or not ours[:last].all():
            raise DamagedError(f"{wal} holds fewer frames than its index says")
        numbers = heads[:, :4].copy().view(">u4").ravel().astype(np.int64)
        first = mark.frames if salts.hex() == mark.salts else 0
        self.written = np.unique(numbers[first:last])
        # The last frame of a page is its content.
        self._places = dict(zip(numbers[first:last].tolist(), range(first, last)))

    def image(self, page: int) -> bytes:
        """Content of a page that was written since."""
        place = self._places.get(page)
        if place is None:
            raise DamagedError(f"the log does not hold page {page}")
        return self._data[place, _FRAME_HEAD:].tobytes()
