"""The manager that the consumer and its dashboards open the database with."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from datetime import date, timedelta
from typing import Any
from urllib.parse import urlparse

from psycopg2.pool import ThreadedConnectionPool

from autotasktracker.config import get_config
from autotasktracker.pensieve.config_reader import get_pensieve_database

RECENT = """
SELECT e.id, e.filename, m.value AS task, datetime(e.created_at, 'localtime') AS created_at
FROM entities e JOIN metadata_entries m ON m.entity_id = e.id AND m."key" = ?
WHERE e.filename LIKE '%SCREENSHOT%' AND e.file_type_group = "image"
ORDER BY e.id DESC, m.id DESC LIMIT ?
"""
OF_A_DAY = """
SELECT e.id, e.filename, m.value AS task
FROM entities e JOIN metadata_entries m ON m.entity_id = e.id AND m."key" = ?
WHERE e.created_at >= ? AND e.created_at < ?
ORDER BY e.created_at DESC, m.id DESC
"""
ADD = """
INSERT OR REPLACE INTO metadata_entries (entity_id, key, value, source_type, data_type, created_at, updated_at)
VALUES (?, "tasks", ?, 'task_processor', 'text', datetime('now'), datetime('now'))
"""


def listed(row: Any) -> dict[str, Any]:
    """One line of a list of tasks."""
    return {"entity": row["id"], "file": row["filename"], "task": row["task"]}


class DatabaseManager:
    """SQLite or PostgreSQL, whichever the place of the database looks like."""

    def __init__(self, db_path: str | None = None, use_pensieve_api: bool = True) -> None:
        if db_path is not None:
            self.db_path = db_path
        elif use_pensieve_api:
            self.db_path = get_pensieve_database()
        else:
            self.db_path = get_config().get_db_path()
        self._postgresql_pool: Any = None
        self._is_postgresql = self.db_path.startswith(("postgresql://", "postgres://"))
        if self._is_postgresql:
            self._initialize_postgresql()

    def _initialize_postgresql(self) -> None:
        place = urlparse(self.db_path)
        self._postgresql_pool = ThreadedConnectionPool(
            minconn=1, maxconn=4, host=place.hostname, port=place.port, database=place.path[1:], user=place.username
        )

    def get_database_type(self) -> str:
        """postgresql or sqlite."""
        return "postgresql" if self._is_postgresql else "sqlite"

    @contextlib.contextmanager
    def get_connection(self, readonly: bool = True) -> Iterator[Any]:
        """A connection, given back at the end."""
        if self._is_postgresql:
            connection = self._postgresql_pool.getconn()
            try:
                connection.autocommit = readonly
                yield connection
            finally:
                self._postgresql_pool.putconn(connection)
        else:
            mode = "ro" if readonly else "rw"
            file = sqlite3.connect(f"file:{self.db_path}?mode={mode}", uri=True, isolation_level=None)
            file.row_factory = sqlite3.Row
            with contextlib.closing(file):
                yield file

    def recent_tasks(self, key: str, limit: int) -> list[dict[str, Any]]:
        """The newest entities with the value of metadata `key`, newest first."""
        with self.get_connection() as connection:
            return [listed(row) for row in connection.execute(RECENT, (key, limit))]

    def tasks_of_day(self, key: str, day: date) -> list[dict[str, Any]]:
        """The entities of a day with the value of metadata `key`, newest first."""
        between = (str(day), str(day + timedelta(days=1)))
        with self.get_connection() as connection:
            return [listed(row) for row in connection.execute(OF_A_DAY, (key, *between))]

    def add_task(self, entity: int, task: str) -> int:
        """Write a task as AutoTaskTracker does, labels included; its id."""
        with self.get_connection(readonly=False) as connection:
            return int(connection.execute(ADD, (entity, task)).lastrowid)
