"""SQLite holds what PostgreSQL held, and keeps what PostgreSQL could not hold."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from rollback.runs import play
from rollback.world import ENGINE, Run, World

pytestmark = [pytest.mark.docker, pytest.mark.pensieve]

ENTITY = (
    "INSERT INTO entities (id, filepath, filename, size, file_created_at, file_last_modified_at, file_type,"
    " file_type_group, library_id, folder_id) SELECT {id}, '/new/{id}', '{id}', 1, '2025-07-01 08:09:10',"
    " '2025-07-01 08:09:10.5', 'webp', 'image', library_id, folder_id FROM entities LIMIT 1"
)


def change(database: Path, *statements: str) -> None:
    """Write to SQLite as another program would."""
    with closing(sqlite3.connect(database)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


def content(run: Run) -> str:
    """A digest of all rows of ordinary tables, and of the shadow tables of both search tables."""
    digest = hashlib.sha256()
    for (name,) in run.lite("SELECT name FROM sqlite_master WHERE type = 'table' AND sql NOT LIKE 'CREATE VIRTUAL%'"):
        for row in sorted(map(repr, run.lite(f'SELECT * FROM "{name.decode()}"'))):
            digest.update(row.encode())
    return digest.hexdigest()


def require_equal(run: Run) -> None:
    """Every cell."""
    found = run.verify()
    assert found.equal, found.differences[:5]


def test_what_a_served_pensieve_writes(shared: World, tmp_path: Path) -> None:
    outcome = play(shared, tmp_path, seed=1001, writes=60)
    assert outcome.carried > 60
    assert outcome.words > 10
    assert {"add", "delete"} <= set(outcome.writes) | set(outcome.refused)


def test_originals_stay_while_other_cells_of_their_row_change(run: Run) -> None:
    ((number, label),) = run.lite(
        "SELECT id, source_type FROM metadata_entries WHERE source_type NOT LIKE '%GENERATED' ORDER BY id LIMIT 1"
    )
    before = run.lite("SELECT created_at, source, data_type FROM metadata_entries WHERE id = ?", number)
    run.sql(f"UPDATE metadata_entries SET value = 'new' WHERE id = {number}")
    carried = run.engine("carry-back")
    assert carried["tables"]["metadata_entries"]["updated"] == 1
    assert carried["superseded"] == 0
    assert run.lite("SELECT value, source_type FROM metadata_entries WHERE id = ?", number) == [(b"new", label)]
    assert run.lite("SELECT created_at, source, data_type FROM metadata_entries WHERE id = ?", number) == before
    require_equal(run)


def test_an_original_that_was_replaced_moves_to_superseded(run: Run) -> None:
    ((number, label),) = run.lite(
        "SELECT id, source_type FROM metadata_entries WHERE source_type NOT LIKE '%GENERATED' ORDER BY id LIMIT 1"
    )
    run.sql(f"UPDATE metadata_entries SET source_type = 'USER_GENERATED', source = 'me' WHERE id = {number}")
    assert run.engine("carry-back")["superseded"] >= 1
    assert run.lite("SELECT source_type, source FROM metadata_entries WHERE id = ?", number) == [
        (b"USER_GENERATED", b"me")
    ]
    kept = run.sql("SELECT original FROM data_copy.superseded WHERE source_column = 'source_type'")
    assert [bytes(original) for (original,) in kept] == [label]
    require_equal(run)


def test_quarantined_rows_stay_and_are_not_adopted(run: Run) -> None:
    orphans = run.lite("SELECT id, tag_id FROM entity_tags WHERE tag_id NOT IN (SELECT id FROM tags) ORDER BY id")
    assert orphans, "the sample has links to a deleted tag"
    run.sql("UPDATE tags SET color = 'green'")
    run.engine("carry-back")
    assert {number for (number,) in run.lite("SELECT id FROM entity_tags")} >= {number for number, _ in orphans}
    require_equal(run)
    run.sql(f"INSERT INTO tags (id, name) VALUES ({orphans[0][1]}, 'another')")
    run.sql("SELECT setval('tags_id_seq', max(id)) FROM tags")
    carried = run.engine("carry-back")
    assert carried["tables"]["tags"]["inserted"] == 1
    assert run.lite("SELECT count(*) FROM entity_tags WHERE tag_id = ?", orphans[0][1]) == [(0,)]
    assert run.sql("SELECT count(*) > 0 FROM data_copy.superseded WHERE source_table = 'entity_tags'") == [(True,)]
    require_equal(run)


def test_timestamps_are_written_as_pensieve_writes_them(run: Run) -> None:
    run.sql(
        ENTITY.format(id=7001),
        "SELECT setval('entities_id_seq', 7001)",
        "UPDATE entities SET updated_at = '2025-07-01 00:00:00' WHERE id = 7001",
    )
    run.engine("carry-back")
    assert run.lite("SELECT file_created_at, file_last_modified_at, updated_at FROM entities WHERE id = 7001") == [
        (b"2025-07-01 08:09:10.000000", b"2025-07-01 08:09:10.500000", b"2025-07-01 00:00:00")
    ]
    require_equal(run)


def test_unique_values_that_change_places(run: Run) -> None:
    run.sql("INSERT INTO libraries (name) VALUES ('a'), ('b')")
    run.engine("carry-back")
    run.sql(
        "UPDATE libraries SET name = 'c' WHERE name = 'a'",
        "UPDATE libraries SET name = 'a' WHERE name = 'b'",
        "UPDATE libraries SET name = 'b' WHERE name = 'c'",
    )
    carried = run.engine("carry-back")
    assert carried["tables"]["libraries"]["updated"] == 2
    require_equal(run)


def test_tables_that_changed_wholly(run: Run) -> None:
    run.sql("CREATE TABLE kept AS SELECT * FROM entities_vec_v2 WHERE rowid % 2 = 0", "TRUNCATE entities_vec_v2")
    run.sql("INSERT INTO entities_vec_v2 SELECT * FROM kept", "DROP TABLE kept")
    run.sql("ALTER TABLE entities_fts DISABLE TRIGGER data_copy_note_row", "DELETE FROM entities_fts WHERE id % 3 = 0")
    carried = run.engine("carry-back")
    assert carried["whole"] == ["entities_fts", "entities_vec_v2"]
    assert carried["tables"]["entities_vec_v2"]["deleted"] > 5
    assert carried["tables"]["entities_fts"]["deleted"] > 5
    run.sql("ALTER TABLE entities_fts ENABLE TRIGGER data_copy_note_row")
    require_equal(run)


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        ("ALTER TABLE entities ADD COLUMN rating integer", "column entities.rating (only in PostgreSQL)"),
        ("CREATE TABLE moods (id serial PRIMARY KEY)", "table moods (only in PostgreSQL)"),
        ("UPDATE alembic_version SET version_num = 'f00'", "revision f00"),
        ("ALTER TABLE tags DROP COLUMN color", "column tags.color (only in SQLite)"),
    ],
)
def test_an_upgrade_in_between_is_refused_by_name(run: Run, statement: str, named: str) -> None:
    run.sql(statement, "UPDATE libraries SET name = 'other' WHERE id = 1")
    before = content(run)
    refused = run.engine("carry-back", check=False)
    assert refused["rc"] == 1
    for part in (f"Found: {named}", "Untouched: everything; nothing was carried back", "memos init"):
        assert part in refused["failed"], refused
    assert content(run) == before


def test_killed_half_way_and_run_again(run: Run) -> None:
    run.sql("UPDATE metadata_entries SET value = value || ' changed'", "DELETE FROM entities_fts WHERE id % 2 = 0")
    before = content(run)
    # Another reader of the log's table holds the carry-back up after its transaction in SQLite has begun.
    command = [run.world.python, "-m", "sqlite_to_postgresql", "carry-back", "--source", str(run.source)]
    process = subprocess.Popen(
        [*command, "--target", run.dsn],
        env={**run.world.environment(), "PYTHONPATH": str(ENGINE), "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while not _is_writing(run.source):
        assert process.poll() is None, "it ended before it was seen writing"
        assert time.monotonic() < deadline
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert content(run) == before
    assert run.engine("carry-back")["tables"]["metadata_entries"]["updated"] > 100
    require_equal(run)
    assert not run.engine("carry-back")["changed"]


def _is_writing(database: Path) -> bool:
    """Whether somebody has begun to write."""
    with closing(sqlite3.connect(database, timeout=0, isolation_level=None)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
        except sqlite3.OperationalError:
            return True
    return False


@pytest.fixture
def both(run: Run) -> tuple[Run, Path]:
    """Both sides were written to since the cutover; and SQLite as it was then."""
    base = Path(shutil.copy(run.source, run.source.with_name("base.db")))
    return run, base


def test_rows_of_both_sides_stay_when_they_have_the_same_ids(both: tuple[Run, Path]) -> None:
    run, base = both
    ((last,),) = run.lite("SELECT max(id) FROM entities")
    ((entry,),) = run.lite("SELECT max(id) FROM metadata_entries")
    run.sql(
        ENTITY.format(id=last + 1),
        "INSERT INTO metadata_entries (id, entity_id, key, value, source_type, data_type)"
        f" VALUES ({entry + 1}, {last + 1}, 'k', 'postgresql', 'USER_GENERATED', 'TEXT_DATA')",
        f"INSERT INTO entity_plugin_status (entity_id, plugin_id) SELECT {last + 1}, min(id) FROM plugins",
        "INSERT INTO entities_fts (id, filepath, tags, metadata)"
        f" VALUES ({last + 1}, '/new/x x', '', 'k :   postgresql')",
        f"INSERT INTO entities_vec_v2 SELECT {last + 1}, embedding, file_type_group, created_at_timestamp,"
        " file_created_at_timestamp, file_created_at_date, app_name, library_id FROM entities_vec_v2 LIMIT 1",
        "UPDATE libraries SET name = 'theirs' WHERE id = 1",
        "UPDATE plugins SET description = 'theirs'",
    )
    change(
        run.source,
        "INSERT INTO entities (id, filepath, filename, size, file_created_at, file_last_modified_at, file_type,"
        f" file_type_group, library_id, folder_id) SELECT {last + 1}, '/sqlite/1', '1', 1, file_created_at,"
        " file_last_modified_at, 'webp', 'image', library_id, folder_id FROM entities LIMIT 1",
        "INSERT INTO metadata_entries (id, entity_id, key, value, source_type, data_type)"
        f" VALUES ({entry + 1}, {last + 1}, 'k', 'sqlite', 'USER_GENERATED', 'TEXT_DATA')",
        "INSERT INTO entity_plugin_status (entity_id, plugin_id, processed_at)"
        f" SELECT {last + 1}, min(id), '2025-01-01 00:00:00' FROM plugins",
        "UPDATE libraries SET name = 'ours' WHERE id = 1",
    )
    carried = run.engine("carry-back", "--base", str(base), check=False)
    assert carried["merged"]
    assert run.lite("SELECT id, filepath FROM entities WHERE id > ? ORDER BY id", last) == [
        (last + 1, b"/sqlite/1"),
        (last + 2, f"/new/{last + 1}".encode()),
    ]
    assert run.lite("SELECT entity_id, value FROM metadata_entries WHERE id > ? ORDER BY id", entry) == [
        (last + 1, b"sqlite"),
        (last + 2, b"postgresql"),
    ]
    statuses = run.lite("SELECT entity_id FROM entity_plugin_status WHERE entity_id > ? ORDER BY 1", last)
    assert statuses == [(last + 1,), (last + 2,)]
    for table, column in (("entities_fts_content", "c0"), ("entities_vec_v2_rowids", "rowid")):
        assert run.lite(f"SELECT {column} FROM {table} WHERE {column} > ?", last) == [(last + 2,)], table
    assert run.lite("SELECT name FROM libraries WHERE id = 1") == [(b"ours",)]
    assert [c["table"] for c in carried["conflicts"]] == ["libraries"]
    assert run.lite("SELECT DISTINCT description FROM plugins") == [(b"theirs",)]
    renumbered = {(row["table"], row["postgresql"], row["sqlite"]) for row in carried["renumbered"]}
    assert renumbered == {("entities", last + 1, last + 2), ("metadata_entries", entry + 1, entry + 2)}
    again: dict[str, Any] = run.engine("carry-back", "--base", str(base), check=False)
    assert not again["changed"]
    assert again["renumbered"] == carried["renumbered"], "told until it is settled"
    assert run.engine("settle")["changed"]
    again = run.engine("carry-back", "--base", str(base))
    assert not again["changed"]
    assert json.dumps(again["renumbered"]) == "[]"


def test_what_an_upgrade_added_to_both_sides_is_no_change_of_a_row(both: tuple[Run, Path]) -> None:
    run, base = both
    added = "ALTER TABLE libraries ADD COLUMN kind VARCHAR(16) DEFAULT 'static' NOT NULL"
    table = "CREATE TABLE moods (id INTEGER PRIMARY KEY, name VARCHAR)"
    run.sql(added, table, "UPDATE libraries SET name = 'theirs' WHERE id = 1", "INSERT INTO moods VALUES (1, 'theirs')")
    change(run.source, added, table, "INSERT INTO moods VALUES (2, 'ours')")
    carried = run.engine("carry-back", "--base", str(base))
    assert not carried["conflicts"]
    assert run.lite("SELECT name, kind FROM libraries WHERE id = 1") == [(b"theirs", b"static")]
    assert run.lite("SELECT id, name FROM moods ORDER BY id") == [(1, b"theirs"), (2, b"ours")]


def test_what_an_upgrade_changed_on_both_sides_does_not_stand_in_the_way(both: tuple[Run, Path]) -> None:
    run, base = both
    upgrade = "UPDATE libraries SET name = name || ' 2' WHERE id = 1"
    change(run.source, upgrade)
    run.sql(upgrade, "UPDATE libraries SET name = 'theirs' WHERE id = 1")
    carried = run.engine("carry-back", "--base", str(base), "--only-upgraded")
    assert not carried["merged"]
    assert not carried["conflicts"]
    assert run.lite("SELECT name FROM libraries WHERE id = 1") == [(b"theirs",)]


def test_the_same_thing_on_both_sides_is_one(both: tuple[Run, Path]) -> None:
    run, base = both
    ((tag,),) = run.lite("SELECT max(id) FROM tags")
    ((link, entity),) = run.lite("SELECT max(id), max(entity_id) FROM entity_tags")
    ((entity,),) = run.lite("SELECT max(id) FROM entities")
    run.sql(
        f"INSERT INTO tags (id, name) VALUES ({tag + 1}, 'other'), ({tag + 2}, 'both')",
        "INSERT INTO entity_tags (id, entity_id, tag_id, source)"
        f" VALUES ({link + 1}, {entity}, {tag + 2}, 'USER_GENERATED')",
    )
    change(run.source, f"INSERT INTO tags (id, name) VALUES ({tag + 1}, 'both')")
    carried = run.engine("carry-back", "--base", str(base))
    assert run.lite("SELECT id, name FROM tags WHERE id > ? ORDER BY id", tag) == [
        (tag + 1, b"both"),
        (tag + 3, b"other"),
    ]
    assert run.lite("SELECT tag_id FROM entity_tags WHERE id = ?", link + 1) == [(tag + 1,)]
    assert {"table": "tags", "postgresql": tag + 2, "sqlite": tag + 1, "joined": True} in carried["renumbered"]


def test_without_a_copy_of_the_cutover_nothing_is_guessed(both: tuple[Run, Path]) -> None:
    run, _ = both
    run.sql("UPDATE libraries SET name = 'theirs' WHERE id = 1")
    change(run.source, "UPDATE libraries SET name = 'ours' WHERE id = 1")
    before = content(run)
    refused = run.engine("carry-back", check=False)
    assert refused["rc"] == 1
    assert "SQLite was written to since the cutover" in refused["failed"]
    assert content(run) == before
