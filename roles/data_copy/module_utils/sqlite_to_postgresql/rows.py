"""Batches of the source as rows of binary COPY: every cell converted, or met by the policy."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .convert import (
    Encoded,
    Problem,
    Variable,
    has_null,
    longer_than,
    quarantine_form,
    storage_class,
    take,
    to_copy_rows,
)
from .model import COERCE, QUARANTINE, Finding, FindingLog, Policy, QuarantineRecord
from .plan import TablePlan
from .source import Batch
from .target import INDEX_LIMIT

_EXCERPT = 60


def excerpt(value: Any) -> str:
    """Show a value in little space and without characters that a terminal would obey."""
    if value is None:
        return "NULL"
    if isinstance(value, np.ndarray):
        return f"vector of {value.size}"
    shown = repr(bytes(value)[:_EXCERPT] if isinstance(value, bytes) else str(value)[:_EXCERPT])
    return shown if len(shown) <= _EXCERPT else shown[: _EXCERPT - 1] + "…"


@dataclass
class Converted:
    """One batch, converted: ``data`` are ``rows`` rows of binary COPY."""

    data: bytes = b""
    rows: int = 0
    dropped: list[Any] = field(default_factory=list)  # keys of rows that are quarantined whole for a cell of theirs
    records: list[QuarantineRecord] = field(default_factory=list)


class RowConverter:
    """Converts the batches of one table and logs what it finds."""

    def __init__(self, plan: TablePlan, policy: Policy, log: FindingLog) -> None:
        self._plan, self._policy, self._log = plan, policy, log
        self._places = {name: place for place, name in enumerate(plan.columns)}
        keys = [self._places.get(name) for name in plan.key_names]
        self._key_places = [place for place in keys if place is not None]

    def key(self, batch: Batch, row: int) -> dict[str, Any]:
        """Name a row by its primary key, or by its rowid."""
        if len(self._key_places) == len(self._plan.key_names):
            return {
                name: plain(batch.columns[place][row]) for name, place in zip(self._plan.key_names, self._key_places)
            }
        return {"rowid": plain(batch.keys[row])}

    def convert(self, batch: Batch, excluded: Collection[Any] = frozenset()) -> Converted:
        """Convert a batch, leaving out the rows whose keys are in ``excluded``."""
        if excluded:
            keep = [row for row, key in enumerate(batch.keys) if key not in excluded]
            if len(keep) < len(batch.keys):
                batch = _some(batch, keep)
        result = Converted()
        if not len(batch.keys):
            return result
        columns = list(batch.columns)
        encoded: list[Encoded | None] = [None] * len(columns)
        dropped: dict[int, str] = {}
        for place in self._order():
            name = self._plan.columns[place]
            column = self._plan.codecs[place].column(columns[place])
            if column is None or self._refuses(name, column, columns):
                column = self._with_care(batch, columns, place, result, dropped)
            encoded[place] = column
        done = [column for column in encoded if column is not None]
        rows = len(batch.keys)
        if dropped:
            for row, kind in dropped.items():
                result.records.append(self.whole_row(batch, row, kind))
                result.dropped.append(batch.keys[row])
            whole = [record.key for record in result.records if record.column is None]
            result.records = [r for r in result.records if r.column is None or r.key not in whole]
            kept = np.array([row for row in range(rows) if row not in dropped], np.intp)
            done = [take(column, kept) for column in done]
            rows = len(kept)
        result.rows = rows
        result.data = to_copy_rows(done, rows) if rows else b""
        return result

    def _order(self) -> list[int]:
        """Columns of labels come first: they may leave their old label in another column."""
        first = [self._places[name] for name in self._plan.label_keepers if name in self._places]
        return first + [place for place in range(len(self._plan.columns)) if place not in first]

    def _refuses(self, name: str, column: Encoded, columns: Sequence[Sequence[Any]]) -> bool:
        """Tell whether a column, though its type takes every cell, may hold one that the table refuses."""
        if self._plan.not_null(name) and has_null(column):
            return True
        return any(
            columns[self._places[limit.where]][row] == limit.value
            for limit in self._plan.partial_limits
            if limit.column == name
            for row in longer_than(column, INDEX_LIMIT)
        )

    def _problem(self, name: str, place: int, columns: Sequence[Sequence[Any]], row: int) -> Any:
        """Give the value of a cell as the target holds it, or its Problem."""
        value = columns[place][row]
        if value is None:
            return (
                Problem("null_in_not_null", "NULL where the target takes none") if self._plan.not_null(name) else None
            )
        for limit in self._plan.partial_limits:
            if limit.column != name or columns[self._places[limit.where]][row] != limit.value:
                continue
            if isinstance(value, str) and len(value.encode()) > INDEX_LIMIT:
                reason = f"{len(value.encode())} bytes; an index holds at most {INDEX_LIMIT}"
                return Problem("index_row_too_large", reason)
        return self._plan.codecs[place].cell(value)

    def _with_care(
        self, batch: Batch, columns: list[Any], place: int, result: Converted, dropped: dict[int, str]
    ) -> Variable:
        """Convert a column cell by cell, since one of its cells has a problem."""
        name = self._plan.columns[place]
        values: list[Any] = []
        for row in range(len(batch.keys)):
            outcome = self._problem(name, place, columns, row)
            if isinstance(outcome, Problem):
                value = columns[place][row]
                action = self._policy.action(outcome.kind, coercible=outcome.coerced is not None)
                self._report(batch, row, name, value, outcome, action)
                if action == COERCE:
                    result.records.append(self._cell(batch, row, name, value, outcome, action))
                    self._keep_label(batch, columns, row, name, value, result)
                    outcome = outcome.coerced
                elif action == QUARANTINE and not self._whole_row_needed(name):
                    result.records.append(self._cell(batch, row, name, value, outcome, action))
                    outcome = None
                else:
                    dropped.setdefault(row, outcome.kind)
                    outcome = None
            values.append(outcome)
        return self._plan.codecs[place].from_canonical(values)

    def _whole_row_needed(self, name: str) -> bool:
        return self._plan.not_null(name) or self._plan.is_vectors

    def _keep_label(self, batch: Batch, columns: list[Any], row: int, name: str, value: Any, result: Converted) -> None:
        """Put an old label into the column beside it where that is NULL; the NULL is kept in quarantine too."""
        keeper = self._plan.label_keepers.get(name)
        if keeper is None or keeper not in self._places or columns[self._places[keeper]][row] is not None:
            return
        place = self._places[keeper]
        if columns[place] is batch.columns[place]:
            columns[place] = list(columns[place])
        columns[place][row] = value
        problem = Problem("unknown_enum_label", f"NULL; holds the old label of {name} now", value)
        result.records.append(self._cell(batch, row, keeper, None, problem, COERCE))

    def _report(self, batch: Batch, row: int, name: str, value: Any, problem: Problem, action: str) -> None:
        kind, reason = problem.kind, problem.reason
        key = self.key(batch, row)
        self._log.add(Finding(self._plan.name, key, name, kind, reason, storage_class(value), excerpt(value), action))

    def _cell(self, batch: Batch, row: int, name: str, value: Any, problem: Problem, action: str) -> QuarantineRecord:
        kind, original = quarantine_form(value)
        key = self.key(batch, row)
        return QuarantineRecord(self._plan.name, key, name, problem.kind, problem.reason, kind, original, action)

    def whole_row(self, batch: Batch, row: int, kind: str, reason: str = "") -> QuarantineRecord:
        """Keep a whole row of a batch, so that it can be given back exactly."""
        cells = {name: batch.columns[place][row] for name, place in self._places.items()}
        return row_record(self._plan.name, self.key(batch, row), cells, kind, reason or "a cell of this row")


def row_record(
    table: str, key: Mapping[str, Any], cells: Mapping[str, Any], kind: str, reason: str
) -> QuarantineRecord:
    """Make the quarantine record of a whole row: JSON of column → storage class and bytes in hex."""
    forms = {name: quarantine_form(value) for name, value in cells.items()}
    original = json.dumps({name: {"class": form[0], "hex": form[1].hex()} for name, form in forms.items()})
    return QuarantineRecord(table, key, None, kind, reason, "row", original.encode(), QUARANTINE)


def plain(value: Any) -> Any:
    """Give a value of a key as jsonb gives it back: bytes in hex, a real as text, no NUL."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, str):
        return value.replace("\0", "\u2400")
    if isinstance(value, tuple):
        return [plain(part) for part in value]
    return value


def _some(batch: Batch, rows: list[int]) -> Batch:
    columns = [
        column[rows] if isinstance(column, np.ndarray) else [column[row] for row in rows] for column in batch.columns
    ]
    return Batch([batch.keys[row] for row in rows], columns)
