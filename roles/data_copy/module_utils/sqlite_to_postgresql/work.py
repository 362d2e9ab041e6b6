"""The jobs of the worker processes: scan a table, load a table, make full text."""

from __future__ import annotations

import struct
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import psycopg2
import psycopg2.errors

from . import ledger
from .convert import Variable, to_copy_rows
from .fts import Tokenizer
from .ledger import Entry
from .model import FAIL, Finding, FindingGroup, FindingLog, Policy, QuarantineRecord, TableCount
from .plan import TablePlan
from .pool import Context
from .reading import Reading, read
from .rows import row_record
from .source import quoted
from .target import WORKER, Connection, codec, compress_quickly, connect, query, reference, run, transaction

_HEADER = b"PGCOPY\n\xff\r\n\0" + struct.pack(">ii", 0, 0)
_TRAILER = struct.pack(">h", -1)

#: What a loading session may do since the run can be repeated: not wait for the disk at every commit.
LOADING = {"synchronous_commit": "off"}


@dataclass
class Outcome:
    """What a job has done to its table."""

    table: str
    count: TableCount
    findings: list[FindingGroup]
    dropped: set[Any] = field(default_factory=set)


class _Stream:
    """A generator of blocks as the file that COPY reads from."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks

    def read(self, _size: int = -1, /) -> bytes:
        """Give the next block; COPY takes blocks of any size, and an empty one as the end."""
        return next(self._blocks, b"")

    def readline(self, _size: int = -1, /) -> bytes:
        """Belongs to a file; COPY does not read by lines."""
        return self.read()


def scan(context: Context, table: TablePlan, policy: Policy, reading: Reading) -> Outcome:
    """Read and convert a table, and write nothing."""
    started = time.monotonic()
    count = TableCount()
    for converted in read(context.source, table, policy, reading):
        count.target += converted.rows
        count.bytes += len(converted.data)
        count.quarantined += _whole(table.name, converted.records)
        context.report(table.name, converted.rows, len(converted.data))
    count.source, count.seconds = reading.source_rows, time.monotonic() - started
    return Outcome(table.name, count, reading.log.groups(), reading.dropped)


def _whole(table: str, records: list[QuarantineRecord]) -> int:
    return sum(record.column is None and record.table == table for record in records)


def target_of(context: Context, dsn: str) -> Connection:
    """Give the worker's own session on the target."""
    connection = context.state.get("target")
    if connection is None:
        connection = context.state["target"] = connect(dsn, WORKER, **LOADING)
        compress_quickly(connection)
    return connection


def copy_sql(table: TablePlan, options: str) -> str:
    """Give the COPY statement for a table of the staging schema."""
    columns = ", ".join(map(quoted, table.columns))
    return f"COPY {reference(table.name)} ({columns}) FROM STDIN WITH (FORMAT binary{options})"


def load(context: Context, dsn: str, run_id: str, table: TablePlan, policy: Policy, reading: Reading) -> Outcome:
    """Load a whole table in one transaction: rows, quarantine and ledger together, or nothing.

    FREEZE spares the server a second writing of every row; it asks that the table is emptied in this transaction.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8", newline="\n") as file:
        spool = ledger.QuarantineSpool(run_id, file)
        return _load(context, target_of(context, dsn), run_id, table, policy, reading, spool)


def _load(
    context: Context,
    connection: Connection,
    run_id: str,
    table: TablePlan,
    policy: Policy,
    reading: Reading,
    spool: ledger.QuarantineSpool,
) -> Outcome:
    started = time.monotonic()
    count = TableCount()

    def blocks() -> Iterator[bytes]:
        yield _HEADER
        for converted in read(context.source, table, policy, reading):
            spool.add(converted.records)
            count.quarantined += _whole(table.name, converted.records)
            count.target += converted.rows
            count.bytes += len(converted.data)
            context.report(table.name, converted.rows, len(converted.data))
            if converted.data:
                yield converted.data
        yield _TRAILER

    with transaction(connection):
        ledger.strike(connection, run_id, table.name)
        run(connection, f"TRUNCATE {reference(table.name)}")
        with connection.cursor() as cursor:
            cursor.copy_expert(copy_sql(table, ", FREEZE"), _Stream(blocks()), 1 << 20)
        spool.write(connection)
        count.source = reading.source_rows
        count.seconds = time.monotonic() - started
        if not reading.log.failing():
            ledger.enter(connection, run_id, Entry(table.name, 0, count))
    return Outcome(table.name, count, reading.log.groups(), reading.dropped)


_ENTITIES = "SELECT id, filepath FROM {0}.entities WHERE id = ANY(%s) ORDER BY id"
_TAGS = """
    SELECT l.entity_id, l.tag_id, t.name FROM {0}.entity_tags l JOIN {0}.tags t ON t.id = l.tag_id
     WHERE l.entity_id = ANY(%s) ORDER BY l.entity_id, l.id
"""
_METADATA = """
    SELECT entity_id, key, value FROM {0}.metadata_entries WHERE entity_id = ANY(%s) ORDER BY entity_id, id
"""


def tokenized(connection: Connection, tokenizer: Tokenizer, schema: str, ids: list[int]) -> list[tuple[Any, ...]]:
    """Make the full-text entries of some entities from what the target holds of them.

    Tags are in the order of their links, each once; metadata in the order of their ids, as Pensieve reads them.
    """
    tags: dict[int, dict[int, str]] = {}
    for entity, tag, name in query(connection, _TAGS.format(schema), (ids,)):
        tags.setdefault(entity, {}).setdefault(tag, name)
    metadata: dict[int, list[tuple[str, str]]] = {}
    for entity, key, value in query(connection, _METADATA.format(schema), (ids,)):
        metadata.setdefault(entity, []).append((key, value))
    return [
        (entity, *tokenizer.prepare(path, list(tags.get(entity, {}).values()), metadata.get(entity, [])))
        for entity, path in query(connection, _ENTITIES.format(schema), (ids,))
    ]


def full_text(
    context: Context, dsn: str, run_id: str, table: TablePlan, schema: str, chunk: int, ids: list[int], policy: Policy
) -> Outcome:
    """Make and load the full-text entries of some entities in one transaction."""
    started = time.monotonic()
    connection = target_of(context, dsn)
    log = FindingLog()
    rows = tokenized(connection, context.shared, schema, ids)
    data = encoded(table, rows)
    records: list[QuarantineRecord] = []
    with transaction(connection):
        try:
            send(connection, copy_sql(table, ""), data)
        except psycopg2.errors.ProgramLimitExceeded:
            connection.rollback()
            rows, records = _one_by_one(connection, table, rows, policy, log)
        ledger.quarantine(connection, run_id, records)
        count = TableCount(len(ids), len(rows), len(records), time.monotonic() - started, len(data))
        if not log.failing():
            ledger.enter(connection, run_id, Entry(table.name, chunk, count))
    return Outcome(table.name, count, log.groups())


def encoded(table: TablePlan, rows: list[tuple[Any, ...]]) -> bytes:
    """Give full-text entries as rows of binary COPY."""
    if not rows:
        return b""
    columns = []
    for column, values in zip((table.target.columns[name] for name in table.columns), zip(*rows)):
        chosen = codec(column, indexed=False)
        assert chosen is not None, f"{table.name}.{column.name}"
        columns.append(chosen.column(values) or _refused(column.name))
    return to_copy_rows(columns, len(rows))


def too_long(
    table: TablePlan, row: tuple[Any, ...], error: Exception, policy: Policy, log: FindingLog
) -> list[QuarantineRecord]:
    """Log an entry that is more than a tsvector holds (1 MB), and give the record that keeps it."""
    action = policy.action("too_long", coercible=False)
    reason = f"full text of an entity: {str(error).splitlines()[0]}"
    log.add(Finding(table.name, {"id": row[0]}, None, "too_long", reason, "row", "", action))
    if action == FAIL:
        return []
    return [row_record(table.name, {"id": row[0]}, dict(zip(table.columns, row)), "too_long", reason)]


def _refused(column: str) -> Variable:
    raise ValueError(f"the tokenizer gave a text for {column} that PostgreSQL does not hold")


def send(connection: Connection, sql: str, data: bytes) -> None:
    """Run a COPY … FROM STDIN with rows of binary COPY."""
    with connection.cursor() as cursor:
        cursor.copy_expert(sql, _Stream(iter([_HEADER + data + _TRAILER])), 1 << 20)


def _one_by_one(
    connection: Connection, table: TablePlan, rows: list[tuple[Any, ...]], policy: Policy, log: FindingLog
) -> tuple[list[tuple[Any, ...]], list[QuarantineRecord]]:
    """Load entries singly: some entry is too long."""
    loaded: list[tuple[Any, ...]] = []
    records: list[QuarantineRecord] = []
    for row in rows:
        run(connection, "SAVEPOINT entry")
        try:
            send(connection, copy_sql(table, ""), encoded(table, [row]))
            loaded.append(row)
        except psycopg2.errors.ProgramLimitExceeded as error:
            run(connection, "ROLLBACK TO SAVEPOINT entry")
            records += too_long(table, row, error, policy, log)
        run(connection, "RELEASE SAVEPOINT entry")
    return loaded, records
