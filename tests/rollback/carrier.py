"""Carries back in processes that end where they are told to. Runs in Pensieve's interpreter, which is started once.

Each line of standard input is a request in JSON, each line of standard output its answer:

    {"carry": {"source", "dsn", "base", "whole", "only_upgraded"}, "cut": POINT or null}
    {"write": [[sql, parameters], …], "source": …}      writes to SQLite as Pensieve does, its extensions loaded

A POINT is a number, the statement in SQLite before which the process is killed, or one of ``POINTS``.
"""

from __future__ import annotations

import functools
import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import psycopg2
import psycopg2.extensions
from sqlite_to_postgresql import carry_back, carry_sides, fts
from sqlite_to_postgresql.model import EngineError

POINTS = (
    "before the commit of SQLite",
    "after the commit of SQLite",
    "before the commit of PostgreSQL",
    "after the commit of PostgreSQL",
    "server gone before its commit",
    "disk full at the checkpoint, then killed",
    "disk full at the checkpoint",
    "disk full at the commit",
)


def killed() -> None:
    """No handler, no rollback, nothing is closed."""
    os.kill(os.getpid(), signal.SIGKILL)


def full(size: int) -> None:
    """No file grows beyond this size."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def cut_at(point: str | int, source: Path) -> None:
    """Let this process end there."""
    execute = carry_sides.Database.execute
    count = 0

    def counted(self: carry_sides.Database, sql: str, values: Any = ()) -> Any:
        nonlocal count
        count += 1
        if point == count or point == POINTS[0] and sql == "COMMIT":
            killed()
        if sql.startswith("PRAGMA wal_checkpoint") and point in POINTS[5:7]:
            full(source.stat().st_size)
        if sql == "COMMIT" and point == POINTS[7]:
            full(100_000)
        found = execute(self, sql, values)
        if point == POINTS[1] and sql == "COMMIT":
            killed()
        return found

    class Connection(psycopg2.extensions.connection):
        def commit(self) -> None:
            if point in (POINTS[2], POINTS[5]):
                killed()
            if point == POINTS[4]:
                with self.cursor() as cursor:
                    cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")
            super().commit()
            if point == POINTS[3]:
                killed()

    connect = functools.partial(psycopg2.connect, connection_factory=Connection)
    mock.patch.object(carry_sides.Database, "execute", counted).start()
    mock.patch.object(psycopg2, "connect", connect).start()


def carry(asked: dict[str, Any], cut: str | int | None) -> dict[str, Any]:
    """Carry back in a child; what it said, or how it ended."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        source, base = Path(asked["source"]), asked.get("base")
        if cut is not None:
            cut_at(cut, source)
        how = {name: bool(asked.get(name)) for name in ("whole", "only_upgraded")}
        try:
            done = carry_back.carry_back(
                source, asked["dsn"], carry_back.pensieve_package(), base=Path(base) if base else None, **how
            )
            told: dict[str, Any] = {"carried": done.as_dict()}
        except EngineError as error:
            told = {"failed": str(error)}
        with os.fdopen(writing, "w") as stream:
            json.dump(told, stream)  # to a pipe, which has no size
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as stream:
        text = stream.read()
    _, status = os.waitpid(child, 0)
    answer: dict[str, Any] = json.loads(text) if text else {"killed": os.WTERMSIG(status)}
    return answer


def write(source: Path, statements: list[list[Any]]) -> dict[str, Any]:
    """Write to SQLite; vectors come as hexadecimal text after ``x:``."""
    database = carry_sides.Database(source, carry_back.pensieve_package())
    database.execute("BEGIN IMMEDIATE")
    for sql, values in statements:
        known = [bytes.fromhex(v[2:]) if isinstance(v, str) and v.startswith("x:") else v for v in values]
        database.execute(sql, known)
    database.execute("COMMIT")
    database.close()
    return {}


def main() -> None:
    """Answer until the input ends."""
    fts.Tokenizer().load()  # once: the children have it, too
    for line in sys.stdin:
        asked = json.loads(line)
        if "carry" in asked:
            answer = carry(asked["carry"], asked["cut"])
        else:
            answer = write(Path(asked["source"]), asked["write"])
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
