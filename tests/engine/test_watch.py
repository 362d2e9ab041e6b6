"""A server that does not answer is given up after a while, and one that is slow is not."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from sqlite_to_postgresql import snapshot, watch
from sqlite_to_postgresql.copier import copy
from sqlite_to_postgresql.difference import difference
from sqlite_to_postgresql.fts import Tokenizer
from sqlite_to_postgresql.model import EngineError, Progress
from sqlite_to_postgresql.progress import told
from sqlite_to_postgresql.target import connect, query
from sqlite_to_postgresql.verify import verify

from engine.pensieve import Pensieve
from engine.server import Server
from engine.silence import SAID, SOON, locked, paused, seconds_until_it_ends
from engine.test_difference import LIMIT, Prepared, change

pytestmark = [pytest.mark.pensieve, pytest.mark.docker]


@pytest.fixture
def changed(small: Path, tmp_path: Path, make_target: Callable[[], str], pensieve: Pensieve) -> Iterator[Prepared]:
    """A source that was changed since its snapshot, which the target shows."""
    source = Path(shutil.copy(small, tmp_path / "database.db"))
    made = Prepared(source, tmp_path / "snapshot", make_target(), LIMIT)
    change(pensieve, source, 5, 20)
    yield made
    snapshot.end(made.folder)


def test_a_difference_is_given_up_and_can_be_made_later(
    changed: Prepared, server: Server, tokenizer: Tokenizer
) -> None:
    seen: list[str] = []

    def work() -> Any:
        return difference(
            changed.source, changed.folder, changed.dsn, None, lambda line: seen.append(told(line)), 1, tokenizer
        )

    _, error = seconds_until_it_ends(server, changed.dsn, "public.entities", work)
    assert isinstance(error, EngineError), error
    assert str(error).startswith(f"Found: PostgreSQL at 127.0.0.1:{server.port} {SAID}\nExpected: "), error
    assert f"waiting: for PostgreSQL at 127.0.0.1:{server.port}, which has not answered, 10 s" in seen
    assert work().way == "difference"
    assert verify(changed.source, changed.dsn, tokenizer=tokenizer).equal


def test_a_comparison_is_given_up(changed: Prepared, server: Server, tokenizer: Tokenizer) -> None:
    """Its worker processes, too, one of which waits for the lock."""
    only = {"metadata_entries": [(1,)], "entities": [(1,), (2,)]}

    def work() -> Any:
        return verify(changed.source, changed.dsn, tokenizer=tokenizer, only=only, jobs=2)

    _, error = seconds_until_it_ends(server, changed.dsn, "public.metadata_entries", work)
    assert isinstance(error, psycopg2.Error), error
    assert str(error).endswith(SAID)
    work()


def test_a_copy_is_given_up_and_gone_on_with(
    small: Path, make_target: Callable[[], str], server: Server, tokenizer: Tokenizer
) -> None:
    dsn = make_target()
    _, error = seconds_until_it_ends(server, dsn, "public.entities", lambda: copy(small, dsn, jobs=2))
    assert isinstance(error, EngineError), error
    assert SAID in str(error)
    assert copy(small, dsn, jobs=2).changed
    assert verify(small, dsn, tokenizer=tokenizer).equal


def test_nobody_is_let_in_by_a_server_that_stands_still(make_target: Callable[[], str], server: Server) -> None:
    dsn = make_target()
    with paused(server):
        began = time.monotonic()
        with pytest.raises(EngineError, match="no connection to the target"):
            connect(dsn)
        assert time.monotonic() - began < SOON


def test_a_slow_statement_is_waited_for_where_all_sessions_are_taken(
    make_target: Callable[[], str], server: Server
) -> None:
    dsn = make_target()
    others: list[Any] = []
    try:
        with closing(connect(dsn)) as connection, watch.watched():
            with suppress(psycopg2.OperationalError):
                while True:
                    others.append(psycopg2.connect(dsn))
            with pytest.raises(psycopg2.OperationalError, match="too many clients|remaining connection slots"):
                psycopg2.connect(dsn)
            assert query(connection, "SELECT 1 FROM pg_sleep(20)") == [(1,)]
    finally:
        for other in others:
            other.close()


def test_a_lock_is_waited_for(changed: Prepared, server: Server, tokenizer: Tokenizer) -> None:
    with ThreadPoolExecutor(1) as threads:
        with locked(server, changed.dsn, "public.entities"):
            made = threads.submit(difference, changed.source, changed.folder, changed.dsn, tokenizer=tokenizer)
            assert wait([made], watch.PATIENCE + 5).done == set()
        assert made.result(SOON).way == "difference"


def test_a_process_that_stands_still_in_a_server_that_answers_is_bounded(
    make_target: Callable[[], str], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a session that only waits for us is not."""
    monkeypatch.setattr(watch, "LONG", 6)
    seen: list[Progress] = []
    with closing(connect(make_target())) as connection:
        with watch.watched(seen.append):
            query(connection, "SELECT 1")
            time.sleep(9)
            assert query(connection, "SELECT 1") == [(1,)]
        inside, pid = ["docker", "exec", server.container, "sh", "-c"], connection.info.backend_pid
        subprocess.run([*inside, f"kill -STOP {pid}"], check=True)
        stands_still = pytest.raises(psycopg2.OperationalError, match="6 s for one statement, or stands still")
        try:
            with stands_still, watch.watched(seen.append):
                query(connection, "SELECT 2")
        finally:
            subprocess.run([*inside, f"kill -CONT {pid}"], check=True)
    assert seen == []


def test_who_was_stopped_himself_gives_nobody_up(make_target: Callable[[], str], tmp_path: Path) -> None:
    """As a laptop that slept does."""
    script = tmp_path / "sleeper.py"
    script.write_text(
        "import sys\nfrom sqlite_to_postgresql.target import connect, query\n"
        "from sqlite_to_postgresql.watch import watched\nconnection = connect(sys.argv[1])\n"
        "with watched():\n    print('ready', flush=True)\n    print(query(connection, 'SELECT 7 FROM pg_sleep(3)'))\n"
        "    print(query(connection, 'SELECT 8 FROM pg_sleep(3)'))\n"
    )
    engine = Path(watch.__file__).parents[1]
    process = subprocess.Popen(
        [os.environ.get("PYTHON", shutil.which("python") or "python"), str(script), make_target()],
        env={**os.environ, "PYTHONPATH": str(engine)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(watch.PATIENCE + 4)
    process.send_signal(signal.SIGCONT)
    said, _ = process.communicate(timeout=30)
    assert said == "[(7,)]\n[(8,)]\n"


def test_a_watch_leaves_nothing_in_the_servers_log(make_target: Callable[[], str], server: Server) -> None:
    def log() -> list[str]:
        done = subprocess.run(["docker", "logs", server.container], check=True, capture_output=True, text=True)
        return [line for line in (done.stdout + done.stderr).splitlines() if "checkpoint" not in line]

    before = log()
    with closing(connect(make_target())) as connection, watch.watched():
        query(connection, "SELECT 1 FROM pg_sleep(5)")
    assert log() == before
