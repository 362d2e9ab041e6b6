"""scripts/export_sqlite_data.py: what is exported comes back as it was, and a damaged export is refused."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from ansible.module_utils.sqlite_integrity import damage

from .conftest import ROOT

pytestmark = [pytest.mark.pensieve]

DIRT = """
UPDATE metadata_entries SET value = CAST(x'61ff62' AS TEXT) WHERE id = 3;
UPDATE metadata_entries SET value = x'00ff' WHERE id = 4;
UPDATE metadata_entries SET value = 'before' || char(0) || 'after' WHERE id = 5;
UPDATE entities SET size = 1.5 WHERE id = 2;
UPDATE entities SET size = 9e999 WHERE id = 3;
UPDATE entities SET size = 9223372036854775807 WHERE id = 4;
UPDATE entities SET last_scan_at = NULL WHERE id = 5;
CREATE TABLE work_sessions (id INTEGER PRIMARY KEY AUTOINCREMENT, score REAL, "a name" BLOB);
INSERT INTO work_sessions VALUES (5, 0.1, x''), (9, 1e300, NULL), (12, 2.0, 'text');
DELETE FROM work_sessions WHERE id = 12;
CREATE TABLE pairs (a TEXT, b INTEGER, PRIMARY KEY (b, a)) WITHOUT ROWID;
INSERT INTO pairs VALUES ('x', 2), ('x', 1), ('', -1);
CREATE VIEW latest AS SELECT max(id) FROM entities;
"""


def run(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """The script, as a person runs it."""
    command = [sys.executable, str(ROOT / "scripts" / "export_sqlite_data.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment or None)


def content(database: Path) -> dict[str, Any]:
    """Definitions, and every cell of every table with its storage class, by another way than the script's."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        found: dict[str, Any] = {
            "definitions": sorted(
                connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master WHERE sql <> ''")
            ),
            "settings": [
                connection.execute(f"PRAGMA {name}").fetchone()
                for name in ("encoding", "page_size", "user_version", "application_id")
            ],
            "damage": damage(connection),
        }
        names = "SELECT name FROM sqlite_master WHERE type = 'table' AND rootpage > 0"
        for (name,) in connection.execute(names).fetchall():
            described = connection.execute(f'PRAGMA table_info("{name}")').fetchall()
            columns = ", ".join(f'typeof("{row[1]}"), hex("{row[1]}"), "{row[1]}" + 0.0' for row in described)
            without = connection.execute("SELECT sql LIKE '%WITHOUT ROWID%' FROM sqlite_master WHERE name = ?", (name,))
            hidden = "" if without.fetchone()[0] else "_rowid_, "
            found[name] = connection.execute(f'SELECT {hidden}{columns} FROM "{name}" ORDER BY 1, 2, 3').fetchall()
    return found


@pytest.fixture
def source(medium: Path, tmp_path: Path) -> Path:
    """A copy of a real database that a test may change."""
    return Path(shutil.copy(medium, tmp_path / "database.db"))


@pytest.fixture
def exported(source: Path, tmp_path: Path) -> Path:
    """A good export of it."""
    done = run("export", source, tmp_path / "export")
    assert done.returncode == 0, done.stderr
    return tmp_path / "export"


def test_there_and_back(source: Path, tmp_path: Path) -> None:
    with closing(sqlite3.connect(source)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript(DIRT)
        assert source.with_name("database.db-wal").stat().st_size > 0  # what is exported stands in there in part
        before = source.read_bytes()
        done = run("export", source, tmp_path / "export")
        assert done.returncode == 0, done.stderr
        assert source.read_bytes() == before
        assert run("check", tmp_path / "export").returncode == 0
        assert run("rebuild", tmp_path / "export", tmp_path / "again.db").returncode == 0
        was, again = content(source), content(tmp_path / "again.db")
    assert was.pop("definitions") == again.pop("definitions")
    assert len(was) > 20
    assert len(was["entities_vec_v2_vector_chunks00"]) > 0
    assert was["damage"] == []
    for name, rows in was.items():
        assert again[name] == rows, name
    assert (tmp_path / "export").stat().st_mode & 0o77 == 0
    assert (tmp_path / "again.db").stat().st_mode & 0o77 == 0
    # Its checksums can be checked with a tool that every system has.
    sums = subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=tmp_path / "export", check=False)
    assert sums.returncode == 0
    # Two exports of the same database hold the same files, apart from the time in the manifest.
    assert run("export", tmp_path / "again.db", tmp_path / "second").returncode == 0
    for file in (tmp_path / "export").glob("*.jsonl"):
        assert (tmp_path / "second" / file.name).read_bytes() == file.read_bytes(), file.name


@pytest.mark.docker
def test_import(exported: Path, make_target: Callable[[], str]) -> None:
    database = make_target()
    done = run("import", exported, "--target", database)
    assert done.returncode == 0, done.stderr
    assert "every cell equal to the export" in done.stdout
    with psycopg2.connect(database) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT (SELECT count(*) FROM entities), (SELECT count(*) FROM entities_vec_v2)")
        assert cursor.fetchall() == [(40, 40)]
    vectors = [json.loads(line) for line in (exported / "vectors-entities_vec_v2.jsonl").read_text().splitlines()]
    assert len(vectors) == 40
    assert {"rowid", "embedding", "app_name", "file_created_at_date"} <= vectors[0].keys()


def truncate(folder: Path) -> None:
    """As a full disk leaves a copy."""
    file = sorted(folder.glob("*-entities.jsonl"))[0]
    file.write_bytes(file.read_bytes()[:-1])


def alter(folder: Path) -> None:
    """One character."""
    file = sorted(folder.glob("*-entities.jsonl"))[0]
    file.write_text(file.read_text().replace("webp", "WEBP", 1))


def drop_file(folder: Path) -> None:
    sorted(folder.glob("*-metadata_entries.jsonl"))[0].unlink()


def alter_manifest(folder: Path) -> None:
    file = folder / "manifest.json"
    file.write_text(file.read_text().replace('"rows": 40', '"rows": 41', 1))


def drop_sums(folder: Path) -> None:
    (folder / "SHA256SUMS").unlink()


def forget_a_file(folder: Path) -> None:
    """Sums and folder agree, the manifest wants more."""
    sums = folder / "SHA256SUMS"
    lines = [line for line in sums.read_text().splitlines() if "-entities.jsonl" not in line]
    sums.write_text("\n".join(lines) + "\n")
    sorted(folder.glob("*-entities.jsonl"))[0].unlink()


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (truncate, "has another"),
        (alter, "has another"),
        (drop_file, "lacks"),
        (alter_manifest, "has another manifest.json"),
        (drop_sums, "has no SHA256SUMS"),
        (forget_a_file, "disagree about"),
    ],
)
def test_damaged(damage: Callable[[Path], None], found: str, exported: Path, tmp_path: Path) -> None:
    damage(exported)
    for done in (run("check", exported), run("rebuild", exported, tmp_path / "again.db")):
        assert done.returncode == 1
        assert found in done.stderr
        for part in ("Found: ", "Expected: ", "Untouched: everything", "Next: "):
            assert part in done.stderr
    assert not (tmp_path / "again.db").exists()
    assert not list(tmp_path.glob(".again*"))


def test_refusals(source: Path, exported: Path, tmp_path: Path) -> None:
    for words in (
        ("export", source, exported),
        ("export", tmp_path / "nothing.db", tmp_path / "new"),
        ("rebuild", exported, source),
    ):
        done = run(*words)
        assert done.returncode == 1
        assert done.stderr.startswith("Found: ")
    assert not (tmp_path / "new").exists()
