"""The copy: load all tables out of sight, build their indexes and keys, then show them in one transaction."""

from __future__ import annotations

import hashlib
import json
import os
import time
import uuid
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from . import ledger, staging
from .census import Watcher, by_size, reading_of, survey, target_tables, touched
from .fts import Tokenizer
from .ledger import Entry
from .model import (
    Census,
    CopyResult,
    EngineError,
    FindingLog,
    FindingsError,
    Policy,
    Prediction,
    Progress,
    TableCount,
)
from .plan import Plan, TablePlan, make_plan
from .pool import Pool
from .reading import full_text as list_full_text
from .relations import Relations, find
from .source import Source, quoted
from .target import STAGING, Connection, TargetTable, connect, query, reference, run
from .work import Outcome, full_text, load

_ENGINE = "1"  # part of the plan's digest: a ledger of another engine is not gone on with
_CHUNK = 200  # entities whose full text is made in one transaction
_LOCK = 7_020_315_003  # advisory lock: one copy at a time
_INDEXED_BY_KEY = {"entities": "id", "entity_tags": "entity_id", "metadata_entries": "entity_id", "tags": "id"}


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
    workers = jobs or os.cpu_count() or 1
    target = target_tables(target_dsn)
    if target is None:
        raise EngineError(
            "no tables of Pensieve on the target",
            "the schema that Pensieve's own code makes, empty",
            "everything",
            "make the schema first (memos init with the target as database_path), then run again",
        )
    with Pool(Path(source), workers, Tokenizer().load()) as pool:
        ours, fingerprint = pool.open()
        connection = connect(target_dsn, synchronous_commit="on")
        try:
            if not query(connection, "SELECT pg_try_advisory_lock(%s)", (_LOCK,))[0][0]:
                raise EngineError(
                    "another copy is running into this database",
                    "one copy at a time",
                    "everything",
                    "wait for it to end, or end its process, and run again",
                )
            plan = make_plan(ours, target)
            return _Copy(pool, ours, connection, target_dsn, target, plan, chosen, progress, workers).run(
                Path(source), fingerprint
            )
        finally:
            connection.close()
            ours.close()


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
            last = _complete(connection)
            if last and (last.fingerprint, last.plan_digest) == (fingerprint, _digest(plan, chosen)):
                tables = {name: TableCount(**count) for name, count in last.result["tables"].items()}
                return Prediction(False, Census(tables, FindingLog(), [], list(last.result["notes"]), 0.0), before)
            _refuse(plan)
            if target is not None:
                staging.check_target(connection, target, plan, last.boundary if last else None)
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
    return [row[0] for row in source.rows("SELECT version_num FROM alembic_version")]


def _refuse(plan: Plan) -> None:
    if plan.refused:
        raise EngineError(
            "; ".join(plan.refused),
            "tables and columns that the engine understands",
            "everything",
            "remove what is not needed from the source, or report this",
        )


def _complete(connection: Connection) -> ledger.Run | None:
    """Give the run whose tables the target shows."""
    found = [run for run in ledger.runs(connection) if run.state == "complete"]
    return found[0] if found else None


def _digest(plan: Plan, policy: Policy) -> str:
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
        self._target, self._plan, self._policy, self._progress, self._jobs = target, plan, policy, progress, jobs
        self._started = time.monotonic()
        self._log = FindingLog()
        self._tables: dict[str, TableCount] = {}
        self._phases: dict[str, float] = {}
        self._run_id = ""
        self._before: dict[str, int] = {}
        self._work_done, self._work_total = 0.0, 1.0
        self._bytes = 0

    def run(self, path: Path, fingerprint: str) -> CopyResult:
        digest = _digest(self._plan, self._policy)
        complete = _complete(self._connection)
        if complete and (complete.fingerprint, complete.plan_digest) == (fingerprint, digest):
            self._tables = {name: TableCount(**count) for name, count in complete.result["tables"].items()}
            return self._result(False, complete.run_id, list(complete.result["notes"]))
        _refuse(self._plan)
        staging.check_target(self._connection, self._target, self._plan, complete.boundary if complete else None)
        staging.check_revision(self._connection, _revisions(self._source))
        self._before = _rows_before(self._connection, self._target)
        done = self._resume(path, fingerprint, digest)
        try:
            self._load(done)
        except FindingsError:
            staging.drop(self._connection)
            ledger.forget(self._connection, self._run_id)
            raise
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

    def _load(self, done: list[Entry]) -> None:
        """Load all tables, make full text, and build indexes and keys as soon as their tables are there."""
        relations = self._load_tables(done)
        with ThreadPoolExecutor(self._jobs) as threads:
            builds = self._start_builds(threads)
            self._full_text(relations, done, builds)
            for table in self._plan.tables.values():
                if table.is_full_text:
                    builds[table.name] = [threads.submit(self._build, [sql]) for sql in self._indexes(table)]
            self._wait(builds)
        self._keys()

    def _load_tables(self, done: list[Entry]) -> Relations:
        started = time.monotonic()
        relations = find(self._source, self._plan)
        sizes = by_size(self._source, self._plan)
        self._work_total = sum(sizes.values()) * 4 or 1.0
        loaded = {entry.table: entry.count for entry in done}
        waiting = [name for name in sizes if name not in loaded]
        outcomes: dict[str, Outcome] = {}
        while True:
            while waiting or self._pool.busy():
                while waiting and self._pool.idle():
                    table = self._plan.tables[waiting.pop(0)]
                    reading = reading_of(table, relations, self._source, self._plan, FindingLog())
                    self._pool.submit(table.name, load, self._dsn, self._run_id, table, self._policy, reading)
                for step in self._pool.steps(1.0):
                    if step.done:
                        outcomes[step.name] = step.result
                        self._tables[step.name] = step.result.count
                        self._work_done += sizes[step.name]
                    self._bytes += step.bytes
                    self._tell("load", step.name, step.rows)
            seeds = {name: outcome.dropped for name, outcome in outcomes.items() if outcome.dropped}
            if seeds == relations.seeds:
                break
            again = find(self._source, self._plan, seeds)
            waiting = touched(self._plan, relations, again)
            relations = again
        for name, count in loaded.items():
            self._tables.setdefault(name, count)
        for outcome in outcomes.values():
            self._log.merge(outcome.findings)
        if self._log.failing():
            raise FindingsError(self._log)
        self._phases["load"] = time.monotonic() - started
        return relations

    def _indexes(self, table: TablePlan) -> list[str]:
        return staging.missing_indexes(self._connection, table)

    def _start_builds(self, threads: ThreadPoolExecutor) -> dict[str, list[Future[None]]]:
        builds: dict[str, list[Future[None]]] = {}
        for table in self._plan.tables.values():
            if not table.is_full_text:
                builds[table.name] = [threads.submit(self._build, [sql]) for sql in self._indexes(table)]
        return builds

    def _build(self, statements: list[str]) -> None:
        connection = connect(self._dsn, maintenance_work_mem="256MB", max_parallel_maintenance_workers=str(self._jobs))
        try:
            for statement in statements:
                run(connection, statement)
        finally:
            connection.close()

    def _wait(self, builds: dict[str, list[Future[None]]]) -> None:
        for name, futures in builds.items():
            for future in futures:
                while not future.done():
                    time.sleep(0.05)
                    self._tell("index", name, 0)
                future.result()

    def _full_text(self, relations: Relations, done: list[Entry], builds: dict[str, list[Future[None]]]) -> None:
        table = next((table for table in self._plan.tables.values() if table.is_full_text), None)
        if table is None:
            return
        self._wait({name: builds[name] for name in _INDEXED_BY_KEY if name in builds})
        started = time.monotonic()
        reading = reading_of(table, relations, self._source, self._plan, self._log)
        listed = list_full_text(self._source, table, self._policy, reading)
        chunks = {entry.chunk: entry for entry in done if entry.table == table.name}
        for name in _INDEXED_BY_KEY:
            run(self._connection, f"ANALYZE {reference(name)}")
        ids = listed.ids.tolist()
        waiting = [(at // _CHUNK, ids[at : at + _CHUNK]) for at in range(0, len(ids), _CHUNK)]
        waiting = [part for part in waiting if part[0] not in chunks]
        total = TableCount(listed.source_rows, 0, len(listed.records))
        for entry in chunks.values():
            _add(total, entry.count)
        run(self._connection, "BEGIN")
        run(
            self._connection,
            "DELETE FROM data_copy.quarantine WHERE run_id = %s AND source_table = %s AND kind = 'rowid_without_row'",
            (self._run_id, table.name),
        )
        ledger.quarantine(self._connection, self._run_id, listed.records)
        run(self._connection, "COMMIT")
        while waiting or self._pool.busy():
            while waiting and self._pool.idle():
                chunk, part = waiting.pop(0)
                self._pool.submit(
                    table.name, full_text, self._dsn, self._run_id, table, STAGING, chunk, part, self._policy
                )
            for step in self._pool.steps(1.0):
                if step.done:
                    _add(total, step.result.count)
                    self._log.merge(step.result.findings)
                    self._tell("full text", table.name, step.result.count.target)
        if self._log.failing():
            raise FindingsError(self._log)
        total.seconds = time.monotonic() - started
        self._tables[table.name] = total
        self._phases["full text"] = total.seconds

    def _keys(self) -> None:
        """Make primary and unique keys of the indexes, gather statistics, then check and make the foreign keys."""
        for kinds in ("pu", "f"):
            for table in self._plan.tables.values():
                for statement in staging.key_statements(self._connection, table, kinds):
                    run(self._connection, statement)
            if kinds == "pu":
                for table in self._plan.tables.values():
                    run(self._connection, f"ANALYZE {reference(table.name)}")

    def _show(self) -> None:
        """Show everything in one transaction."""
        highest = {name: self._highest(table) for name, table in self._plan.tables.items() if table.table}
        self._connection.autocommit = False
        try:
            staging.swap(self._connection, self._plan, self._target, highest)
            ledger.finish(self._connection, self._run_id, ledger.result_of(self._tables, self._log, self._plan.notes))
            self._connection.commit()
        except BaseException:
            self._connection.rollback()
            raise
        finally:
            self._connection.autocommit = True

    def _highest(self, table: TablePlan) -> int:
        assert table.table is not None
        alias = table.table.rowid_alias
        if alias is None:
            return 0
        found = self._source.rows(f'SELECT max(_rowid_) FROM "{table.name}"')[0][0] or 0
        return max(int(found), self._source.sequence(table.name))

    def _tell(self, phase: str, item: str, rows: int) -> None:
        if self._progress is None:
            return
        elapsed = time.monotonic() - self._started
        fraction = min(self._work_done / self._work_total, 1.0)
        eta = elapsed / fraction - elapsed if fraction > 0.01 else None
        self._progress(Progress(phase, item, rows, 0, self._bytes / 1e6, fraction, elapsed, eta))

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


def _add(total: TableCount, part: TableCount) -> None:
    total.target += part.target
    total.quarantined += part.quarantined
    total.bytes += part.bytes
