"""Rows that cannot go because of other rows: orphans, duplicates, and what depends on them.

SQLite does not enforce foreign keys unless asked, so every real file has rows whose parent is gone. Parents are looked
at before their children: what is left out above is left out below too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .model import FAIL, Finding, FindingLog, Policy, QuarantineRecord
from .plan import Plan, TablePlan
from .rows import excerpt, plain, row_record
from .source import Source, quoted
from .target import TargetConstraint
from .vec0 import Int64s


class Left(NamedTuple):
    """Why a row is left out."""

    kind: str
    reason: str
    column: str | None


#: table -> key of the row (rowid, or tuple of the primary key) -> why it is left out
LeftOut = dict[str, dict[Any, Left]]


@dataclass
class Relations:
    """Rows left out for the sake of other rows. ``seeds`` are rows that conversion has quarantined whole."""

    left_out: LeftOut
    seeds: dict[str, set[Any]]

    def keys(self, table: str) -> set[Any]:
        """Rows of a table that are left out for other rows' sake."""
        return set(self.left_out.get(table, ()))

    def gone(self, table: str) -> set[Any]:
        """All rows of a table that the target will not have."""
        return self.keys(table) | self.seeds.get(table, set())


def find(source: Source, plan: Plan, seeds: Mapping[str, Iterable[Any]] | None = None) -> Relations:
    """Find every row that must be left out, given those that conversion leaves out (``seeds``)."""
    relations = Relations({}, {name: set(keys) for name, keys in (seeds or {}).items()})
    for table in plan.tables.values():
        if table.table is None:
            continue
        left: dict[Any, Left] = {}
        for key in table.target.foreign_keys():
            if key.parent in plan.tables and plan.tables[key.parent].table is not None:
                _orphans(source, plan, table, key, relations, left)
        for constraint in table.target.constraints:
            if constraint.kind in ("p", "u"):
                _duplicates(source, table, constraint.columns, left)
        for index in table.target.indexes:
            if index.unique and not index.predicate and index.columns:
                _duplicates(source, table, index.columns, left)
        for seed in relations.seeds.get(table.name, ()):
            left.pop(seed, None)
        if left:
            relations.left_out[table.name] = left
    return relations


def _key_of(table: TablePlan, alias: str) -> str:
    assert table.table is not None
    names = ["_rowid_"] if table.table.has_rowid else [quoted(name) for name in table.table.primary_key]
    return ", ".join(f"{alias}.{name}" for name in names)


def _orphans(
    source: Source, plan: Plan, table: TablePlan, key: TargetConstraint, relations: Relations, left: dict[Any, Left]
) -> None:
    parent = plan.tables[str(key.parent)]
    assert table.table is not None
    assert parent.table is not None
    link = " AND ".join(
        f"p.{quoted(above)} = c.{quoted(below)}" for below, above in zip(key.columns, key.parent_columns)
    )
    filled = " AND ".join(f"c.{quoted(name)} IS NOT NULL" for name in key.columns)
    values = ", ".join(f"c.{quoted(name)}" for name in key.columns)
    shape = len(table.table.primary_key) if not table.table.has_rowid else 1

    def note(rows: Iterable[tuple[Any, ...]], kind: str, wording: str) -> None:
        for row in rows:
            found = row[0] if shape == 1 and table.table and table.table.has_rowid else tuple(row[:shape])
            value = ", ".join(str(part) if isinstance(part, int) else excerpt(part) for part in row[shape:])
            column = key.columns[0] if kind == "orphaned_foreign_key" else None
            left.setdefault(found, Left(kind, wording.format(parent=parent.name, value=value), column))

    child_key = _key_of(table, "c")
    missing = (
        f"SELECT {child_key}, {values} FROM {quoted(table.name)} c WHERE {filled}"
        f" AND NOT EXISTS (SELECT 1 FROM {quoted(parent.name)} p WHERE {link})"
    )
    note(source.execute(missing), "orphaned_foreign_key", "{parent} has no row {value}")
    gone = relations.gone(parent.name)
    if not gone or not parent.table.has_rowid:
        return
    source.execute("DROP TABLE IF EXISTS temp.gone_rows")
    source.execute("CREATE TEMP TABLE gone_rows (key INTEGER PRIMARY KEY)")
    source.executemany("INSERT INTO temp.gone_rows VALUES (?)", ((found,) for found in gone))
    # The parent may have another row of the same key (a duplicate that stays).
    dependent = (
        f"SELECT {child_key}, {values} FROM {quoted(table.name)} c WHERE {filled}"
        f" AND EXISTS (SELECT 1 FROM {quoted(parent.name)} p WHERE {link})"
        f" AND NOT EXISTS (SELECT 1 FROM {quoted(parent.name)} p WHERE {link}"
        " AND p._rowid_ NOT IN (SELECT key FROM temp.gone_rows))"
    )
    note(source.rows(dependent), "dependent_row", "its row {value} of {parent} does not go over")
    source.execute("DROP TABLE temp.gone_rows")


def _duplicates(source: Source, table: TablePlan, columns: tuple[str, ...], left: dict[Any, Left]) -> None:
    """Find rows that repeat a unique key; the newest (largest rowid) stays, as in Pensieve's own upgrade."""
    declared = table.table
    assert declared is not None
    if not declared.has_rowid or not set(columns) <= set(table.columns):
        return
    if columns == (declared.rowid_alias,):
        return
    if any(index.unique and not index.partial and set(index.columns) == set(columns) for index in declared.indexes):
        return
    names = ", ".join(map(quoted, columns))
    filled = " AND ".join(f"{quoted(name)} IS NOT NULL" for name in columns)
    sql = (
        f"SELECT key FROM (SELECT _rowid_ AS key, row_number() OVER (PARTITION BY {names} ORDER BY _rowid_ DESC) AS n"
        f" FROM {quoted(table.name)} WHERE {filled}) WHERE n > 1"
    )
    for (key,) in source.execute(sql):
        left.setdefault(key, Left("duplicate_key", f"repeats ({', '.join(columns)}) of a newer row", None))


def report(
    source: Source, table: TablePlan, left: Mapping[Any, Left], policy: Policy, log: FindingLog
) -> list[QuarantineRecord]:
    """Log what is left out of a table, and give the records that keep the rows."""
    assert table.table is not None
    records = []
    for key, cells in source.originals(table.table, list(left)):
        why = left[key]
        action = policy.action(why.kind, coercible=False)
        named = {name: plain(cells[name]) for name in table.key_names if name in cells} or {"rowid": plain(key)}
        shown = excerpt(cells.get(why.column)) if why.column else ""
        log.add(Finding(table.name, named, why.column, why.kind, why.reason, "row", shown, action))
        if action != FAIL:
            records.append(row_record(table.name, named, cells, why.kind, why.reason))
    return records


def entity_ids(source: Source, plan: Plan, relations: Relations) -> Int64s | None:
    """Give the ids of the entities that go over, sorted; None when the source has no such table."""
    table = plan.tables.get("entities")
    if table is None or table.table is None:
        return None
    ids = source.integers("SELECT _rowid_ FROM entities ORDER BY _rowid_")
    gone = relations.gone("entities")
    if gone:
        ids = ids[~np.isin(ids, np.array(sorted(gone), np.int64))]
    return ids
