"""The source: a SQLite file that is only ever read, its tables, and their rows in batches.

The file is opened with ``mode=ro`` and never ``immutable``: what lies in the write-ahead log is part of it.
No extension is loaded; virtual tables are read from their shadow tables.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from .convert import InvalidText
from .model import CARRIED, EngineError

# What a batch becomes on its way stays in the cache of a core: four times as much takes a fifth longer.
_BATCH_BYTES = 500_000
_BATCH_ROWS = 500
_SAMPLED_ROWS = 10
_CAREFUL_ROWS = 200

_VIRTUAL = re.compile(r"\s*CREATE\s+VIRTUAL\s+TABLE\b.*?\bUSING\s+(\w+)", re.IGNORECASE | re.DOTALL)
_SHADOWS = {
    "fts5": re.compile(r"data|idx|content|docsize|config"),
    "vec0": re.compile(r"info|chunks|rowids|auxiliary|vector_chunks\d\d|metadatachunks\d\d|metadatatext\d\d"),
}


def quoted(name: str) -> str:
    """Quote an identifier, for SQLite and PostgreSQL alike."""
    return '"' + name.replace('"', '""') + '"'


class Batch(NamedTuple):
    """Some rows, by column. ``keys`` are rowids, or tuples of the primary key WITHOUT ROWID.

    A column is a sequence of values or, for vectors and their integers, an array with a row for each.
    """

    keys: Any
    columns: list[Any]


@dataclass(frozen=True)
class SourceColumn:
    """A column as SQLite declares it."""

    name: str
    declared: str
    not_null: bool
    primary_key: int  # position in the primary key, from 1; 0: not part of it


@dataclass(frozen=True)
class SourceIndex:
    """An index on plain columns; ``columns`` is empty when it holds an expression."""

    name: str
    unique: bool
    origin: str  # c: CREATE INDEX, u: UNIQUE, pk: PRIMARY KEY
    partial: bool
    columns: tuple[str, ...]
    sql: str | None


@dataclass(frozen=True)
class SourceForeignKey:
    """A declared foreign key. SQLite does not enforce it unless asked."""

    columns: tuple[str, ...]
    parent: str
    parent_columns: tuple[str, ...]
    on_delete: str


@dataclass(frozen=True)
class SourceTable:
    """An ordinary table."""

    name: str
    columns: tuple[SourceColumn, ...]
    indexes: tuple[SourceIndex, ...]
    foreign_keys: tuple[SourceForeignKey, ...]
    has_rowid: bool
    autoincrement: bool

    @property
    def primary_key(self) -> tuple[str, ...]:
        """Columns of the primary key, in its order."""
        parts = sorted((c.primary_key, c.name) for c in self.columns if c.primary_key)
        return tuple(name for _, name in parts)

    @property
    def rowid_alias(self) -> str | None:
        """The INTEGER PRIMARY KEY column, which is the rowid."""
        key = self.primary_key
        if not self.has_rowid or len(key) != 1:
            return None
        column = next(c for c in self.columns if c.name == key[0])
        return column.name if column.declared.upper() == "INTEGER" else None


@dataclass(frozen=True)
class VirtualTable:
    """A virtual table, by its module and its CREATE statement."""

    name: str
    module: str
    sql: str


@dataclass(frozen=True)
class SourceSchema:
    """What the file holds, shadow tables, SQLite's own and ours left out."""

    tables: dict[str, SourceTable]
    virtual: dict[str, VirtualTable]
    others: tuple[str, ...]  # views and triggers, told as "view name"


class Source:
    """One read-only connection with one read transaction: all that it reads is of one moment.

    Text comes as str, text that is not UTF-8 as InvalidText: no query fails for what a cell holds.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise EngineError(
                f"no SQLite database at {path}",
                "the database of Pensieve (database_path of its config.yaml)",
                "everything",
                "give the right path as source",
            )
        self._connection = sqlite3.connect(
            f"file:{quote(str(path.resolve()))}?mode=ro", uri=True, isolation_level=None, check_same_thread=False
        )
        self._connection.text_factory = stored_text
        try:
            self._connection.execute("PRAGMA temp_store = memory")
            self._connection.execute("BEGIN")
            self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.DatabaseError as error:
            self._connection.close()
            raise EngineError(
                f"{path} cannot be read as a SQLite database ({error})",
                "a readable SQLite database",
                "everything",
                f"check it: sqlite3 {path} 'PRAGMA integrity_check'",
            ) from error

    def close(self) -> None:
        """End the read transaction."""
        self._connection.close()

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run a query whose result is small."""
        return self._connection.execute(sql, parameters).fetchall()

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> sqlite3.Cursor:
        """Run a statement and give its cursor."""
        return self._connection.execute(sql, parameters)

    def executemany(self, sql: str, rows: Iterator[Sequence[Any]]) -> None:
        """Fill a temporary table (they are in memory; the file is not touched)."""
        self._connection.executemany(sql, rows)

    def integers(self, sql: str, parameters: Sequence[Any] = ()) -> npt.NDArray[np.int64]:
        """Read a query of one integer column into an array, without a list in between."""
        cursor = self._connection.execute(sql, parameters)
        return np.fromiter((row[0] for row in cursor), np.int64)

    def schema(self) -> SourceSchema:
        """Read what the file holds."""
        entries = self.rows("SELECT type, name, coalesce(sql, '') FROM sqlite_master ORDER BY rowid")
        unreadable = [part for entry in entries for part in entry if isinstance(part, InvalidText)]
        if unreadable:
            raise EngineError(
                f"a definition that is not UTF-8: {bytes(unreadable[0])!r:.80}",
                "names that are UTF-8",
                "everything",
                "rename what is so named, or drop it, in a copy of the source",
            )
        virtual: dict[str, VirtualTable] = {}
        for kind, name, sql in entries:
            match = _VIRTUAL.match(sql) if kind == "table" else None
            if match:
                virtual[name] = VirtualTable(name, match.group(1).lower(), sql)
        ordinary = ((name, sql) for kind, name, sql in entries if kind == "table" and name not in virtual)
        tables = {
            name: self._table(name, sql)
            for name, sql in ordinary
            if not name.startswith("sqlite_") and name != CARRIED and not _is_shadow(name, virtual)
        }
        others = tuple(f"{kind} {name}" for kind, name, _ in entries if kind in ("view", "trigger"))
        return SourceSchema(tables, virtual, others)

    def _table(self, name: str, sql: str) -> SourceTable:
        columns = tuple(
            SourceColumn(row[1], row[2], bool(row[3]), row[5])
            for row in self.rows(f"PRAGMA table_xinfo({quoted(name)})")
            if row[6] != 1
        )
        definitions = dict(
            self.rows("SELECT name, sql FROM sqlite_master WHERE type = 'index' AND tbl_name = ?", (name,))
        )
        indexes = []
        for _, index, unique, origin, partial in self.rows(f"PRAGMA index_list({quoted(name)})"):
            keys = [row for row in self.rows(f"PRAGMA index_xinfo({quoted(index)})") if row[5]]
            plain = tuple(row[2] for row in keys) if all(row[1] >= 0 for row in keys) else ()
            indexes.append(SourceIndex(index, bool(unique), origin, bool(partial), plain, definitions.get(index)))
        foreign: dict[int, list[tuple[Any, ...]]] = {}
        for row in self.rows(f"PRAGMA foreign_key_list({quoted(name)})"):
            foreign.setdefault(row[0], []).append(row)
        foreign_keys = tuple(
            SourceForeignKey(
                tuple(row[3] for row in rows), rows[0][2], tuple(row[4] for row in rows if row[4]), rows[0][6]
            )
            for _, rows in sorted(foreign.items())
        )
        return SourceTable(
            name, columns, tuple(indexes), foreign_keys, self._has_rowid(name), "AUTOINCREMENT" in sql.upper()
        )

    def _has_rowid(self, name: str) -> bool:
        try:
            self._connection.execute(f"SELECT _rowid_ FROM {quoted(name)} LIMIT 0")
        except sqlite3.OperationalError:
            return False
        return True

    def count(self, table: str) -> int:
        """Count the rows of a table."""
        return int(self.rows(f"SELECT count(*) FROM {quoted(table)}")[0][0])

    def sequence(self, table: str) -> int:
        """The highest id that AUTOINCREMENT has ever given in a table, 0 if it has given none."""
        if not self.rows("SELECT 1 FROM sqlite_master WHERE name = 'sqlite_sequence'"):
            return 0
        found = self.rows("SELECT max(seq) FROM sqlite_sequence WHERE name = ?", (table,))
        return int(found[0][0] or 0)

    def storage_classes(self, table: str, column: str) -> set[str]:
        """Tell which storage classes a column really holds."""
        return {row[0] for row in self.rows(f"SELECT DISTINCT typeof({quoted(column)}) FROM {quoted(table)}")}

    def batches(self, table: SourceTable, columns: Sequence[str]) -> Iterator[Batch]:
        """Read a table in key order."""
        if not table.has_rowid:
            yield from self._careful_without_rowid(table, columns)
            return
        wanted = ", ".join(["_rowid_", *map(quoted, columns)])
        sql = f"SELECT {wanted} FROM {quoted(table.name)} WHERE _rowid_ > ? ORDER BY _rowid_"
        after = -(1 << 63)
        first = self.rows(f"SELECT min(_rowid_) FROM {quoted(table.name)}")[0][0]
        if first is None:
            return
        if first == after:
            raise EngineError(
                f"{table.name} holds the rowid {after}", "rowids above the least of all", "everything", "delete it"
            )
        size = 500
        while True:
            # Closed before the same statement runs again: up to Python 3.10, ending the old one sets the new one back.
            with contextlib.closing(self._connection.execute(sql, (after,))) as cursor:
                try:
                    while True:
                        rows = self._fetch_quickly(cursor, size)
                        if not rows:
                            return
                        yield _by_column(rows)
                        after = rows[-1][0]
                        size = _next_size(rows, size)
                except sqlite3.OperationalError as error:
                    if "decode" not in str(error).lower():
                        raise
            # A text that is not UTF-8 is near: read the next rows with care, then go on as before.
            careful = self._careful(
                table, columns, "WHERE _rowid_ > ? ORDER BY _rowid_ LIMIT ?", (after, _CAREFUL_ROWS)
            )
            yield careful
            after = careful.keys[-1]

    def _fetch_quickly(self, cursor: sqlite3.Cursor, size: int) -> list[tuple[Any, ...]]:
        """Fetch rows decoded by sqlite3 itself, several times as fast; it raises where a text is not UTF-8."""
        self._connection.text_factory = str
        try:
            return cursor.fetchmany(size)
        finally:
            self._connection.text_factory = stored_text

    def _careful(self, table: SourceTable, columns: Sequence[str], rest: str, parameters: Sequence[Any]) -> Batch:
        """Read rows whose text need not be UTF-8."""
        keys = ["_rowid_"] if table.has_rowid else [quoted(name) for name in table.primary_key]
        rows = self.rows(
            f"SELECT {', '.join([*keys, *map(quoted, columns)])} FROM {quoted(table.name)} {rest}", parameters
        )
        found = [row[0] if table.has_rowid else row[: len(keys)] for row in rows]
        return Batch(found, [[row[len(keys) + at] for row in rows] for at in range(len(columns))])

    def _careful_without_rowid(self, table: SourceTable, columns: Sequence[str]) -> Iterator[Batch]:
        key = ", ".join(map(quoted, table.primary_key))
        for offset in range(0, self.count(table.name), _CAREFUL_ROWS):
            yield self._careful(table, columns, f"ORDER BY {key} LIMIT ? OFFSET ?", (_CAREFUL_ROWS, offset))

    def originals(self, table: SourceTable, keys: Sequence[Any]) -> Iterator[tuple[Any, dict[str, Any]]]:
        """Read whole rows by key, with every cell as it is stored."""
        names = [column.name for column in table.columns]
        for key in keys:
            parts = {"_rowid_": key} if table.has_rowid else dict(zip(map(quoted, table.primary_key), key))
            condition = " AND ".join(f"{name} IS {_placeholder(part)}" for name, part in parts.items())
            batch = self._careful(table, names, f"WHERE {condition}", tuple(parts.values()))
            yield key, {name: values[0] for name, values in zip(names, batch.columns)}


def fingerprint(path: Path) -> str:
    """Identify the content by what changes when anything commits: sizes and times of file and log."""
    path = path.resolve()  # the log is beside the file itself, not beside a link to it
    parts = []
    for file in (path, path.with_name(path.name + "-wal")):
        try:
            stat = file.stat()
        except FileNotFoundError:
            continue  # the log goes with the last connection, at any moment
        if file == path or stat.st_size:
            parts.append(f"{stat.st_size}:{stat.st_mtime_ns}")
    with path.open("rb") as stream:
        parts.append(stream.read(100)[24:28].hex())
    return "/".join(parts)


def _is_shadow(name: str, virtual: dict[str, VirtualTable]) -> bool:
    for table in virtual.values():
        pattern = _SHADOWS.get(table.module)
        if pattern and name.startswith(table.name + "_") and pattern.fullmatch(name[len(table.name) + 1 :]):
            return True
    return False


def stored_text(stored: bytes) -> str | InvalidText:
    try:
        return stored.decode()
    except UnicodeDecodeError:
        return InvalidText(stored)


def _placeholder(value: Any) -> str:
    """Give the parameter for a value that was read; sqlite3 would bind InvalidText as a blob."""
    return "CAST(? AS TEXT)" if isinstance(value, InvalidText) else "?"


def _by_column(rows: list[tuple[Any, ...]]) -> Batch:
    keys, *columns = zip(*rows)
    return Batch(keys, list(columns))


def _next_size(rows: list[tuple[Any, ...]], size: int) -> int:
    """Choose the next batch's rows from the width of some of these, at most twice as many."""
    sample = rows[:: max(1, len(rows) // _SAMPLED_ROWS)]
    width = sum(len(cell) if isinstance(cell, (str, bytes)) else 8 for row in sample for cell in row) / len(sample)
    return max(50, min(2 * size, _BATCH_ROWS, int(_BATCH_BYTES / (width + 1))))
