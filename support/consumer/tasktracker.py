"""A small reader of Pensieve's database that finds it as AutoTaskTracker e7ded0d does.

It stands in for AutoTaskTracker in the sample installation and in tests. The code is its own; the way to the
database is AutoTaskTracker's:

- the *manager* takes `MEMOS_DB_PATH`, else `database_path` of Pensieve's config.yaml; what is no URI is a
  path below Pensieve's `base_dir`,
- the *dashboards* take `AUTOTASK_DATABASE_URL`, else the URI that AutoTaskTracker has built in.

Variables come from the process, else from `autotasktracker.env` beside this file.

Usage: tasktracker.py status|tasks [--dashboard] [--limit N] [--key KEY]; prints JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg2
import yaml

SETTINGS = Path(__file__).resolve().parent / "autotasktracker.env"
BUILT_IN = "postgresql://postgres@localhost:5433/autotasktracker"


def settings() -> dict[str, str]:
    """`NAME=value` lines of the settings file, under the variables of the process."""
    found: dict[str, str] = {}
    if SETTINGS.exists():
        for line in SETTINGS.read_text(encoding="utf-8").splitlines():
            name, separator, value = line.strip().partition("=")
            if separator and not name.startswith("#"):
                found[name.removeprefix("export ").strip()] = value.strip().strip("\"'")
    return {**found, **os.environ}


def manager_database() -> str:
    """What the manager opens: a URI, or the absolute path of a SQLite file."""
    config_file = Path.home() / ".memos" / "config.yaml"
    config = yaml.safe_load(config_file.read_text(encoding="utf-8")) if config_file.exists() else {}
    database = settings().get("MEMOS_DB_PATH") or config.get("database_path", "database.db")
    if "://" in database:
        return str(database)
    return str(Path(config.get("base_dir", "~/.memos")).expanduser() / database)


def dashboard_database() -> str:
    """What the dashboards open."""
    return settings().get("AUTOTASK_DATABASE_URL") or BUILT_IN


@contextlib.contextmanager
def connected(database: str) -> Iterator[Any]:
    """A cursor on `database`; libpq finds the password in ~/.pgpass."""
    connection: Any
    if database.startswith(("postgresql://", "postgres://")):
        connection = psycopg2.connect(database, connect_timeout=10)
    else:
        connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    with contextlib.closing(connection):
        yield connection.cursor()


def recent_tasks(cursor: Any, key: str, limit: int) -> list[dict[str, Any]]:
    """The newest entities with the value of metadata `key`, newest first."""
    mark = "?" if isinstance(cursor, sqlite3.Cursor) else "%s"
    cursor.execute(
        "SELECT e.id, e.filename, m.value FROM entities e JOIN metadata_entries m ON m.entity_id = e.id"
        f" WHERE m.key = {mark} ORDER BY e.id DESC, m.id DESC LIMIT {mark}",
        (key, limit),
    )
    return [{"entity": row[0], "file": row[1], "task": row[2]} for row in cursor.fetchall()]


def main() -> int:
    """Print what was asked for as JSON; 1 with the reason when the database does not answer."""
    parser = argparse.ArgumentParser(description="Read Pensieve's database as AutoTaskTracker finds it.")
    parser.add_argument("command", choices=["status", "tasks"])
    parser.add_argument("--dashboard", action="store_true", help="as the dashboards find it, not the manager")
    parser.add_argument("--limit", type=int, default=5)
    parser.add_argument("--key", default="tasks", help="metadata key that holds the task")
    arguments = parser.parse_args()
    database = dashboard_database() if arguments.dashboard else manager_database()
    answer: dict[str, Any] = {
        "type": "postgresql" if "://" in database else "sqlite",
        "database": database,
    }
    try:
        with connected(database) as cursor:
            if arguments.command == "status":
                for table in ("entities", "metadata_entries"):
                    cursor.execute(f"SELECT count(*) FROM {table}")
                    answer[table] = cursor.fetchone()[0]
            else:
                answer["tasks"] = recent_tasks(cursor, arguments.key, arguments.limit)
    except (sqlite3.Error, psycopg2.Error) as error:
        print(json.dumps({**answer, "error": str(error).strip()}), file=sys.stderr)
        return 1
    print(json.dumps(answer, ensure_ascii=False, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
