"""Carry back: what was written to PostgreSQL since the cutover, into the SQLite database that Pensieve had before.

Runs in Pensieve's own interpreter, since only that is sure to load Pensieve's tokenizer and sqlite-vec. For every key
in the change log: a row in PostgreSQL is written into SQLite, no row there is deleted here. A cell that gives the
target's value already, as the copy converts it, stays as it is, so that originals of coerced and quarantined cells and
the form of timestamps survive. All of it is one transaction: killed half-way, SQLite is as before. What was written is
marked in the same transaction (``carry_mark``), so that a carry-back which ends at any moment can be run again,
whatever either side has written meanwhile.

Rows that were quarantined as a whole are not in PostgreSQL and stay in SQLite, unless PostgreSQL has given their key,
or that of the row that they refer to, anew. Their originals, and those of cells that have another value now, move to
``data_copy.superseded``.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sqlite3
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psycopg2

from . import carry_mark, change_log
from .carry_mark import Mark, digest
from .carry_merge import Merge, bag
from .carry_sides import Database, Key, Row, Target, chunks, key_columns, require_same_shape
from .carry_values import stands_for, written
from .carry_words import WordsBack, squeezed
from .convert import Codec, Problem, quarantine_form
from .model import EngineError
from .plan import FULL_TEXT, Plan, TablePlan, make_plan
from .source import Source, fingerprint, quoted
from .target import BOOKKEEPING, connect, read_tables, run

_WAIT = "30s"  # for writers of the target to end


@dataclass
class Carried:
    """Rows of one table. ``unchanged`` were touched since the cutover and are the same on both sides."""

    inserted: int = 0
    updated: int = 0
    deleted: int = 0
    unchanged: int = 0

    @property
    def changed(self) -> int:
        """Rows that were written or deleted."""
        return self.inserted + self.updated + self.deleted


@dataclass
class CarryResult:
    """What was carried.

    ``touched``: keys, by table, whose rows are equal on both sides now; it also names the rowids of full-text entries.
    ``mapped`` counts rows of PostgreSQL that have another key in SQLite, or refer to one that has: the verifier finds
    rows by their keys, so each of these was compared here, as SQLite gave it back. ``whole``: tables that were compared
    wholly. ``merged``: SQLite was written to as well; then ``renumbered`` are rows that got another id there,
    ``conflicts`` what was not carried, and why.
    """

    changed: bool = False
    tables: dict[str, Carried] = field(default_factory=dict)
    touched: dict[str, list[list[Any]]] = field(default_factory=dict)
    mapped: int = 0
    whole: list[str] = field(default_factory=list)
    superseded: int = 0
    merged: bool = False
    renumbered: list[dict[str, Any]] = field(default_factory=list)
    conflicts: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def rows(self) -> int:
        """All rows that were written or deleted."""
        return sum(counts.changed for counts in self.tables.values())

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def pensieve_package() -> Path:
    """Folder of the package ``memos`` of this interpreter; it is not imported."""
    found = importlib.util.find_spec("memos")
    if found is None or not found.submodule_search_locations:
        raise EngineError(
            f"{sys.executable} has no package memos",
            "Pensieve's own interpreter",
            "everything",
            "run this with the interpreter of Pensieve's virtual environment",
        )
    return Path(next(iter(found.submodule_search_locations)))


def carry_back(
    source: Path,
    target_dsn: str,
    package: Path,
    *,
    base: Path | None = None,
    whole: bool = False,
    only_upgraded: bool = False,
) -> CarryResult:
    """Carry back into ``source``, to which nothing else may be writing.

    ``package``: folder of Pensieve's package ``memos``. ``base``: SQLite as it was at the cutover, read only where
    SQLite was written to since; then nothing of either side is overwritten. ``whole``: compare all rows, whatever the
    log says, since ``source`` was restored from a copy that is older than the cutover. ``only_upgraded``: since then
    ``source`` was written to by an upgrade of its schema alone, which PostgreSQL has had too, so nothing is to be kept.
    """
    started, name = time.monotonic(), uuid.uuid4().hex
    try:
        result = _carry_back(source, target_dsn, package, base, whole, only_upgraded, name)
    except (psycopg2.Error, sqlite3.Error, OSError) as error:
        found = (str(error).strip() or repr(error)).splitlines()[0]
        raise EngineError(found, "two databases that answer, and room on the disk", *_left_by(source, name)) from error
    result.seconds = time.monotonic() - started
    return result


def _left_by(source: Path, name: str) -> tuple[str, str]:
    """What a carry-back that failed has left untouched, as SQLite tells it, and what to do next."""
    try:
        mark = carry_mark.read_head(source)
    except sqlite3.Error as error:
        return (
            f"every row of PostgreSQL. Whether SQLite holds what was carried cannot be told now ({error})",
            "remove the cause and run again; nothing is carried twice",
        )
    if mark is not None and mark.carry == name:
        return (
            "every row of PostgreSQL. SQLite holds what was carried already; PostgreSQL may not have been told",
            "remove the cause and run again; it goes on from there, and nothing is carried twice",
        )
    return "every row of SQLite and of PostgreSQL, as before this run", "remove the cause and run again"


def _carry_back(
    source: Path, dsn: str, package: Path, base: Path | None, whole: bool, only_upgraded: bool, name: str
) -> CarryResult:
    connection = connect(dsn, search_path="public", lock_timeout=_WAIT)
    try:
        log = change_log.read(connection)
        if log is None:
            raise EngineError(
                "no change log in the target",
                "the log that begins at the cutover (data_copy.change_log)",
                "everything",
                "ansible-playbook rollback.yml -e rollback_discard=true goes back without what PostgreSQL holds",
            )
        connection.set_session(isolation_level="REPEATABLE READ")
        connection.autocommit = False
        # Before the first look: whoever touches a row from here on waits, and is noted afterwards.
        run(connection, f"LOCK TABLE {change_log.LOG} IN ACCESS EXCLUSIVE MODE")
        log_name = carry_mark.open_log(connection)
        target = Target(connection)
        reader = Source(source)
        try:
            plan = make_plan(reader, read_tables(connection))
            require_same_shape(plan, reader, target, source)
            whole_seconds = _current_timestamps(reader, plan)
        finally:
            reader.close()
        merging = not only_upgraded and fingerprint(source) != log.fingerprint
        with contextlib.closing(Database(source, package)) as database, contextlib.ExitStack() as stack:
            before = None
            if merging and base is not None:
                before = stack.enter_context(contextlib.closing(Database(base, package, read_only=True)))
            database.execute("BEGIN IMMEDIATE")
            mark = Mark(database.connection, log_name, name)
            merge = Merge(database, target, plan, before, mark) if merging else None
            carry = _Carry(database, target, plan, whole_seconds, mark, merge, before)
            carry.run(list(plan.tables) if whole else log.whole)
            carried = mark.finish()
            database.execute("COMMIT")
            # The rows are there. What the log's pages need on a full disk, the next who opens the file does.
            with contextlib.suppress(sqlite3.Error):
                database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        target.supersede(carry.superseded)
        if carried:
            carry_mark.tell(connection, carried)
        if not merging:
            # Both sides are equal. After a merge they are not: SQLite has rows of its own.
            run(connection, f"UPDATE {BOOKKEEPING}.change_log SET fingerprint = %s", (fingerprint(source),))
        connection.commit()
        return carry.result
    finally:
        connection.close()


def _current_timestamps(source: Source, plan: Plan) -> set[tuple[str, str]]:
    """Columns whose default is CURRENT_TIMESTAMP."""
    return {
        (table.name, row[1])
        for table in plan.tables.values()
        if table.table is not None
        for row in source.rows(f"PRAGMA table_xinfo({quoted(table.name)})")
        if "CURRENT_TIMESTAMP" in str(row[4] or "").upper()
    }


class _Carry:
    """One carry-back, within the transactions of both sides."""

    def __init__(
        self,
        database: Database,
        target: Target,
        plan: Plan,
        whole_seconds: set[tuple[str, str]],
        mark: Mark,
        merge: Merge | None,
        base: Database | None,
    ) -> None:
        self._database, self._target, self._plan, self._whole_seconds = database, target, plan, whole_seconds
        self._mark, self._merge, self._base = mark, merge, base
        self._whole: frozenset[str] = frozenset()
        self._kept_rows = target.kept_rows(plan)
        self._inserted: dict[str, list[Key]] = {}
        self._inserts: dict[str, str] = {}
        self.superseded: set[int] = set()
        self.result = CarryResult()

    def run(self, whole: Sequence[str]) -> None:
        """Carry all tables, parents before their children."""
        self._whole = frozenset(whole)
        work = {
            name: self._target.touched(table) if name not in whole else self._all_keys(table)
            for name, table in self._plan.tables.items()
        }
        self.result.whole = sorted(set(whole) & set(work))
        unnoted: set[Key] = set()
        if FULL_TEXT in work and FULL_TEXT not in whole:
            unnoted = self._touched_entities(work) - set(work[FULL_TEXT])
            work[FULL_TEXT] = sorted({*work[FULL_TEXT], *unnoted})
        if self._merge is not None:
            self._merge.decide({name: keys for name, keys in work.items() if keys}, unnoted)
        if self.result.whole or any(work.values()):
            self._mark.begin()
        for name, keys in work.items():
            table = self._plan.tables[name]
            counts = Carried()
            if not key_columns(table):
                if name in whole:
                    self._multiset(table, counts)
            elif table.is_full_text:
                self._full_text(table, keys, counts)
            elif table.is_vectors:
                self._vectors(table, keys, counts)
            else:
                self._rows(table, keys, counts)
            if keys or counts.changed:
                self.result.tables[name] = counts
            if key_columns(table):
                self._supersede_cells(table, keys)
        self._adopted()
        self._supersede_rows(work)
        self.result.superseded = len(self.superseded)
        self.result.changed = any(counts.changed for counts in self.result.tables.values()) or bool(self.superseded)
        if self._merge is not None:
            self.result.merged = self._merge.needed
            self.result.renumbered, self.result.conflicts = self._merge.renumbered(), self._merge.conflicts

    def _touched_entities(self, work: dict[str, list[Key]]) -> set[Key]:
        """Entities of which any row was touched: SQLite's index may have lagged behind them before the cutover."""
        found = set(work.get("entities", []))
        for name in ("entity_tags", "metadata_entries"):
            table = self._plan.tables.get(name)
            if table is None or "entity_id" not in table.columns:
                continue
            place = table.columns.index("entity_id")
            for some in chunks(work[name]):
                rows = [*self._target.rows(table, some).values(), *(self._database.row(table, key) for key in some)]
                found |= {(row[place],) for row in rows if row is not None and isinstance(row[place], int)}
        return found

    def _all_keys(self, table: TablePlan) -> list[Key]:
        """All keys of both sides."""
        if not key_columns(table):
            return []
        if table.is_full_text:
            ours = [(entity,) for entity in self._database.entries(table)]
        else:
            ours = self._database.keys(table)
        return sorted({*ours, *self._target.keys(table)}, key=repr)

    def _done(
        self, table: TablePlan, key: Key, at: Key, values: Row | None, cells: Row | None, *, same: bool, changed: bool
    ) -> None:
        """Remember a row that is handled: PostgreSQL's ``values`` under ``key``, SQLite's ``cells`` under ``at``.

        ``same``: they say the same, ids included. ``changed``: something was written.
        """
        if same:
            self.result.touched.setdefault(table.name, []).append(list(key))
        else:
            self.result.mapped += 1
        # Of all rows of a table, those stand in the copy of the cutover that are the same as ever.
        known = table.name in self._whole and not changed
        if not known or self._merge is not None and not self._merge.is_known(table, key, cells):
            self._mark.note(table.name, table.columns, key, at, values, cells)

    def _is_kept(self, table: TablePlan, key: Key) -> bool:
        """Whether a row stands in SQLite alone since it was quarantined as a whole."""
        return key in self._kept_rows.get(table.name, {}) and self._mark.get(table.name, key) is None

    # Ordinary tables

    def _rows(self, table: TablePlan, keys: list[Key], counts: Carried) -> None:
        for some in chunks(keys):
            theirs = self._target.present(table, some)
            for key in some:
                if key not in theirs:
                    self._gone(table, key, counts)
        late: list[tuple[Key, Key, Row, Row]] = []
        for some in chunks(keys):
            actions: dict[Key, dict[str, list[str]]] = {}
            for (key, column), records in self._target.kept_cells(table, some).items():
                actions.setdefault(key, {})[column] = [action for _, action, _ in records]
            for key, values in self._target.rows(table, some).items():
                at, wanted = key, values
                if self._merge is not None:
                    placed = self._merge.place(table, key, values)
                    if placed is None or placed[1] is None:
                        self._note_joined(table, key, values)
                        continue
                    at, wanted = placed[0], placed[1]
                try:
                    now, changed = self._upsert(table, at, wanted, actions.get(key, {}), counts)
                except sqlite3.IntegrityError:
                    late.append((key, at, values, wanted))
                else:
                    same = at == key and wanted == values
                    self._done(table, key, at, values, now, same=same, changed=changed)
        if late:
            self._late(table, late, counts)

    def _late(self, table: TablePlan, late: list[tuple[Key, Key, Row, Row]], counts: Carried) -> None:
        """Write rows of which a unique value stood in another row: it is free once that one is written, too."""
        self._database.execute("SAVEPOINT late")
        try:
            for _, at, _, _ in late:
                self._remove(table, at)
            written = [self._insert(table, wanted) for _, _, _, wanted in late]
        except sqlite3.IntegrityError:
            if self._merge is None:
                raise
            self._database.execute("ROLLBACK TO late")
            for key, _, _, _ in late:
                self._merge.refuse(table, key, "SQLite has its unique values in another row; SQLite's stays")
        else:
            for (key, at, values, wanted), now in zip(late, written):
                counts.updated += 1
                self._done(table, key, at, values, now, same=at == key and wanted == values, changed=True)
        self._database.execute("RELEASE late")

    def _note_joined(self, table: TablePlan, key: Key, values: Row) -> None:
        assert self._merge is not None
        at = self._merge.joined_to(table, key)
        if at is not None:
            self._mark.note(table.name, table.columns, key, at, values, self._database.row(table, at), joined=True)

    def _gone(self, table: TablePlan, key: Key, counts: Carried) -> None:
        at = key
        if self._merge is not None:
            placed = self._merge.place(table, key, None)
            if placed is None:
                return
            at = placed[0]
        if self._is_kept(table, at):
            return
        removed = self._remove(table, at)
        counts.deleted += removed
        counts.unchanged += not removed
        self._done(table, key, at, None, None, same=at == key, changed=bool(removed))

    def _remove(self, table: TablePlan, key: Key) -> int:
        where = " AND ".join(f"{quoted(name)} = ?" for name in key_columns(table))
        return self._database.execute(f"DELETE FROM {quoted(table.name)} WHERE {where}", key).rowcount

    def _upsert(
        self, table: TablePlan, key: Key, values: Row, actions: dict[str, list[str]], counts: Carried
    ) -> tuple[Row, bool]:
        """Give SQLite a row; the row as it is there now, and whether it was written."""
        present = self._database.row(table, key)
        if present is None or self._is_kept(table, key):
            if present is not None:
                self._remove(table, key)
            now = self._insert(table, values)
            counts.inserted += present is None
            counts.updated += present is not None
            self._inserted.setdefault(table.name, []).append(key)
            return now, True
        different = self._differing(table, present, values, actions)
        if not different:
            counts.unchanged += 1
            return present, False
        changed = ", ".join(f"{quoted(table.columns[place])} = ?" for place in different)
        where = " AND ".join(f"{quoted(name)} = ?" for name in key_columns(table))
        self._database.execute(
            f"UPDATE {quoted(table.name)} SET {changed} WHERE {where}",
            [*(self._form(table, place, values[place]) for place in different), *key],
        )
        counts.updated += 1
        updated = self._database.row(table, key)
        if updated is None or self._differing(table, updated, values, actions):
            raise self._not_held(table, key)
        return updated, True

    def _differing(self, table: TablePlan, present: Row, values: Row, actions: dict[str, list[str]]) -> list[int]:
        """Places of the cells that do not give the target's values."""
        labels = {keeper: table.columns.index(label) for label, keeper in table.label_keepers.items()}
        return [
            place
            for place, (name, codec) in enumerate(zip(table.columns, table.codecs))
            if not stands_for(
                codec,
                present[place],
                values[place],
                actions.get(name, ()),
                present[labels[name]] if name in labels else None,
            )
        ]

    def _form(self, table: TablePlan, place: int, value: Any) -> Any:
        name = table.columns[place]
        return written(table.codecs[place], value, (table.name, name) in self._whole_seconds)

    def _insert(self, table: TablePlan, values: Row) -> Row:
        """Insert a row, and read it back."""
        if table.name not in self._inserts:
            columns, marks = ", ".join(map(quoted, table.columns)), ", ".join("?" * len(table.columns))
            self._inserts[table.name] = f"INSERT INTO {quoted(table.name)} ({columns}) VALUES ({marks})"
        self._database.execute(
            self._inserts[table.name], [self._form(table, place, value) for place, value in enumerate(values)]
        )
        names = key_columns(table)
        key = tuple(values[table.columns.index(name)] for name in names)
        now = self._database.row(table, key) if names else values
        if now is None or names and self._differing(table, now, values, {}):
            raise self._not_held(table, key)
        return now

    @staticmethod
    def _not_held(table: TablePlan, key: Key) -> EngineError:
        return EngineError(
            f"SQLite does not hold the row {key} of {table.name} as it was written",
            "every value of PostgreSQL in SQLite",
            "both databases, which are as before this run",
            "look for a trigger on this table in SQLite, or report this with the table's definition",
        )

    # Tables without a primary key: rows are the same if all of their cells are

    def _multiset(self, table: TablePlan, counts: Carried) -> None:
        theirs = self._target.all_rows(table)
        rows = self._all_rows(self._database, table)
        wanted, ours = bag(theirs), bag([row for row, _ in rows.values()])
        come, go = wanted - ours, ours - wanted
        if self._merge is not None:
            known = self._base is not None and bool(self._base.columns(table.name))
            then = self._all_rows(self._base, table) if self._base is not None and known else {}
            before = bag([row for row, _ in then.values()]) if self._base is not None else None
            come, go = self._merge.bags(table, ours, wanted, before)
        expected = ours - go + come
        for rowid, (row, _) in rows.items():
            if go[digest(row)] > 0:
                go[digest(row)] -= 1
                self._database.execute(f"DELETE FROM {quoted(table.name)} WHERE _rowid_ = ?", (rowid,))
                counts.deleted += 1
            else:
                counts.unchanged += 1
        for row in theirs:
            if come[digest(row)] > 0:
                come[digest(row)] -= 1
                self._insert(table, row)
                counts.inserted += 1
        rows = self._all_rows(self._database, table)
        if bag([row for row, _ in rows.values()]) != expected:
            raise self._not_held(table, ())
        self._mark.note_bag(table.name, table.columns, wanted, expected)
        if expected == wanted:
            self.result.touched[table.name] = [[]]
        else:
            self.result.mapped += len(theirs)
        cells = {(rowid,): row for rowid, (_, row) in rows.items()}
        for (key, column), records in self._target.kept_cells(table).items():
            self._supersede(table, records, column, cells.get(key))

    def _all_rows(self, database: Database, table: TablePlan) -> dict[int, tuple[Row, Row]]:
        """Rows by rowid, those left out that were quarantined as a whole: as PostgreSQL holds them, and as stored."""
        known = database.columns(table.name)
        columns = ", ".join(quoted(name) if name in known else "NULL" for name in table.columns)
        sql = f"SELECT _rowid_, {columns} FROM {quoted(table.name)} ORDER BY _rowid_"
        kept = self._kept_rows.get(table.name, {})
        found = {rowid: tuple(cells) for rowid, *cells in database.execute(sql) if (rowid,) not in kept}
        empty = {
            (key[0], column)
            for (key, column), records in self._target.kept_cells(table, [(rowid,) for rowid in found]).items()
            if any(action == "quarantine" for _, action, _ in records)
        }
        return {
            rowid: (
                tuple(
                    _as_copied(codec, cell, (rowid, name) in empty)
                    for name, codec, cell in zip(table.columns, table.codecs, cells)
                ),
                cells,
            )
            for rowid, cells in found.items()
        }

    # Search tables

    def _vectors(self, table: TablePlan, keys: list[Key], counts: Carried) -> None:
        for some in chunks(keys):
            theirs = self._target.rows(table, some)
            for key in some:
                at, wanted = key, theirs.get(key)
                if self._merge is not None:
                    placed = self._merge.place_index(table, key, wanted)
                    if placed is None:
                        continue
                    at, wanted = placed
                if wanted is None and self._is_kept(table, key):
                    continue
                present = self._database.row(table, at)
                same = at == key and wanted == theirs.get(key)
                if present == wanted or present and wanted and not self._differing(table, present, wanted, {}):
                    counts.unchanged += 1
                    self._done(table, key, at, theirs.get(key), present, same=same, changed=False)
                    continue
                # vec0 replaces nothing, and changes no partition.
                if present is not None:
                    self._remove(table, at)
                    self._require_gone(table, at)
                now = None
                if wanted is not None:
                    now = self._insert(table, wanted)
                    counts.inserted += present is None
                    counts.updated += present is not None
                else:
                    counts.deleted += 1
                self._done(table, key, at, theirs.get(key), now, same=same, changed=True)

    def _require_gone(self, table: TablePlan, key: Key) -> None:
        sql = f"SELECT count(*) FROM {quoted(table.name + '_rowids')} WHERE rowid = ?"
        if self._database.execute(sql, key).fetchone()[0]:
            raise EngineError(
                f"sqlite-vec does not delete the vector of entity {key[0]}, and does not say so (0.1.7, 0.1.8)",
                "a vec0 table that gives up a row",
                "both databases, which are as before this run",
                "install sqlite-vec 0.1.9 in Pensieve's virtual environment, then run again",
            )

    def _full_text(self, table: TablePlan, keys: list[Key], counts: Carried) -> None:
        if not keys:
            return
        words = WordsBack()
        rowids: list[int] = []
        for some in chunks(keys):
            theirs = self._target.rows(table, some)
            texts = self._target.entity_texts([key[0] for key in some])
            for key in some:
                found = theirs.get(key)
                wanted = None
                if found is not None:
                    wanted = words.raw(found[1:], *texts.get(key[0], (None, [], [])))
                at = key
                if self._merge is not None:
                    placed = self._merge.place_index(table, key, (key[0], *wanted) if wanted is not None else None)
                    if placed is None:
                        continue
                    at, row = placed
                    wanted = row[1:] if row is not None else None
                if found is None and self._is_kept(table, key):
                    continue
                written_as, changed = self._entry(table, at[0], wanted, counts)
                now = (at[0], *self._database.entry(table, written_as[0])) if written_as else None
                if now is not None and not _says(now[1:], wanted or ()):
                    raise self._not_held(table, at)
                self._done(table, key, at, found, now, same=at == key, changed=changed)
                if at == key:
                    rowids += written_as
        self.result.touched[f"{table.name}_content"] = [[rowid] for rowid in rowids]

    def _entry(self, table: TablePlan, entity: int, wanted: Row | None, counts: Carried) -> tuple[list[int], bool]:
        """Give an entity this one entry; the newest stays if it says the same. Its rowid, and whether it changed."""
        present = self._database.entries_of(table, entity)
        keep = bool(present) and wanted is not None and _says(self._database.entry(table, present[-1]), wanted)
        for rowid in present[:-1] if keep else present:
            self._database.execute(f"DELETE FROM {quoted(table.name)} WHERE rowid = ?", (rowid,))
        if keep:
            counts.unchanged += len(present) == 1
            counts.updated += len(present) > 1
            return present[-1:], len(present) > 1
        if wanted is None:
            counts.deleted += bool(present)
            counts.unchanged += not present
            return [], bool(present)
        columns = ", ".join(map(quoted, table.columns))
        sql = f"INSERT INTO {quoted(table.name)} ({columns}) VALUES (?, ?, ?, ?)"
        done = self._database.execute(sql, (entity, *wanted))
        counts.inserted += not present
        counts.updated += bool(present)
        return [int(done.lastrowid or 0)], True

    # Quarantine

    def _adopted(self) -> None:
        """Remove quarantined rows that refer to a row which PostgreSQL has given since: they are not that row's."""
        for child in self._plan.tables.values():
            kept = self._kept_rows.get(child.name)
            if not kept:
                continue
            if child.is_vectors or child.is_full_text:
                for key in self._inserted.get("entities", []):
                    if key in kept and key not in self._target.rows(child, [key]):
                        self._forget_index(child, key)
                continue
            names = key_columns(child)
            for foreign in child.target.foreign_keys():
                if len(foreign.columns) != 1 or not names:
                    continue
                wanted = ", ".join(map(quoted, names))
                sql = f"SELECT {wanted} FROM {quoted(child.name)} WHERE {quoted(foreign.columns[0])} = ?"
                for parent in self._inserted.get(str(foreign.parent), []):
                    for key in self._database.execute(sql, parent[:1]).fetchall():
                        if key in kept and key not in self._target.rows(child, [key]):
                            self._remove(child, key)

    def _forget_index(self, table: TablePlan, key: Key) -> None:
        if table.is_full_text:
            self._entry(table, key[0], None, Carried())
        else:
            self._remove(table, key)

    def _supersede_cells(self, table: TablePlan, keys: Sequence[Key]) -> None:
        """Find the originals of cells that SQLite no longer holds."""
        if table.is_full_text:
            return
        for some in chunks(keys):
            for (key, column), records in self._target.kept_cells(table, some).items():
                self._supersede(table, records, column, self._database.row(table, key))

    def _supersede(self, table: TablePlan, records: list[tuple[int, str, Any]], column: str, row: Row | None) -> None:
        now = quarantine_form(row[table.columns.index(column)]) if row and column in table.columns else None
        self.superseded.update(number for number, _, original in records if original != now)

    def _supersede_rows(self, work: dict[str, list[Key]]) -> None:
        """Find the originals of whole rows whose key PostgreSQL has given anew, or which SQLite no longer has."""
        for name, kept in self._kept_rows.items():
            table = self._plan.tables.get(name)
            if table is None or not key_columns(table):
                continue
            given = self._target.rows(table, [key for key in work[name] if key in kept])
            if table.is_full_text:
                there = {key for key in kept if self._database.entries_of(table, key[0])}
            elif table.is_vectors:
                there = set(self._database.keys(table))
            else:
                there = {key for key in kept if self._database.row(table, key) is not None}
            for key, numbers in kept.items():
                if key in given or key not in there:
                    self.superseded.update(numbers)


def _as_copied(codec: Codec, cell: Any, quarantined: bool) -> Any:
    """The value of the target that a cell of SQLite gives."""
    if cell is None:
        return None
    found = codec.cell(cell)
    if isinstance(found, Problem):
        found = None if quarantined else found.coerced
    return found.tobytes() if isinstance(found, np.ndarray) else found


def _says(entry: Row, wanted: Row) -> bool:
    """Whether an entry of SQLite has the path and the words of another."""
    if not all(isinstance(part, str) for part in entry):
        return False
    return bool(entry[0] == wanted[0] and all(squeezed(a) == squeezed(b) for a, b in zip(entry[1:], wanted[1:])))
