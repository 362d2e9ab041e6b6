"""Carries back in processes that end where they are told to. Runs in Pensieve's interpreter, which is started once.

Each line of standard input is a request in JSON, each line of standard output its answer:

    {"carry": {"source", "dsn", "base", "whole", "only_upgraded"}, "cut": POINT or null}
    {"write": [[sql, parameters], …], "source": …}      writes to SQLite as Pensieve does, its extensions loaded
    {"read": sql, "source": …}                          reads so

A POINT is a number, the statement in SQLite before which the process is killed, or one of ``POINTS``.
"""

from __future__ import annotations

import contextlib
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


def cut_at(point: str | int | None, source: Path, pipe: int) -> None:
    """Let this process end there; it says through the pipe when it has committed in SQLite."""
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
        if sql == "COMMIT":
            os.write(pipe, b"committed\n")
            if point == POINTS[1]:
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
        cut_at(cut, source, writing)
        whole, only_upgraded = bool(asked.get("whole")), bool(asked.get("only_upgraded"))
        try:
            done = carry_back.carry_back(
                source,
                asked["dsn"],
                carry_back.pensieve_package(),
                base=Path(base) if base else None,
                whole=whole,
                only_upgraded=only_upgraded,
            )
            told: dict[str, Any] = {"carried": done.as_dict()}
        except EngineError as error:
            told = {"failed": str(error)}
        with os.fdopen(writing, "w") as stream:
            json.dump(told, stream)  # to a pipe, which has no size
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as stream:
        *before, text = stream.read().split("\n")
    _, status = os.waitpid(child, 0)
    answer: dict[str, Any] = json.loads(text) if text else {"killed": os.WTERMSIG(status)}
    return {**answer, "committed": bool(before)}


def ask(source: Path, statements: list[list[Any]], read: str | None) -> dict[str, Any]:
    """Write to SQLite, or read; text as Pensieve does."""
    with contextlib.closing(carry_sides.Database(source, carry_back.pensieve_package())) as database:
        if read is not None:
            return {"rows": database.execute(read).fetchall()}
        database.execute("BEGIN IMMEDIATE")
        for sql, values in statements:
            database.execute(sql, values)
        database.execute("COMMIT")
    return {}


def main() -> None:
    """Answer until the input ends."""
    fts.Tokenizer().load()  # once: the children have it, too
    for line in sys.stdin:
        asked = json.loads(line)
        if "carry" in asked:
            answer = carry(asked["carry"], asked["cut"])
        else:
            answer = ask(Path(asked["source"]), asked.get("write", []), asked.get("read"))
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
