"""The difference: bring a target that shows a snapshot up to the source as it is now, in one transaction.

``copy`` has loaded the snapshot, a file that stands still, while Pensieve went on. Now Pensieve is stopped. What
changed since is found by the pages that were written (``changes``), evaluated as the copy would (orphans, findings,
policy), and applied: deletes children first, upserts parents first, then vectors, then full text, made anew of what
the target holds. Quarantine, sequences and ledger change in the same transaction. The result is what a copy of the
whole source would be.

What cannot be brought over so (definitions that changed, say) is copied wholly instead: as exact, only slower.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psycopg2
import psycopg2.errors
from psycopg2.extras import execute_values

from . import change_log, ledger, snapshot, staging
from .census import Watcher, target_tables
from .changes import (
    Change,
    Changes,
    Pages,
    Row,
    TooDifferentError,
    differing_pages,
    rows_by_rowid,
    written_pages,
)
from .convert import InvalidText
from .copier import LOCK, complete_run, copy, digest_of
from .fts import Tokenizer
from .model import (
    FAIL,
    EngineError,
    Finding,
    FindingLog,
    FindingsError,
    Policy,
    QuarantineRecord,
)
from .plan import Plan, TablePlan, make_plan
from .progress import RowCount
from .relations import Left, report
from .rows import RowConverter, excerpt, plain, row_record
from .snapshot import Snapshot
from .source import Batch, Source, fingerprint, quoted
from .target import BOOKKEEPING, Connection, TargetConstraint, connect, query, run
from .vec0 import VecReader
from .wal import log_bytes
from .watch import watched
from .work import encoded, send, tokenized, too_long

_BATCH = 2000
_AT_ONCE = 500

Key = tuple[Any, ...]


@dataclass
class TableChange:
    """What the difference does to a table. ``source``, ``target``, ``quarantined``: by how many rows these change."""

    changed: int = 0
    upserted: int = 0
    deleted: int = 0
    source: int = 0
    target: int = 0
    quarantined: int = 0


@dataclass
class Difference:
    """What was brought over. ``way``: 'difference', 'whole copy' or 'nothing' (the target held this source already).

    ``only`` are the keys of all rows that were looked at, as ``verify`` takes them; None after a whole copy.
    """

    changed: bool
    way: str
    reason: str
    run_id: str
    tables: dict[str, TableChange]
    findings: FindingLog
    only: dict[str, set[Key]] | None
    pages: int = 0
    wal_bytes: int = 0
    seconds: float = 0.0
    phases: dict[str, float] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Rows that were changed in the target."""
        return sum(table.upserted + table.deleted for table in self.tables.values())


@dataclass
class _Work:
    """What is to be done to one table of the target."""

    table: TablePlan
    delete: list[Key] = field(default_factory=list)
    data: list[bytes] = field(default_factory=list)
    records: list[QuarantineRecord] = field(default_factory=list)
    keys: set[Key] = field(default_factory=set)  # all that were looked at
    anew: list[Key] = field(default_factory=list)  # deleted before parents are, and inserted again: they change parents
    change: TableChange = field(default_factory=TableChange)


def difference(
    source: Path,
    folder: Path,
    target_dsn: str,
    policy: Mapping[str, str] | str | Policy | None = None,
    progress: Watcher | None = None,
    jobs: int | None = None,
    tokenizer: Tokenizer | None = None,
    later: Path | None = None,
) -> Difference:
    """Bring the target from the snapshot whose folder is given to ``source`` as it is now. All or nothing.

    ``later``: the copy of a later snapshot, to bring the target up to instead; the source may then be written to.
    Raises FindingsError when the policy says that a finding must stop the run, EngineError for all else.
    """
    chosen = policy if isinstance(policy, Policy) else Policy.of(policy)
    started = time.monotonic()
    try:
        with watched(progress):
            try:
                made = _difference(Path(source), folder, target_dsn, chosen, progress, tokenizer or Tokenizer(), later)
            except (TooDifferentError, psycopg2.errors.UniqueViolation) as error:
                reason = str(error).strip().splitlines()[0]
                copied = copy(later or Path(source), target_dsn, chosen, progress, jobs)
                way = "whole copy" if copied.changed else "nothing"
                made = Difference(copied.changed, way, reason, copied.run_id, {}, copied.findings, None)
                made.phases = copied.phases
    except (psycopg2.Error, sqlite3.Error, OSError) as error:
        raise EngineError(
            str(error).strip().splitlines()[0],
            "a difference without an error of the server, of SQLite or of the machine",
            "the source was only read; the target shows the snapshot or all of the difference, never a part of it",
            "remove the cause (full disk, server gone, source damaged) and run again",
        ) from error
    made.seconds = time.monotonic() - started
    return made


def _difference(
    source: Path,
    folder: Path,
    target_dsn: str,
    policy: Policy,
    progress: Watcher | None,
    tokenizer: Tokenizer,
    later: Path | None,
) -> Difference:
    clock = time.monotonic()
    phases: dict[str, float] = {}

    tell = RowCount(progress, "difference")

    def phase(name: str) -> None:
        nonlocal clock
        now = time.monotonic()
        phases[name], clock = now - clock, now

    tell("looking for what has changed")
    found = snapshot.read(folder)
    if found is None or found.source != str(source) or not Path(found.database).exists():
        raise TooDifferentError("there is no snapshot of this source")
    if not found.mapped:
        raise TooDifferentError(
            f"the snapshot has no map of its pages ({found.reason or 'its process ended too early'})"
        )
    if later is not None:
        pages = differing_pages(found, later)
    else:
        pages = written_pages(found, source) or _compare(found, source, folder)
    final = later or source
    print_now = fingerprint(final)
    phase("pages")
    target = target_tables(target_dsn)
    before, now, connection = Source(Path(found.database)), Source(final), connect(target_dsn)
    try:
        if not query(connection, "SELECT pg_try_advisory_lock(%s)", (LOCK,))[0][0]:
            raise EngineError(
                "another copy is running into this database", "one at a time", "everything", "wait for it, run again"
            )
        plan = make_plan(now, target)
        complete = complete_run(connection)
        if complete:
            change_log.require_ours(connection, complete)
        if complete and (complete.fingerprint, complete.plan_digest) == (print_now, digest_of(plan, policy)):
            return Difference(False, "nothing", "", complete.run_id, {}, FindingLog(), {}, phases=phases)
        expected = (fingerprint(Path(found.database)), digest_of(plan, policy))
        if target is None or plan.refused or complete is None:
            raise TooDifferentError("the target does not show the snapshot")
        if (complete.fingerprint, complete.plan_digest) != expected:
            raise TooDifferentError("the target shows another copy than that of the snapshot")
        changes = Changes(before, now, folder, pages)
        evaluation = _Evaluation(before, now, connection, plan, policy, changes, tell)
        evaluation.run()
        phase("changes")
        if evaluation.log.failing():
            raise FindingsError(evaluation.log)
        connection.autocommit = False
        run(connection, "SET LOCAL lock_timeout = '60s'")
        with change_log.writing(connection, complete):
            evaluation.apply(tokenizer, complete, print_now, source)
        connection.commit()
        phase("apply")
    finally:
        connection.close()
        before.close()
        now.close()
    return Difference(
        True,
        "difference",
        f"pages found by {pages.found_by}",
        complete.run_id,
        {name: work.change for name, work in evaluation.work.items()},
        evaluation.log,
        evaluation.only(),
        len(pages.changed),
        log_bytes(source),
        phases=phases,
    )


def _compare(found: Snapshot, source: Path, folder: Path) -> Pages:
    """Copy the source as it is now, and compare all pages: for a snapshot that is not held any more."""
    final = folder / "final.db"
    final.unlink(missing_ok=True)
    os.close(os.open(final, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    reader = sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True)
    writer = sqlite3.connect(final)
    try:
        reader.backup(writer)
    finally:
        reader.close()
        writer.close()
    return differing_pages(found, final)


class _Evaluation:
    """Decides, table by table and parents first, what becomes of each row that may have changed."""

    def __init__(
        self,
        before: Source,
        now: Source,
        connection: Connection,
        plan: Plan,
        policy: Policy,
        changes: Changes,
        tell: RowCount,
    ) -> None:
        self._before, self._now, self._connection = before, now, connection
        self._plan, self._policy, self._changes, self._tell = plan, policy, changes, tell
        self.log = FindingLog()
        self.work: dict[str, _Work] = {}
        self._entries: dict[int, tuple[list[int], list[int]]] = {}
        self._valid: dict[
            str, dict[int, bool]
        ] = {}  # table → rowid that was looked at → whether the target has it then
        self._moved: dict[str, set[int]] = {}  # table → rowids that came, went, or turned valid or invalid
        self._texts: set[int] = set()  # entities whose full text may be another

    def run(self) -> None:
        """Evaluate everything; nothing is written."""
        for table in self._plan.tables.values():
            if table.table is not None:
                self._tell(f"looking for what has changed in {table.name}")
                self._rows(table)
        for table in self._plan.tables.values():
            if table.is_vectors:
                self._vectors(table)
        for table in self._plan.tables.values():
            if table.is_full_text:
                self._full_text(table)

    # Rows

    def _rows(self, table: TablePlan) -> None:
        assert table.table is not None
        if not table.table.has_rowid:
            self._require_same(table)
            return
        changed = self._changes.rows(table.name, table.columns)
        todo = dict(changed)
        for rowids in self._dependents(table):
            for rows in rows_by_rowid(self._now, table.name, table.columns, sorted(rowids - todo.keys())):
                todo.update((row[0], Change(row[1:], row[1:])) for row in rows)
        if not todo:
            return
        self._require_keys(table)
        work = self.work[table.name] = _Work(table)
        places = [table.columns.index(name) for name in table.key_names]

        def key(row: Row) -> Key:
            return tuple(row[place] for place in places)

        left = self._left_out(table, {rowid: change.now for rowid, change in todo.items() if change.now is not None})
        work.records += report(self._now, table, left, self._policy, self.log)
        converter = RowConverter(table, self._policy, self.log)
        rows = [(rowid, change.now) for rowid, change in sorted(todo.items()) if change.now is not None]
        dropped: set[int] = set()
        for at in range(0, len(rows), _BATCH):
            some = rows[at : at + _BATCH]
            batch = Batch([rowid for rowid, _ in some], [list(column) for column in zip(*(row for _, row in some))])
            converted = converter.convert(batch, left)
            dropped.update(converted.dropped)
            work.records += converted.records
            work.data.append(converted.data)
            work.change.upserted += converted.rows
        valid = {rowid: rowid not in left and rowid not in dropped for rowid, _ in rows}
        keys = {key(row) for change in todo.values() for row in change if row is not None}
        there = self._there(table, keys)
        self._settle(work, keys, there, {key(row) for rowid, row in rows if valid[rowid]})
        work.anew = sorted(self._other_parents(table, key, todo) & there - set(work.delete))
        work.change.changed = len(changed)
        work.change.source = sum((c.now is not None) - (c.before is not None) for c in changed.values())
        self._valid[table.name] = {rowid: valid.get(rowid, False) for rowid in todo}
        self._moved[table.name] = {
            rowid
            for rowid, change in todo.items()
            if (change.before is not None, change.before is not None and key(change.before) in there)
            != (change.now is not None, valid.get(rowid, False))
        }
        self._note_texts(table, todo)

    def _other_parents(self, table: TablePlan, key: Callable[[Row], Key], todo: Mapping[int, Change]) -> set[Key]:
        """Keys of rows that name another parent now, so that the old one can go before they are upserted. Rows that are
        parents themselves cannot be deleted for that.
        """
        if any(other.parent == table.name for one in self._plan.tables.values() for other in one.target.foreign_keys()):
            return set()
        places = [table.columns.index(name) for foreign in self._parents(table) for name in foreign.columns]
        return {
            key(change.before)
            for change in todo.values()
            if change.before is not None
            and (change.now is None or any(change.before[place] != change.now[place] for place in places))
        }

    def _settle(self, work: _Work, keys: set[Key], there: set[Key], stay: set[Key]) -> None:
        """Say which rows of the target go, and count."""
        work.keys = keys
        work.delete = sorted(there - stay)
        work.change.deleted = len(work.delete)
        work.change.target = len(stay) - len(there)

    def _require_same(self, table: TablePlan) -> None:
        """A table WITHOUT ROWID is compared wholly: its pages are those of an index."""
        assert table.table is not None
        sql = f"SELECT * FROM {quoted(table.name)} ORDER BY {', '.join(map(quoted, table.table.primary_key))}"
        if self._before.rows(sql) != self._now.rows(sql):
            raise TooDifferentError(f"rows of {table.name}, a table WITHOUT ROWID, have changed")

    def _require_keys(self, table: TablePlan) -> None:
        """Refuse a table whose rows the target cannot find by a key of integers, or whose unique keys only it knows."""
        assert table.table is not None
        primary = next((c.columns for c in table.target.constraints if c.kind == "p"), ())
        integers = {"smallint", "integer", "bigint"}
        if primary != table.key_names or any(table.target.columns[name].type not in integers for name in primary):
            raise TooDifferentError(f"rows of {table.name}, which has no key of integers, have changed")
        known = {frozenset(index.columns) for index in table.table.indexes if index.unique and not index.partial}
        known.add(frozenset({table.table.rowid_alias or ""}))
        for columns in self._unique_keys(table):
            if frozenset(columns) not in known:
                raise TooDifferentError(f"rows of {table.name} have changed, whose ({', '.join(columns)}) may repeat")

    @staticmethod
    def _unique_keys(table: TablePlan) -> list[tuple[str, ...]]:
        keys = [c.columns for c in table.target.constraints if c.kind in "pu"]
        return keys + [i.columns for i in table.target.indexes if i.unique and not i.predicate and i.columns]

    def _parents(self, table: TablePlan) -> list[TargetConstraint]:
        return [
            key
            for key in table.target.foreign_keys()
            if key.parent in self._plan.tables and self._plan.tables[key.parent].table is not None
        ]

    def _dependents(self, table: TablePlan) -> list[set[int]]:
        """Rows, as they are now, whose parents came, went, or turned valid or invalid."""
        found = []
        for key in self._parents(table):
            moved = self._moved.get(str(key.parent))
            if not moved:
                continue
            parent = self._plan.tables[str(key.parent)].table
            if len(key.columns) != 1 or parent is None or key.parent_columns != (parent.rowid_alias,):
                raise TooDifferentError(f"rows of {key.parent} have changed, which {table.name} names by another key")
            found.append(set(self._rowids(table.name, key.columns[0], moved)))
        return found

    def _rowids(self, table: str, column: str, values: Collection[int]) -> Iterable[int]:
        """Rows, as they are now, that hold one of some values in a column."""
        wanted = sorted(values)
        for at in range(0, len(wanted), _AT_ONCE):
            some = wanted[at : at + _AT_ONCE]
            marks = ", ".join("?" * len(some))
            sql = f"SELECT _rowid_ FROM {quoted(table)} WHERE {quoted(column)} IN ({marks})"
            yield from (row[0] for row in self._now.rows(sql, some))

    def _left_out(self, table: TablePlan, rows: Mapping[int, Sequence[Any]]) -> dict[Any, Left]:
        """Rows that cannot go for a parent's sake: it does not exist, or does not go itself. As ``relations.find``."""
        left: dict[Any, Left] = {}
        for key in self._parents(table):
            parent = self._plan.tables[str(key.parent)]
            assert parent.table is not None
            places = [table.columns.index(name) for name in key.columns]
            named = {rowid: tuple(row[place] for place in places) for rowid, row in rows.items()}
            filled = {rowid: value for rowid, value in named.items() if None not in value}
            known = self._states(parent, key, set(filled.values()))
            for missing in (True, False):
                for rowid, value in filled.items():
                    state = known[value]
                    shown = ", ".join(str(part) if isinstance(part, int) else excerpt(part) for part in value)
                    if state is None and missing:
                        reason = f"{parent.name} has no row {shown}"
                        left.setdefault(rowid, Left("orphaned_foreign_key", reason, key.columns[0]))
                    elif state is False and not missing:
                        reason = f"its row {shown} of {parent.name} does not go over"
                        left.setdefault(rowid, Left("dependent_row", reason, None))
        return left

    def _states(self, parent: TablePlan, key: TargetConstraint, values: set[Key]) -> dict[Key, bool | None]:
        """Whether the target will have the parents of some values; None: there is no such row in the source."""
        looked_at = self._valid.get(parent.name, {})
        condition = " AND ".join(f"{quoted(name)} = ?" for name in key.parent_columns)
        sql = f"SELECT _rowid_ FROM {quoted(parent.name)} WHERE {condition} LIMIT 1"
        rowids = {value: (self._now.rows(sql, value) or [(None,)])[0][0] for value in values}
        unknown = sorted({rowid for rowid in rowids.values() if rowid is not None and rowid not in looked_at})
        there: set[Any] = set()
        if unknown and parent.table is not None and parent.table.rowid_alias:
            there = {found for (found,) in self._there(parent, {(rowid,) for rowid in unknown})}
        elif unknown:
            raise TooDifferentError(f"rows that name rows of {parent.name} have changed, which has no key of integers")
        return {
            value: None if rowid is None else looked_at.get(rowid, rowid in there) for value, rowid in rowids.items()
        }

    def _there(self, table: TablePlan, keys: Collection[Key]) -> set[Key]:
        """Keys of these that the target has now."""
        names = table.key_names
        whole = [key for key in keys if all(type(part) is int and abs(part) < 1 << 63 for part in key)]
        if not whole:
            return set()
        listed = ", ".join(f"t.{quoted(name)}" for name in names)
        wanted = ", ".join(f"unnest(%s::bigint[]) AS k{place}" for place in range(len(names)))
        joined = " AND ".join(f"t.{quoted(name)} = w.k{place}" for place, name in enumerate(names))
        sql = f"SELECT {listed} FROM (SELECT {wanted}) w JOIN public.{quoted(table.name)} t ON {joined}"
        return set(query(self._connection, sql, [list(column) for column in zip(*whole)]))

    def _note_texts(self, table: TablePlan, todo: Mapping[int, Change]) -> None:
        """Remember the entities whose full text is made of these rows."""
        if table.name == "entities":
            self._texts.update(todo)
        elif table.name in ("entity_tags", "metadata_entries"):
            place = table.columns.index("entity_id")
            ids = {row[place] for change in todo.values() for row in change if row is not None}
            self._texts.update(found for found in ids if isinstance(found, int))
        elif table.name == "tags" and "entity_tags" in self._plan.tables:
            links = self._rowids("entity_tags", "tag_id", list(todo))
            for rows in rows_by_rowid(self._now, "entity_tags", ["entity_id"], sorted(links)):
                self._texts.update(row[1] for row in rows if isinstance(row[1], int))

    # Vectors and full text: what belongs to an entity

    def _entity_states(self, ids: Collection[int]) -> dict[int, bool | None]:
        """Whether the target will have some entities; None: the source has no such entity."""
        entities = self._plan.tables.get("entities")
        if entities is None:
            return dict.fromkeys(ids)
        looked_at = self._valid.get("entities", {})
        now = {row[0] for rows in rows_by_rowid(self._now, "entities", [], sorted(ids)) for row in rows}
        there = {key[0] for key in self._there(entities, {(found,) for found in now - looked_at.keys()})}
        return {found: looked_at.get(found, found in there) if found in now else None for found in ids}

    @staticmethod
    def _why(entity: int, state: bool | None) -> tuple[str, str]:
        if state is None:
            return "rowid_without_row", f"its entity {entity} does not exist"
        return "dependent_row", f"its entity {entity} does not go over"

    def _vectors(self, table: TablePlan) -> None:
        assert table.virtual is not None
        ids = self._changes.vectors(table)
        changed = len(ids)
        listing = f"{table.name}_rowids"
        moved = sorted(self._moved.get("entities", set()) - ids)
        ids |= {row[0] for rows in rows_by_rowid(self._now, listing, [], moved) for row in rows}
        if not ids:
            return
        work = self.work[table.name] = _Work(table)
        before, now = (
            {row[0] for rows in rows_by_rowid(side, listing, [], sorted(ids)) for row in rows}
            for side in (self._before, self._now)
        )
        states = self._entity_states(now)
        converter = RowConverter(table, self._policy, self.log)
        valid: set[int] = set()
        try:
            for vectors in VecReader(self._now, table.virtual).some(now):
                batch = Batch(vectors.rowids, [vectors.rowids, *vectors.columns])
                orphans = set()
                for row, found in enumerate(vectors.rowids.tolist()):
                    if not states[found]:
                        orphans.add(found)
                        self._leave_vector(work, converter, batch, row, *self._why(found, states[found]))
                converted = converter.convert(batch, orphans)
                work.records += converted.records
                work.data.append(converted.data)
                work.change.upserted += converted.rows
                valid.update({*vectors.rowids.tolist()} - orphans - {int(found) for found in converted.dropped})
        except ValueError as error:
            raise TooDifferentError(str(error)) from error
        keys = {(found,) for found in ids}
        self._settle(work, keys, self._there(table, keys), {(found,) for found in valid})
        work.change.changed, work.change.source = changed, len(now) - len(before)

    def _leave_vector(
        self, work: _Work, converter: RowConverter, batch: Batch, row: int, kind: str, reason: str
    ) -> None:
        action = self._policy.action(kind, coercible=False)
        key = converter.key(batch, row)
        self.log.add(Finding(work.table.name, key, None, kind, reason, "row", "", action))
        if action != FAIL:
            work.records.append(converter.whole_row(batch, row, kind, reason))

    def _full_text(self, table: TablePlan) -> None:
        for change in self._changes.text_entries().values():
            self._texts.update(row[0] for row in change if row is not None)
        self._entries = self._changes.entries_of(self._texts)
        ids = {found for found in self._texts if any(self._entries[found])}
        if not ids:
            return
        work = self.work[table.name] = _Work(table)
        now = {found for found in ids if self._entries[found][1]}
        states = self._entity_states(now)
        for found in sorted(now):
            if not states[found]:
                self._leave_text(work, found, *self._why(found, states[found]))
        work.keys = {(found,) for found in ids}
        work.delete = sorted(self._there(table, work.keys))
        work.change.deleted = sum(not states.get(key[0]) for key in work.delete)
        work.change.source = sum(bool(now) - bool(before) for before, now in map(self._entries.__getitem__, ids))
        work.change.changed = len(self._changes.text_entries())
        work.change.target = -len(work.delete)  # and what is made anew, when it is made
        self._texts = {found for found in now if states[found]}

    def _leave_text(self, work: _Work, entity: int, kind: str, reason: str) -> None:
        sql = "SELECT c0, c1, c2, c3 FROM entities_fts_content WHERE id = ?"
        row = self._now.rows(sql, (max(self._entries[entity][1]),))[0]
        action = self._policy.action(kind, coercible=False)
        key = {"id": plain(entity)}
        self.log.add(Finding(work.table.name, key, None, kind, reason, "row", excerpt(row[1]), action))
        if action != FAIL:
            cells = dict(zip(work.table.columns, row))
            work.records.append(row_record(work.table.name, key, cells, kind, reason))

    # Writing

    def apply(self, tokenizer: Tokenizer, complete: ledger.Run, print_now: str, source: Path) -> None:
        """Do it all in the transaction that is open."""
        ordered = list(self.work.values())
        texts = len(self._texts) if any(work.table.is_full_text for work in ordered) else 0
        self._tell.total = texts + sum(work.change.upserted for work in ordered)
        self._tell("waiting for locks, deleting")
        run(self._connection, "SAVEPOINT rows")
        try:
            for work in reversed(ordered):
                self._delete(work, [*work.delete, *work.anew])
            self._upsert_all(ordered)
        except psycopg2.errors.ForeignKeyViolation:
            # A row that is a parent itself names another parent now: that can only go afterwards.
            run(self._connection, "ROLLBACK TO SAVEPOINT rows")
            self._upsert_all(ordered)
            for work in reversed(ordered):
                self._delete(work, work.delete)
        for work in ordered:
            if work.table.is_full_text:
                self._make_texts(work, tokenizer)
            self._replace_records(work, complete.run_id)
            change = work.change
            if change.source != change.target + change.quarantined:
                raise TooDifferentError(
                    f"{work.table.name}: {change.source:+} rows in the source, {change.target:+} in the target,"
                    f" {change.quarantined:+} in quarantine"
                )
        self._set_sequences()
        self._note(complete, print_now, source)

    def _upsert_all(self, ordered: Sequence[_Work]) -> None:
        self._tell.done = 0
        for work in ordered:
            if any(work.data):
                self._tell(work.table.name)
                self._upsert(work)
                self._tell(work.table.name, work.change.upserted)

    def _delete(self, work: _Work, keys: Sequence[Key]) -> None:
        if not keys:
            return
        names = work.table.key_names
        wanted = ", ".join(f"unnest(%s::bigint[]) AS k{place}" for place in range(len(names)))
        joined = " AND ".join(f"t.{quoted(name)} = w.k{place}" for place, name in enumerate(names))
        sql = f"DELETE FROM public.{quoted(work.table.name)} t USING (SELECT {wanted}) w WHERE {joined}"
        run(self._connection, sql, [list(column) for column in zip(*keys)])

    def _upsert(self, work: _Work) -> None:
        name, columns = work.table.name, work.table.columns
        listed = ", ".join(map(quoted, columns))
        table, waiting = f"public.{quoted(name)}", f"pg_temp.{quoted(f'difference_{name}')}"
        run(
            self._connection,
            f"CREATE TEMP TABLE {quoted(f'difference_{name}')} ON COMMIT DROP AS"
            f" SELECT {listed} FROM {table} WITH NO DATA",
        )
        send(self._connection, f"COPY {waiting} ({listed}) FROM STDIN WITH (FORMAT binary)", b"".join(work.data))
        others = ", ".join(
            f"{quoted(column)} = EXCLUDED.{quoted(column)}" for column in columns if column not in work.table.key_names
        )
        run(
            self._connection,
            f"INSERT INTO {table} ({listed}) SELECT {listed} FROM {waiting}"
            f" ON CONFLICT ({', '.join(map(quoted, work.table.key_names))})"
            f" DO {f'UPDATE SET {others}' if others else 'NOTHING'}",
        )

    def _make_texts(self, work: _Work, tokenizer: Tokenizer) -> None:
        """Make full text of what the target holds now, as Pensieve would."""
        rows: list[tuple[Any, ...]] = []
        ids = sorted(self._texts)
        for at in range(0, len(ids), _AT_ONCE):
            self._tell(work.table.name)
            rows += tokenized(self._connection, tokenizer, "public", ids[at : at + _AT_ONCE])
            self._tell(work.table.name, len(ids[at : at + _AT_ONCE]))
        listed = ", ".join(map(quoted, work.table.columns))
        sql = f"COPY public.{quoted(work.table.name)} ({listed}) FROM STDIN WITH (FORMAT binary)"
        for at in range(0, len(rows), _AT_ONCE):
            some = rows[at : at + _AT_ONCE]
            if not self._fits(work, sql, some):
                for row in some:
                    self._send_one(work, sql, row)
        work.change.upserted = len(rows) - sum(record.kind == "too_long" for record in work.records)
        work.change.target += work.change.upserted

    def _fits(self, work: _Work, sql: str, rows: list[tuple[Any, ...]]) -> bool:
        run(self._connection, "SAVEPOINT entries")
        try:
            send(self._connection, sql, encoded(work.table, rows))
        except psycopg2.errors.ProgramLimitExceeded:
            run(self._connection, "ROLLBACK TO SAVEPOINT entries")
            return False
        run(self._connection, "RELEASE SAVEPOINT entries")
        return True

    def _send_one(self, work: _Work, sql: str, row: tuple[Any, ...]) -> None:
        run(self._connection, "SAVEPOINT entry")
        try:
            send(self._connection, sql, encoded(work.table, [row]))
        except psycopg2.errors.ProgramLimitExceeded as error:
            run(self._connection, "ROLLBACK TO SAVEPOINT entry")
            work.records += too_long(work.table, row, error, self._policy, self.log)
            if self.log.failing():
                raise FindingsError(self.log) from error
        run(self._connection, "RELEASE SAVEPOINT entry")

    def _replace_records(self, work: _Work, run_id: str) -> None:
        """Put the records of the rows that were looked at in the places of their old ones."""
        names = work.table.key_names
        keys = [json.dumps({name: plain(part) for name, part in zip(names, key)}) for key in work.keys]
        run(self._connection, "CREATE TEMP TABLE IF NOT EXISTS difference_keys (key jsonb PRIMARY KEY) ON COMMIT DROP")
        run(self._connection, "TRUNCATE difference_keys")
        with self._connection.cursor() as cursor:
            execute_values(
                cursor, "INSERT INTO difference_keys VALUES %s ON CONFLICT DO NOTHING", [(key,) for key in keys]
            )
        released = query(
            self._connection,
            f"WITH gone AS (DELETE FROM {BOOKKEEPING}.quarantine q USING difference_keys k"
            " WHERE q.source_table = %s AND q.source_key = k.key RETURNING q.source_column)"
            " SELECT count(*) FROM gone WHERE source_column IS NULL",
            (work.table.name,),
        )[0][0]
        ledger.quarantine(self._connection, run_id, work.records)
        whole = sum(record.column is None and record.table == work.table.name for record in work.records)
        work.change.quarantined = whole - int(released)

    def _set_sequences(self) -> None:
        """Of tables that were touched, and where AUTOINCREMENT may have given ids to rows that are gone again."""
        for name, table in self._plan.tables.items():
            if table.table is None or table.table.rowid_alias is None:
                continue
            if name not in self.work and not (table.table.autoincrement and self._changes.touched("sqlite_sequence")):
                continue
            found = self._now.rows(f"SELECT max(_rowid_) FROM {quoted(name)}")[0][0] or 0
            highest = max(int(found), self._now.sequence(name))
            for column in table.target.sequences:
                staging.set_sequence(self._connection, name, column, highest)

    def _note(self, complete: ledger.Run, print_now: str, source: Path) -> None:
        result = dict(complete.result)
        tables = {name: dict(count) for name, count in result["tables"].items()}
        for name, work in self.work.items():
            for part in ("source", "target", "quarantined"):
                tables[name][part] += getattr(work.change, part)
        result["tables"] = tables
        result["difference"] = {name: vars(work.change) for name, work in self.work.items()}
        ledger.bring_up(self._connection, complete.run_id, str(source), print_now, result)

    def only(self) -> dict[str, set[Key]]:
        """The keys of all rows that were looked at, as the verifier reads them."""
        found: dict[str, set[Key]] = {
            name: {tuple(_readable(part) for part in key) for key in work.keys} for name, work in self.work.items()
        }
        for name, work in self.work.items():
            if work.table.is_full_text:
                found[f"{name}_content"] = {(entry,) for (entity,) in work.keys for entry in self._entries[entity][1]}
        return found


def _readable(part: Any) -> Any:
    if isinstance(part, InvalidText):
        return part.decode("utf-8", "surrogateescape")
    return part.item() if isinstance(part, np.generic) else part
