"""entities_vec_v2: vec0 read from its shadow tables, chunk by chunk, without the extension."""

from __future__ import annotations

import re
import sqlite3
import struct
import time
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .verify_rows import RowComparison
from .verify_sides import FTS_TABLE, Differences, Key, Outcome, Run, TableVerdict, Task, among, batches, groups, stream
from .verify_values import quoted


@dataclass(frozen=True)
class _VecColumn:
    """One column of a vec0 table. `role`: vector, partition, metadata or auxiliary; `number`: among those."""

    name: str
    role: str
    type: str
    number: int


def vec0_columns(sql: str) -> list[_VecColumn]:
    """Columns of a `CREATE VIRTUAL TABLE … USING vec0(…)`. Raises ValueError on what is unknown."""
    body = sql[sql.index("(") + 1 : sql.rindex(")")]
    counts: Counter[str] = Counter()
    columns = []
    for part in re.findall(r"(?:[^,\[]|\[[^\]]*\]?)+", body):
        words = part.split()
        if not words or "=" in words[0]:
            continue
        name, type_name = words[0], words[1].lower()
        if name.startswith("+"):
            name, role = name[1:], "auxiliary"
        elif "[" in type_name:
            role = "vector"
        else:
            role = "partition" if [word.lower() for word in words[2:4]] == ["partition", "key"] else "metadata"
        if role == "vector" and not re.match(r"(float|f32)\[", type_name):
            raise ValueError(f"vector column {name} of type {type_name}: only float vectors are known")
        columns.append(_VecColumn(name, role, type_name, counts[role]))
        counts[role] += 1
    return columns


class Vectors:
    """vec0 from its shadow tables. `_rowids` says which rows there are; a chunk is one blob per column."""

    def __init__(self, source: sqlite3.Connection, name: str) -> None:
        self.source = source
        self.name = name
        sql = source.execute("SELECT sql FROM sqlite_master WHERE name = ?", (name,)).fetchone()[0]
        self.columns = vec0_columns(sql)

    def shadow(self, suffix: str) -> str:
        """A shadow table's name, quoted."""
        return quoted(f"{self.name}_{suffix}")

    def rows(self, low: int, high: int) -> Iterator[dict[int, tuple[Any, ...] | None]]:
        """For each chunk in [low, high): rowid → values in the order of `columns`, or None for a row of the
        list that its chunk does not hold.
        """
        listed: dict[int, list[tuple[int, int]]] = {}
        table = self.shadow("rowids")
        query = f"SELECT chunk_id, rowid, chunk_offset FROM {table} WHERE chunk_id >= ? AND chunk_id < ?"
        for chunk, rowid, offset in self.source.execute(query, (low, high)):
            listed.setdefault(chunk, []).append((rowid, offset))
        yield from self._chunks(listed)

    def rows_of(self, keys: Sequence[Key]) -> Iterator[dict[int, tuple[Any, ...] | None]]:
        """The same for the rows of these rowids that are listed."""
        listed: dict[int, list[tuple[int, int]]] = {}
        for some in groups(keys):
            where, values = among(("rowid",), some, "?")
            query = f"SELECT chunk_id, rowid, chunk_offset FROM {self.shadow('rowids')} WHERE {where}"
            for chunk, rowid, offset in self.source.execute(query, values):
                listed.setdefault(chunk, []).append((rowid, offset))
        yield from self._chunks(listed)

    def _chunks(self, listed: dict[int, list[tuple[int, int]]]) -> Iterator[dict[int, tuple[Any, ...] | None]]:
        for chunk, places in sorted(listed.items()):
            yield self._chunk(chunk, places)

    def _chunk(self, chunk: int, places: list[tuple[int, int]]) -> dict[int, tuple[Any, ...] | None]:
        partitions = [f"partition{column.number:02}" for column in self.columns if column.role == "partition"]
        wanted = ", ".join(["validity", "rowids", *partitions])
        query = f"SELECT {wanted} FROM {self.shadow('chunks')} WHERE chunk_id = ?"
        head = self.source.execute(query, (chunk,)).fetchone()
        if head is None:
            return {rowid: None for rowid, _offset in places}
        validity, rowids = head[0], array("q", head[1])
        blobs = [self._blob(chunk, column) for column in self.columns]
        result: dict[int, tuple[Any, ...] | None] = {}
        for rowid, offset in places:
            if not validity[offset // 8] >> offset % 8 & 1 or rowids[offset] != rowid:
                result[rowid] = None
                continue
            values = []
            for column, blob in zip(self.columns, blobs):
                values.append(
                    head[2 + column.number] if column.role == "partition" else self._value(column, blob, rowid, offset)
                )
            result[rowid] = tuple(values)
        return result

    def _blob(self, chunk: int, column: _VecColumn) -> bytes:
        """All values of one column of a chunk, or nothing if they are elsewhere."""
        table, field_name = {
            "vector": (f"vector_chunks{column.number:02}", "vectors"),
            "metadata": (f"metadatachunks{column.number:02}", "data"),
        }.get(column.role, ("", ""))
        if not table:
            return b""
        row = self.source.execute(f"SELECT {field_name} FROM {self.shadow(table)} WHERE rowid = ?", (chunk,)).fetchone()
        return bytes(row[0]) if row else b""

    def _value(self, column: _VecColumn, blob: bytes, rowid: int, offset: int) -> Any:
        if column.role == "auxiliary":
            query = f"SELECT value{column.number:02} FROM {self.shadow('auxiliary')} WHERE rowid = ?"
            return self.source.execute(query, (rowid,)).fetchone()[0]
        if column.role == "vector":
            width = 4 * int(re.findall(r"\[\s*(\d+)", column.type)[0])
            return blob[offset * width : (offset + 1) * width]
        if column.type.startswith(("int",)):
            return struct.unpack_from("<q", blob, 8 * offset)[0]
        if column.type.startswith(("float", "double")):
            return struct.unpack_from("<d", blob, 8 * offset)[0]
        if column.type.startswith("bool"):
            return blob[offset // 8] >> offset % 8 & 1
        length = struct.unpack_from("<i", blob, 16 * offset)[0]
        if length <= 12:
            return blob[16 * offset + 4 : 16 * offset + 4 + length].decode("utf-8", "surrogateescape")
        query = f"SELECT data FROM {self.shadow(f'metadatatext{column.number:02}')} WHERE rowid = ?"
        return self.source.execute(query, (rowid,)).fetchone()[0]


def compare_vectors(run: Run, task: Task) -> Outcome:
    """Compare the rows of some chunks; the target is asked for their ids."""
    started = time.monotonic()
    comparison = RowComparison(run, Task(task.job, task.table, None, None, 0, task.keys))
    table, source, target = comparison.table, comparison.source, comparison.target
    vectors = Vectors(source, table.name)
    order = [[column.name for column in vectors.columns].index(column.name) for column in table.columns[1:]]
    where = f"WHERE {quoted(table.key[0])} = ANY(%s::bigint[])"
    query = f"SELECT {comparison.target_columns()} FROM public.{quoted(table.name)} {where}"
    visited = set()
    parts = vectors.rows(task.low or 0, task.high or 0) if task.keys is None else vectors.rows_of(task.keys)
    for rows in parts:
        with target.cursor() as cursor:
            cursor.execute(query, (list(rows),))
            found = {row[0]: row for row in cursor}
        ours, theirs = [], []
        for rowid, values in rows.items():
            visited.add(rowid)
            row = (rowid, *([None] * len(order) if values is None else [values[at] for at in order]))
            if values is None and (rowid,) not in comparison.quarantine.rows:
                comparison.verdict.source += 1
                comparison.differs((rowid,), None, None, None, "row is listed, but its chunk does not hold it")
            elif rowid in found:
                ours.append(row)
                theirs.append(found[rowid])
            else:
                comparison.missing(row)
        comparison.pairs(ours, theirs)
    if task.keys is not None:
        unlisted = [key[0] for key in task.keys if key[0] not in visited]
        with target.cursor() as cursor:
            cursor.execute(query, (unlisted,))
            for row in cursor:
                comparison.verdict.target += 1
                comparison.differs((row[0],), None, None, row[0], "row is not in the source")
        visited.update(unlisted)
    left = [key for key in comparison.quarantine.rows if key[0] in visited]
    left += [key for key, _column in comparison.quarantine.cells if key[0] in visited]
    for key in left:
        comparison.differs(key, None, None, None, "in quarantine, but not changed in the target")
    comparison.verdict.differences = comparison.findings.count
    comparison.verdict.seconds = time.monotonic() - started
    return Outcome(task, comparison.verdict, comparison.findings)


def find_extra_ids(run: Run, task: Task) -> Outcome:
    """Ids in the target (and in quarantine) that the source's list of vectors, or of indexed entities,
    lacks.
    """
    started = time.monotonic()
    source, target = run.open()
    table = run.tables[task.table]
    findings = Differences(run.limit)
    ours: Iterator[int]
    if task.table == FTS_TABLE:
        assert run.entries is not None
        ours = map(int, np.unique(run.entries["entity"]))
    else:
        query = f"SELECT rowid FROM {quoted(task.table + '_rowids')} ORDER BY rowid"
        ours = (row[0] for batch in batches(source.execute(query)) for row in batch)
    ids = stream(target, f"SELECT {quoted(table.key[0])} FROM public.{quoted(task.table)} ORDER BY 1")
    current = next(ours, None)
    for batch in ids:
        for (rowid,) in batch:
            while current is not None and current < rowid:
                current = next(ours, None)
            if current != rowid:
                findings.add(task.table, table.told((rowid,)), None, None, rowid, "row is not in the source")
    verdict = TableVerdict(target=findings.count, differences=findings.count, seconds=time.monotonic() - started)
    return Outcome(task, verdict, findings)
