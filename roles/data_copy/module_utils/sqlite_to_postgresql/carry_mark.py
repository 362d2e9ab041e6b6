"""The mark: what a carry-back has written, in a table of ours in SQLite and in the same transaction as the rows.

Two databases do not commit at once. A carry-back that ends between both commits has written SQLite, and PostgreSQL does
not know; Pensieve may go on on either. So the next one must tell its own rows from those that somebody has written
since: for each row that was handled the mark names its key on both sides and a digest of what each side held, when they
were equal. A side whose row still has that digest has not changed it since. A digest, not the row: the carry-back only
asks whether a row is the same, and room on the disk is what a carry-back lacks most often.

The mark belongs to one change log of PostgreSQL, which it names; that of another log counts for nothing. PostgreSQL's
commit notes which carry-back SQLite holds. ``settle`` looks at both, empties the log and drops the mark. Until then a
carry-back can be run any number of times. Nothing but this module reads the table, and no other part of the engine
sees it (``model.CARRIED``).
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import psycopg2

from . import change_log
from .convert import storage_class
from .model import CARRIED, EngineError
from .target import BOOKKEEPING, Connection, connect, query, run, transaction
from .watch import watched

Key = tuple[Any, ...]
Row = tuple[Any, ...]

_BUSY = 10.0  # seconds that ``settle`` waits for Pensieve's writes
_AT_ONCE = 500

# Rows of no table ('') are about the mark itself: key '' names log and carry-back, the others hold lists of columns.
_CREATE = (
    f"CREATE TABLE {CARRIED} (table_name TEXT NOT NULL, key TEXT NOT NULL, at TEXT, shape INTEGER, theirs BLOB,"
    " ours BLOB, joined INTEGER, PRIMARY KEY (table_name, key)) WITHOUT ROWID"
)
_NOTE = (
    f"INSERT INTO {CARRIED} (table_name, key, at, shape, theirs, ours, joined) VALUES (?, ?, ?, ?, ?, ?, ?)"
    " ON CONFLICT (table_name, key) DO UPDATE SET at = excluded.at, shape = excluded.shape, theirs = excluded.theirs,"
    " ours = excluded.ours, joined = excluded.joined WHERE (at, shape, theirs, ours, joined) IS NOT"
    " (excluded.at, excluded.shape, excluded.theirs, excluded.ours, excluded.joined)"
)


class Head(NamedTuple):
    """Which change log a mark belongs to, and which carry-back has written last."""

    log: str
    carry: str


@dataclass(frozen=True)
class Marked:
    """One row of PostgreSQL: its key ``at`` in SQLite, and digests of what both held; None: no such row.

    ``joined``: SQLite had the same thing already; its row is its own.
    """

    at: Key
    columns: tuple[str, ...]
    theirs: bytes | None
    ours: bytes | None
    joined: bool

    def is_theirs(self, columns: Sequence[str], values: Row | None) -> bool:
        """Whether PostgreSQL has not changed its row since."""
        return self._digest(columns, values) == self.theirs

    def is_ours(self, columns: Sequence[str], cells: Row | None) -> bool:
        """Whether nobody has changed the row in SQLite since."""
        return self._digest(columns, cells) == self.ours

    def _digest(self, columns: Sequence[str], cells: Row | None) -> bytes | None:
        """Digest of the columns that there were then: an upgrade may have added some since."""
        if cells is None or self.columns == tuple(columns):
            return _digest(cells)
        known = dict(zip(columns, cells))
        return digest(tuple(known.get(name) for name in self.columns))


def _plain(cell: bytes) -> list[str]:
    """A cell that JSON cannot hold. Text that is not UTF-8 is another cell than a blob of the same bytes."""
    return [storage_class(cell), cell.hex()]


_ENCODER = json.JSONEncoder(separators=(",", ":"), default=_plain)


def digest(cells: Row) -> bytes:
    """Digest of a row, every cell with its storage class."""
    return hashlib.blake2b(_ENCODER.encode(cells).encode(), digest_size=16).digest()


def _digest(cells: Row | None) -> bytes | None:
    return None if cells is None else digest(cells)


def _text(key: Key) -> str:
    if len(key) == 1 and type(key[0]) is int:
        return f"[{key[0]}]"
    return _ENCODER.encode(key)


def head(connection: sqlite3.Connection) -> Head | None:
    """What a SQLite database says of its mark; None if it has none."""
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (CARRIED,)).fetchone():
        return None
    found = connection.execute(f"SELECT at FROM {CARRIED} WHERE table_name = '' AND key = ''").fetchone()
    return Head(*json.loads(found[0])) if found else Head("", "")


def read_head(source: Path) -> Head | None:
    """The same of a file that is opened for it, by a reader without extensions."""
    with closing(
        sqlite3.connect(f"file:{quote(str(source.resolve()))}?mode=ro", uri=True, timeout=_BUSY)
    ) as connection:
        return head(connection)


class Mark:
    """The mark within the transaction of a carry-back."""

    def __init__(self, connection: sqlite3.Connection, log: str, carry: str) -> None:
        """``log``: the change log of the target, ``carry``: a new name for this carry-back."""
        self._connection, self._log, self._carry = connection, log, carry
        self._shapes: dict[tuple[str, ...], int] = {}
        self._columns: dict[int, tuple[str, ...]] = {}
        self._coming: list[tuple[Any, ...]] = []
        self._changes = connection.total_changes
        found = head(connection)
        if found is not None and found.log != log:
            connection.execute(f"DROP TABLE {CARRIED}")
            found = None
        self._there = found is not None
        self._head = found
        if self._there:
            for key, text in connection.execute(f"SELECT key, at FROM {CARRIED} WHERE table_name = '' AND key <> ''"):
                self._columns[int(key)] = tuple(json.loads(text))
            self._shapes = {columns: number for number, columns in self._columns.items()}

    def begin(self) -> None:
        """Have the table: something is carried."""
        if not self._there:
            self._connection.execute(_CREATE)
            self._there = True

    def get(self, table: str, key: Key) -> Marked | None:
        """What an earlier carry-back has made of a row of PostgreSQL; None if it has not handled it."""
        if self._head is None:
            return None
        sql = f"SELECT at, shape, theirs, ours, joined FROM {CARRIED} WHERE table_name = ? AND key = ?"
        found = self._connection.execute(sql, (table, _text(key))).fetchone()
        if found is None:
            return None
        at, shape, theirs, ours, joined = found
        return Marked(tuple(json.loads(at)) if at else key, self._columns[shape], theirs, ours, bool(joined))

    def moved(self) -> Iterator[tuple[str, Key, Key, bool]]:
        """Rows whose key is another one in SQLite: table, key in PostgreSQL, key in SQLite, whether it was joined."""
        if self._head is not None:
            sql = f"SELECT table_name, key, at, joined FROM {CARRIED} WHERE table_name <> '' AND at IS NOT NULL"
            for table, key, at, joined in self._connection.execute(sql).fetchall():
                yield table, tuple(json.loads(key)), tuple(json.loads(at)), bool(joined)

    def note(
        self,
        table: str,
        columns: list[str],
        key: Key,
        at: Key,
        values: Row | None,
        cells: Row | None,
        *,
        joined: bool = False,
    ) -> None:
        """Note a row: ``values`` of PostgreSQL under ``key``, ``cells`` of SQLite under ``at``."""
        moved = _text(at) if at != key else None
        shape = self._shape(tuple(columns))
        self._coming.append((table, _text(key), moved, shape, _digest(values), _digest(cells), int(joined)))
        if len(self._coming) >= _AT_ONCE:
            self._flush()

    def bag(self, table: str, columns: list[str]) -> tuple[Counter[bytes], Counter[bytes]] | None:
        """Rows of a table without a key by their digests, those of PostgreSQL and those of SQLite."""
        if self._head is None:
            return None
        sql = f"SELECT key, shape, theirs, ours FROM {CARRIED} WHERE table_name = ?"
        found = self._connection.execute(sql, (table,)).fetchall()
        if not found or any(self._columns[row[1]] != tuple(columns) for row in found):
            return None
        theirs: Counter[bytes] = Counter({bytes.fromhex(key): count for key, _, count, _ in found})
        return +theirs, +Counter({bytes.fromhex(key): count for key, _, _, count in found})

    def note_bag(self, table: str, columns: list[str], theirs: Counter[bytes], ours: Counter[bytes]) -> None:
        """Note all rows of a table without a key; that of no row says that it was noted."""
        if self.bag(table, columns) == (theirs, ours):
            return
        self._connection.execute(f"DELETE FROM {CARRIED} WHERE table_name = ?", (table,))
        shape = self._shape(tuple(columns))
        for row in {b"", *theirs, *ours}:
            self._coming.append((table, row.hex(), None, shape, theirs[row], ours[row], 0))
        self._flush()

    def _shape(self, columns: tuple[str, ...]) -> int:
        if columns not in self._shapes:
            number = len(self._shapes) + 1
            self._shapes[columns], self._columns[number] = number, columns
            self._coming.append(("", str(number), json.dumps(columns), None, None, None, None))
        return self._shapes[columns]

    def _flush(self) -> None:
        self._connection.executemany(_NOTE, self._coming)
        self._coming.clear()

    def finish(self) -> str:
        """Sign the mark, if anything was written. Gives the name of the carry-back that SQLite holds then."""
        if not self._there:
            return ""
        self._flush()
        if self._head is not None and self._connection.total_changes == self._changes:
            return self._head.carry
        named = json.dumps([self._log, self._carry])
        self._connection.execute(_NOTE, ("", "", named, None, None, None, None))
        return self._carry


def open_log(connection: Connection) -> str:
    """Make room for what ``tell`` says, in a log of an earlier version too. Gives the name of the log."""
    run(connection, f"ALTER TABLE {BOOKKEEPING}.change_log ADD COLUMN IF NOT EXISTS carried text")
    log = log_of(connection)
    assert log is not None
    return log.log


def tell(connection: Connection, carry: str) -> None:
    """Note in the target which carry-back SQLite holds, in the transaction that ends it."""
    run(connection, f"UPDATE {BOOKKEEPING}.change_log SET carried = %s", (carry,))


def log_of(connection: Connection) -> Head | None:
    """The change log of the target, and the carry-back that it was told of; None if there is no log."""
    if not change_log.exists(connection):
        return None
    # A log of an earlier version has no such column until something is carried back.
    sql = (
        "SELECT run_id || ' ' || (since AT TIME ZONE 'UTC')::text, coalesce(to_jsonb(l) ->> 'carried', '')"
        f" FROM {BOOKKEEPING}.change_log l ORDER BY since LIMIT 1"
    )
    return Head(*query(connection, sql)[0])


@dataclass(frozen=True)
class Settled:
    """``settled``: no mark is left. If not, ``reason`` tells why."""

    changed: bool
    settled: bool
    reason: str = ""


def settle(source: Path, target_dsn: str, *, check: bool = False) -> Settled:
    """Empty the change log and drop the mark, if PostgreSQL has committed what the mark says. Pensieve may be running.

    Only once Pensieve is on SQLite for good: what it writes there from then on is its own. The log goes first, since a
    log without its mark would be carried anew; with both there, or the mark alone, nothing is carried twice.
    """
    try:
        with closing(
            sqlite3.connect(
                f"file:{quote(str(source.resolve()))}?mode=rw", uri=True, isolation_level=None, timeout=_BUSY
            )
        ) as database:
            mark = head(database)
            if mark is None:
                return Settled(False, True)
            with watched(), closing(connect(target_dsn)) as connection:
                log = log_of(connection)
                if log is not None and log.log == mark.log:
                    if log.carry != mark.carry:
                        return Settled(False, False, "PostgreSQL was not told of the last carry-back: it ended before")
                    if not check:
                        with transaction(connection):
                            run(connection, f"DELETE FROM {change_log.LOG}")
            if not check:
                database.execute(f"DROP TABLE {CARRIED}")
            return Settled(True, not check)
    except EngineError as error:
        return Settled(False, False, error.found)
    except (psycopg2.Error, sqlite3.Error) as error:
        return Settled(False, False, str(error).strip().splitlines()[0])
