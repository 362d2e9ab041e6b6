"""The copy: load all tables out of sight, build their indexes and keys, then show them in one transaction."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import time
import uuid
from collections.abc import Mapping
from pathlib import Path

import psycopg2

from . import change_log, ledger, staging
from .builder import Builder
from .census import Watcher, survey, target_tables
from .fts import Tokenizer, memo_for
from .ledger import Entry
from .model import (
    Census,
    CopyResult,
    EngineError,
    FindingLog,
    FindingsError,
    Policy,
    Prediction,
    TableCount,
)
from .plan import FULL_TEXT, Plan, TablePlan, make_plan
from .pool import Pool, WorkerError
from .progress import Meter
from .rows import excerpt
from .source import Source, quoted
from .target import Connection, TargetTable, connect, query, transaction
from .watch import watched

_ENGINE = "2"  # part of the plan's digest: a ledger of another engine is not gone on with
LOCK = 7_020_315_003  # advisory lock: one copy at a time


def copy(
    source: Path,
    target_dsn: str,
    policy: Mapping[str, str] | str | Policy | None = None,
    progress: Watcher | None = None,
    jobs: int | None = None,
) -> CopyResult:
    """Copy a Pensieve database; the target shows all of it or nothing.

    Raises FindingsError when the policy says that a finding must stop the run, EngineError for all else that stands
    in the way; the target's tables are then as they were. Run again after a crash: it goes on from the ledger.
    """
    chosen = policy if isinstance(policy, Policy) else Policy.of(policy)
    try:
        with watched(progress):
            return _copy(Path(source), target_dsn, chosen, progress, jobs or os.cpu_count() or 1)
    except (psycopg2.Error, sqlite3.Error, WorkerError, OSError) as error:
        raise EngineError(
            str(error).strip().splitlines()[0],
            "a copy without an error of the server, of SQLite or of the machine",
            "the source was only read; the tables of the target hold what they did, or all of this copy",
            "remove the cause (full disk, server gone, source damaged) and run again: it goes on from the ledger",
        ) from error


def _copy(source: Path, target_dsn: str, chosen: Policy, progress: Watcher | None, workers: int) -> CopyResult:
    target = target_tables(target_dsn)
    if target is None:
        raise EngineError(
            "no tables of Pensieve on the target",
            "the schema that Pensieve's own code makes, empty",
            "everything",
            "make the schema first (memos init with the target as database_path), then run again",
        )
    # Together the workers remember as much as one would; the dictionary is shared by all, if there is use for it.
    tokenizer = Tokenizer(memo_for(workers))
    if _has_full_text(source):
        tokenizer.load()
    with Pool(source, workers, tokenizer) as pool:
        ours, fingerprint = pool.open()
        connection = connect(target_dsn, synchronous_commit="on")
        try:
            if not query(connection, "SELECT pg_try_advisory_lock(%s)", (LOCK,))[0][0]:
                raise EngineError(
                    "another copy is running into this database",
                    "one copy at a time",
                    "everything",
                    "wait for it to end, or end its process, and run again",
                )
            staging.end_leftover_sessions(connection)
            plan = make_plan(ours, target)
            return _Copy(pool, ours, connection, target_dsn, target, plan, chosen, progress, workers).run(
                source, fingerprint
            )
        finally:
            connection.close()
            ours.close()


def _has_full_text(path: Path) -> bool:
    source = Source(path)
    try:
        content = f"{FULL_TEXT}_content"
        there = source.rows("SELECT 1 FROM sqlite_master WHERE name = ?", (content,))
        return bool(there and source.rows(f"SELECT 1 FROM {quoted(content)} LIMIT 1"))
    finally:
        source.close()


def predict(
    source: Path,
    target_dsn: str,
    policy: Mapping[str, str] | str | Policy | None = None,
    progress: Watcher | None = None,
    jobs: int | None = None,
) -> Prediction:
    """Tell what ``copy`` would do, and raise what it would raise, without writing anything."""
    started = time.monotonic()
    chosen = policy if isinstance(policy, Policy) else Policy.of(policy)
    target = target_tables(target_dsn)
    with Pool(Path(source), jobs or os.cpu_count() or 1) as pool:
        ours, fingerprint = pool.open()
        connection = connect(target_dsn)
        try:
            before = _rows_before(connection, target or {})
            plan = make_plan(ours, target)
            last = complete_run(connection)
            if last and (last.fingerprint, last.plan_digest) == (fingerprint, digest_of(plan, chosen)):
                tables = {name: TableCount(**count) for name, count in last.result["tables"].items()}
                return Prediction(False, Census(tables, FindingLog(), [], list(last.result["notes"]), 0.0), before)
            _refuse(plan)
            if target is not None:
                staging.check_target(connection, target, plan, last)
                staging.check_revision(connection, _revisions(ours))
            found = survey(pool, ours, plan, chosen, started, progress)
        finally:
            connection.close()
            ours.close()
    if found.findings.failing():
        raise FindingsError(found.findings)
    return Prediction(True, found, before)


def _rows_before(connection: Connection, target: Mapping[str, TargetTable]) -> dict[str, int]:
    return {
        name: int(query(connection, f"SELECT count(*) FROM public.{quoted(name)}")[0][0]) for name in sorted(target)
    }


def _revisions(source: Source) -> list[str]:
    found = source.rows("SELECT version_num FROM alembic_version")
    return [revision if isinstance(revision, str) else excerpt(revision) for (revision,) in found]


def _refuse(plan: Plan) -> None:
    if plan.refused:
        raise EngineError(
            "; ".join(plan.refused),
            "tables and columns that the engine understands",
            "everything",
            "remove what is not needed from the source, or report this",
        )


def complete_run(connection: Connection) -> ledger.Run | None:
    """Give the run whose tables the target shows."""
    found = [run for run in ledger.runs(connection) if run.state == "complete"]
    return found[0] if found else None


def digest_of(plan: Plan, policy: Policy) -> str:
    """Identify what a run does besides its source: columns, types and policy."""
    columns = {
        name: [(column, table.target.columns[column].type) for column in table.columns]
        for name, table in sorted(plan.tables.items())
    }
    text = json.dumps([_ENGINE, columns, dict(policy.actions)], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class _Copy:
    """One run, with all that it needs at hand."""

    def __init__(
        self,
        pool: Pool,
        source: Source,
        connection: Connection,
        dsn: str,
        target: dict[str, TargetTable],
        plan: Plan,
        policy: Policy,
        progress: Watcher | None,
        jobs: int,
    ) -> None:
        self._pool, self._source, self._connection, self._dsn = pool, source, connection, dsn
        self._target, self._plan, self._policy, self._jobs = target, plan, policy, jobs
        self._started = time.monotonic()
        self._log = FindingLog()
        self._tables: dict[str, TableCount] = {}
        self._phases: dict[str, float] = {}
        self._run_id = ""
        self._before: dict[str, int] = {}
        self._meter = Meter(progress, self._started)

    def run(self, path: Path, fingerprint: str) -> CopyResult:
        digest = digest_of(self._plan, self._policy)
        complete = complete_run(self._connection)
        if complete and (complete.fingerprint, complete.plan_digest) == (fingerprint, digest):
            self._tables = {name: TableCount(**count) for name, count in complete.result["tables"].items()}
            return self._result(False, complete.run_id, list(complete.result["notes"]))
        _refuse(self._plan)
        staging.check_target(self._connection, self._target, self._plan, complete)
        staging.check_revision(self._connection, _revisions(self._source))
        self._before = _rows_before(self._connection, self._target)
        done = self._resume(path, fingerprint, digest)
        builder = Builder(
            self._pool, self._source, self._connection, self._dsn, self._run_id, self._plan, self._policy, self._meter,
            self._jobs,
        )  # fmt: skip
        try:
            builder.fill(done)
        except FindingsError:
            staging.drop(self._connection)
            ledger.forget(self._connection, self._run_id)
            raise
        self._tables, self._log, self._phases = builder.tables, builder.log, builder.phases
        self._show()
        return self._result(True, self._run_id, self._plan.notes)

    def _resume(self, path: Path, fingerprint: str, digest: str) -> list[Entry]:
        """Go on with an unfinished run of this source, or begin a new one. Give what is loaded."""
        for last in ledger.runs(self._connection):
            same = (last.fingerprint, last.plan_digest) == (fingerprint, digest)
            if last.state == "loading" and same and staging.exists(self._connection):
                self._run_id = last.run_id
                return ledger.entries(self._connection, last.run_id)
        ledger.create(self._connection)
        staging.drop(self._connection)
        self._run_id = uuid.uuid4().hex
        ledger.start(self._connection, self._run_id, str(path), fingerprint, digest)
        staging.create(self._connection, self._plan)
        return []

    def _show(self) -> None:
        """Show everything in one transaction."""
        self._meter.tell("show", f"{len(self._plan.tables)} tables")
        highest = {name: self._highest(table) for name, table in self._plan.tables.items() if table.table}
        with transaction(self._connection):
            staging.hold(self._connection, self._target)
            # Others may have written while this was built.
            staging.check_target(self._connection, self._target, self._plan, complete_run(self._connection))
            staging.swap(self._connection, self._plan, self._target, highest)
            change_log.watch(self._connection)
            ledger.finish(self._connection, self._run_id, ledger.result_of(self._tables, self._log, self._plan.notes))

    def _highest(self, table: TablePlan) -> int:
        assert table.table is not None
        alias = table.table.rowid_alias
        if alias is None:
            return 0
        found = self._source.rows(f'SELECT max(_rowid_) FROM "{table.name}"')[0][0] or 0
        return max(int(found), self._source.sequence(table.name))

    def _result(self, changed: bool, run_id: str, notes: list[str]) -> CopyResult:
        return CopyResult(
            changed,
            self._tables,
            self._log,
            notes,
            run_id,
            time.monotonic() - self._started,
            self._phases,
            self._before or {name: count.target for name, count in self._tables.items()},
        )
