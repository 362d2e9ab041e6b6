"""Reading the source, by Python's own library and by one that uses a statement again as Python 3.10 and older do."""

from __future__ import annotations

import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from types import ModuleType

import pytest
import sqlean
from sqlite_to_postgresql import source, wal
from sqlite_to_postgresql.convert import InvalidText

ROWS = 1_000


@pytest.mark.parametrize("library", [sqlite3, sqlean], ids=lambda library: f"SQLite {library.sqlite_version}")
@pytest.mark.parametrize("bad", [[6], [6, 7, 500, 999]])
def test_every_row_comes_once_where_texts_are_not_utf8(
    library: ModuleType, bad: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "database.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE entities (id INTEGER PRIMARY KEY, filepath TEXT)")
        connection.executemany("INSERT INTO entities VALUES (?, 'x')", [(number,) for number in range(1, ROWS + 1)])
        connection.executemany(
            "UPDATE entities SET filepath = CAST(x'61ff62' AS TEXT) WHERE id = ?", [(number,) for number in bad]
        )
        connection.commit()
    monkeypatch.setattr(source, "sqlite3", library)
    with closing(source.Source(path)) as opened:
        table = opened.schema().tables["entities"]
        batches = list(opened.batches(table, ["id", "filepath"]))
    keys = [key for batch in batches for key in batch.keys]
    texts = [text for batch in batches for text in batch.columns[1]]
    assert keys == list(range(1, ROWS + 1))
    assert [key for key, text in zip(keys, texts) if isinstance(text, InvalidText)] == bad
    assert {text for text in texts if isinstance(text, str)} == {"x"}


def test_a_link_to_a_database_is_the_database(tmp_path: Path) -> None:
    """SQLite keeps the log beside the file itself: what was committed to it only must not be overlooked."""
    database, link = tmp_path / "disk" / "records.db", tmp_path / "database.db"
    database.parent.mkdir()
    link.symlink_to(database)
    with closing(sqlite3.connect(link, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = wal")
        connection.execute("CREATE TABLE tags (name TEXT)")
        before = source.fingerprint(link)
        connection.execute("INSERT INTO tags VALUES ('new')")
        assert wal.wal_of(link).stat().st_size > 0
        assert wal.Mark.read(link).frames > 0
        assert source.fingerprint(link) == source.fingerprint(database) != before


def test_a_log_that_goes_while_it_is_looked_at(tmp_path: Path) -> None:
    """Whoever closes the last connection removes the log: a dashboard, at any moment."""
    database = tmp_path / "database.db"
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = wal")
        connection.execute("CREATE TABLE tags (name TEXT)")
    looks = 20_000
    done = threading.Event()
    with ThreadPoolExecutor() as pool:
        opened = pool.submit(_come_and_go, database, done)
        try:
            found = {source.fingerprint(database) for _ in range(looks)}
        finally:
            done.set()
        assert opened.result() > 10
    assert len(found) == 1


def _come_and_go(database: Path, done: threading.Event) -> int:
    """Open the database, read and close it again and again; give how often."""
    times = 0
    while not done.is_set():
        with closing(sqlite3.connect(database)) as connection:
            connection.execute("SELECT count(*) FROM tags").fetchone()
        times += 1
    return times
