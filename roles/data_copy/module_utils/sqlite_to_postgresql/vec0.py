"""Vectors of sqlite-vec, read from the shadow tables of a vec0 table without the extension.

``_rowids`` lists the rows: rowid, chunk, offset. ``_chunks`` holds validity bits and rowids of each chunk, and its
partition; ``_vector_chunks00`` the float32 (little-endian) of a chunk, ``_metadatachunksNN`` one metadata column of
it: int64, or for text 16 bytes, an int32 length and up to 12 bytes; longer text is in ``_metadatatextNN``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .convert import InvalidText
from .model import EngineError
from .source import Source, VirtualTable, quoted

Int64s = npt.NDArray[np.int64]

_SHORT_TEXT = 12
_TEXT_VIEW = 16


@dataclass(frozen=True)
class VecColumn:
    """A column of a vec0 table. ``slot`` is the NN of its shadow table."""

    name: str
    role: str  # vector, partition, metadata
    kind: str  # float32, text, integer
    slot: int
    dimensions: int = 0


@dataclass(frozen=True)
class VecBatch:
    """Rows of one chunk, by column: vectors (rows, dimensions) float32, integers int64, texts a list."""

    rowids: Int64s
    columns: list[Any]


@dataclass(frozen=True)
class VecOddity:
    """A row id without a row, or a row without a row id (sqlite-vec 0.1.7 and 0.1.8 leave them behind)."""

    listed: bool  # in _rowids
    rowid: int
    chunk: int
    offset: int
    reason: str


def parse(table: VirtualTable) -> list[VecColumn]:
    """Read the columns from the CREATE statement, in their order."""
    inside = table.sql[table.sql.index("(") + 1 : table.sql.rindex(")")]
    columns: list[VecColumn] = []
    slots = {"vector": 0, "partition": 0, "metadata": 0}
    for definition in (part.strip() for part in inside.split(",")):
        if re.match(r"\w+\s*=", definition):
            continue
        vector = re.match(r"(\w+)\s+(?:float|f32)\s*\[\s*(\d+)\s*\]", definition, re.IGNORECASE)
        plain = re.match(r"(\w+)\s+(text|integer|int)\b(\s+partition\s+key\b)?", definition, re.IGNORECASE)
        if vector:
            column = VecColumn(vector.group(1), "vector", "float32", slots["vector"], int(vector.group(2)))
        elif plain and "primary" not in definition.lower():
            role = "partition" if plain.group(3) else "metadata"
            kind = "text" if plain.group(2).lower() == "text" else "integer"
            column = VecColumn(plain.group(1), role, kind, slots[role])
        else:
            raise EngineError(
                f"the vector table {table.name} has a column that is not understood: {definition!r}",
                "float32 vectors with text and integer columns, as Pensieve makes them",
                "everything",
                "report this with the CREATE statement of the table",
            )
        slots[column.role] += 1
        columns.append(column)
    return columns


class VecReader:
    """Reads one vec0 table."""

    def __init__(self, source: Source, table: VirtualTable) -> None:
        self._source, self._name = source, table.name
        self.columns = parse(table)

    def _shadow(self, suffix: str) -> str:
        return quoted(f"{self._name}_{suffix}")

    def count(self) -> int:
        """Rows that the table lists."""
        return int(self._source.rows(f"SELECT count(*) FROM {self._shadow('rowids')}")[0][0])

    def batches(self, oddities: list[VecOddity] | None = None, most: int = 1024) -> Iterator[VecBatch]:
        """Read chunk by chunk, at most ``most`` rows at once. What does not fit together goes to ``oddities``."""
        listed = np.fromiter(
            self._source.execute(
                f"SELECT rowid, coalesce(chunk_id, -1), coalesce(chunk_offset, -1) FROM {self._shadow('rowids')}"
            ),
            np.dtype([("rowid", np.int64), ("chunk", np.int64), ("offset", np.int64)]),
        )
        listed = listed[np.lexsort((listed["offset"], listed["chunk"]))]
        chunks = self._source.integers(f"SELECT chunk_id FROM {self._shadow('chunks')} ORDER BY chunk_id")
        if oddities is not None:
            for row in listed[~np.isin(listed["chunk"], chunks)].tolist():
                oddities.append(
                    VecOddity(True, row[0], row[1], row[2], f"listed in chunk {row[1]}, which does not exist")
                )
        starts = np.searchsorted(listed["chunk"], chunks, "left")
        stops = np.searchsorted(listed["chunk"], chunks, "right")
        for chunk, start, stop in zip(chunks.tolist(), starts.tolist(), stops.tolist()):
            batch = self._chunk(chunk, listed[start:stop], oddities)
            for at in range(0, len(batch.rowids), most):
                part = slice(at, at + most)
                yield VecBatch(batch.rowids[part], [column[part] for column in batch.columns])

    def some(self, rowids: Iterable[int]) -> Iterator[VecBatch]:
        """Read some rows, chunk by chunk; those that are not listed are left out. Raises ValueError on an oddity."""
        kind = np.dtype([("rowid", np.int64), ("chunk", np.int64), ("offset", np.int64)])
        sql = (
            f"SELECT rowid, coalesce(chunk_id, -1), coalesce(chunk_offset, -1) FROM {self._shadow('rowids')}"
            " WHERE rowid = ?"
        )
        found = [row for rowid in sorted(rowids) for row in self._source.rows(sql, (rowid,))]
        listed = np.array(found, kind)
        for chunk in np.unique(listed["chunk"]).tolist():
            wanted = listed[listed["chunk"] == chunk]
            exists = self._source.rows(f"SELECT 1 FROM {self._shadow('chunks')} WHERE chunk_id = ?", (chunk,))
            batch = self._chunk(chunk, wanted, None) if exists else None
            if batch is None or len(batch.rowids) != len(wanted):
                raise ValueError(f"a row that is listed in chunk {chunk} of {self._name} is not there")
            yield batch

    def cells(self, chunk: int, rowid: int, offset: int) -> dict[str, Any]:
        """Read one place of a chunk, whether it is listed or not."""
        sql = f"SELECT size FROM {self._shadow('chunks')} WHERE chunk_id = ?"
        size = int(self._source.rows(sql, (chunk,))[0][0])
        keys = {
            column.name: self._source.rows(
                f"SELECT partition{column.slot:02} FROM {self._shadow('chunks')} WHERE chunk_id = ?", (chunk,)
            )[0][0]
            for column in self.columns
            if column.role == "partition"
        }
        batch = self._columns(chunk, np.array([rowid], np.int64), np.array([offset], np.int64), size, keys)
        return {column.name: values[0] for column, values in zip(self.columns, batch.columns)}

    def _chunk(self, chunk: int, listed: npt.NDArray[Any], oddities: list[VecOddity] | None) -> VecBatch:
        partitions = [column for column in self.columns if column.role == "partition"]
        blobs = ["CAST(validity AS BLOB)", "CAST(rowids AS BLOB)"]
        wanted = ["size", *blobs, *(f"partition{column.slot:02}" for column in partitions)]
        row = self._source.rows(
            f"SELECT {', '.join(wanted)} FROM {self._shadow('chunks')} WHERE chunk_id = ?", (chunk,)
        )[0]
        size, keys = row[0], dict(zip((column.name for column in partitions), row[3:]))
        self._require(chunk, "validity", row[1], (size + 7) // 8)
        self._require(chunk, "rowids", row[2], 8 * size)
        valid = np.unpackbits(np.frombuffer(row[1], np.uint8), bitorder="little")[:size].astype(bool)
        rowids = np.frombuffer(row[2], "<i8")[:size]
        inside = (listed["offset"] >= 0) & (listed["offset"] < size)
        offsets = listed["offset"][inside]
        good = inside.copy()
        good[inside] = valid[offsets] & (rowids[offsets] == listed["rowid"][inside])
        if oddities is not None:
            for entry in listed[~good].tolist():
                oddities.append(
                    VecOddity(
                        True, entry[0], entry[1], entry[2], "listed, but its place in the chunk holds no such row"
                    )
                )
            unlisted = valid.copy()
            unlisted[listed["offset"][good]] = False
            for offset in np.flatnonzero(unlisted).tolist():
                oddities.append(
                    VecOddity(False, int(rowids[offset]), chunk, offset, "a row in a chunk that is not listed")
                )
        slots = listed["offset"][good]
        return self._columns(chunk, listed["rowid"][good], slots, size, keys)

    def _columns(self, chunk: int, rowids: Int64s, slots: Int64s, size: int, keys: dict[str, Any]) -> VecBatch:
        columns: list[Any] = []
        for column in self.columns:
            if column.role == "partition":
                columns.append([keys[column.name]] * len(rowids))
            elif column.role == "vector":
                blob = self._blob(f"vector_chunks{column.slot:02}", "vectors", chunk)
                if len(blob) != 4 * size * column.dimensions:
                    columns.append([blob[at : at + 4 * column.dimensions] for at in (slots * 4 * column.dimensions)])
                else:
                    columns.append(np.frombuffer(blob, "<f4").reshape(size, column.dimensions)[slots])
            else:
                shadow = f"metadatachunks{column.slot:02}"
                blob = self._blob(shadow, "data", chunk)
                self._require(chunk, shadow, blob, (8 if column.kind == "integer" else _TEXT_VIEW) * size)
                if column.kind == "integer":
                    columns.append(np.frombuffer(blob, "<i8")[slots])
                else:
                    columns.append(self._texts(column, blob, rowids, slots))
        return VecBatch(rowids, columns)

    def _blob(self, shadow: str, name: str, chunk: int) -> bytes:
        sql = f"SELECT CAST({name} AS BLOB) FROM {self._shadow(shadow)} WHERE rowid = ?"
        rows = self._source.rows(sql, (chunk,))
        return bytes(rows[0][0] or b"") if rows else b""

    def _require(self, chunk: int, what: str, blob: bytes | None, size: int) -> None:
        """Refuse a chunk whose parts are too short to hold its rows: nothing in it can be trusted."""
        if len(blob or b"") < size:
            raise EngineError(
                f"chunk {chunk} of the vector table {self._name} is damaged: {what} has {len(blob or b'')} bytes",
                f"at least {size} bytes",
                "everything",
                "let Pensieve make its indexes again (memos reindex) on a copy of the database, then run again",
            )

    def _texts(self, column: VecColumn, blob: bytes, rowids: Int64s, slots: Int64s) -> list[Any]:
        texts: list[Any] = []
        for rowid, slot in zip(rowids.tolist(), slots.tolist()):
            view = blob[_TEXT_VIEW * slot : _TEXT_VIEW * (slot + 1)]
            length = int.from_bytes(view[:4], "little")
            raw = view[4 : 4 + length] if length <= _SHORT_TEXT else self._long_text(column, rowid)
            try:
                texts.append(raw.decode())
            except UnicodeDecodeError:
                texts.append(InvalidText(raw))
        return texts

    def _long_text(self, column: VecColumn, rowid: int) -> bytes:
        sql = f"SELECT CAST(data AS BLOB) FROM {self._shadow(f'metadatatext{column.slot:02}')} WHERE rowid = ?"
        rows = self._source.rows(sql, (rowid,))
        return bytes(rows[0][0]) if rows else b""
