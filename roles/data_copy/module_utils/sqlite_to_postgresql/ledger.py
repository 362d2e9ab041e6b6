"""The engine's own books, in schema ``data_copy`` of the target: runs, what is loaded, what is in quarantine."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from .model import FindingLog, QuarantineRecord, TableCount
from .target import BOOKKEEPING, Connection, query, run

_TABLES = f"""
CREATE SCHEMA IF NOT EXISTS {BOOKKEEPING};
CREATE TABLE IF NOT EXISTS {BOOKKEEPING}.run (
    run_id text PRIMARY KEY,
    state text NOT NULL CHECK (state IN ('loading', 'complete')),
    source text NOT NULL,
    fingerprint text NOT NULL,
    plan_digest text NOT NULL,
    started_at timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz,
    result jsonb
);
CREATE TABLE IF NOT EXISTS {BOOKKEEPING}.ledger (
    run_id text NOT NULL REFERENCES {BOOKKEEPING}.run ON DELETE CASCADE,
    table_name text NOT NULL,
    chunk integer NOT NULL,
    state text NOT NULL,
    source_rows bigint NOT NULL,
    target_rows bigint NOT NULL,
    quarantined bigint NOT NULL,
    bytes bigint NOT NULL,
    seconds double precision NOT NULL,
    PRIMARY KEY (run_id, table_name, chunk)
);
CREATE TABLE IF NOT EXISTS {BOOKKEEPING}.quarantine (
    id bigserial PRIMARY KEY,
    run_id text NOT NULL REFERENCES {BOOKKEEPING}.run ON DELETE CASCADE,
    source_table text NOT NULL,
    source_key jsonb NOT NULL,
    source_column text,
    kind text NOT NULL,
    reason text NOT NULL,
    storage_class text NOT NULL,
    original bytea NOT NULL,
    action text NOT NULL CHECK (action IN ('quarantine', 'coerce')),
    created_at timestamptz NOT NULL DEFAULT now()
);
"""


@dataclass(frozen=True)
class Run:
    """One row of ``data_copy.run``."""

    run_id: str
    state: str
    fingerprint: str
    plan_digest: str
    result: dict[str, Any]

    @property
    def watched(self) -> bool:
        """Whether its tables have had the triggers of the change log ever since; not those of earlier versions."""
        return self.result.get("watched") is True


@dataclass(frozen=True)
class Entry:
    """One row of ``data_copy.ledger``: a table, or a chunk of one, that is loaded."""

    table: str
    chunk: int
    count: TableCount


def create(connection: Connection) -> None:
    """Make the books if they are missing."""
    run(connection, _TABLES)


def exists(connection: Connection) -> bool:
    """Tell whether the target has books."""
    return bool(query(connection, "SELECT to_regclass(%s) IS NOT NULL", (f"{BOOKKEEPING}.run",))[0][0])


def runs(connection: Connection) -> list[Run]:
    """Give all runs, the newest first."""
    if not exists(connection):
        return []
    rows = query(
        connection,
        f"SELECT run_id, state, fingerprint, plan_digest, coalesce(result, '{{}}') FROM {BOOKKEEPING}.run"
        " ORDER BY started_at DESC",
    )
    return [Run(*row) for row in rows]


def start(connection: Connection, run_id: str, source: str, fingerprint: str, plan_digest: str) -> None:
    """Begin a run. What unfinished runs left is forgotten; a complete one stays until this one completes."""
    run(connection, f"DELETE FROM {BOOKKEEPING}.run WHERE state = 'loading'")
    run(
        connection,
        f"INSERT INTO {BOOKKEEPING}.run (run_id, state, source, fingerprint, plan_digest)"
        " VALUES (%s, 'loading', %s, %s, %s)",
        (run_id, source, fingerprint, plan_digest),
    )


def forget(connection: Connection, run_id: str) -> None:
    """Drop a run that came to nothing."""
    run(connection, f"DELETE FROM {BOOKKEEPING}.run WHERE run_id = %s", (run_id,))


def entries(connection: Connection, run_id: str) -> list[Entry]:
    """Give what a run has loaded."""
    return [
        Entry(row[0], row[1], TableCount(row[2], row[3], row[4], row[6], row[5]))
        for row in query(
            connection,
            "SELECT table_name, chunk, source_rows, target_rows, quarantined, bytes, seconds"
            f" FROM {BOOKKEEPING}.ledger WHERE run_id = %s",
            (run_id,),
        )
    ]


def enter(connection: Connection, run_id: str, entry: Entry) -> None:
    """Write down that a table or a chunk is loaded, in the transaction that loads it."""
    count = entry.count
    run(
        connection,
        f"INSERT INTO {BOOKKEEPING}.ledger VALUES (%s, %s, %s, 'loaded', %s, %s, %s, %s, %s)",
        (
            run_id,
            entry.table,
            entry.chunk,
            count.source,
            count.target,
            count.quarantined,
            count.bytes,
            count.seconds,
        ),
    )


def strike(connection: Connection, run_id: str, table: str) -> None:
    """Forget that a table is loaded, since it is loaded anew."""
    run(connection, f"DELETE FROM {BOOKKEEPING}.ledger WHERE run_id = %s AND table_name = %s", (run_id, table))
    run(connection, f"DELETE FROM {BOOKKEEPING}.quarantine WHERE run_id = %s AND source_table = %s", (run_id, table))


def release(connection: Connection, run_id: str, table: str, kinds: list[str]) -> None:
    """Take records of some kinds out of quarantine, since they are put there anew."""
    run(
        connection,
        f"DELETE FROM {BOOKKEEPING}.quarantine WHERE run_id = %s AND source_table = %s AND kind = ANY(%s)",
        (run_id, table, kinds),
    )


def finish(connection: Connection, run_id: str, result: dict[str, Any]) -> None:
    """Complete a run, in the transaction that shows its tables and has them watched. Earlier runs are forgotten."""
    run(connection, f"DELETE FROM {BOOKKEEPING}.run WHERE run_id <> %s", (run_id,))
    run(
        connection,
        f"UPDATE {BOOKKEEPING}.run SET state = 'complete', finished_at = now(), result = %s WHERE run_id = %s",
        (json.dumps({**result, "watched": True}), run_id),
    )


def bring_up(connection: Connection, run_id: str, source: str, fingerprint: str, result: dict[str, Any]) -> None:
    """Note that a complete run shows its source as it is now, in the transaction that brings it there."""
    run(
        connection,
        f"UPDATE {BOOKKEEPING}.run SET source = %s, fingerprint = %s, finished_at = now(), result = %s"
        " WHERE run_id = %s",
        (source, fingerprint, json.dumps(result), run_id),
    )


def _copy_text(value: str | None) -> str:
    if value is None:
        return "\\N"
    return value.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")


class QuarantineSpool:
    """Records on their way into quarantine, in a temporary file: a real database can have hundreds of thousands."""

    def __init__(self, run_id: str, file: TextIO) -> None:
        self._run_id, self._file, self._lines = run_id, file, 0

    def add(self, records: Iterable[QuarantineRecord]) -> None:
        """Take records."""
        for record in records:
            self._file.write(_line(self._run_id, record))
            self._lines += 1

    def write(self, connection: Connection) -> None:
        """Put all records into quarantine."""
        if self._lines:
            self._file.seek(0)
            with connection.cursor() as cursor:
                cursor.copy_expert(_COPY, self._file)


_COPY = (
    f"COPY {BOOKKEEPING}.quarantine (run_id, source_table, source_key, source_column, kind, reason,"
    " storage_class, original, action) FROM STDIN"
)


def _line(run_id: str, record: QuarantineRecord) -> str:
    return (
        "\t".join(
            [
                _copy_text(run_id),
                _copy_text(record.table),
                _copy_text(json.dumps(record.key, allow_nan=False)),
                _copy_text(record.column),
                _copy_text(record.kind),
                _copy_text(record.reason.replace("\0", "\u2400")),
                _copy_text(record.storage_class),
                "\\\\x" + record.original.hex(),
                _copy_text(record.action),
            ]
        )
        + "\n"
    )


def quarantine(connection: Connection, run_id: str, records: Iterable[QuarantineRecord]) -> None:
    """Put a few originals into quarantine."""
    spool = QuarantineSpool(run_id, io.StringIO())
    spool.add(records)
    spool.write(connection)


def result_of(tables: dict[str, TableCount], findings: FindingLog, notes: Sequence[str]) -> dict[str, Any]:
    """Give what a run remembers of itself, as plain data."""
    return {
        "tables": {name: vars(count) for name, count in tables.items()},
        "findings": findings.as_list(),
        "notes": list(notes),
    }
