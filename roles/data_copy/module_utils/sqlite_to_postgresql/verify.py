"""Proof that the target holds what the source holds: every cell, both directions, by code of its own.

The copier turns SQLite values into binary COPY. The verifier goes the other way: it asks the server for
values as text and numbers, brings both sides to one form, and compares. It shares no conversion code with
the copier: it has its own reader of vec0's shadow tables, its own timestamp parser and its own definition
of what each coercion gives. How each kind of table is compared:

* tables with integer keys: both sides stream in key order and are merged, so memory is bounded; ranges of
keys
  go to parallel processes. Other tables are joined by key, those without a key as multisets.
* entities_vec_v2: chunk by chunk from the shadow tables, vectors by bits; all ids of both sides are merged.
* entities_fts: what Pensieve's indexer would derive from the target's entities, tags and metadata (which are
  themselves compared with the source). The raw text is put together here. Each entry must have exactly its
  characters, and its words must be those of the memoised tokenizer; a seeded sample (all entries of a small
  database, else 2 %) is also segmented by jieba itself, without any memo.
* the catalog: constraints validated, indexes valid, sequences beyond the largest id, foreign keys without
  orphans, and, given the catalog of the schema step, every definition unchanged.

With `only`, just the rows of these keys are compared, in time that does not grow with the tables.

A difference is allowed only where `data_copy.quarantine` says so: a row quarantined as a whole is missing in
the target, a cell is NULL (quarantine) or the defined conversion (coerce), and the original kept there equals
the source.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import re
import sqlite3
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psycopg2.extensions

from .fts import MEMO_LEAST, Tokenizer
from .model import CARRIED, Progress
from .verify_catalog import catalog, check_sequences, check_states, compare_catalogs, read_catalog
from .verify_rows import RowComparison
from .verify_sides import (
    BOOKKEEPING,
    FTS_TABLE,
    LIMIT,
    Column,
    Difference,
    Differences,
    Outcome,
    Run,
    Table,
    TableVerdict,
    Task,
    open_source,
    open_target,
)
from .verify_values import INTEGERS, quoted
from .verify_vectors import compare_vectors, find_extra_ids, vec0_columns
from .verify_words import compare_odd_entries, compare_words, read_entries
from .watch import watched

__all__ = ["Difference", "TableVerdict", "VerifyResult", "catalog", "verify"]

RANGE_ROWS = 20_000  # rows of one task
KEY_ROWS = 2_000  # rows of one task by keys
KEY_ENTRIES = 250  # entities of one full-text task by keys
FTS_RANGE = 1_000  # entities of one full-text task
SAMPLE_ALL = 400  # a database of so few entries is checked by plain jieba wholly
SAMPLE_SHARE = 0.02

Report = Callable[[Progress], None]

#: table → primary keys (tuples, in the order of the target's primary key) of the rows to compare
Only = Mapping[str, Collection[tuple[Any, ...]]]


@dataclass
class VerifyResult:
    """`equal` is the verdict. `differences` holds the first of them, `difference_count` counts all.

    `differing_rows`: rows missing, too many, or different in any cell. `checks`: how many foreign keys, sequences and
    definitions were looked at.
    """

    equal: bool
    tables: dict[str, TableVerdict]
    differences: list[Difference]
    difference_count: int
    differing_rows: int
    checks: dict[str, int]
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def _source_tables(source: sqlite3.Connection) -> tuple[dict[str, str], dict[str, str]]:
    """Ordinary and virtual tables of the source with their SQL, without SQLite's own, ours and shadow tables."""
    found = dict(
        source.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table' AND substr(name, 1, 7) <> 'sqlite_'")
    )
    virtual = {name: sql for name, sql in found.items() if re.match(r"\s*CREATE\s+VIRTUAL\s", sql, re.IGNORECASE)}
    ordinary = {
        name: sql
        for name, sql in found.items()
        if name not in virtual and name != CARRIED and not any(name.startswith(f"{owner}_") for owner in virtual)
    }
    return ordinary, virtual


def _target_tables(
    connection: psycopg2.extensions.connection,
) -> tuple[dict[str, dict[str, Column]], dict[str, list[str]]]:
    """Columns (without generated ones) and primary keys of the tables in schema public."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT c.relname, a.attname, CASE t.typtype WHEN 'e' THEN 'enum' ELSE t.typname END,"
            " CASE WHEN t.typname = 'varchar' AND a.atttypmod > 4 THEN a.atttypmod - 4 END"
            " FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
            " JOIN pg_attribute a ON a.attrelid = c.oid JOIN pg_type t ON t.oid = a.atttypid"
            " WHERE n.nspname = 'public' AND c.relkind IN ('r', 'p') AND a.attnum > 0 AND NOT a.attisdropped"
            " AND a.attgenerated = '' ORDER BY c.relname, a.attnum"
        )
        columns: dict[str, dict[str, Column]] = {}
        for table, name, kind, longest in cursor:
            columns.setdefault(table, {})[name] = Column(name, kind, longest)
        cursor.execute(
            "SELECT c.relname, a.attname FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid"
            " JOIN pg_namespace n ON n.oid = c.relnamespace"
            " CROSS JOIN unnest(i.indkey) WITH ORDINALITY o(col, pos)"
            " JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = o.col"
            " WHERE i.indisprimary AND n.nspname = 'public' ORDER BY c.relname, o.pos"
        )
        keys: dict[str, list[str]] = {}
        for table, name in cursor:
            keys.setdefault(table, []).append(name)
    return columns, keys


class _Plan:
    """Which tables there are on both sides, and the tasks that compare them."""

    def __init__(
        self, source: sqlite3.Connection, target: psycopg2.extensions.connection, only: Only | None = None
    ) -> None:
        self.source = source
        self.only = only
        self.findings = Differences()
        self.tables: dict[str, Table] = {}
        self.tasks: list[Task] = []
        self.entries: npt.NDArray[np.void] | None = None
        self.ordinary, self.virtual = _source_tables(source)
        self.target_columns, self.target_keys = _target_tables(target)
        for name in self.ordinary:
            if self._both(name):
                names = [row[1] for row in source.execute(f"PRAGMA table_xinfo({quoted(name)})") if row[6] in (0, 2, 3)]
                self._add(name, names)
                if only is None:
                    self._tasks(name)
                else:
                    self._key_tasks("rows", name, KEY_ROWS)
        for name, sql in self.virtual.items():
            if not self._both(name):
                continue
            if re.search(r"\bUSING\s+vec0\b", sql, re.IGNORECASE):
                self._add(name, ["rowid", *(column.name for column in vec0_columns(sql))])
                if only is None:
                    self._vector_tasks(name)
                else:
                    self._key_tasks("vectors", name, KEY_ROWS)
            elif name == FTS_TABLE:
                self.tables[name] = Table(name, (), ("id",), True, True, True)
                if only is None:
                    self._full_text_tasks()
                else:
                    self._key_tasks("words", name, KEY_ENTRIES)
            else:
                self.findings.add(name, {}, None, sql, None, "virtual table that the verifier cannot read")
        for name in sorted(set(self.target_columns) - set(self.ordinary) - set(self.virtual)):
            self.findings.add(name, {}, None, None, "table", "table is not in the source")

    def _both(self, name: str) -> bool:
        if name not in self.target_columns:
            self.findings.add(name, {}, None, "table", None, "table is missing in the target")
        return name in self.target_columns

    def _add(self, name: str, names: list[str]) -> None:
        theirs = self.target_columns[name]
        for column in [column for column in names if column not in theirs]:
            self.findings.add(name, {}, column, "column", None, "column is missing in the target")
        for column in [column for column in theirs if column not in names]:
            self.findings.add(name, {}, column, None, "column", "column is not in the source")
        columns = tuple(theirs[column] for column in names if column in theirs)
        key = tuple(column for column in self.target_keys.get(name, []) if column in names)
        merged = bool(key) and all(theirs[column].kind in INTEGERS for column in key)
        if name in self.virtual:
            self.tables[name] = Table(name, columns, key, merged, True, True)
            return
        info = {row[1]: row for row in self.source.execute(f"PRAGMA table_info({quoted(name)})")}
        options = self.ordinary[name].rpartition(")")[2]
        has_rowid = not re.search(r"\bWITHOUT\s+ROWID\b", options, re.IGNORECASE)
        primary = [column for column, row in info.items() if row[5]]
        alias = has_rowid and len(primary) == 1 and info[primary[0]][2].upper() == "INTEGER"
        self.tables[name] = Table(name, columns, key, merged, has_rowid, alias and key == tuple(primary))

    def _key_tasks(self, job: str, name: str, size: int) -> None:
        assert self.only is not None
        keys = sorted(set(self.only.get(name, ())), key=repr)
        entries: tuple[int, ...] | None = None
        if job == "words" and f"{name}_content" in self.only:
            entries = tuple(key[0] for key in self.only[f"{name}_content"])
        elif job == "words" and keys:
            self.entries = read_entries(self.source)
        if not self.tables[name].merged:
            size = len(keys) or 1
        for at in range(0, len(keys), size):
            some = tuple(keys[at : at + size])
            self.tasks.append(Task(job, name, None, None, len(some), some, entries))

    def _count(self, table: str) -> int:
        return int(self.source.execute(f"SELECT count(*) FROM {quoted(table)}").fetchone()[0])

    def _tasks(self, name: str) -> None:
        rows = self._count(name)
        bounds: list[int | None] = []
        if self.tables[name].merged and rows > RANGE_ROWS:
            key = quoted(self.tables[name].key[0])
            integers = f"SELECT {key} FROM {quoted(name)} WHERE typeof({key}) = 'integer' ORDER BY {key}"
            least = self.source.execute(f"{integers} LIMIT 1").fetchone()
            most = self.source.execute(f"{integers} DESC LIMIT 1").fetchone()
            parts = rows // RANGE_ROWS + 1
            if least and most[0] - least[0] >= parts:
                low, high = least[0], most[0]
                bounds = [low + (high - low) * part // parts for part in range(1, parts)]
        edges = [None, *bounds, None]
        for start, stop in zip(edges, edges[1:]):
            self.tasks.append(Task("rows", name, start, stop, rows // (len(edges) - 1)))

    def _vector_tasks(self, name: str) -> None:
        rowids = quoted(f"{name}_rowids")
        low, high, rows = self.source.execute(f"SELECT min(chunk_id), max(chunk_id), count(*) FROM {rowids}").fetchone()
        self.tasks.append(Task("ids", name, None, None, 0))
        if rows:
            parts = min(high - low + 1, max(1, rows // RANGE_ROWS * 2))
            edges = [low + (high - low + 1) * part // parts for part in range(parts + 1)]
            for start, stop in zip(edges, edges[1:]):
                self.tasks.append(Task("vectors", name, start, stop, rows // parts))

    def _full_text_tasks(self) -> None:
        self.tasks.append(Task("ids", FTS_TABLE, None, None, 0))
        self.tasks.append(Task("odd", FTS_TABLE, None, None, 0))
        self.entries = read_entries(self.source)
        ids = np.unique(self.entries["entity"])
        starts = ids[::FTS_RANGE].tolist()
        for start, stop in zip(starts, [*starts[1:], *(ids[-1:] + 1).tolist()]):
            self.tasks.append(Task("words", FTS_TABLE, start, stop, min(len(ids), FTS_RANGE)))


_JOBS: dict[str, Callable[[Run, Task], Outcome]] = {
    "rows": lambda run, task: RowComparison(run, task).outcome(),
    "vectors": compare_vectors,
    "ids": find_extra_ids,
    "words": compare_words,
    "odd": compare_odd_entries,
}
# Relative cost of a row, for the order of the tasks (dearest first) and for the estimate of the time left.
_COST = {"rows": 1.0, "ids": 0.1, "odd": 0.1, "vectors": 8.0, "words": 40.0}
_worker: dict[str, Run] = {}


def _start_worker(run: Run) -> None:
    _worker["run"] = run


def _work(task: Task) -> Outcome:
    with watched():
        return _JOBS[task.job](_worker["run"], task)


def verify(
    source: Path,
    target_dsn: str,
    *,
    progress: Report | None = None,
    jobs: int | None = None,
    passfile: str | None = None,
    expected_catalog: dict[str, dict[str, str]] | None = None,
    seed: int = 0,
    tokenizer: Tokenizer | None = None,
    limit: int = LIMIT,
    only: Only | None = None,
    sequences: bool = True,
) -> VerifyResult:
    """Compare every cell of the SQLite file `source` with the database at `target_dsn`. Changes nothing on
    either side.

    `jobs`: processes, by default one per core. `expected_catalog`: from `catalog`, right after the schema
    step. `seed`: decides which entries plain jieba segments. `tokenizer`: a loaded one, to use it again.
    `limit`: differences that the result names.

    `only`: compare just the rows of these keys, on both sides: a row that one side alone has is a difference there
    too. Keys are those of vectors (rowid) and full text (entity) too. A table without a key is compared wholly if it
    is named with any; tables that are not named are not looked at. `entities_fts_content` may name the rowids of all
    entries of the entities under `entities_fts`; without it, they are looked for in the whole index.
    Foreign keys are then taken to hold where they are validated and enforced.

    `sequences`: whether they must be beyond all ids. Not after a carry-back, where the source is the one that goes on.

    Raises sqlite3.Error, psycopg2.Error when a side cannot be read, ImportError without the pinned jieba.
    """
    started = time.monotonic()
    workers = jobs or len(os.sched_getaffinity(0))
    database = open_source(Path(source))
    with closing(database), watched(progress), closing(open_target(target_dsn, passfile)) as connection:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_export_snapshot(), to_regclass(%s) IS NOT NULL", (f"{BOOKKEEPING}.quarantine",))
            snapshot, quarantine = cursor.fetchone() or ("", False)
        if progress is not None:
            progress(Progress("verify", "counting rows on both sides", 0, 0, 0.0, 0.0, 0.0, None))
        plan = _Plan(database, connection, only)
        entries = sum(task.rows for task in plan.tasks if task.job == "words")
        run = Run(
            source=Path(source),
            dsn=target_dsn,
            passfile=passfile,
            snapshot=snapshot,
            tables=plan.tables,
            quarantine=quarantine,
            tokenizer=(tokenizer or Tokenizer(MEMO_LEAST)).load() if entries else None,
            sample=1.0 if entries <= SAMPLE_ALL else SAMPLE_SHARE,
            seed=seed,
            limit=limit,
            entries=plan.entries,
        )
        tables = {name: TableVerdict() for name in plan.tables}
        kept, count, rows = list(plan.findings.kept), plan.findings.count, 0
        for outcome in _outcomes(run, plan.tasks, workers, started, progress):
            tables[outcome.task.table].add(outcome.verdict)
            kept += outcome.findings.kept[: max(0, limit - len(kept))]
            count += outcome.findings.count
            rows += len(outcome.findings.rows)
        states = Differences(limit)
        checks = {
            "foreign keys": check_states(connection, states, orphans=only is None),
            "sequences": check_sequences(database, connection, states) if sequences else 0,
        }
        indexes = {row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'index'")}
        checks["definitions"] = compare_catalogs(
            read_catalog(connection), expected_catalog, {*plan.ordinary, *plan.virtual}, indexes, states
        )
        kept += states.kept[: max(0, limit - len(kept))]
        count += states.count
    return VerifyResult(count == 0, tables, kept, count, rows, checks, time.monotonic() - started)


def _outcomes(run: Run, tasks: list[Task], jobs: int, started: float, progress: Report | None) -> Iterator[Outcome]:
    """Run the tasks in processes of their own, and report how far they are."""
    ordered = sorted(tasks, key=lambda task: -_COST[task.job] * task.rows)
    costs = sum(_COST[task.job] * task.rows + 1 for task in tasks)
    rows, done, spent = sum(task.rows for task in tasks), 0, 0.0
    # Forked workers share the dictionary; frozen, the collector leaves its pages alone.
    gc.collect()
    gc.freeze()
    try:
        context = multiprocessing.get_context("fork")
        with (
            ProcessPoolExecutor(min(jobs, len(tasks)) or 1, context, _start_worker, (run,)) as pool,
            ExitStack() as end,
        ):
            end.callback(pool.shutdown, cancel_futures=True)  # what has not begun when another fails
            for future in as_completed([pool.submit(_work, task) for task in ordered]):
                outcome = future.result()
                done += outcome.task.rows
                spent += _COST[outcome.task.job] * outcome.task.rows + 1
                if progress is not None:
                    elapsed = time.monotonic() - started
                    share = spent / costs
                    left = elapsed * (1 - share) / share
                    progress(Progress("verify", outcome.task.table, done, rows, 0.0, share, elapsed, left))
                yield outcome
    finally:
        gc.unfreeze()
