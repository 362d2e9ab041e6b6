"""SQLite's own checks, by the library that is here and by a newer one, which opens full-text tables in them."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from types import ModuleType

import preflight_sqlite
import pytest
import sqlean
import sqlite_backup
import sqlite_restore
from ansible.module_utils import sqlite_integrity

from .conftest import Module, Refused

MODULES = (sqlite_integrity, preflight_sqlite, sqlite_backup, sqlite_restore)
PAGE = 4096


@pytest.fixture(params=[sqlite3, sqlean], ids=lambda library: f"SQLite {library.sqlite_version}")
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The SQLite that the modules use."""
    for module in MODULES:
        monkeypatch.setattr(module, "sqlite3", request.param)
    assert isinstance(request.param, ModuleType)
    return request.param


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """Tables that Pensieve has, among them one for full text with a tokenizer that is not loaded here."""
    path = tmp_path / "database.db"
    with closing(sqlite3.connect(path)) as connection:
        for name in ("libraries", "metadata_entries"):
            connection.execute(f"CREATE TABLE {name} (id INTEGER PRIMARY KEY)")
        connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
        connection.execute("CREATE TABLE entities (id INTEGER PRIMARY KEY, filepath TEXT)")
        connection.executemany("INSERT INTO entities (filepath) VALUES (?)", [("x" * 500,)] * 500)
        connection.execute("CREATE VIRTUAL TABLE entities_fts USING fts5(metadata)")
        connection.executemany("INSERT INTO entities_fts VALUES (?)", [("words " * 100,)] * 200)
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute(
            "UPDATE sqlite_master SET sql = 'CREATE VIRTUAL TABLE entities_fts USING fts5(metadata, tokenize=simple)'"
            " WHERE name = 'entities_fts'"
        )
        connection.commit()
    return path


def root(path: Path, table: str) -> int:
    """Where the first page of a table begins."""
    with closing(sqlite3.connect(path)) as connection:
        found = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)).fetchone()
    return PAGE * (int(found[0]) - 1)


def test_a_newer_library_cannot_check_the_whole(database: Path) -> None:
    with closing(sqlean.connect(database)) as connection, pytest.raises(sqlean.OperationalError):
        connection.execute("PRAGMA integrity_check")


def test_an_intact_database_is_intact(library: ModuleType, database: Path, tmp_path: Path) -> None:
    found = preflight_sqlite.look(database)
    assert (found["problems"], found["entities"]) == ([], 500)
    sqlite_backup.copy(database, tmp_path / "copy.db")
    assert (tmp_path / "copy.db").stat().st_size == database.stat().st_size
    assert sqlite_restore.damage(database, 30) == ""


@pytest.mark.parametrize("table", ["entities", "entities_fts_content"])
def test_damage_is_found(library: ModuleType, database: Path, tmp_path: Path, table: str) -> None:
    content = bytearray(database.read_bytes())
    at = root(database, table)
    content[at + 12 : at + 40] = b"\xff" * 28  # where its cells begin
    database.write_bytes(content)
    (problem,) = preflight_sqlite.look(database)["problems"]
    assert "is damaged" in problem["found"]
    with pytest.raises(library.DatabaseError, match="integrity_check of the copy says"):
        sqlite_backup.copy(database, tmp_path / "copy.db")
    assert not list(tmp_path.glob("copy.db*"))
    assert str(database) in sqlite_restore.damage(database, 30)


def test_a_database_that_somebody_holds_is_not_damaged(
    library: ModuleType, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_restore, "LOCK_SECONDS", 0.1)
    monkeypatch.setattr(preflight_sqlite, "LOCK_SECONDS", 0.1)
    module = Module(path=str(database), backup=str(database.with_name("backup.db")), sha256="", seconds=5.0)
    monkeypatch.setattr(sqlite_restore, "AnsibleModule", lambda **_: module)
    with closing(library.connect(database, isolation_level=None)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        with pytest.raises(Refused, match=r"database is locked(?s:.*)Untouched: everything(?s:.*)fuser -v"):
            sqlite_restore.main()
        (problem,) = preflight_sqlite.look(database)["problems"]
    assert "held by another program" in problem["found"]
    assert "fuser -v" in problem["next"]
    assert not list(database.parent.glob("*.damaged-*"))
