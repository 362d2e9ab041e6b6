"""Rows that changed since a snapshot are among those that the pages name: random changes of small, deep trees."""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlite_to_postgresql import snapshot
from sqlite_to_postgresql.changes import Pages, differing_pages, written_pages
from sqlite_to_postgresql.pages import DamagedError, PageMap, changed_pages, open_pages

SEEDS = range(40)
HOLD = (
    "import sys; from pathlib import Path; from sqlite_to_postgresql import snapshot;"
    "snapshot.hold(*map(Path, sys.argv[1:]), 1 << 30, 60)"
)
TABLES = {"plain": "id", "hidden": "_rowid_", "log": "id"}


def hold(database: Path, folder: Path) -> snapshot.Snapshot:
    """Begin a snapshot from a process that does not have the database open."""
    paths = [database, folder / "copy.db", folder / "snapshot"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", HOLD, *map(str, paths)], env=environment, check=True)
    held = snapshot.read(folder / "snapshot")
    assert held
    assert held.held
    return held


class Database:
    """A database of small pages, so that a few hundred rows make trees of three levels, and its changes."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path, self.random = path, random.Random(seed)
        self.connection = sqlite3.connect(path, isolation_level=None)
        self.run(f"PRAGMA page_size = {self.random.choice([512, 512, 1024, 4096])}")
        self.run(f"PRAGMA auto_vacuum = {seed % 3}")
        self.run("PRAGMA journal_mode = WAL")
        self.run("PRAGMA synchronous = OFF")
        self.run(f"PRAGMA secure_delete = {self.random.choice(['ON', 'OFF', 'FAST'])}")
        self.run("CREATE TABLE plain (id INTEGER PRIMARY KEY, text, blob)")
        self.run("CREATE TABLE hidden (key TEXT PRIMARY KEY, blob)")
        self.run("CREATE TABLE log (id INTEGER PRIMARY KEY AUTOINCREMENT, text)")
        self.run("CREATE INDEX plain_text ON plain (text)")
        for _ in range(self.random.randint(1, 40)):
            self.change()

    def run(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        return self.connection.execute(sql, values).fetchall()

    def blob(self) -> bytes:
        return self.random.randbytes(self.random.choice([0, 5, 60, 60, 470, 2000, 9000]))

    def ids(self, table: str) -> list[int]:
        return [row[0] for row in self.run(f"SELECT {TABLES[table]} FROM {table} ORDER BY 1")]

    def change(self) -> None:
        """One transaction of one kind of change."""
        kinds = [self.insert, self.insert, self.append, self.delete, self.delete_range, self.update, self.in_place]
        kinds += [self.move, self.checkpoint] if self.random.random() < 0.7 else [self.truncate, self.shrink]
        self.random.choice(kinds)()

    def insert(self) -> None:
        self.run("BEGIN")
        for _ in range(self.random.choice([1, 5, 80])):
            key = self.random.choice([self.random.randrange(3000), self.random.randrange(-(1 << 40), 1 << 62)])
            self.run("INSERT OR REPLACE INTO plain VALUES (?,?,?)", key, str(key), self.blob())
            self.run("INSERT OR IGNORE INTO hidden VALUES (?,?)", f"key {key}", self.blob())
        self.run("COMMIT")

    def append(self) -> None:
        self.run("BEGIN")
        for _ in range(self.random.choice([1, 60])):
            self.run("INSERT INTO log (text) VALUES (?)", "x" * self.random.randrange(90))
        self.run("COMMIT")

    def delete(self) -> None:
        for table, key in TABLES.items():
            for found in self.random.sample(self.ids(table), min(3, len(self.ids(table)))):
                self.run(f"DELETE FROM {table} WHERE {key} = ?", found)

    def delete_range(self) -> None:
        """So many neighbours that leaves merge, and some are freed without being written."""
        table = self.random.choice(list(TABLES))
        ids = self.ids(table)
        if ids:
            at = self.random.randrange(len(ids))
            last = ids[min(len(ids) - 1, at + self.random.choice([5, 40, 200]))]
            self.run(f"DELETE FROM {table} WHERE {TABLES[table]} BETWEEN ? AND ?", ids[at], last)

    def update(self) -> None:
        for found in self.random.sample(self.ids("plain"), min(4, len(self.ids("plain")))):
            self.run("UPDATE plain SET blob = ? WHERE id = ?", self.blob(), found)

    def in_place(self) -> None:
        """One byte of a row becomes another: perhaps of an overflow page, and nothing else is written."""
        for table, key in (("plain", "id"), ("hidden", "_rowid_")):
            for found in self.random.sample(self.ids(table), min(4, len(self.ids(table)))):
                blob = bytearray(self.run(f"SELECT blob FROM {table} WHERE {key} = ?", found)[0][0])
                if blob:
                    blob[self.random.randrange(len(blob))] ^= 1
                    self.run(f"UPDATE {table} SET blob = ? WHERE {key} = ?", bytes(blob), found)

    def move(self) -> None:
        for found in self.random.sample(self.ids("plain"), min(3, len(self.ids("plain")))):
            self.run("UPDATE OR IGNORE plain SET id = id + 1000 WHERE id = ?", found)

    def truncate(self) -> None:
        self.run(f"DELETE FROM {self.random.choice(list(TABLES))}")

    def shrink(self) -> None:
        self.run(self.random.choice(["PRAGMA incremental_vacuum", "VACUUM"]))

    def checkpoint(self) -> None:
        self.run("PRAGMA busy_timeout = 1")
        self.run(f"PRAGMA wal_checkpoint({self.random.choice(['PASSIVE', 'FULL', 'RESTART', 'TRUNCATE'])})")

    def rows(self) -> dict[str, dict[int, tuple[Any, ...]]]:
        """Everything, by table and rowid."""
        return {table: {row[0]: row for row in self.run(f"SELECT _rowid_, * FROM {table}")} for table in TABLES}

    def roots(self) -> list[tuple[Any, ...]]:
        return self.run("SELECT name, rootpage, sql FROM sqlite_master ORDER BY 1")


def missed(database: Database, page_map: PageMap, before: dict[str, dict[int, Any]], pages: Pages) -> list[str]:
    """Rows that changed and are no candidates."""
    candidates = page_map.candidates(pages.changed, pages.image)
    now = database.rows()
    found = []
    for table in TABLES:
        named = candidates.get(table)
        for key in before[table].keys() | now[table].keys():
            if before[table].get(key) == now[table].get(key):
                continue
            if named and (key in named.rowids or any(low < key <= high for low, high in named.intervals)):
                continue
            found.append(f"{table} {key}")
    return found


@pytest.mark.parametrize("seed", SEEDS)
def test_changed_rows_are_candidates(seed: int, tmp_path: Path) -> None:
    database = Database(tmp_path / "database.db", seed)
    folder = tmp_path / "snapshot"
    before, roots = database.rows(), database.roots()
    try:
        held = hold(database.path, tmp_path)
        for _ in range(database.random.choice([0, 1, 3, 25])):
            database.change()
        if database.roots() != roots:
            return  # VACUUM has moved the roots: that makes a whole copy
        page_map = PageMap.build(tmp_path / "copy.db", {name: root for name, root, _ in roots if name in TABLES})
        pages = written_pages(held, database.path)
        assert pages is not None
        assert missed(database, page_map, before, pages) == []
        # The other way to find pages must name no more rows in vain, and miss none either.
        with sqlite3.connect(tmp_path / "final.db") as final:
            database.connection.backup(final)
        final.close()
        compared = differing_pages(held, tmp_path / "final.db")
        assert missed(database, page_map, before, compared) == []
        assert set(compared.changed.tolist()) <= {1, *pages.changed.tolist(), *_beyond(tmp_path)}
    finally:
        database.connection.close()
        snapshot.end(folder)


def _beyond(folder: Path) -> set[int]:
    """Pages that only one of the two files has."""
    ours, theirs = len(open_pages(folder / "copy.db")), len(open_pages(folder / "final.db"))
    return set(range(min(ours, theirs) + 1, max(ours, theirs) + 1))


def test_a_leaf_that_is_freed_without_being_written_is_found(tmp_path: Path) -> None:
    """DELETE of all rows writes the root, and few of the leaves."""
    path = tmp_path / "database.db"
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA secure_delete = OFF")
    connection.execute("CREATE TABLE plain (id INTEGER PRIMARY KEY, text)")
    connection.executemany("INSERT INTO plain VALUES (?, ?)", [(key, "x" * 500) for key in range(1, 400)])
    try:
        held = hold(path, tmp_path)
        connection.execute("DELETE FROM plain")
        pages = written_pages(held, path)
        assert pages is not None
        page_map = PageMap.build(tmp_path / "copy.db", {"plain": 2})
        leaves = {int(page) for page in (page_map.kind == 1).nonzero()[0]}
        assert len(leaves - set(pages.changed.tolist())) > len(leaves) // 2, "most leaves were not written"
        assert page_map.candidates(pages.changed, pages.image)["plain"].intervals == [(-(1 << 63), (1 << 63) - 1)]
    finally:
        connection.close()
        snapshot.end(tmp_path / "snapshot")


@pytest.mark.parametrize("seed", range(8))
def test_a_leaf_that_is_freed_far_below_a_root_that_was_not_written_is_found(seed: int, tmp_path: Path) -> None:
    """Only parts of the tree in which no interior page was written may be left unread."""
    path = tmp_path / "database.db"
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA page_size = 512")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA secure_delete = OFF")
    connection.execute("CREATE TABLE plain (id INTEGER PRIMARY KEY, text)")
    rows = [(key, "x" * 60) for key in range(1, 20_001)]
    connection.execute("BEGIN")
    connection.executemany("INSERT INTO plain VALUES (?, ?)", rows)
    connection.execute("COMMIT")
    try:
        held = hold(path, tmp_path)
        page_map = PageMap.build(tmp_path / "copy.db", {"plain": 2})
        inner = [page for page in (page_map.kind == 2).nonzero()[0].tolist() if page != 2]
        chosen = random.Random(seed).choice(inner[:-1])
        middle = (max(1, int(page_map.low[chosen])) + int(page_map.high[chosen])) // 2
        connection.execute("DELETE FROM plain WHERE id BETWEEN ? AND ?", (middle - 60, middle + 60))
        pages = written_pages(held, path)
        assert pages is not None
        written = set(pages.changed.tolist())
        assert chosen in written
        assert 2 not in written
        named = page_map.candidates(pages.changed, pages.image)["plain"]
        gone = range(middle - 60, middle + 61)
        assert [key for key in gone if not any(start < key <= stop for start, stop in named.intervals)] == []
        assert sum(stop - start for start, stop in named.intervals) < 1000, "few rows are looked at in vain"
    finally:
        connection.close()
        snapshot.end(tmp_path / "snapshot")


def test_damage_is_refused(tmp_path: Path) -> None:
    database = Database(tmp_path / "database.db", 3)
    database.run("PRAGMA wal_checkpoint(TRUNCATE)")
    database.connection.close()
    roots = {"plain": 10_000}
    with pytest.raises(DamagedError, match="leads out of itself"):
        PageMap.build(tmp_path / "database.db", roots)
    (tmp_path / "other.db").write_bytes(b"no database at all" * 10)
    with pytest.raises(DamagedError, match="no SQLite database"):
        changed_pages(tmp_path / "database.db", tmp_path / "other.db")
