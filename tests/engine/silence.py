"""A server that stands still at a chosen moment: while our session waits for a lock that somebody holds."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg2

from engine.server import Server

#: What says so in every message.
SAID = "has not answered for 15 s (paused? overloaded?)"
#: Seconds within which an operation ends on a server that stands still: its patience, and what it takes to find out.
SOON = 30.0


@contextmanager
def locked(server: Server, dsn: str, table: str) -> Iterator[None]:
    """A lock on a table, for as long as the server lives or the block takes."""
    holder = psycopg2.connect(server.dsn(dsn.rpartition("/")[2], "postgres"))
    try:
        with holder.cursor() as cursor:
            cursor.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
        yield
    finally:
        holder.close()


def wait_for_a_waiting_session(server: Server, dsn: str) -> None:
    """Until somebody waits for a lock in this database."""
    sql = f"SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = '{dsn.rpartition('/')[2]}'"
    deadline = time.monotonic() + 60
    while not server.run(sql):
        assert time.monotonic() < deadline, "nobody waits for the lock"
        time.sleep(0.05)


@contextmanager
def paused(server: Server) -> Iterator[None]:
    """The container's processes stand still; its kernel goes on."""
    subprocess.run(["docker", "pause", server.container], check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["docker", "unpause", server.container], check=True, capture_output=True)


def seconds_until_it_ends(
    server: Server, dsn: str, table: str, work: Callable[[], object]
) -> tuple[float, object | BaseException]:
    """Pause the server while the work waits for a lock on a table. How long it took from there, and what it gave or
    raised; AssertionError when it takes too long.
    """
    outcome: list[object | BaseException] = []

    def run() -> None:
        try:
            outcome.append(work())
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    with locked(server, dsn, table):
        thread.start()
        wait_for_a_waiting_session(server, dsn)
        with paused(server):
            began = time.monotonic()
            thread.join(SOON)
            took = time.monotonic() - began
            ended = not thread.is_alive()
    assert ended, f"it still waited after {took:.0f} s"
    return took, outcome[0]
