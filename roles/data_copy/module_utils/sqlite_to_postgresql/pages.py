"""Which rows the pages of a SQLite file hold, and which rows may differ when some of its pages have changed.

The map is made of a file that stands still (the snapshot). It gives each leaf page of a table the interval of rowids
that belong there, whether they exist or not (the leaves of a table part the whole range of rowids among them), and
each overflow page the row that owns it. A row that was inserted, updated or deleted after the snapshot is then in one
of three sets, whose union is what `PageMap.candidates` gives:

1. its leaf page of the snapshot was written: SQLite stores a row in the leaf in whose interval its rowid falls;
2. an overflow page that it owned in the snapshot was written: an update of equal length writes there and nowhere
   else;
3. its leaf page was not written, but is no leaf of that table any more, or is one with a smaller interval. A merge of
   neighbours, or a DELETE of all rows, frees leaves without writing them; their parent page is written then.

For the third, the interior pages of the tree as it is now are walked, from the root down, as far as they have
changed. A leaf that was not written and still has (at least) its interval holds the very rows of the snapshot.

Format: https://www.sqlite.org/fileformat2.html, b-tree pages. Intervals are (low, high]: the least rowid of all,
-2^63, is in none; `Source` refuses a table that holds it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

LOW, HIGH = -(1 << 63), (1 << 63) - 1

_LEAF_PAGE, _INTERIOR_PAGE = 0x0D, 0x05
_OTHER, _LEAF, _INTERIOR, _OVERFLOW = range(4)
_AT_ONCE = 2048  # leaf pages that are read together
_ARRAYS = ("kind", "table", "low", "high")

Bytes2D = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]
Interval = tuple[int, int]

#: Gives a page as it is now.
Image = Callable[[int], bytes]


class DamagedError(Exception):
    """The pages do not fit together, so that nothing follows from them."""


@dataclass
class Candidates:
    """Rows of one table that may have changed: all rowids within intervals (low, high], and single ones."""

    intervals: list[Interval] = field(default_factory=list)
    rowids: set[int] = field(default_factory=set)


def page_size(path: Path) -> tuple[int, int]:
    """Size of a page in bytes, and how many of them rows may use."""
    with path.open("rb") as stream:
        head = stream.read(100)
    if head[:16] != b"SQLite format 3\0":
        raise DamagedError(f"{path} is no SQLite database")
    size = int.from_bytes(head[16:18], "big")
    size = 65536 if size == 1 else size
    return size, size - head[20]


def open_pages(path: Path) -> Bytes2D:
    """The pages of a file that stands still, mapped: page n is row n - 1."""
    size, _ = page_size(path)
    data: npt.NDArray[np.uint8] = np.memmap(path, np.uint8, "r")
    return data.reshape(-1, size)


def changed_pages(before: Path, after: Path) -> Ints:
    """Numbers of the pages in which two files differ; pages of only one of them too."""
    ours, theirs = open_pages(before), open_pages(after)
    if ours.shape[1] != theirs.shape[1]:
        raise DamagedError(f"pages of {ours.shape[1]} and of {theirs.shape[1]} bytes")
    both = min(len(ours), len(theirs))
    found = [np.arange(both, max(len(ours), len(theirs)))]
    for at in range(0, both, _AT_ONCE):
        part = slice(at, min(at + _AT_ONCE, both))
        found.append(at + np.flatnonzero((ours[part] != theirs[part]).any(axis=1)))
    return np.sort(np.concatenate(found)).astype(np.int64) + 1


class PageMap:
    """The map of one file. ``kind``, ``table``, ``low`` and ``high`` have an entry for each page number (0 is none)."""

    def __init__(self, path: Path, tables: Mapping[str, int], arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        self._path, self._roots = path, dict(tables)
        self._names = list(tables)
        self._pages = open_pages(path)
        self.kind, self.table = arrays["kind"], arrays["table"]
        self.low, self.high = arrays["low"], arrays["high"]

    @classmethod
    def build(cls, path: Path, tables: Mapping[str, int]) -> PageMap:
        """Map the pages of some tables (name → root page). Raises DamagedError."""
        _, usable = page_size(path)
        pages = open_pages(path)
        count = len(pages) + 1
        arrays: dict[str, npt.NDArray[Any]] = {
            "kind": np.zeros(count, np.uint8),
            "table": np.zeros(count, np.int16),
            "low": np.zeros(count, np.int64),
            "high": np.zeros(count, np.int64),
        }
        made = cls(path, tables, arrays)
        for number, root in enumerate(tables.values()):
            made._map_table(pages, usable, number, root)
        return made

    def save(self, folder: Path, path: Path | None = None) -> None:
        """Write the map into a folder, which is made. ``path``: where the file will be when the map is loaded."""
        folder.mkdir(mode=0o700, exist_ok=True)
        for name in _ARRAYS:
            np.save(folder / f"{name}.npy", getattr(self, name))
        (folder / "tables.json").write_text(json.dumps({"path": str(path or self._path), "tables": self._roots}))

    @classmethod
    def load(cls, folder: Path) -> PageMap:
        """Open a saved map; what is looked at is read from disk then."""
        named = json.loads((folder / "tables.json").read_text())
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS}
        return cls(Path(named["path"]), named["tables"], arrays)

    def _map_table(self, pages: Bytes2D, usable: int, number: int, root: int) -> None:
        level, low, high = np.array([root]), np.array([LOW]), np.array([HIGH])
        while len(level):
            if level.min() < 2 or level.max() > len(pages) or self.kind[level].any():
                raise DamagedError(f"the tree of table {self._names[number]} leads out of itself")
            kinds = pages[level - 1, 0]
            if not np.isin(kinds, (_LEAF_PAGE, _INTERIOR_PAGE)).all():
                raise DamagedError(f"table {self._names[number]} has a page that is no page of a table")
            self.kind[level] = np.where(kinds == _LEAF_PAGE, _LEAF, _INTERIOR)
            self.table[level], self.low[level], self.high[level] = number, low, high
            leaves, inner = level[kinds == _LEAF_PAGE], kinds == _INTERIOR_PAGE
            for at in range(0, len(leaves), _AT_ONCE):
                self._map_overflow(pages, number, *_overflowing(pages[leaves[at : at + _AT_ONCE] - 1], usable))
            level, low, high = _children(pages[level[inner] - 1], low[inner], high[inner])

    def _map_overflow(self, pages: Bytes2D, number: int, level: Ints, rowids: Ints) -> None:
        """Follow the chains that begin at some pages."""
        while len(level):
            if level.min() < 2 or level.max() > len(pages) or self.kind[level].any():
                raise DamagedError(f"an overflow chain of table {self._names[number]} leads out of itself")
            self.kind[level] = _OVERFLOW
            self.table[level], self.low[level], self.high[level] = number, rowids, rowids
            following = _big_endian(pages, level - 1, np.zeros_like(level), 4)
            level, rowids = following[following > 0], rowids[following > 0]

    def candidates(self, changed: Ints, image: Image) -> dict[str, Candidates]:
        """Give, by table, the rows that may differ when ``changed`` holds all pages that were written since.

        It may hold more. ``image`` gives a page of ``changed`` as it is now. Raises DamagedError.
        """
        known = changed[changed < len(self.kind)]
        found = {name: Candidates() for name in self._names}
        for page in known[self.kind[known] == _OVERFLOW].tolist():
            found[self._names[self.table[page]]].rowids.add(int(self.low[page]))
        for page in known[self.kind[known] == _LEAF].tolist():
            found[self._names[self.table[page]]].intervals.append((int(self.low[page]), int(self.high[page])))
        pages = set(changed.tolist())
        for number in np.unique(self.table[known[self.kind[known] == _INTERIOR]]).tolist():
            found[self._names[number]].intervals += self._moved(number, pages, image)
        return {
            name: Candidates(_joined(one.intervals), one.rowids)
            for name, one in found.items()
            if one.intervals or one.rowids
        }

    def _moved(self, number: int, changed: set[int], image: Image) -> list[Interval]:
        """Intervals of leaves that were not written and are no longer where they were.

        A part of the tree below an interior page that is where it was, and in which no interior page was written, is as
        it was and is not read.
        """
        inner = np.flatnonzero((self.kind == _INTERIOR) & (self.table == number))
        lows, highs = self.low[inner], self.high[inner]
        written = np.isin(inner, list(changed))
        same = np.zeros(len(inner), bool)
        leaves: dict[int, Interval] = {}
        steps = 0
        waiting = [(self._roots[self._names[number]], LOW, HIGH)]
        while waiting:
            page, low, high = waiting.pop()
            steps += 1
            if steps > len(self.kind) + len(changed):
                raise DamagedError(f"the tree of table {self._names[number]} leads out of itself")
            if page in changed:
                data = np.frombuffer(image(page), np.uint8)[None, :]
                if data[0, 0] == _LEAF_PAGE:
                    continue
                if data[0, 0] != _INTERIOR_PAGE:
                    raise DamagedError(f"table {self._names[number]}: page {page} is no page of a table")
                waiting += _listed(_children(data, np.array([low]), np.array([high])))
            elif page >= len(self.kind) or self.table[page] != number:
                raise DamagedError(f"table {self._names[number]}: page {page} came from elsewhere unwritten")
            elif self.kind[page] == _LEAF:
                leaves[page] = (low, high)
            else:
                stays = (low, high) == (self.low[page], self.high[page])
                if stays:
                    within = (lows >= low) & (highs <= high)
                    below_written = (written & within).any()
                    same |= (inner == page) if below_written else within
                    if not below_written:
                        continue
                children = self._below(page, low, high)
                waiting += [child for child in children if not stays or self.kind[child[0]] == _INTERIOR]
        moved = []
        for page in inner[~same].tolist():
            for child, low, high in self._below(page, self.low[page], self.high[page]):
                if self.kind[child] != _LEAF or child in changed:
                    continue
                now = leaves.get(child)
                if now is None or now[0] > low or now[1] < high:
                    moved.append((low, high))
        return moved

    def _below(self, page: int, low: int, high: int) -> list[tuple[int, int, int]]:
        """Pages below an interior page of these bounds that was not written, with their intervals."""
        return _listed(_children(self._pages[page - 1 : page], np.array([low]), np.array([high])))


def _joined(intervals: Iterable[Interval]) -> list[Interval]:
    """Neighbouring and overlapping intervals as one."""
    joined: list[Interval] = []
    for low, high in sorted(intervals):
        if joined and low <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(high, joined[-1][1]))
        else:
            joined.append((low, high))
    return joined


def _listed(children: tuple[Ints, Ints, Ints]) -> list[tuple[int, int, int]]:
    return list(zip(*(part.tolist() for part in children)))


def _big_endian(images: Bytes2D, rows: Ints, at: Ints, width: int) -> Ints:
    """Unsigned integers at some places of some pages."""
    value = np.zeros(len(rows), np.int64)
    for byte in range(width):
        value = value << 8 | images[rows, at + byte]
    return value


def _varints(images: Bytes2D, rows: Ints, at: Ints) -> tuple[Ints, Ints]:
    """SQLite's integers of variable length at some places, and how many bytes each has."""
    value, length = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64)
    going = np.ones(len(rows), bool)
    last = images.shape[1] - 1
    for byte in range(9):
        found = images[rows, np.minimum(at + byte, last)].astype(np.int64)
        shifted = value << 8 | found if byte == 8 else value << 7 | found & 0x7F
        value = np.where(going, shifted, value)
        length += going
        going &= found >= 0x80
        if not going.any():
            break
    return value, length


def _cells(images: Bytes2D, head: int) -> tuple[Ints, Ints, Ints]:
    """For each cell of some pages: which of the pages, which of its cells, and where it begins."""
    pages = np.arange(len(images))
    counts = _big_endian(images, pages, np.full(len(images), 3), 2)
    rows = np.repeat(pages, counts)
    numbers = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    at = _big_endian(images, rows, np.minimum(head + 2 * numbers, images.shape[1] - 2), 2)
    return rows, numbers, np.minimum(at, images.shape[1] - 4)


def _children(images: Bytes2D, low: Ints, high: Ints) -> tuple[Ints, Ints, Ints]:
    """Pages below some interior pages, with their intervals, within those of the pages themselves."""
    rows, numbers, at = _cells(images, 12)
    keys, _ = _varints(images, rows, at + 4)
    pages = np.arange(len(images))
    counts = np.bincount(rows, minlength=len(images))
    starts = np.cumsum(counts + 1) - (counts + 1)
    child, lows, highs = (np.empty(len(rows) + len(images), np.int64) for _ in range(3))
    place = starts[rows] + numbers
    child[place] = _big_endian(images, rows, at, 4)
    child[starts + counts] = _big_endian(images, pages, np.full(len(images), 8), 4)
    highs[place], highs[starts + counts] = keys, high
    lows[place + 1], lows[starts] = keys, low
    return child, lows, highs


def _overflowing(images: Bytes2D, usable: int) -> tuple[Ints, Ints]:
    """First overflow pages of the rows of some leaf pages, and the rowids of these rows."""
    rows, _, at = _cells(images, 8)
    size, size_width = _varints(images, rows, at)
    rowid, rowid_width = _varints(images, rows, at + size_width)
    most, least = usable - 35, (usable - 12) * 32 // 255 - 23
    spilled = size > most
    rows, at, size, rowid = rows[spilled], (at + size_width + rowid_width)[spilled], size[spilled], rowid[spilled]
    local = least + (size - least) % (usable - 4)
    local = np.where(local <= most, local, least)
    return _big_endian(images, rows, np.minimum(at + local, images.shape[1] - 4), 4), rowid
