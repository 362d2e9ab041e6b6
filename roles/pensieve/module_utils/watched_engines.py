"""Pensieve's own code on a server that may stop answering: its sessions are watched as those of the engine are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg2
from ansible.module_utils.sqlite_to_postgresql import watch


@contextmanager
def watched_engines() -> Iterator[None]:
    """Watch every session with PostgreSQL that SQLAlchemy opens in this process from here on.

    Raises an OperationalError that says why when the server was given up, whatever was made of that.
    """
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    def add(connection: Any, _record: Any) -> None:
        if isinstance(connection, psycopg2.extensions.connection):
            watch.add(connection)

    event.listen(Engine, "connect", add)
    os.environ["PGCONNECT_TIMEOUT"] = str(watch.OPTIONS["connect_timeout"])
    with watch.watched():
        try:
            yield
        except Exception as error:
            if watch.lost():
                raise psycopg2.OperationalError(watch.lost()) from error
            raise
