"""A snapshot, brought up by the difference, is what a copy of the whole source would be: proven by the verifier."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import select
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg2
import pytest
import sqlite_to_postgresql
from sqlite_to_postgresql import change_log, changes, snapshot
from sqlite_to_postgresql.catch_up import FEW_PAGES, Proven, catch_up
from sqlite_to_postgresql.copier import copy
from sqlite_to_postgresql.difference import Difference, _Evaluation, difference
from sqlite_to_postgresql.fts import Tokenizer
from sqlite_to_postgresql.model import EngineError, FindingsError
from sqlite_to_postgresql.target import connect
from sqlite_to_postgresql.verify import verify

from engine import server as servers
from engine.conftest import Catalog
from engine.pensieve import OLD_VECTORS, Pensieve
from engine.test_data_verify import run_module

pytestmark = [pytest.mark.pensieve, pytest.mark.docker]

CHANGE = Path(__file__).with_name("change.py")
SEEDS = range(24)
LIMIT = 1 << 30

Prove = Callable[[Path, str, Difference], None]


def change(pensieve: Pensieve, database: Path, seed: int, steps: int, *extra: str) -> None:
    """Change a database in another process, with Pensieve's interpreter."""
    pensieve.run("python", str(CHANGE), str(seed), str(steps), *extra, database=str(database))


def changing(pensieve: Pensieve, database: Path, seed: int, steps: int, *extra: str) -> subprocess.Popen[str]:
    """The same, while this process goes on."""
    environment = {**os.environ, "HOME": str(pensieve.home), "MEMOS_DATABASE_PATH": str(database)}
    environment.pop("PYTHONPATH", None)
    command = [str(pensieve.folder / "bin" / "python"), str(CHANGE), str(seed), str(steps), *extra]
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Where a snapshot keeps what it knows; its holder ends with the test."""
    yield tmp_path / "snapshot"
    snapshot.end(tmp_path / "snapshot")


def counts(dsn: str) -> dict[str, list[int]]:
    """What the ledger says that the tables hold, and what they do hold: rows, and rows in quarantine."""
    with psycopg2.connect(dsn) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT result -> 'tables' FROM data_copy.run WHERE state = 'complete'")
        rows = cursor.fetchall()
        assert len(rows) == 1
        found = {}
        for table, said in rows[0][0].items():
            cursor.execute(f'SELECT count(*) FROM public."{table}"')
            target = cursor.fetchone()
            cursor.execute(
                "SELECT count(*) FROM data_copy.quarantine WHERE source_table = %s AND source_column IS NULL", (table,)
            )
            kept = cursor.fetchone()
            assert target
            assert kept
            assert said["source"] == said["target"] + said["quarantined"], table
            found[table] = [said["target"] - target[0], said["quarantined"] - kept[0]]
    connection.close()
    return found


@pytest.fixture
def prove(template: Catalog, tokenizer: Tokenizer) -> Prove:
    """Every cell, quarantine, sequence and definition; the rows that were looked at by themselves; the ledger."""

    def compare(source: Path, dsn: str, made: Difference) -> None:
        result = verify(source, dsn, expected_catalog=template, tokenizer=tokenizer)
        assert result.differences == []
        assert result.equal
        if made.only is not None:
            some = verify(source, dsn, expected_catalog=template, tokenizer=tokenizer, only=made.only)
            assert some.differences == []
        assert {table: wrong for table, wrong in counts(dsn).items() if any(wrong)} == {}

    return compare


class Prepared:
    """A source, its snapshot, and a target that shows the snapshot."""

    def __init__(self, source: Path, folder: Path, dsn: str, limit: int = LIMIT) -> None:
        self.source, self.folder, self.dsn = source, folder, dsn
        made, self.held = snapshot.hold(source, source.with_name("copy.db"), folder, limit, 600)
        assert made
        copy(source.with_name("copy.db"), dsn, jobs=1)

    def catch_up(self, tokenizer: Tokenizer, rounds: int = 3, few_pages: int = FEW_PAGES) -> list[Proven]:
        """While others write."""

        def bring(later: Path) -> Proven:
            made = difference(self.source, self.folder, self.dsn, tokenizer=tokenizer, later=later)
            return Proven(made, verify(later, self.dsn, tokenizer=tokenizer, only=made.only))

        return catch_up(self.source, self.folder, bring, rounds, few_pages)

    def wait(self, state: str) -> snapshot.Snapshot:
        """Until the holder says that it is in a state; it looks once a second."""
        deadline = time.monotonic() + 30
        while True:
            found = snapshot.read(self.folder)
            assert found
            if found.state == state and not (state == "released" and found.held):
                return found
            assert time.monotonic() < deadline, found
            select.select([], [], [], 0.05)


Prepare = Callable[..., Prepared]


@pytest.fixture
def source_of(tmp_path: Path) -> Callable[[Path], Path]:
    """Copy a database, to be changed."""
    return lambda database: Path(shutil.copy(database, tmp_path / "database.db"))


@pytest.fixture
def prepare(folder: Path, make_target: Callable[[], str]) -> Prepare:
    """Hold a snapshot of a source, and copy it."""
    return lambda source, **options: Prepared(source, folder, make_target(), **options)


@pytest.fixture
def prepared(small: Path, source_of: Callable[[Path], Path], prepare: Prepare) -> Prepared:
    """One that is held."""
    return prepare(source_of(small))


@pytest.fixture
def larger(medium: Path, source_of: Callable[[Path], Path], prepare: Prepare) -> Prepared:
    """One with more rows."""
    return prepare(source_of(medium))


@pytest.fixture
def aged(pensieve: Pensieve, medium: Path, source_of: Callable[[Path], Path], prepare: Prepare) -> Prepared:
    """One that was begun with Pensieve before 0.24."""
    source = source_of(medium)
    pensieve.run("python", str(OLD_VECTORS), *map(str, range(1, 30)), database=str(source))
    return prepare(source)


@pytest.mark.parametrize("seed", SEEDS)
def test_difference_equals_a_whole_copy(
    seed: int,
    pensieve: Pensieve,
    medium: Path,
    source_of: Callable[[Path], Path],
    prepare: Prepare,
    prove: Prove,
    tokenizer: Tokenizer,
) -> None:
    choose = random.Random(seed)
    source = source_of(medium)
    if seed % 3:
        change(pensieve, source, 1000 + seed, choose.randint(1, 12), *["checkpoint"] * (seed % 2))
    ready = prepare(source)
    assert ready.held.held
    extra = [["checkpoint"], ["restart"], ["checkpoint", "restart"], ["truncate"]][seed % 4]
    for part in range(1 + (seed % 5 == 0)):
        change(pensieve, source, 10 * seed + part, choose.randint(1, 25), *extra)
    result = difference(source, ready.folder, ready.dsn, tokenizer=tokenizer)
    assert (result.way, result.reason) == ("difference", "pages found by the write-ahead log")
    assert result.rows > 0
    prove(source, ready.dsn, result)
    again = difference(source, ready.folder, ready.dsn, tokenizer=tokenizer)
    assert (again.way, again.changed) == ("nothing", False)


def test_vectors_of_a_version_before_0_24(
    aged: Prepared, pensieve: Pensieve, prove: Prove, tokenizer: Tokenizer
) -> None:
    change(pensieve, aged.source, 7, 12)
    pensieve.run("python", str(OLD_VECTORS), "33", "34", "999", database=str(aged.source))
    result = difference(aged.source, aged.folder, aged.dsn, tokenizer=tokenizer)
    assert (result.way, result.tables["entities_vec"].upserted) == ("difference", 2)
    prove(aged.source, aged.dsn, result)


def test_pages_are_compared_when_the_snapshot_was_let_go(
    prepared: Prepared, pensieve: Pensieve, prove: Prove, tokenizer: Tokenizer
) -> None:
    change(pensieve, prepared.source, 1, 10)
    os.kill(prepared.held.pid, signal.SIGTERM)
    assert prepared.wait("released").reason == "it was told to"
    change(pensieve, prepared.source, 2, 10, "restart", "checkpoint")
    made = difference(prepared.source, prepared.folder, prepared.dsn, tokenizer=tokenizer)
    assert (made.way, made.reason) == ("difference", "pages found by comparing all pages")
    prove(prepared.source, prepared.dsn, made)


def test_the_copy_goes_to_the_disk_step_by_step(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever commits while gigabytes wait to be written waits for them too."""
    source, told, flush = tmp_path / "database.db", tmp_path / "told", os.fdatasync
    with contextlib.closing(sqlite3.connect(source)) as writer, writer:
        writer.execute("PRAGMA journal_mode = WAL")
        writer.execute("CREATE TABLE t (v)")
        writer.executemany("INSERT INTO t VALUES (zeroblob(1 << 20))", [()] * 50)

    def flushed(descriptor: int) -> None:
        flush(descriptor)
        with told.open("a") as stream:  # the holder is another process
            print(os.fstat(descriptor).st_size, file=stream)

    monkeypatch.setattr(os, "fdatasync", flushed)
    snapshot.hold(source, tmp_path / "copy.db", folder, LIMIT, 600)
    sizes = [0, *map(int, told.read_text().split()), (tmp_path / "copy.db").stat().st_size]
    assert max(later - earlier for earlier, later in itertools.pairwise(sizes)) <= 17 << 20


def test_the_log_is_bounded(
    small: Path,
    source_of: Callable[[Path], Path],
    prepare: Prepare,
    pensieve: Pensieve,
    prove: Prove,
    tokenizer: Tokenizer,
) -> None:
    bounded = prepare(source_of(small), limit=50_000)
    assert bounded.held.held
    change(pensieve, bounded.source, 3, 30)
    found = bounded.wait("released")
    assert found.reason.startswith("the write-ahead log grew beyond")
    assert found.wal_bytes > 50_000
    made = difference(bounded.source, bounded.folder, bounded.dsn, tokenizer=tokenizer)
    assert made.reason == "pages found by comparing all pages"
    prove(bounded.source, bounded.dsn, made)


def test_without_a_log_nothing_is_held(
    small: Path,
    source_of: Callable[[Path], Path],
    prepare: Prepare,
    pensieve: Pensieve,
    prove: Prove,
    tokenizer: Tokenizer,
) -> None:
    source = source_of(small)
    with sqlite3.connect(source) as connection:
        assert connection.execute("PRAGMA journal_mode = DELETE").fetchone() == ("delete",)
    connection.close()
    plain = prepare(source)
    assert not plain.held.held
    assert plain.held.reason == "journal_mode is delete: a reader would keep Pensieve from writing"
    change(pensieve, source, 4, 12)
    made = difference(source, plain.folder, plain.dsn, tokenizer=tokenizer)
    assert made.way == "difference"
    prove(source, plain.dsn, made)


@pytest.mark.parametrize("extra", ["define", "vacuum"])
def test_what_is_no_difference_is_copied_wholly(
    extra: str, prepared: Prepared, pensieve: Pensieve, prove: Prove, tokenizer: Tokenizer
) -> None:
    if extra == "define":
        change(pensieve, prepared.source, 5, 6, *["define"] * 20)
    else:
        change(pensieve, prepared.source, 6, 6)
        with sqlite3.connect(prepared.source) as connection:
            connection.execute("CREATE TABLE one (x)")
            connection.execute("DROP TABLE one")
            connection.execute("VACUUM")
        connection.close()
    made = difference(prepared.source, prepared.folder, prepared.dsn, jobs=1, tokenizer=tokenizer)
    if extra == "define":
        assert (made.way, made.reason) == ("whole copy", "the definitions of the source's tables have changed")
    else:
        assert made.changed
    prove(prepared.source, prepared.dsn, made)


def test_a_connection_older_than_the_snapshot_goes_on(
    small: Path,
    source_of: Callable[[Path], Path],
    prepare: Prepare,
    pensieve: Pensieve,
    prove: Prove,
    tokenizer: Tokenizer,
) -> None:
    source = source_of(small)
    with changing(pensieve, source, 7, 25, "live", "checkpoint", "restart") as writer:
        assert writer.stdin
        assert writer.stdout
        assert writer.stdout.readline() == "open\n"
        live = prepare(source)
        writer.stdin.write("go\n")
        writer.stdin.flush()
        assert writer.stdout.readline() == "25 steps\n"
    made = difference(source, live.folder, live.dsn, tokenizer=tokenizer)
    assert made.reason == "pages found by the write-ahead log"
    prove(source, live.dsn, made)


def test_a_holder_is_found_again_and_a_dead_one_replaced(prepared: Prepared) -> None:
    again, found = snapshot.hold(prepared.source, prepared.source.with_name("other.db"), prepared.folder, LIMIT, 600)
    assert (again, found.pid, found.database) == (False, prepared.held.pid, prepared.held.database)
    os.kill(prepared.held.pid, signal.SIGKILL)
    while prepared.held.held:
        select.select([], [], [], 0.02)
    new, replaced = snapshot.hold(prepared.source, prepared.source.with_name("other.db"), prepared.folder, LIMIT, 600)
    assert new
    assert replaced.held
    assert replaced.pid != prepared.held.pid
    assert replaced.database.endswith("other.db")
    assert snapshot.end(prepared.folder)
    assert not snapshot.end(prepared.folder)
    assert not replaced.held, "the process is gone"


@pytest.mark.parametrize("damaged", [b"", b'{"source": "/home/ada/', b"[]", b'{"state": "held"}', b"\xff"])
def test_a_snapshot_whose_file_is_damaged_is_replaced(prepared: Prepared, damaged: bytes) -> None:
    for folder in (prepared.folder, snapshot.later(prepared.folder)):
        folder.mkdir(exist_ok=True)
        (folder / "snapshot.json").write_bytes(damaged)
    told = snapshot.read(prepared.folder)
    assert told is not None
    assert not told.held
    assert "snapshot.json is damaged" in told.reason
    new, replaced = snapshot.hold(prepared.source, prepared.source.with_name("other.db"), prepared.folder, LIMIT, 600)
    assert new
    assert replaced.held
    assert not snapshot.later(prepared.folder).exists()
    deadline = time.monotonic() + 20
    while prepared.held.held:
        assert time.monotonic() < deadline, "the first one's process ends, since its folder is gone"
        time.sleep(0.05)


def test_a_finding_stops_the_difference_and_the_target_stays(prepared: Prepared, tokenizer: Tokenizer) -> None:
    with sqlite3.connect(prepared.source) as connection:
        connection.execute("UPDATE metadata_entries SET data_type = 'strange' WHERE id = 3")
        connection.execute("UPDATE entities SET size = 5 WHERE id = 1")
    connection.close()
    with pytest.raises(FindingsError, match="unknown_enum_label in metadata_entries.data_type"):
        difference(prepared.source, prepared.folder, prepared.dsn, tokenizer=tokenizer)
    assert verify(prepared.source.with_name("copy.db"), prepared.dsn, tokenizer=tokenizer).equal


def test_a_broken_difference_is_caught(
    prepared: Prepared, pensieve: Pensieve, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proof does not take the difference's word: rows that it forgets differ."""
    change(pensieve, prepared.source, 8, 20)
    monkeypatch.setattr(changes.Changes, "vectors", lambda _, __: set())
    difference(prepared.source, prepared.folder, prepared.dsn, tokenizer=tokenizer)
    result = verify(prepared.source, prepared.dsn, tokenizer=tokenizer)
    assert {found.table for found in result.differences} >= {"entities_vec_v2"}


def test_a_table_of_others_and_its_ids(
    small: Path,
    source_of: Callable[[Path], Path],
    prepare: Prepare,
    prove: Prove,
    tokenizer: Tokenizer,
) -> None:
    """AUTOINCREMENT gives no id twice, not even one whose row came and went within the difference."""
    source = source_of(small)

    def run(*statements: str) -> None:
        with sqlite3.connect(source) as connection:
            for statement in statements:
                connection.execute(statement)
        connection.close()

    run(
        "CREATE TABLE work_sessions (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT)",
        "INSERT INTO work_sessions (name) VALUES ('one'), ('two')",
    )
    other = prepare(source)
    run(
        "INSERT INTO work_sessions (id, name) VALUES (70, 'three')",
        "DELETE FROM work_sessions WHERE id = 70",
        "UPDATE entities SET size = 1 WHERE id = 1",
    )
    made = difference(source, other.folder, other.dsn, tokenizer=tokenizer)
    assert (made.way, made.rows) == ("difference", 2)  # the entity, and its full text
    prove(source, other.dsn, made)
    with psycopg2.connect(other.dsn) as connection, connection.cursor() as cursor:
        cursor.execute("INSERT INTO work_sessions (name) VALUES ('four') RETURNING id")
        assert cursor.fetchone() == (71,)
    connection.close()


def test_catching_up_leaves_little_to_the_stop(
    prepared: Prepared, pensieve: Pensieve, prove: Prove, tokenizer: Tokenizer
) -> None:
    source, folder, dsn = prepared.source, prepared.folder, prepared.dsn
    change(pensieve, source, 21, 12)
    first, second = prepared.catch_up(tokenizer, rounds=2, few_pages=-1)
    assert first.difference.way == "difference"
    assert first.difference.rows > 0
    assert second.difference.rows == 0
    assert first.verified.equal
    assert second.verified.equal
    held = snapshot.read(folder)
    assert held
    assert held.held
    assert held.pid != prepared.held.pid
    assert held.database == prepared.held.database
    assert sorted(path.name for path in folder.parent.iterdir() if "copy.db" in path.name) == ["copy.db"]
    assert not snapshot.later(folder).exists()
    assert prepared.catch_up(tokenizer) == [], "nothing was written since"
    change(pensieve, source, 22, 12, "checkpoint")
    made = difference(source, folder, dsn, tokenizer=tokenizer)
    assert (made.way, made.reason) == ("difference", "pages found by the write-ahead log")
    assert made.rows > 0
    prove(source, dsn, made)
    assert snapshot.end(folder)
    assert not held.held, "its process ends though the folder was renamed"


@pytest.mark.parametrize("seed", range(8))
def test_catching_up_while_the_source_is_written_to(
    seed: int, larger: Prepared, pensieve: Pensieve, prove: Prove, tokenizer: Tokenizer
) -> None:
    change(pensieve, larger.source, 300 + seed, 10)
    extra = [[], ["checkpoint"], ["restart"], ["checkpoint", "restart"]][seed % 4]
    with changing(pensieve, larger.source, 400 + seed, 60, *extra) as writer:
        rounds = larger.catch_up(tokenizer, few_pages=0)
        assert writer.communicate()[0] == "60 steps\n"
    assert rounds
    assert all(one.verified.equal for one in rounds)
    made = difference(larger.source, larger.folder, larger.dsn, tokenizer=tokenizer)
    prove(larger.source, larger.dsn, made)


def test_catching_up_that_fails_leaves_the_first_snapshot(
    prepared: Prepared, pensieve: Pensieve, tokenizer: Tokenizer
) -> None:
    with sqlite3.connect(prepared.source) as connection:
        connection.execute("UPDATE metadata_entries SET data_type = 'strange' WHERE id = 3")
    connection.close()
    with pytest.raises(FindingsError, match="unknown_enum_label in metadata_entries.data_type"):
        prepared.catch_up(tokenizer, few_pages=0)
    found, following = snapshot.read(prepared.folder), snapshot.read(snapshot.later(prepared.folder))
    assert found == prepared.wait("held")
    assert found
    assert found.pid == prepared.held.pid
    assert following
    assert following.held
    with sqlite3.connect(prepared.source) as connection:
        connection.execute("UPDATE metadata_entries SET data_type = 'TEXT' WHERE id = 3")
    connection.close()
    assert prepared.catch_up(tokenizer, few_pages=0)[0].verified.equal
    assert not following.held
    change(pensieve, prepared.source, 24, 3)
    snapshot.hold_next(prepared.held, prepared.folder)
    beside = snapshot.later(Path(prepared.held.database))
    assert beside.exists()
    assert snapshot.end(prepared.folder), "both end"
    assert not beside.exists()
    assert not snapshot.later(prepared.folder).exists()


# A run that is cut, and others who write

DIES = """
import os, sys
from pathlib import Path
from sqlite_to_postgresql import difference, ledger

moment, source, folder, dsn = sys.argv[1:]
die = lambda *_, **__: os.kill(os.getpid(), 9)
if moment == "before the transaction":
    difference._Evaluation.apply = die
elif moment == "in the transaction":
    ledger.bring_up = die
else:
    difference.Difference = die
difference.difference(Path(source), Path(folder), dsn)
"""


@pytest.mark.parametrize("moment", ["before the transaction", "in the transaction", "after the commit"])
def test_after_a_kill_the_next_copy_goes_on(
    moment: str, prepared: Prepared, pensieve: Pensieve, prove: Prove, tokenizer: Tokenizer
) -> None:
    """Before the transaction of the difference, in it, and after its commit; then all goes on."""
    change(pensieve, prepared.source, 31, 8)
    command = [sys.executable, "-c", DIES, moment, str(prepared.source), str(prepared.folder), prepared.dsn]
    environment = {**os.environ, "PYTHONPATH": str(Path(sqlite_to_postgresql.__file__).parent.parent)}
    assert subprocess.run(command, env=environment, check=False).returncode == -signal.SIGKILL
    working = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'data_copy'"
    deadline = time.monotonic() + 30
    while servers.run(prepared.dsn, working) != [(0,)]:
        assert time.monotonic() < deadline, "the server still works for what was killed"
    snapshot.end(prepared.folder)
    change(pensieve, prepared.source, 32, 8)
    again = Prepared(prepared.source, prepared.folder, prepared.dsn)
    change(pensieve, prepared.source, 33, 8)
    made = difference(prepared.source, again.folder, again.dsn, tokenizer=tokenizer)
    assert made.way == "difference"
    prove(prepared.source, prepared.dsn, made)
    assert servers.run(prepared.dsn, "SELECT * FROM data_copy.change") == []


def test_rows_that_others_wrote_stop_the_difference(
    prepared: Prepared, pensieve: Pensieve, tokenizer: Tokenizer
) -> None:
    change(pensieve, prepared.source, 34, 8)
    servers.run(prepared.dsn, "DELETE FROM metadata_entries WHERE id = 2", "UPDATE entities SET size = 5 WHERE id = 1")
    for _ in range(2):
        with pytest.raises(EngineError, match="1 rows in table entities, 1 rows in table metadata_entries"):
            difference(prepared.source, prepared.folder, prepared.dsn, tokenizer=tokenizer)
    assert servers.run(prepared.dsn, "SELECT size FROM entities WHERE id = 1") == [(5,)]


@pytest.mark.parametrize("moment", ["before its first statement", "after its last statement"])
def test_whoever_writes_while_the_difference_does_is_noted(
    moment: str, prepared: Prepared, pensieve: Pensieve, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The entry waits for the difference's commit, so it is not taken out with those of the difference."""
    change(pensieve, prepared.source, 35, 8)
    monkeypatch.setenv("PGAPPNAME", "others")
    writing = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'others' AND wait_event_type = 'Lock'"
    statement = "UPDATE plugins SET description = 'theirs' WHERE id = (SELECT min(id) FROM plugins)"
    other = threading.Thread(target=servers.run, args=(prepared.dsn, statement))
    name = "_delete" if moment.startswith("before") else "_note"
    method = getattr(_Evaluation, name)

    def meanwhile(*arguments: object) -> None:
        if not other.ident:
            other.start()
            deadline = time.monotonic() + 30
            while servers.run(prepared.dsn, writing) != [(1,)]:
                assert time.monotonic() < deadline, "the other one does not wait"
        method(*arguments)

    monkeypatch.setattr(_Evaluation, name, meanwhile)
    made = difference(prepared.source, prepared.folder, prepared.dsn, tokenizer=tokenizer)
    other.join()
    assert made.way == "difference"
    assert servers.run(prepared.dsn, "SELECT DISTINCT table_name FROM data_copy.change") == [("plugins",)]
    with pytest.raises(EngineError, match="1 rows in table plugins"):
        difference(prepared.source, prepared.folder, prepared.dsn, tokenizer=tokenizer)


@pytest.mark.parametrize("others", [True, False])
def test_the_module_begins_the_log_when_all_is_compared(
    others: bool, prepared: Prepared, pensieve: Pensieve, server: servers.Server
) -> None:
    """And not where it refuses."""
    change(pensieve, prepared.source, 36, 8)
    if others:
        servers.run(prepared.dsn, "DELETE FROM metadata_entries WHERE id = 2")
    arguments = {"source": str(prepared.source), "folder": str(prepared.folder), "target_dsn": prepared.dsn}
    arguments |= {"passfile": str(server.passfile)}
    connection = connect(prepared.dsn)
    try:
        made = run_module(arguments, module="data_difference")
        assert made["failed"] == others
        assert change_log.read(connection) is None
        made = run_module({**arguments, "note_changes": True}, module="data_difference")
        assert made["failed"] == others
        log = change_log.read(connection)
        if others:
            assert log is None
            return
        assert (made["way"], made["changed"]) == ("nothing", True)
        assert log
        assert (log.source, log.rows, log.whole) == (str(prepared.source), {}, [])
        servers.run(prepared.dsn, "UPDATE entities SET size = 5 WHERE id = 1")
        again = run_module({**arguments, "note_changes": True}, module="data_difference")
        assert again["failed"], "Pensieve has written on PostgreSQL"
    finally:
        connection.close()
