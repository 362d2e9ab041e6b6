"""Relational tables: both sides stream in key order and are merged, or are joined by key."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from .verify_sides import (
    Column,
    Differences,
    Kept,
    Key,
    Outcome,
    Quarantine,
    Row,
    Run,
    TableVerdict,
    Task,
    among,
    batches,
    groups,
    named,
    stream,
)
from .verify_values import (
    INTEGERS,
    TEXTS,
    coerced,
    kept_form,
    pad_stamp,
    quoted,
    source_form,
    target_column,
    target_form,
)

#: Types of key values that are no integers, as SQLite casts them back from what is bound.
_CASTS = {int: "INTEGER", float: "REAL", str: "TEXT", bytes: "BLOB", type(None): "BLOB"}


class RowComparison:
    """Compares the rows of one task."""

    def __init__(self, run: Run, task: Task) -> None:
        self.run = run
        self.task = task
        self.table = run.tables[task.table]
        self.source, self.target = run.open()
        self.verdict = TableVerdict()
        self.findings = Differences(run.limit)
        self.quarantine = Quarantine(run, self.table.name, self.table.key, self.table.key_is_rowid)
        if task.keys is None:
            self.quarantine.keep_range(task.low, task.high)
        elif self.table.key:
            self.quarantine.keep_keys(task.keys)
        self.names = [column.name for column in self.table.columns]
        self.rowid = ["rowid"] if self.table.has_rowid and not self.table.key_is_rowid else []

    def outcome(self) -> Outcome:
        """Compare, and give what was found."""
        started = time.monotonic()
        if self.table.merged and self.task.keys is None:
            self._merge_range()
        elif self.table.merged:
            self._merge_keys(self.task.keys or ())
        else:
            self._join()
        for key in self.quarantine.rows:
            self.differs(
                key,
                None,
                None,
                None,
                "row in quarantine, but not missing in the target, or not in the source",
            )
        for key, column in self.quarantine.cells:
            self.differs(key, column, None, None, "cell in quarantine, but not changed, or not in the source")
        self.verdict.differences = self.findings.count
        self.verdict.seconds = time.monotonic() - started
        return Outcome(self.task, self.verdict, self.findings)

    def differs(self, key: Key, column: str | None, source: Any, target: Any, what: str) -> None:
        self.findings.add(self.table.name, self.table.told(key), column, source, target, what)

    def _merge_range(self) -> None:
        order = ", ".join(quoted(name) for name in self.table.key)
        bounds, values = [], []
        for sign, bound in ((">=", self.task.low), ("<", self.task.high)):
            if bound is not None:
                bounds.append(f"{quoted(self.table.key[0])} {sign} {{}}")
                values.append(bound)
        target_where = " AND ".join(bound.format("%s") for bound in bounds) or "true"
        source_where = " AND ".join(bound.format("?") for bound in bounds) or "1"
        if not self.table.key_is_rowid:
            regular = " AND ".join(f"typeof({quoted(name)}) = 'integer'" for name in self.table.key)
            source_where += f" AND {regular}"
            if self.task.low is None:
                self._irregular(f"NOT ({regular})")
        ours = f"SELECT {self.source_columns()} FROM {quoted(self.table.name)} WHERE {source_where}"
        theirs = f"SELECT {self.target_columns()} FROM public.{quoted(self.table.name)} WHERE {target_where}"
        self._merge(
            batches(self.source.execute(f"{ours} ORDER BY {order}", values)),
            stream(self.target, f"{theirs} ORDER BY {order}", values),
        )

    def _merge_keys(self, keys: Collection[Key]) -> None:
        """Compare the rows of these keys only."""
        regular = sorted(key for key in keys if all(type(part) is int for part in key))
        self._merge(self._source_rows(regular), self._target_rows(regular))
        for key in set(keys) - set(regular):
            is_it = " AND ".join(
                f"{quoted(name)} IS CAST(? AS {_CASTS[type(part)]})" for name, part in zip(self.table.key, key)
            )
            query = f"SELECT {self.source_columns()} FROM {quoted(self.table.name)} WHERE {is_it}"
            parts = [part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part for part in key]
            for row in self.source.execute(query, parts).fetchall():
                self.missing(row)

    def _source_rows(self, keys: Sequence[Key]) -> Iterator[list[Row]]:
        order = ", ".join(quoted(name) for name in self.table.key)
        for some in groups(keys):
            where, values = among(self.table.key, some, "?")
            query = f"SELECT {self.source_columns()} FROM {quoted(self.table.name)} WHERE {where} ORDER BY {order}"
            if rows := self.source.execute(query, values).fetchall():
                yield rows

    def _target_rows(self, keys: Sequence[Key]) -> Iterator[list[Row]]:
        order = ", ".join(quoted(name) for name in self.table.key)
        for some in groups(keys):
            where, values = among(self.table.key, some, "%s::bigint")
            query = f"SELECT {self.target_columns()} FROM public.{quoted(self.table.name)}"
            with self.target.cursor() as cursor:
                cursor.execute(f"{query} WHERE {where} ORDER BY {order}", values)
                if rows := cursor.fetchall():
                    yield rows

    def _merge(self, source_rows: Iterator[list[Row]], target_rows: Iterator[list[Row]]) -> None:
        keys = self.table.key_positions()
        source, target = _Side(source_rows, keys), _Side(target_rows, keys)
        while source.fill() | target.fill():
            count = min(len(source.rows), len(target.rows))
            if count and source.keys[:count] == target.keys[:count]:
                self.pairs(source.take(count), target.take(count))
                continue
            matched: tuple[list[Row], list[Row]] = ([], [])
            while source.rows and target.rows:
                if source.keys[0] == target.keys[0]:
                    matched[0].extend(source.take(1))
                    matched[1].extend(target.take(1))
                elif source.keys[0] < target.keys[0]:
                    self.missing(source.take(1)[0])
                else:
                    self._extra(target.take(1)[0])
            if not target.rows and target.ended:
                for row in source.take(len(source.rows)):
                    self.missing(row)
            if not source.rows and source.ended:
                for row in target.take(len(target.rows)):
                    self._extra(row)
            self.pairs(*matched)

    def source_columns(self) -> str:
        return ", ".join([quoted(name) for name in self.names] + self.rowid)

    def target_columns(self) -> str:
        return ", ".join(target_column(column.name, column.kind) for column in self.table.columns)

    def _irregular(self, where: str) -> None:
        """Rows whose key is no integer: the target cannot hold them under their key."""
        query = f"SELECT {self.source_columns()} FROM {quoted(self.table.name)} WHERE {where}"
        for batch in batches(self.source.execute(query)):
            for row in batch:
                self.missing(row)

    def _identities(self, row: Row) -> list[Key]:
        """How a quarantine entry may name a source row."""
        keys = []
        if self.table.key:
            key = self.table.key_of(row)
            keys = [key, tuple(map(named, key))]
        return [*keys, ("rowid", row[-1])] if self.rowid else keys

    def missing(self, row: Row) -> None:
        self.verdict.source += 1
        for key in self._identities(row):
            same = self.quarantine.take_row(key, self.names, row)
            if same is not None:
                self.verdict.quarantined += 1
                if not same:
                    self.differs(key, None, repr(row), None, "the original in quarantine is not the source's row")
                return
        self.differs(self._identities(row)[0], None, repr(row), None, "row is missing in the target")

    def _extra(self, row: Row) -> None:
        self.verdict.target += 1
        self.differs(self.table.key_of(row), None, None, repr(row), "row is not in the source")

    def pairs(self, source: list[Row], target: list[Row]) -> None:
        """Compare rows of equal keys, column by column."""
        self.verdict.source += len(source)
        self.verdict.target += len(target)
        self.verdict.compared_cells += len(source) * len(self.names)
        if not source:
            return
        for at, (column, ours, theirs) in enumerate(zip(self.table.columns, zip(*source), zip(*target))):
            if self._same_column(column.kind, ours, theirs):
                continue
            for row, value, found in zip(source, ours, theirs):
                if source_form(column.kind, value) != target_form(column.kind, found):
                    self._changed(row, at, found)

    @staticmethod
    def _same_column(kind: str, ours: Row, theirs: Row) -> bool:
        """Whether two columns are plainly equal (if not, the values decide)."""
        types = set(map(type, ours)) - {type(None)}
        if kind in INTEGERS:
            return types <= {int} and ours == theirs
        if kind in TEXTS or kind == "enum":
            return types <= {str} and ours == theirs
        if kind == "timestamp":
            return types <= {str} and tuple(map(pad_stamp, ours)) == tuple(map(pad_stamp, theirs))
        return False

    def _changed(self, row: Row, at: int, found: Any) -> None:
        """A cell differs. Only the quarantine can excuse it."""
        column = self.table.columns[at]
        for key in self._identities(row):
            kept = self.quarantine.cells.pop((key, column.name), None)
            if kept is None:
                continue
            if any((entry.storage_class, entry.original) != kept_form(row[at]) for entry in kept):
                self.differs(
                    key,
                    column.name,
                    row[at],
                    kept[0].original,
                    "the original in quarantine is not the source's",
                )
            expected = self._excused(column, row, at, kept)
            if expected != target_form(column.kind, found):
                self.differs(key, column.name, row[at], found, f"not what the conversion gives: {expected!r:.200}")
            return
        self.differs(self._identities(row)[0], column.name, row[at], found, "cell differs")

    def _excused(self, column: Column, row: Row, at: int, kept: list[Kept]) -> Any:
        """What the target must hold for a cell that is in quarantine."""
        if any(entry.action == "quarantine" for entry in kept):
            return None
        if column.name == "source" and row[at] is None and "source_type" in self.names:
            return row[self.names.index("source_type")]  # AutoTaskTracker's label moves here
        return coerced(list(dict.fromkeys(entry.kind for entry in kept)), row[at], column.kind, column.longest)

    def _join(self) -> None:
        """Tables whose key is no integer, by key; tables without a key, as multisets of rows."""
        wanted = self._wanted()
        forms: dict[Key, list[Row]] = {}
        positions = self.table.key_positions() if self.table.key else range(len(self.names))
        kinds = [column.kind for column in self.table.columns]
        query = f"SELECT {self.target_columns()} FROM public.{quoted(self.table.name)}"
        for batch in stream(self.target, query):
            for row in batch:
                formed = tuple(map(target_form, kinds, row))
                key = tuple(formed[at] for at in positions)
                if wanted is None or key in wanted:
                    forms.setdefault(key, []).append(row)
        query = f"SELECT {self.source_columns()} FROM {quoted(self.table.name)}"
        for batch in batches(self.source.execute(query)):
            for row in batch:
                expected = []
                for at, column in enumerate(self.table.columns):
                    kept = [
                        k for key in self._identities(row) for k in self.quarantine.cells.get((key, column.name), [])
                    ]
                    expected.append(self._excused(column, row, at, kept) if kept else source_form(column.kind, row[at]))
                key = tuple(expected[at] for at in positions)
                if found := forms.get(key):
                    self.pairs([row], [found.pop()])
                elif wanted is None or key in wanted:
                    self.missing(row)
        for rows in forms.values():
            for row in rows:
                self.verdict.target += 1
                self.differs(
                    self.table.key_of(row) if self.table.key else row,
                    None,
                    None,
                    repr(row),
                    "row is not in the source",
                )

    def _wanted(self) -> set[Key] | None:
        """The keys of this task as the rows of a table by key give them; None: all rows of the table."""
        if self.task.keys is None or not self.table.key:
            return None
        kinds = [self.table.columns[at].kind for at in self.table.key_positions()]
        return {tuple(map(target_form, kinds, key)) for key in self.task.keys}


class _Side:
    """Rows of one side that wait to be matched, with their keys."""

    def __init__(self, batches: Iterator[list[Row]], key_positions: Sequence[int]) -> None:
        self.rows: list[Row] = []
        self.keys: list[Key] = []
        self.ended = False
        self.batches = batches
        self._positions = key_positions

    def fill(self) -> bool:
        """Fetch rows if none wait; False if there are none any more."""
        if not self.rows and not self.ended:
            self.rows = next(self.batches, [])
            self.ended = not self.rows
            self.keys = [tuple(row[at] for at in self._positions) for row in self.rows]
        return bool(self.rows)

    def take(self, count: int) -> list[Row]:
        """Remove the first rows."""
        taken = self.rows[:count]
        del self.rows[:count], self.keys[:count]
        return taken
