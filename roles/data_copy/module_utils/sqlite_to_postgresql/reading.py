"""Every row of a table, read and converted: what the census looks at and the copy writes."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from .model import FAIL, Finding, FindingLog, Policy, QuarantineRecord
from .plan import TablePlan
from .relations import Left, report
from .rows import Converted, RowConverter, excerpt, plain, row_record
from .source import Batch, Source, quoted
from .vec0 import Int64s, VecOddity, VecReader

_REPORTED_AT_ONCE = 500  # rows
_VECTORS_AT_ONCE = 256
_LOOKED_UP_AT_ONCE = 1 << 14  # ids


@dataclass
class Reading:
    """What is left out of a table for other rows' sake, and what reading it has found."""

    left_out: dict[Any, Left] = field(default_factory=dict)
    entities: Int64s | None = None  # ids that go over, sorted; None: the source has no entities
    gone_entities: frozenset[int] = frozenset()  # ids that the source has and that do not go over
    log: FindingLog = field(default_factory=FindingLog)
    source_rows: int = 0
    dropped: set[Any] = field(default_factory=set)


def read(source: Source, table: TablePlan, policy: Policy, reading: Reading) -> Iterator[Converted]:
    """Read and convert a table batch by batch; findings go to ``reading.log``."""
    if table.is_vectors:
        batches = _vectors(source, table, policy, reading)
    elif table.table is not None:
        batches = _rows(source, table, policy, reading)
    else:
        raise ValueError(f"{table.name} is not read row by row")
    for converted in batches:
        reading.dropped.update(converted.dropped)
        yield converted


def _rows(source: Source, table: TablePlan, policy: Policy, reading: Reading) -> Iterator[Converted]:
    assert table.table is not None
    converter = RowConverter(table, policy, reading.log)
    left_out = list(reading.left_out.items())
    for at in range(0, len(left_out), _REPORTED_AT_ONCE):
        some = dict(left_out[at : at + _REPORTED_AT_ONCE])
        yield Converted(records=report(source, table, some, policy, reading.log))
    for batch in source.batches(table.table, table.columns):
        reading.source_rows += len(batch.keys)
        yield converter.convert(batch, reading.left_out)


def _vectors(source: Source, table: TablePlan, policy: Policy, reading: Reading) -> Iterator[Converted]:
    assert table.virtual is not None
    reader = VecReader(source, table.virtual)
    reading.source_rows = reader.count()
    converter = RowConverter(table, policy, reading.log)
    oddities: list[VecOddity] = []
    for vectors in reader.batches(oddities, _VECTORS_AT_ONCE):
        batch = Batch(vectors.rowids, [vectors.rowids, *vectors.columns])
        orphans: list[int] = []
        if reading.entities is not None:
            orphans = np.flatnonzero(~_are_in(vectors.rowids, reading.entities)).tolist()
        records = []
        for row in orphans:
            key = converter.key(batch, row)
            kind, reason = _why(int(vectors.rowids[row]), reading)
            action = policy.action(kind, coercible=False)
            reading.log.add(Finding(table.name, key, None, kind, reason, "row", "", action))
            if action != FAIL:
                records.append(converter.whole_row(batch, row, kind, reason))
        converted = converter.convert(batch, {int(vectors.rowids[row]) for row in orphans})
        converted.records.extend(records)
        yield converted
    if oddities:
        action = policy.action("rowid_without_row", coercible=False)
        yield Converted(records=_report_oddities(source, table, oddities, action, reading.log))


def _are_in(values: Int64s, known: Int64s) -> npt.NDArray[np.bool_]:
    """For each value whether it is among those known, which are sorted. np.isin would copy and sort both."""
    found = np.zeros(len(values), bool)
    for at in range(0, len(values) if len(known) else 0, _LOOKED_UP_AT_ONCE):
        some = values[at : at + _LOOKED_UP_AT_ONCE]
        places = np.searchsorted(known, some)
        places[places == len(known)] = 0
        found[at : at + _LOOKED_UP_AT_ONCE] = known[places] == some
    return found


def _why(entity: int, reading: Reading) -> tuple[str, str]:
    """Say why what belongs to an entity does not go over."""
    if entity in reading.gone_entities:
        return "dependent_row", f"its entity {entity} does not go over"
    return "rowid_without_row", f"its entity {entity} does not exist"


def _report_oddities(
    source: Source, table: TablePlan, oddities: list[VecOddity], action: str, log: FindingLog
) -> list[QuarantineRecord]:
    """Log what does not fit together in the shadow tables.

    An unlisted row is no row of the table (vec0 itself does not show it), so it is kept under its chunk table's name.
    """
    records = []
    assert table.virtual is not None
    reader = VecReader(source, table.virtual)
    for odd in oddities:
        name = table.name if odd.listed else f"{table.name}_chunks"
        key = {"rowid": odd.rowid}
        shown = f"chunk {odd.chunk}, offset {odd.offset}"
        log.add(Finding(name, key, None, "rowid_without_row", odd.reason, "row", shown, action))
        if action != FAIL:
            cells: dict[str, Any] = dict.fromkeys(table.columns)
            if not odd.listed:
                cells = reader.cells(odd.chunk, odd.rowid, odd.offset)
            reason = f"{odd.reason}: {shown}"
            records.append(row_record(name, key, {**cells, "rowid": odd.rowid}, "rowid_without_row", reason))
    return records


@dataclass
class FullText:
    """The entities that the source's full-text index holds, and its entries that no entity has."""

    ids: Int64s
    source_rows: int
    repeated: int
    records: list[QuarantineRecord]


def full_text(source: Source, table: TablePlan, policy: Policy, reading: Reading) -> FullText:
    """List the entities that are indexed in the source.

    Pensieve adds an entry each time it indexes an entity (``INSERT OR REPLACE`` replaces nothing in an FTS5
    table), so an entity counts once however many entries it has.
    """
    content = quoted(f"{table.name}_content")
    ids, strange = _entries(source, content)
    entries = len(ids)
    ids.sort()
    again = ids[1:] == ids[:-1]
    if again.any():
        ids = ids[np.append(True, ~again)]
    known = _are_in(ids, reading.entities if reading.entities is not None else np.empty(0, np.int64))
    orphans = ids[~known].tolist()
    records = []

    def leave_out(key: Any, row: tuple[Any, ...], kind: str, reason: str) -> None:
        action = policy.action(kind, coercible=False)
        named = {"id": plain(key) if isinstance(key, (int, str)) else excerpt(key)}
        reading.log.add(Finding(table.name, named, None, kind, reason, "row", excerpt(row[1]), action))
        if action != FAIL:
            cells = dict(zip(table.columns, row))
            records.append(row_record(table.name, named, cells, kind, reason))

    entry = f"SELECT c0, c1, c2, c3 FROM {content}"
    newest: dict[int, int] = dict.fromkeys(orphans, 0)
    if newest:
        # One pass for all: SQLite has no index from an entity to its entries.
        pairs = source.execute(f"SELECT c0, id FROM {content} WHERE typeof(c0) = 'integer' ORDER BY id")
        newest.update(pair for pair in pairs if pair[0] in newest)
    for key, rowid in newest.items():
        leave_out(key, source.rows(f"{entry} WHERE id = ?", (rowid,))[0], *_why(key, reading))
    for rowid in strange:
        row = source.rows(f"{entry} WHERE id = ?", (rowid,))[0]
        leave_out(row[0], row, "rowid_without_row", "a full-text entry without an entity's id")
    return FullText(ids if known.all() else ids[known], len(ids) + len(strange), entries - len(ids), records)


def _entries(source: Source, content: str) -> tuple[Int64s, list[int]]:
    """The entity of each full-text entry, and the rowids of the entries without one.

    One pass: the ids stand among the texts, so that each pass over them reads gigabytes of a large database.
    """
    entities, strange = array("q"), []
    for rowid, entity in source.execute(f"SELECT id, c0 FROM {content}"):
        if isinstance(entity, int):
            entities.append(entity)
        else:
            strange.append(rowid)
    return np.asarray(entities), strange
