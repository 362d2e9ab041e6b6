"""What all parts of the verifier share: both connections, the plan's words, differences, the quarantine."""

from __future__ import annotations

import itertools
import json
import sqlite3
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from operator import methodcaller
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
import psycopg2
import psycopg2.extensions

from . import watch
from .fts import Tokenizer
from .verify_values import kept_form, quoted

LIMIT = 200  # differences that are named; all are counted
BATCH = 2_000  # rows fetched at once from either side
KEYS_AT_ONCE = 250  # keys of one query (SQLite of old takes 999 parameters)
EXCERPT = 120  # characters of a value that a difference shows
BOOKKEEPING = "data_copy"  # schema of the engine's own tables
FTS_TABLE = "entities_fts"

_numbers = itertools.count()  # of server-side cursors

Row = tuple[Any, ...]
Key = tuple[Any, ...]


@dataclass(frozen=True)
class Difference:
    """One thing that is not as it must be. `key`: column to value; `column` None: the row or the table
    itself.
    """

    table: str
    key: dict[str, Any]
    column: str | None
    source: str | None
    target: str | None
    what: str


@dataclass
class TableVerdict:
    """Rows and cells compared in one table. `seconds`: of all processes together."""

    source: int = 0
    target: int = 0
    quarantined: int = 0
    compared_cells: int = 0
    differences: int = 0
    seconds: float = 0.0

    def add(self, other: TableVerdict) -> None:
        """Add the counts of a part."""
        self.source += other.source
        self.target += other.target
        self.quarantined += other.quarantined
        self.compared_cells += other.compared_cells
        self.differences += other.differences
        self.seconds += other.seconds


class Differences:
    """Differences of one task: counts all, keeps the first."""

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit = limit
        self.kept: list[Difference] = []
        self.count = 0
        self.rows: set[int] = set()  # hashes of the keys of rows that differ

    def add(self, table: str, key: dict[str, Any], column: str | None, source: Any, target: Any, what: str) -> None:
        self.count += 1
        self.rows.add(hash(str(key)))
        if len(self.kept) < self.limit:
            shown = _excerpts(source, target)
            self.kept.append(Difference(table, _plain(key), column, shown[0], shown[1], what))


def _plain(key: dict[str, Any]) -> dict[str, Any]:
    """A key that JSON can hold."""
    return {name: value if isinstance(value, (int, type(None))) else _excerpt(value, 0) for name, value in key.items()}


def _excerpts(source: Any, target: Any) -> tuple[str | None, str | None]:
    """Both values, short, from shortly before the first place where they differ."""
    start = 0
    if isinstance(source, str) and isinstance(target, str):
        same = next((i for i, (a, b) in enumerate(zip(source, target)) if a != b), min(len(source), len(target)))
        start = max(0, same - EXCERPT // 4)
    return _excerpt(source, start), _excerpt(target, start)


def _excerpt(value: Any, start: int) -> str | None:
    if value is None:
        return None
    if isinstance(value, (bytes, memoryview)):
        return "x'" + bytes(value[:EXCERPT]).hex() + ("'…" if len(value) > EXCERPT else "'")
    if isinstance(value, str):
        piece = value[start : start + EXCERPT].encode("utf-8", "backslashreplace").decode("utf-8")
        before, after = "…" if start else "", "…" if len(value) > start + EXCERPT else ""
        return f"{before}{piece}{after}".replace("\0", "\\0")
    return repr(value)


def open_source(path: Path) -> sqlite3.Connection:
    """Read-only. Text that is not UTF-8 comes as lone surrogates, which no target value holds and which
    give its bytes back.
    """
    connection = sqlite3.connect(f"file:{quote(str(path.resolve()))}?mode=ro", uri=True, isolation_level=None)
    connection.text_factory = methodcaller("decode", "utf-8", "surrogateescape")
    connection.execute("PRAGMA query_only = ON")
    return connection


def open_target(dsn: str, passfile: str | None = None, snapshot: str = "") -> psycopg2.extensions.connection:
    """One read-only transaction, in which the server writes values in one way. `snapshot`: that of another
    session.
    """
    arguments: dict[str, Any] = {"passfile": passfile} if passfile else {}
    connection: psycopg2.extensions.connection = psycopg2.connect(
        dsn, application_name="data_verify", **watch.OPTIONS, **arguments
    )
    watch.add(connection)
    connection.set_client_encoding("UTF8")
    connection.set_session(isolation_level="REPEATABLE READ", readonly=True)
    with connection.cursor() as cursor:
        if snapshot:
            cursor.execute("SET TRANSACTION SNAPSHOT %s", (snapshot,))
        cursor.execute(
            "SET LOCAL datestyle = 'ISO'; SET LOCAL timezone = 'UTC'; SET LOCAL extra_float_digits = 1;"
            "SET LOCAL bytea_output = 'hex'; SET LOCAL cursor_tuple_fraction = 1;"
            "SET LOCAL statement_timeout = 0;"
            "SET LOCAL search_path = public, pg_temp"
        )
    return connection


@dataclass(frozen=True)
class Column:
    name: str
    kind: str  # typname, or 'enum'
    longest: int | None


@dataclass(frozen=True)
class Table:
    """A table of both sides. `key`: columns of the target's primary key; `merged`: all of them integers."""

    name: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    merged: bool
    has_rowid: bool
    key_is_rowid: bool

    def key_of(self, row: Row) -> Key:
        """Key values of a row of `columns`."""
        return tuple(row[at] for at in self.key_positions())

    def key_positions(self) -> list[int]:
        """Positions of the key in `columns`."""
        names = [column.name for column in self.columns]
        return [names.index(name) for name in self.key]

    def told(self, key: Key) -> dict[str, Any]:
        """A key with its columns' names."""
        if len(key) == 2 and key[0] == "rowid":
            return {"rowid": key[1]}
        return dict(zip(self.key or ("row",), key))


@dataclass(frozen=True)
class Task:
    """Part of the work: `table` in the keys [low, high) (None: no bound), or just the rows of `keys`, done by `job`.

    `entries`: for full text by keys, the rowids of the source's entries of these entities; None: they are looked for.
    """

    job: str
    table: str
    low: int | None
    high: int | None
    rows: int
    keys: tuple[Key, ...] | None = None
    entries: tuple[int, ...] | None = None


@dataclass
class Outcome:
    task: Task
    verdict: TableVerdict
    findings: Differences


@dataclass
class Run:
    """What every worker needs to know. Connections are opened by each worker itself."""

    source: Path
    dsn: str
    passfile: str | None
    snapshot: str
    tables: dict[str, Table]
    quarantine: bool
    tokenizer: Tokenizer | None
    sample: float
    seed: int
    limit: int
    entries: npt.NDArray[np.void] | None = None  # (entity, rowid) of the source's full-text entries, sorted
    _source: sqlite3.Connection | None = field(default=None, repr=False)
    _target: psycopg2.extensions.connection | None = field(default=None, repr=False)

    def open(self) -> tuple[sqlite3.Connection, psycopg2.extensions.connection]:
        """Connections of this process; all of them see the same state of the target."""
        if self._source is None or self._target is None:
            self._source = open_source(self.source)
            self._source.execute("BEGIN")
            self._target = open_target(self.dsn, self.passfile, self.snapshot)
        return self._source, self._target


def stream(connection: psycopg2.extensions.connection, query: str, values: Sequence[Any] = ()) -> Iterator[list[Row]]:
    """Batches of rows of a query, held on the server until fetched."""
    with connection.cursor(f"verify_{next(_numbers)}") as cursor:
        cursor.execute(query, values)
        while rows := cursor.fetchmany(BATCH):
            yield rows


def batches(cursor: sqlite3.Cursor) -> Iterator[list[Row]]:
    while rows := cursor.fetchmany(BATCH):
        yield rows


def groups(keys: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Keys in portions that one query takes."""
    return (keys[at : at + KEYS_AT_ONCE] for at in range(0, len(keys), KEYS_AT_ONCE))


def among(columns: Sequence[str], keys: Sequence[Key], mark: str) -> tuple[str, list[Any]]:
    """A condition that a row has one of these keys, and its parameters, each written as `mark`."""
    if len(columns) == 1:
        return f"{quoted(columns[0])} IN ({', '.join([mark] * len(keys))})", [key[0] for key in keys]
    names = ", ".join(map(quoted, columns))
    group = f"({', '.join([mark] * len(columns))})"
    return f"({names}) IN (VALUES {', '.join([group] * len(keys))})", [part for key in keys for part in key]


@dataclass(frozen=True)
class Kept:
    kind: str
    action: str
    storage_class: str
    original: bytes


class Quarantine:
    """What the copy kept of one table. Entries are taken out when they are met; those left over have no
    cell.
    """

    def __init__(self, run: Run, table: str, key: Sequence[str], key_is_rowid: bool) -> None:
        self.rows: dict[Key, list[Kept]] = {}
        self.cells: dict[tuple[Key, str], list[Kept]] = {}
        if not run.quarantine:
            return
        _source, target = run.open()
        with target.cursor() as cursor:
            cursor.execute(
                "SELECT source_key::text, source_column, kind, action, storage_class, original"
                f" FROM {BOOKKEEPING}.quarantine WHERE source_table = %s ORDER BY id",
                (table,),
            )
            for text, column, kind, action, storage_class, original in cursor:
                kept = Kept(kind, action, storage_class, bytes(original or b""))
                at = _read_key(text, key, key_is_rowid)
                if column is None:
                    self.rows.setdefault(at, []).append(kept)
                else:
                    self.cells.setdefault((at, column), []).append(kept)

    def take_row(self, key: Key, columns: Sequence[str], values: Sequence[Any]) -> bool | None:
        """Take out the entry of a row: whether its original is the source's row; None if there is no entry."""
        entries = self.rows.get(key)
        if not entries:
            return None
        same = [entry for entry in entries if row_is_kept(entry, columns, values)]
        entries.remove((same or entries)[0])
        if not entries:
            del self.rows[key]
        return bool(same)

    def keep_range(self, low: int | None, high: int | None) -> None:
        """Forget what belongs to other tasks (ranges of the first key column)."""

        def inside(key: Key) -> bool:
            first = key[0] if key and type(key[0]) is int else None
            if first is None:
                return low is None
            return (low is None or first >= low) and (high is None or first < high)

        self._keep(inside)

    def keep_keys(self, keys: Collection[Key]) -> None:
        """Forget what belongs to other rows than these."""
        wanted = {*keys, *(tuple(map(named, key)) for key in keys)}
        self._keep(wanted.__contains__)

    def _keep(self, inside: Callable[[Key], bool]) -> None:
        self.rows = {key: kept for key, kept in self.rows.items() if inside(key)}
        self.cells = {at: kept for at, kept in self.cells.items() if inside(at[0])}


def _read_key(text: str, key: Sequence[str], key_is_rowid: bool) -> Key:
    """Key values of a quarantine entry; ('rowid', n) if it names the row so and the key is another."""
    value = json.loads(text)
    if isinstance(value, list):
        return tuple(value)
    if not isinstance(value, dict):
        return (value,)
    if set(value) == set(key):
        return tuple(value[name] for name in key)
    if set(value) == {"rowid"}:
        return (value["rowid"],) if key_is_rowid else ("rowid", value["rowid"])
    return tuple(value.values())


def named(value: Any) -> Any:
    """A value of a key as a quarantine entry names it: bytes, and text that is not UTF-8, in hex; a real as
    text; NUL as U+2400.
    """
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            return value.encode("utf-8", "surrogateescape").hex()
    return value.replace("\0", "\u2400") if isinstance(value, str) else value


def row_is_kept(kept: Kept, columns: Sequence[str], values: Sequence[Any]) -> bool:
    """Whether the original of a quarantined row gives back exactly these values."""
    try:
        cells = json.loads(kept.original)
        for name, value in zip(columns, values):
            cell = cells.pop(name)
            storage_class, stored = kept_form(value)
            if cell["class"] != storage_class or kept_bytes(cell) != stored:
                return False
    except (ValueError, KeyError, TypeError, AttributeError):
        return False
    return True


def kept_bytes(cell: dict[str, Any]) -> bytes:
    """Exact bytes of one cell of a quarantined row."""
    if "hex" in cell:
        return bytes.fromhex(cell["hex"])
    return kept_form(cell.get("value"))[1]
