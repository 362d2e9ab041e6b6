"""What has changed in the source since a snapshot of it: rows, vectors and entries of the full-text index.

Only rows whose pages have changed are read (see ``pages``), from the snapshot and from the source as it is now, and
compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .pages import Candidates, DamagedError, Image, Ints, PageMap, changed_pages, open_pages
from .plan import TablePlan
from .snapshot import Snapshot
from .source import Source, quoted
from .vec0 import VecReader
from .wal import Log, Mark

_AT_ONCE = 400  # rows of one query by rowid

Row = tuple[Any, ...]


class TooDifferentError(Exception):
    """What has changed cannot be brought over as a difference; the text says why. A whole copy can."""


class Change(NamedTuple):
    """A row before and now; None: it does not exist."""

    before: Row | None
    now: Row | None


class Pages(NamedTuple):
    """Pages that were written since the snapshot, how they were found, and what stands in them now."""

    changed: Ints
    image: Image
    found_by: str


def written_pages(snapshot: Snapshot, source: Path) -> Pages | None:
    """Find what was written since by the log, which the snapshot's holder keeps; None when it does not.

    Must be asked before this process opens the source: it closes files of it, which drops the locks of SQLite.
    """
    if not snapshot.held:
        return None
    try:
        log = Log(source, Mark(str(snapshot.mark["salts"]), int(snapshot.mark["frames"])))
    except (DamagedError, OSError):
        return None
    return Pages(log.written, log.image, "the write-ahead log") if snapshot.held else None


def differing_pages(snapshot: Snapshot, final: Path) -> Pages:
    """Find what was written since by comparing the snapshot with a copy of the source as it is now, page by page."""
    pages = open_pages(final)
    return Pages(
        changed_pages(Path(snapshot.database), final), lambda page: pages[page - 1].tobytes(), "comparing all pages"
    )


class Changes:
    """What has changed between two sources, ``before`` (the snapshot) and ``now``."""

    def __init__(self, before: Source, now: Source, folder: Path, pages: Pages) -> None:
        """``folder`` is the snapshot's. Raises TooDifferentError."""
        self._before, self._now = before, now
        definitions = "SELECT type, name, tbl_name, rootpage, sql FROM sqlite_master ORDER BY rowid"
        if before.rows(definitions) != now.rows(definitions):
            raise TooDifferentError("the definitions of the source's tables have changed")
        try:
            page_map = PageMap.load(folder / "map")
            self._candidates = page_map.candidates(pages.changed, pages.image)
        except (DamagedError, FileNotFoundError) as error:
            raise TooDifferentError(f"the snapshot's pages tell nothing: {error}") from error
        entries = folder / "map" / "entries.npy"
        self._entries: npt.NDArray[np.int64] = (
            np.load(entries, mmap_mode="r") if entries.exists() else np.empty((0, 2), np.int64)
        )
        self._text_changes: dict[int, Change] | None = None

    def touched(self, table: str) -> bool:
        """Whether any row of a table may have changed."""
        return table in self._candidates

    def rows(self, table: str, columns: Sequence[str]) -> dict[int, Change]:
        """Rows of a table that differ, by rowid."""
        candidates = self._candidates.get(table)
        if candidates is None:
            return {}
        before = dict(_candidate_rows(self._before, table, columns, candidates))
        now = dict(_candidate_rows(self._now, table, columns, candidates))
        return {
            key: Change(before.get(key), now.get(key))
            for key in sorted(before.keys() | now.keys())
            if not _same(before.get(key), now.get(key))
        }

    def vectors(self, table: TablePlan) -> set[int]:
        """Rowids of a vec0 table whose row differs, or may do."""
        assert table.virtual is not None
        name = table.name
        reader = VecReader(self._now, table.virtual)
        found = set(self.rows(f"{name}_rowids", ["chunk_id", "chunk_offset"]))
        widths: dict[str, tuple[str, int]] = {}
        for column in reader.columns:
            if column.role == "vector":
                widths[f"vector_chunks{column.slot:02}"] = ("vectors", 4 * column.dimensions)
            elif column.role == "metadata":
                widths[f"metadatachunks{column.slot:02}"] = ("data", 8 if column.kind == "integer" else 16)
                if column.kind == "text":
                    for change in self.rows(f"{name}_metadatatext{column.slot:02}", ["rowid", "data"]).values():
                        found.update(int(row[0]) for row in change if row)
        partitions = [f"partition{c.slot:02}" for c in reader.columns if c.role == "partition"]
        chunks = set(self.rows(f"{name}_chunks", ["size", *partitions, "validity", "rowids"]))
        parts = {part: self._chunks_of(f"{name}_{part}") for part in widths}
        for chunk in sorted(chunks.union(*parts.values())):
            blobs = {part: widths[part] for part in parts if chunk in parts[part]}
            found |= self._places_that_differ(name, chunk, partitions, blobs)
        return found

    def _chunks_of(self, shadow: str) -> set[int]:
        """Chunks whose blob in a shadow table may differ. (Its column "rowid" is the chunk; its rowid is another.)"""
        candidates = self._candidates.get(shadow)
        if candidates is None:
            return set()
        found: set[int] = set()
        for side in (self._before, self._now):
            found.update(row[0] for _, row in _candidate_rows(side, shadow, ["rowid"], candidates))
        return found

    def _places_that_differ(
        self, name: str, chunk: int, partitions: Sequence[str], blobs: Mapping[str, tuple[str, int]]
    ) -> set[int]:
        """Rowids at the places of a chunk that differ, on either side."""
        before, now = (_Chunk(side, name, chunk, partitions) for side in (self._before, self._now))
        if now.exists:
            now.require_listed()
        if not (before.exists and now.exists) or before.head != now.head:
            return before.listed() | now.listed()
        differ = (before.valid != now.valid) | (before.rowids != now.rowids)
        for part, (column, width) in blobs.items():
            ours, theirs = (side.blob(part, column, width) for side in (before, now))
            if ours.shape != theirs.shape or len(ours) != len(differ):
                return before.listed() | now.listed()
            differ |= (ours != theirs).any(axis=1)
        return before.listed(differ) | now.listed(differ)

    def text_entries(self) -> dict[int, Change]:
        """Entries of the full-text index that differ, by their own rowid; a row is (entity,) and what is indexed."""
        if self._text_changes is None:
            self._text_changes = self.rows("entities_fts_content", ["c0", "c1", "c2", "c3"])
            for change in self._text_changes.values():
                if any(row is not None and not isinstance(row[0], int) for row in change):
                    raise TooDifferentError("a full-text entry without an entity's id has changed")
        return self._text_changes

    def entries_of(self, entities: Iterable[int]) -> dict[int, tuple[list[int], list[int]]]:
        """Rowids of the full-text entries of some entities: before, and now."""
        changed = self.text_entries()
        found: dict[int, tuple[list[int], list[int]]] = {}
        for entity in entities:
            place = np.searchsorted(self._entries[:, 0], [entity, entity + 1])
            before = self._entries[place[0] : place[1], 1].tolist()
            found[entity] = (before, [entry for entry in before if entry not in changed])
        for entry, change in changed.items():
            if change.now is not None and change.now[0] in found:
                found[change.now[0]][1].append(entry)
        return found


def _candidate_rows(
    source: Source, table: str, columns: Sequence[str], candidates: Candidates
) -> Iterator[tuple[int, Row]]:
    wanted = ", ".join(["_rowid_", *map(quoted, columns)])
    sql = f"SELECT {wanted} FROM {quoted(table)}"
    for low, high in candidates.intervals:
        for row in source.execute(f"{sql} WHERE _rowid_ > ? AND _rowid_ <= ?", (low, high)):
            yield row[0], row[1:]
    for rows in rows_by_rowid(source, table, columns, sorted(candidates.rowids)):
        yield from ((row[0], row[1:]) for row in rows)


def rows_by_rowid(source: Source, table: str, columns: Sequence[str], rowids: Sequence[int]) -> Iterator[list[Row]]:
    """Rows of a table (rowid first), some at once; those that do not exist are left out."""
    wanted = ", ".join(["_rowid_", *map(quoted, columns)])
    for at in range(0, len(rowids), _AT_ONCE):
        some = rowids[at : at + _AT_ONCE]
        marks = ", ".join("?" * len(some))
        yield source.rows(f"SELECT {wanted} FROM {quoted(table)} WHERE _rowid_ IN ({marks}) ORDER BY _rowid_", some)


def _same(ours: Row | None, theirs: Row | None) -> bool:
    """Whether two rows are stored alike: 1 is not 1.0, a text is not a blob."""
    if ours is None or theirs is None:
        return ours is theirs
    return ours == theirs and all(
        type(a) is type(b) and (not isinstance(a, float) or a.hex() == b.hex()) for a, b in zip(ours, theirs)
    )


class _Chunk:
    """A chunk of vectors on one side."""

    def __init__(self, source: Source, name: str, chunk: int, partitions: Sequence[str]) -> None:
        self._source, self._name, self._number = source, name, chunk
        wanted = ", ".join(["size", *partitions, "CAST(validity AS BLOB)", "CAST(rowids AS BLOB)"])
        found = source.rows(f"SELECT {wanted} FROM {quoted(name + '_chunks')} WHERE chunk_id = ?", (chunk,))
        self.exists = bool(found)
        self.head: Row = ()
        self.valid, self.rowids = np.empty(0, bool), np.empty(0, np.int64)
        if found:
            *head, validity, rowids = found[0]
            self.head = tuple(head)
            if len(validity) * 8 < head[0] or len(rowids) != 8 * head[0]:
                raise TooDifferentError(f"chunk {chunk} of {name} is damaged")
            bits = np.unpackbits(np.frombuffer(validity, np.uint8), bitorder="little")
            self.valid, self.rowids = bits[: head[0]].astype(bool), np.frombuffer(rowids, "<i8")

    def listed(self, places: npt.NDArray[np.bool_] | None = None) -> set[int]:
        """Rowids of the rows at some places, or at all."""
        return set(self.rowids[self.valid if places is None else self.valid & places].tolist())

    def blob(self, part: str, column: str, width: int) -> npt.NDArray[np.uint8]:
        """What a shadow table holds of this chunk, a row for each place."""
        sql = f"SELECT CAST({column} AS BLOB) FROM {quoted(f'{self._name}_{part}')} WHERE rowid = ?"
        found = self._source.rows(sql, (self._number,))
        data = np.frombuffer(found[0][0] if found and found[0][0] else b"", np.uint8)
        return data.reshape(-1, width) if len(data) % width == 0 else data.reshape(-1, 1)

    def require_listed(self) -> None:
        """Refuse a chunk with rows that the table does not list: they are kept in quarantine by their place."""
        places = np.flatnonzero(self.valid)
        listed = {
            row[0]: row[1:]
            for rows in rows_by_rowid(
                self._source, f"{self._name}_rowids", ["chunk_id", "chunk_offset"], self.rowids[places].tolist()
            )
            for row in rows
        }
        for place in places.tolist():
            if listed.get(int(self.rowids[place])) != (self._number, place):
                raise TooDifferentError(f"chunk {self._number} of {self._name} holds a row that is not listed")
