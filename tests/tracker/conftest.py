"""One database twice: a SQLite file with AutoTaskTracker's rows, and PostgreSQL with what the engine copied of it."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import postgresql_first
import pytest
from engine.conftest import make_target, medium, pensieve, server, template
from sqlite_to_postgresql.copier import copy
from sqlite_to_postgresql.model import Policy

__all__ = ["make_target", "medium", "pensieve", "server", "template"]

ROWS = (
    ("tasks", "Write the 100% plan", "task_processor", "text"),
    ("category", "Coding", "auto_processor", "text"),
    ("task_confidence", "0.87", "ai", "float"),
    ("active_window", r"C:\work\notes_1.txt - Editor", "SYSTEM_GENERATED", "TEXT_DATA"),
)


class Both(NamedTuple):
    """The same rows on both sides."""

    sqlite: sqlite3.Connection
    postgresql: postgresql_first.Connection
    dsn: str


@pytest.fixture(scope="session")
def with_tasks(medium: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source that AutoTaskTracker has written to."""
    path = tmp_path_factory.mktemp("with_tasks") / "database.db"
    shutil.copyfile(medium, path)
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        for (entity,) in connection.execute("SELECT id FROM entities WHERE id % 3 = 0").fetchall():
            connection.executemany(
                "INSERT INTO metadata_entries (entity_id, key, value, source_type, data_type, created_at, updated_at)"
                f" VALUES ({entity}, ?, ?, ?, ?, datetime('now'), datetime('now'))",
                ROWS,
            )
        connection.execute("UPDATE entities SET created_at = datetime('now', '-' || id || ' minutes')")
    return path


def opened(source: Path, path: Path, dsn: str) -> Both:
    """A copy of the source at `path`, and what the engine copies of it."""
    shutil.copyfile(source, path)
    copy(path, dsn, Policy.of("default"))
    left = sqlite3.connect(path, isolation_level=None)
    left.row_factory = sqlite3.Row
    return Both(left, postgresql_first.connect(dsn), dsn)


@pytest.fixture
def both(with_tasks: Path, make_target: Callable[[], str], tmp_path: Path) -> Iterator[Both]:
    """Connections to both, to be written to."""
    made = opened(with_tasks, tmp_path / "database.db", make_target())
    yield made
    made.sqlite.close()
    made.postgresql.close()


@pytest.fixture(scope="session")
def unchanged(
    with_tasks: Path, make_target: Callable[[], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Both]:
    """Connections to both, to be read."""
    made = opened(with_tasks, tmp_path_factory.mktemp("unchanged") / "database.db", make_target())
    yield made
    made.sqlite.close()
    made.postgresql.close()


def plain(rows: Any) -> list[tuple[Any, ...]]:
    """Rows as tuples."""
    return [tuple(row) for row in rows]
