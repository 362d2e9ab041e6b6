"""Filling the staging schema: tables, full text, indexes and keys, each as soon as what it needs is there."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from threading import Lock

import psycopg2
import psycopg2.errors

from . import ledger, staging, watch
from .census import by_size, reading_of, touched
from .ledger import Entry
from .model import EngineError, FindingLog, FindingsError, Policy, TableCount
from .plan import Plan, TablePlan
from .pool import Pool
from .progress import Meter
from .reading import FullText
from .reading import full_text as list_full_text
from .relations import Relations, find
from .source import Source, quoted
from .target import STAGING, WORKER, Connection, TargetIndex, connect, reference, run
from .work import Outcome, full_text, load

_CHUNK = 200  # entities whose full text is made in one transaction

#: What full text is made of, and the column by which it is looked up.
_TEXT_SOURCES = {"entities": "id", "entity_tags": "entity_id", "metadata_entries": "entity_id", "tags": "id"}

# Seconds of work that a row, megabyte or vector costs about; they only weigh the parts of a run against each other.
_LOAD_SECONDS = 1 / 80e6
_TEXT_SECONDS = 0.0006
_BTREE_SECONDS = 0.6e-6
_GIN_SECONDS = 0.0004
_HNSW_SECONDS = 1.8e-6  # per number of a vector


class Builder:
    """Fills the staging schema of one run. ``tables``, ``log`` and ``phases`` tell afterwards what was done."""

    def __init__(
        self,
        pool: Pool,
        source: Source,
        connection: Connection,
        dsn: str,
        run_id: str,
        plan: Plan,
        policy: Policy,
        meter: Meter,
        jobs: int,
    ) -> None:
        self._pool, self._source, self._connection, self._dsn = pool, source, connection, dsn
        self._run_id, self._plan, self._policy, self._meter, self._jobs = run_id, plan, policy, meter, jobs
        self._builds: dict[tuple[str, str], Future[None]] = {}
        self._sessions: list[Connection] = []
        self._idle: list[Connection] = []
        self._lock = Lock()
        self._memory = staging.index_memory(connection)
        self._sizes = by_size(source, plan)
        self._looked_at = 0.0
        self.log = FindingLog()
        self.tables: dict[str, TableCount] = {}
        self.phases: dict[str, float] = {}

    def fill(self, done: list[Entry]) -> None:
        """Do what is not done yet (``done`` is what an earlier, unfinished run has loaded)."""
        try:
            with ThreadPoolExecutor(max(2, self._jobs)) as threads:
                self._fill(done, threads)
        finally:
            for session in self._sessions:
                session.close()

    def _fill(self, done: list[Entry], threads: ThreadPoolExecutor) -> None:
        self._weigh(done)
        started = time.monotonic()
        try:
            relations = self._load_tables(done, threads)
            self.phases["load"] = time.monotonic() - started
            self._make_full_text(relations, done, threads)
            started = time.monotonic()
            self._wait(list(self._builds))
            self.phases["indexes after full text"] = time.monotonic() - started
            started = time.monotonic()
            self._make_keys(threads)
            self.phases["keys"] = time.monotonic() - started
        except BaseException:
            self._cancel_builds()
            raise

    def _weigh(self, done: list[Entry]) -> None:
        """Tell the meter what there is to do."""
        rows = {name: self._rows(table) for name, table in self._plan.tables.items()}
        loaded = {entry.table for entry in done}
        for name, size in self._sizes.items():
            self._meter.expect(("load", name), 0.0 if name in loaded else size * _LOAD_SECONDS)
        for name, table in self._plan.tables.items():
            if table.is_full_text:
                self._meter.expect(("full text", name), rows[name] * _TEXT_SECONDS)
            for index in table.target.indexes:
                cost = {"hnsw": _HNSW_SECONDS * _dimensions(table), "gin": _GIN_SECONDS}.get(
                    index.method, _BTREE_SECONDS
                )
                self._meter.expect(("index", index.name), rows[name] * cost)

    def _rows(self, table: TablePlan) -> int:
        if table.is_full_text:  # about as many as its highest rowid; who counts the entries reads all texts
            return int(self._source.rows(f"SELECT max(id) FROM {quoted(table.name + '_content')}")[0][0] or 0)
        return self._source.count(f"{table.name}_rowids" if table.is_vectors else table.name)

    def _load_tables(self, done: list[Entry], threads: ThreadPoolExecutor) -> Relations:
        """Load tables, the largest first, and start the indexes of each when it is there."""
        relations = find(self._source, self._plan)
        loaded = {entry.table: entry.count for entry in done}
        for name in loaded:
            if name in self._sizes:
                self.tables[name] = loaded[name]
                self._start_builds(threads, self._plan.tables[name])
        waiting = [name for name in self._sizes if name not in loaded]
        outcomes: dict[str, Outcome] = {}
        while True:
            while waiting or self._pool.busy():
                while waiting and self._pool.idle():
                    self._submit_load(self._plan.tables[waiting.pop(0)], relations)
                for step in self._pool.steps(0.5):
                    if step.done:
                        outcome: Outcome = step.result
                        outcomes[step.name] = outcome
                        self.tables[step.name] = outcome.count
                        self._meter.finish(("load", step.name))
                        if not any(group.action == "fail" for group in outcome.findings):
                            self._start_builds(threads, self._plan.tables[step.name])
                    else:
                        self._meter.advance(("load", step.name), step.rows, step.bytes, self._sizes[step.name])
                self._look_at_builds("load")
            seeds = {name: outcome.dropped for name, outcome in outcomes.items() if outcome.dropped}
            if seeds == relations.seeds:
                break
            # Rows went into quarantine for a cell of theirs: their children are loaded again, without theirs.
            again = find(self._source, self._plan, seeds)
            waiting = touched(self._plan, relations, again)
            relations = again
        for outcome in outcomes.values():
            self.log.merge(outcome.findings)
        if self.log.failing():
            self._list_full_text(relations)
            raise FindingsError(self.log)
        return relations

    def _submit_load(self, table: TablePlan, relations: Relations) -> None:
        reading = reading_of(table, relations, self._source, self._plan, FindingLog())
        self._pool.submit(table.name, load, self._dsn, self._run_id, table, self._policy, reading)

    def _start_builds(self, threads: ThreadPoolExecutor, table: TablePlan) -> None:
        missing = staging.missing_indexes(self._connection, table)
        for index in sorted(missing, key=lambda index: index.columns[:1] != (_TEXT_SOURCES.get(table.name),)):
            if (table.name, index.name) not in self._builds:
                future = threads.submit(self._build, table, index)
                self._builds[table.name, index.name] = future

    def _build(self, table: TablePlan, index: TargetIndex) -> None:
        """Build one index, in a session with the memory and the processes that it can use."""
        settings = staging.index_settings(
            self._memory, self._jobs, index, self.tables[table.name].target, _dimensions(table)
        )
        statement = staging.index_statement(index)
        try:
            self._run_beside(statement, settings)
        except psycopg2.errors.DiskFull as error:
            if "shared memory" not in str(error):
                raise
            # Helpers share the graph by /dev/shm; where that is too small, one process builds it in its own memory.
            self._run_beside(statement, {**settings, "max_parallel_maintenance_workers": "0"})
        self._meter.finish(("index", index.name))

    def _run_beside(self, statement: str, settings: Mapping[str, str]) -> None:
        """Run a statement in a session that the next may have then: a login costs as much as a small index."""
        with self._lock:
            session = self._idle.pop() if self._idle else None
        if session is None:
            session = connect(self._dsn, WORKER)
            with self._lock:
                self._sessions.append(session)
        for name, value in settings.items():
            run(session, "SELECT set_config(%s, %s, false)", (name, value))
        run(session, statement)
        with self._lock:
            self._idle.append(session)

    def _cancel_builds(self) -> None:
        """Stop builds that run, so that nobody waits minutes for an index that nobody will use."""
        for future in self._builds.values():
            future.cancel()
        with self._lock:
            pids = [session.info.backend_pid for session in self._sessions if not session.closed]
        if not pids or watch.lost():
            return
        # By a session, which gives up in the end; what libpq has for this waits for a silent server for ever.
        with suppress(EngineError, psycopg2.Error), closing(connect(self._dsn)) as connection:
            run(connection, "SELECT pg_cancel_backend(pid) FROM unnest(%s) pid", (pids,))

    def _wait(self, builds: list[tuple[str, str]]) -> None:
        self._meter.tell("index", "of all tables")
        for build in builds:
            future = self._builds[build]
            while not future.done():
                time.sleep(0.05)
                self._look_at_builds("index", build[1])
            future.result()

    def _look_at_builds(self, phase: str, item: str = "") -> None:
        """Ask the server twice a second how far its index builds are; raise what a finished one has raised."""
        now = time.monotonic()
        if now - self._looked_at < 0.5:
            return
        self._looked_at = now
        for future in self._builds.values():
            if future.done() and not future.cancelled():
                future.result()
        for name, share in staging.builds_under_way(self._connection):
            self._meter.set(("index", name), share)
        self._meter.tell(phase, item)

    def _list_full_text(self, relations: Relations) -> FullText | None:
        """List what full text is to be made of; what it has no entity for goes to the log."""
        table = next((table for table in self._plan.tables.values() if table.is_full_text), None)
        if table is None:
            return None
        return list_full_text(
            self._source, table, self._policy, reading_of(table, relations, self._source, self._plan, self.log)
        )

    def _make_full_text(self, relations: Relations, done: list[Entry], threads: ThreadPoolExecutor) -> None:
        """Make full text with all workers, from the staging tables: just what Pensieve would read there."""
        listed = self._list_full_text(relations)
        if listed is None:
            return
        if self.log.failing():
            raise FindingsError(self.log)
        table = next(table for table in self._plan.tables.values() if table.is_full_text)
        ids = listed.ids
        if len(ids):
            self._wait([build for build in self._builds if self._is_lookup(*build)])
            for name in _TEXT_SOURCES:
                run(self._connection, f"ANALYZE {reference(name)}")
        started = time.monotonic()
        there = {entry.chunk: entry for entry in done if entry.table == table.name}
        waiting = [chunk for chunk in range(-(-len(ids) // _CHUNK)) if chunk not in there]
        total = TableCount(listed.source_rows, 0, len(listed.records))
        for entry in there.values():
            _add(total, entry.count)
        run(self._connection, "BEGIN")
        ledger.release(self._connection, self._run_id, table.name, ["rowid_without_row", "dependent_row"])
        ledger.quarantine(self._connection, self._run_id, listed.records)
        run(self._connection, "COMMIT")
        self._meter.tell("full text", table.name)
        while waiting or self._pool.busy():
            while waiting and self._pool.idle():
                chunk = waiting.pop(0)
                part = ids[chunk * _CHUNK : (chunk + 1) * _CHUNK].tolist()
                self._pool.submit(
                    table.name, full_text, self._dsn, self._run_id, table, STAGING, chunk, part, self._policy
                )
            for step in self._pool.steps(0.5):
                if step.done:
                    _add(total, step.result.count)
                    self.log.merge(step.result.findings)
                    count = step.result.count
                    self._meter.set(
                        ("full text", table.name), total.target / max(1, len(ids)), count.target, count.bytes
                    )
            self._look_at_builds("full text")
        if self.log.failing():
            raise FindingsError(self.log)
        total.seconds = self.phases["full text"] = time.monotonic() - started
        self._meter.finish(("full text", table.name))
        self.tables[table.name] = total
        self._start_builds(threads, table)

    def _is_lookup(self, table: str, index: str) -> bool:
        column = _TEXT_SOURCES.get(table)
        found = next(i for i in self._plan.tables[table].target.indexes if i.name == index)
        return column is not None and found.columns[:1] == (column,)

    def _make_keys(self, threads: ThreadPoolExecutor) -> None:
        """Make primary and unique keys of the indexes, gather statistics, then check and make the foreign keys."""
        self._meter.tell("keys")
        for statement in staging.key_statements(self._connection, self._plan, "pu"):
            run(self._connection, statement)
        analyses = [f"ANALYZE {reference(name)}" for name in self._plan.tables]
        list(threads.map(lambda statement: self._run_beside(statement, {}), analyses))
        for statement in staging.key_statements(self._connection, self._plan, "f"):
            run(self._connection, statement)
            self._meter.tell("keys")


def _dimensions(table: TablePlan) -> int:
    return max((getattr(codec, "dimensions", 0) for codec in table.codecs), default=0)


def _add(total: TableCount, part: TableCount) -> None:
    total.target += part.target
    total.quarantined += part.quarantined
    total.bytes += part.bytes
