"""What SQLite's own checks say of a database whose virtual tables need extensions that are not loaded here."""

from __future__ import annotations

import re
import sqlite3

UNLOADED = re.compile(r"no such (module|tokenizer)|unable to (validate|open)")
"""What the checks say of virtual tables; the tables behind them are ordinary ones, and checked."""


def held(error: sqlite3.Error) -> bool:
    """Whether it says that another program holds the database, which is no damage."""
    return "locked" in str(error)


def hindered(error: sqlite3.Error) -> bool:
    """Whether the machine does not let the database be read: a full disk, an error of it, a right. That tells nothing
    of what the database holds.
    """
    return any(words in str(error) for words in ("disk is full", "disk I/O error", "unable to open database file"))


def damage(connection: sqlite3.Connection, check: str = "integrity_check", limit: int = 10) -> list[str]:
    """What a check complains about, at most `limit` lines; empty when the database is intact.

    From SQLite 3.44 on, a check of the whole database opens the virtual tables too, and fails where Pensieve's
    tokenizer is not loaded. Table by table is what is left then: all rows and indexes, without the list of free pages.

    Args:
        connection: may be read-only.
        check: the PRAGMA, integrity_check or quick_check.
        limit: as above.

    Raises:
        sqlite3.DatabaseError: the file is no database, or too damaged to be checked, or held by another program.
    """
    try:
        lines = connection.execute(f"PRAGMA {check}({limit})").fetchall()
    except sqlite3.OperationalError as error:  # "no such tokenizer", "SQL logic error": by the version
        if held(error):
            raise
        tables = connection.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND sql NOT LIKE 'CREATE VIRTUAL%'"
        ).fetchall()
        quoted = [str(name).replace('"', '""') for (name,) in tables]
        lines = [line for name in quoted for line in connection.execute(f'PRAGMA {check}("{name}")')]
    return [str(line) for (line,) in lines if line != "ok" and not UNLOADED.search(str(line))][:limit]
