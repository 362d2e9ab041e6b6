"""A database that is missing or damaged comes back from its backup; an intact one is not touched."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from sqlite_restore import damage, missing_bytes, restore

from .conftest import small_disk


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A database with some pages."""
    path = tmp_path / "database.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE entities (id INTEGER PRIMARY KEY, filepath TEXT)")
        connection.executemany("INSERT INTO entities (filepath) VALUES (?)", [("x" * 500,)] * 500)
        connection.commit()
    return path


def test_an_intact_database_is_not_damaged(database: Path) -> None:
    assert damage(database, 5) == ""
    assert damage(database, 0) == ""


@pytest.mark.parametrize("kind", ["missing", "truncated", "no database", "another database", "a page overwritten"])
def test_damage_is_found(database: Path, kind: str) -> None:
    content = database.read_bytes()
    if kind == "missing":
        database.unlink()
    elif kind == "truncated":
        database.write_bytes(content[: len(content) // 2])
    elif kind == "no database":
        database.write_bytes(b"x" * len(content))
    elif kind == "another database":
        database.unlink()
        with closing(sqlite3.connect(database)) as connection:
            connection.execute("CREATE TABLE others (id)")
    else:
        database.write_bytes(content[:8192] + b"\xff" * 4096 + content[12288:])
    assert str(database) in damage(database, 5)


def test_restoring_keeps_the_damaged_files_aside(database: Path, tmp_path: Path) -> None:
    backup = tmp_path / "backup.db"
    backup.write_bytes(database.read_bytes())
    database.write_bytes(b"damaged")
    database.chmod(0o640)
    Path(f"{database}-wal").write_bytes(b"log")
    aside = restore(database, backup, "20250701T000000Z")
    assert database.read_bytes() == backup.read_bytes()
    assert database.stat().st_mode & 0o777 == 0o640
    assert Path(aside).read_bytes() == b"damaged"
    assert Path(f"{aside}-wal").read_bytes() == b"log"
    assert not Path(f"{database}-wal").exists()


def test_without_room_everything_stays(database: Path, tmp_path: Path) -> None:
    backup = tmp_path / "backup.db"
    backup.write_bytes(bytes(2 << 20))
    with small_disk(tmp_path / "small", 1) as small:
        damaged = small / "database.db"
        damaged.write_bytes(b"damaged")
        assert 1 << 20 < missing_bytes(damaged, backup) < 2 << 20
        with pytest.raises(OSError, match="No space left"):
            restore(damaged, backup, "20250701T000000Z")
        assert [file.name for file in small.iterdir()] == ["database.db"]
        assert damaged.read_bytes() == b"damaged"
        assert missing_bytes(damaged, database) < 0


def test_a_link_to_the_database_stays(database: Path, tmp_path: Path) -> None:
    link, backup = tmp_path / "home" / "database.db", tmp_path / "backup.db"
    link.parent.mkdir()
    link.symlink_to(database)
    with closing(sqlite3.connect(link, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = wal")
        connection.executemany("INSERT INTO entities (filepath) VALUES (?)", [("x" * 500,)] * 500)
        assert damage(link, 5) == "", "half of it is in the log, beside the file itself"
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    backup.write_bytes(database.read_bytes())
    database.write_bytes(b"damaged")
    aside = restore(link, backup, "20250701T000000Z")
    assert link.is_symlink()
    assert database.read_bytes() == backup.read_bytes()
    assert Path(aside).parent == database.parent
