"""A carry-back that ends anywhere: nothing is lost, nothing revived, whichever side goes on in between."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlite_to_postgresql.carry_mark import settle
from sqlite_to_postgresql.census import census
from sqlite_to_postgresql.model import CARRIED
from sqlite_to_postgresql.verify import verify

from rollback.carrier import POINTS
from rollback.test_carry_back import ENTITY, change, content, require_equal
from rollback.world import ENGINE, ROOT, Run, World

pytestmark = [pytest.mark.docker, pytest.mark.pensieve]

COMMITTED = [POINTS[1], POINTS[2], POINTS[4], POINTS[5]]  # in SQLite, and not in PostgreSQL
NEW = 7001  # id of the first entity that PostgreSQL has given


class Carrier:
    """Pensieve's interpreter, which carries back until it is cut."""

    def __init__(self, world: World) -> None:
        self._process = subprocess.Popen(
            [world.python, "-m", "rollback.carrier"],
            env={**world.environment(), "PYTHONPATH": f"{ENGINE}:{ROOT / 'tests'}", "PYTHONDONTWRITEBYTECODE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def _ask(self, asked: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def cut(self, run: Run, point: str | int, **how: Any) -> dict[str, Any]:
        """Carry back, and end there."""
        return self._ask({"carry": {"source": str(run.source), "dsn": run.dsn, **how}, "cut": point})

    def carry(self, run: Run, **how: Any) -> dict[str, Any]:
        """Carry back to the end, and compare what is told to be equal, as the playbook does."""
        answer = self._ask({"carry": {"source": str(run.source), "dsn": run.dsn, **how}, "cut": None})
        assert "carried" in answer, answer
        carried: dict[str, Any] = answer["carried"]
        only = {table: [tuple(key) for key in keys] for table, keys in carried["touched"].items()}
        found = verify(run.source, run.dsn, jobs=1, only=only, sequences=False)
        assert found.equal, found.differences[:5]
        return carried

    def write(self, run: Run, *statements: list[Any]) -> None:
        """Write to SQLite as Pensieve does."""
        self._ask({"source": str(run.source), "write": list(statements)})

    def read(self, run: Run, sql: str) -> list[list[Any]]:
        """Read SQLite so."""
        rows: list[list[Any]] = self._ask({"source": str(run.source), "read": sql})["rows"]
        return rows

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


@pytest.fixture(scope="module")
def carrier(shared: World) -> Iterator[Carrier]:
    made = Carrier(shared)
    yield made
    made.close()


def copy_of(run: Run, name: str) -> str:
    """A copy of SQLite as it is now, its write-ahead log included."""
    copy = run.source.with_name(name)
    with closing(sqlite3.connect(run.source)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
    return str(copy)


@pytest.fixture
def base(run: Run) -> str:
    """SQLite as it was at the cutover."""
    return copy_of(run, "base.db")


def add(run: Run, *numbers: int) -> None:
    """New entities on PostgreSQL, with all that belongs to one."""
    for number in numbers:
        run.sql(
            ENTITY.format(id=number),
            "INSERT INTO metadata_entries (entity_id, key, value, source_type, data_type, source)"
            f" VALUES ({number}, 'k', 'postgresql {number}', 'USER_GENERATED', 'TEXT_DATA', 'me')",
            f"INSERT INTO entity_tags (entity_id, tag_id, source) SELECT {number}, min(id), 'USER_GENERATED' FROM tags",
            f"INSERT INTO entity_plugin_status (entity_id, plugin_id) SELECT {number}, min(id) FROM plugins",
            "INSERT INTO entities_fts (id, filepath, tags, metadata)"
            f" VALUES ({number}, '/new/{number} {number}', '', 'k :   postgresql   {number}')",
            f"INSERT INTO entities_vec_v2 SELECT {number}, embedding, file_type_group, created_at_timestamp,"
            " file_created_at_timestamp, file_created_at_date, app_name, library_id FROM entities_vec_v2 LIMIT 1",
            "SELECT setval('entities_id_seq', max(id)) FROM entities",
        )


CHILDREN = ("metadata_entries", "entity_tags", "entity_plugin_status")


def remove(run: Run, number: int) -> None:
    """Delete an entity on PostgreSQL, as Pensieve does."""
    run.sql(
        *(f"DELETE FROM {table} WHERE entity_id = {number}" for table in CHILDREN),
        f"DELETE FROM entities_fts WHERE id = {number}",
        f"DELETE FROM entities_vec_v2 WHERE rowid = {number}",
        f"DELETE FROM entities WHERE id = {number}",
    )


def removal(number: int) -> list[list[Any]]:
    """The same on SQLite."""
    return [
        *([f"DELETE FROM {table} WHERE entity_id = ?", [number]] for table in CHILDREN),
        ["DELETE FROM entities_fts WHERE id = ?", [number]],
        ["DELETE FROM entities_vec_v2 WHERE rowid = ?", [number]],
        ["DELETE FROM entities WHERE id = ?", [number]],
    ]


def addition(number: int, path: str) -> list[list[Any]]:
    """A new entity on SQLite."""
    return [
        [
            "INSERT INTO entities (id, filepath, filename, size, file_created_at, file_last_modified_at, file_type,"
            " file_type_group, library_id, folder_id) SELECT ?, ?, 's', 1, file_created_at, file_last_modified_at,"
            " 'webp', 'image', library_id, folder_id FROM entities LIMIT 1",
            [number, path],
        ],
        [
            "INSERT INTO metadata_entries (entity_id, key, value, source_type, data_type)"
            " VALUES (?, 'k', 'sqlite', 'USER_GENERATED', 'TEXT_DATA')",
            [number],
        ],
    ]


def holds(run: Run, number: int) -> dict[str, int]:
    """How many rows SQLite has of an entity, by table."""
    columns = {"entities": "id", "entities_fts_content": "c0", "entities_vec_v2_rowids": "rowid"}
    return {
        table: run.lite(f"SELECT count(*) FROM {table} WHERE {column} = ?", number)[0][0]
        for table, column in {**columns, **dict.fromkeys(CHILDREN, "entity_id")}.items()
    }


def all_of(count: int) -> dict[str, int]:
    """So many rows in each of these tables."""
    return dict.fromkeys(["entities", "entities_fts_content", "entities_vec_v2_rowids", *CHILDREN], count)


@pytest.mark.parametrize("point", COMMITTED)
def test_postgresql_goes_on(run: Run, carrier: Carrier, base: str, point: str) -> None:
    """One of the carried rows is changed, another is deleted, a tag changes, a row is new."""
    add(run, NEW, NEW + 1, NEW + 2)
    assert "carried" not in carrier.cut(run, point, base=base)
    assert holds(run, NEW + 1) == all_of(1)
    run.sql(
        f"UPDATE entities SET size = 77 WHERE id = {NEW}",
        f"UPDATE metadata_entries SET value = 'later' WHERE entity_id = {NEW}",
        f"UPDATE entity_tags SET tag_id = (SELECT max(id) FROM tags) WHERE entity_id = {NEW}",
        "UPDATE tags SET color = 'blue' WHERE id = (SELECT min(id) FROM tags)",
        f"UPDATE entities_fts SET metadata = 'k :   later' WHERE id = {NEW}",
        f"UPDATE entities_vec_v2 SET app_name = 'later' WHERE rowid = {NEW}",
    )
    remove(run, NEW + 1)
    add(run, NEW + 3)
    carried = carrier.carry(run, base=base)
    assert holds(run, NEW + 1) == all_of(0)
    assert run.lite("SELECT size FROM entities WHERE id = ?", NEW) == [(77,)]
    assert not carried["conflicts"]
    assert not carried["merged"], "nobody else has written to SQLite"
    assert carried["mapped"] == 0
    require_equal(run)
    assert not carrier.carry(run, base=base)["changed"]


@pytest.mark.parametrize("point", [None, *COMMITTED, POINTS[3]])
def test_sqlite_goes_on(run: Run, carrier: Carrier, base: str, point: str | None) -> None:
    """Rows that were carried are deleted and changed there: so they stay."""
    ((old, older),) = run.sql("SELECT max(id), min(id) FROM entities")
    add(run, NEW, NEW + 1, NEW + 2)
    run.sql(f"UPDATE entities SET size = 5 WHERE id IN ({old}, {older})")
    if point:
        carrier.cut(run, point, base=base)
    else:
        carrier.carry(run, base=base)
    carrier.write(
        run,
        *removal(NEW),
        *removal(old),
        ["UPDATE entities SET size = 88 WHERE id IN (?, ?)", [NEW + 1, older]],
        ["UPDATE metadata_entries SET value = 'mine' WHERE entity_id = ?", [NEW + 1]],
    )
    carried = carrier.carry(run, base=base)
    assert holds(run, NEW) == holds(run, old) == all_of(0)
    assert holds(run, NEW + 2) == all_of(1)
    assert run.lite("SELECT size FROM entities WHERE id IN (?, ?)", NEW + 1, older) == [(88,), (88,)]
    assert run.lite("SELECT value FROM metadata_entries WHERE entity_id = ?", NEW + 1) == [(b"mine",)]
    assert not carried["conflicts"], "PostgreSQL has not changed them"
    assert not carried["changed"]
    assert carried["merged"]


def test_both_go_on(run: Run, carrier: Carrier, base: str) -> None:
    add(run, NEW, NEW + 1, NEW + 2, NEW + 3)
    carrier.cut(run, POINTS[1], base=base)
    run.sql(*(f"UPDATE entities SET size = {70 + at} WHERE id = {NEW + at}" for at in range(3)))
    remove(run, NEW + 3)
    carrier.write(
        run,
        *removal(NEW),
        ["UPDATE entities SET size = 88 WHERE id = ?", [NEW + 1]],
        ["UPDATE entities SET size = 72 WHERE id = ?", [NEW + 2]],
        ["UPDATE entities SET size = 88 WHERE id = ?", [NEW + 3]],
    )
    carried = carrier.carry(run, base=base)
    assert run.lite("SELECT id, size FROM entities WHERE id >= ? ORDER BY id", NEW) == [
        (NEW + 1, 88),
        (NEW + 2, 72),
        (NEW + 3, 88),
    ]
    assert {(c["key"][0], c["reason"].split(";")[0]) for c in carried["conflicts"] if c["table"] == "entities"} == {
        (NEW, "deleted in SQLite, changed in PostgreSQL"),
        (NEW + 1, "changed in SQLite, changed in PostgreSQL"),
        (NEW + 3, "changed in SQLite, deleted in PostgreSQL"),
    }
    again = carrier.carry(run, base=base)
    assert again["conflicts"] == carried["conflicts"], "told until it is settled"
    assert not again["changed"]
    assert settle(run.source, run.dsn).settled
    assert not carrier.carry(run, base=base)["conflicts"]


@pytest.fixture
def apart(run: Run, carrier: Carrier, base: str) -> tuple[int, str]:
    """Both sides have given the same ids to other screenshots; the first of these ids."""
    ((last,),) = run.sql("SELECT max(id) FROM entities")
    add(run, last + 1, last + 2)
    carrier.write(run, *addition(last + 1, "/sqlite/1"), *addition(last + 2, "/sqlite/2"))
    return last + 1, base


def paths(run: Run, first: int) -> dict[int, str]:
    """Paths of entities in SQLite."""
    return {row[0]: row[1].decode() for row in run.lite("SELECT id, filepath FROM entities WHERE id >= ?", first)}


@pytest.mark.parametrize("point", [None, *COMMITTED])
def test_renumbered_rows_are_found_again(run: Run, carrier: Carrier, apart: tuple[int, str], point: str | None) -> None:
    first, base = apart
    if point:
        carrier.cut(run, point, base=base)
    else:
        carrier.carry(run, base=base)
    there = {first: "/sqlite/1", first + 1: "/sqlite/2", first + 2: f"/new/{first}", first + 3: f"/new/{first + 1}"}
    assert paths(run, first) == there
    carrier.write(run, *removal(first + 3), ["UPDATE entities SET size = 9 WHERE id = ?", [first + 2]])
    carried = carrier.carry(run, base=base)
    del there[first + 3]
    assert paths(run, first) == there, "neither made again nor revived"
    assert not carried["conflicts"]
    assert not carried["changed"]
    assert {"table": "entities", "postgresql": first, "sqlite": first + 2, "joined": False} in carried["renumbered"]
    assert holds(run, first + 2) == all_of(1)
    assert run.lite("SELECT size FROM entities WHERE id = ?", first + 2) == [(9,)]


def test_postgresql_goes_on_with_a_renumbered_row(run: Run, carrier: Carrier, apart: tuple[int, str]) -> None:
    first, base = apart
    carrier.cut(run, POINTS[1], base=base)
    run.sql(
        f"UPDATE entities SET size = 77 WHERE id = {first}",
        "INSERT INTO metadata_entries (entity_id, key, value, source_type, data_type)"
        f" VALUES ({first}, 'later', 'postgresql', 'USER_GENERATED', 'TEXT_DATA')",
        f"UPDATE entities_vec_v2 SET app_name = 'later' WHERE rowid = {first}",
    )
    remove(run, first + 1)
    add(run, first + 2)  # the id that the first one has in SQLite
    carried = carrier.carry(run, base=base)
    assert paths(run, first) == {
        first: "/sqlite/1",
        first + 1: "/sqlite/2",
        first + 2: f"/new/{first}",
        first + 4: f"/new/{first + 2}",
    }
    assert run.lite("SELECT size FROM entities WHERE id = ?", first + 2) == [(77,)]
    later = "SELECT entity_id FROM metadata_entries WHERE key = 'later'"
    assert run.lite(later) == [(first + 2,)]
    assert holds(run, first + 3) == all_of(0)
    assert holds(run, first + 4) == all_of(1)
    assert holds(run, first)["entities_vec_v2_rowids"] == 0, "SQLite's own one is not indexed yet"
    assert not carried["conflicts"]
    assert carried["mapped"] > 10


def test_without_a_copy_of_the_cutover_the_mark_is_enough(run: Run, carrier: Carrier) -> None:
    """The state directory is lost. What SQLite gives an id to, that PostgreSQL's log names, is SQLite's."""
    add(run, NEW)
    carrier.cut(run, POINTS[1])
    ((entry, entity),) = run.lite("SELECT max(id), min(entity_id) FROM metadata_entries")
    carrier.write(
        run,
        ["UPDATE entities_fts SET metadata = 'mine' WHERE id = ?", [entity]],
        ["UPDATE metadata_entries SET entity_id = ?, value = 'mine' WHERE id = ?", [entity, entry]],
    )
    carried = carrier.carry(run)
    assert not carried["changed"]
    assert not carried["conflicts"]
    assert run.lite("SELECT c3 FROM entities_fts_content WHERE c0 = ?", entity) == [(b"mine",)]


def test_a_joined_row_that_sqlite_deletes_is_not_revived(run: Run, carrier: Carrier, base: str) -> None:
    ((tag,),) = run.lite("SELECT max(id) FROM tags")
    run.sql(f"INSERT INTO tags (id, name) VALUES ({tag + 2}, 'both')")
    change(run.source, f"INSERT INTO tags (id, name) VALUES ({tag + 1}, 'both')")
    carrier.cut(run, POINTS[1], base=base)
    change(run.source, f"DELETE FROM tags WHERE id = {tag + 1}")
    run.sql(
        f"INSERT INTO entity_tags (entity_id, tag_id, source) SELECT max(id), {tag + 2}, 'USER_GENERATED' FROM entities"
    )
    carried = carrier.carry(run, base=base)
    assert run.lite("SELECT count(*) FROM tags WHERE name = 'both'") == [(0,)]
    assert [c["table"] for c in carried["conflicts"]] == ["entity_tags"]
    assert run.lite("SELECT count(*) FROM entity_tags WHERE tag_id > ?", tag) == [(0,)]


def test_rows_of_a_screenshot_do_not_go_to_another_that_has_its_id(run: Run, carrier: Carrier, base: str) -> None:
    """SQLite gives the highest id again when its row is deleted."""
    ((last,),) = run.sql("SELECT max(id) FROM entities")
    run.sql(
        "INSERT INTO metadata_entries (entity_id, key, value, source_type, data_type)"
        f" VALUES ({last}, 'later', 'postgresql', 'USER_GENERATED', 'TEXT_DATA')"
    )
    carrier.write(run, *removal(last), *addition(last, "/sqlite/again"))
    carried = carrier.carry(run, base=base)
    assert run.lite("SELECT key, value FROM metadata_entries WHERE entity_id = ?", last) == [(b"k", b"sqlite")]
    assert [c["reason"] for c in carried["conflicts"]] == ["the row that it belongs to was deleted in SQLite"]


def test_a_unique_value_of_another_row_is_no_dead_end(run: Run, carrier: Carrier, base: str) -> None:
    run.sql("INSERT INTO libraries (name) VALUES ('theirs')", "UPDATE libraries SET name = 'wanted' WHERE id = 1")
    change(run.source, "INSERT INTO libraries (id, name) VALUES (99, 'wanted')")
    carried = carrier.carry(run, base=base)
    assert [(c["table"], c["key"]) for c in carried["conflicts"]] == [("libraries", [1])]
    assert {b"theirs", b"wanted"} < {name for (name,) in run.lite("SELECT name FROM libraries")}


NOTES = "CREATE TABLE notes (body VARCHAR, weight FLOAT)"


def notes(run: Run) -> list[str]:
    return sorted(body.decode() for (body,) in run.lite("SELECT body FROM notes"))


@pytest.fixture
def keyless(shared: World, tmp_path: Path) -> Iterator[Run]:
    """A migration with a table that has no key."""
    source = Path(shutil.copy(shared.sample.base / "database.db", tmp_path / "with-notes.db"))
    change(source, NOTES, "INSERT INTO notes VALUES ('one', 1), ('two', 2.5), ('two', 2.5), ('three', NULL)")
    made = shared.migrate(tmp_path, source)
    yield made
    shared.server.drop_database(made.dsn.rpartition("/")[2])


@pytest.mark.parametrize("point", [None, *COMMITTED])
def test_a_table_without_a_key(keyless: Run, carrier: Carrier, point: str | None) -> None:
    run = keyless
    base = copy_of(run, "base.db")
    run.sql("DELETE FROM notes WHERE body = 'one'", "INSERT INTO notes VALUES ('theirs', 1), ('same', 1)")
    change(run.source, "INSERT INTO notes VALUES ('ours', 1), ('same', 1)")
    if point:
        carrier.cut(run, point, base=base)
    else:
        carrier.carry(run, base=base)
    assert notes(run) == ["ours", "same", "theirs", "three", "two", "two"]
    run.sql("DELETE FROM notes WHERE body = 'theirs'", "INSERT INTO notes VALUES ('four', 4)")
    change(run.source, "DELETE FROM notes WHERE rowid = (SELECT min(rowid) FROM notes WHERE body = 'two')")
    carried = carrier.carry(run, base=base)
    assert notes(run) == ["four", "ours", "same", "three", "two"]
    assert carried["merged"]
    assert not carrier.carry(run, base=base)["changed"]


def test_a_table_with_a_key_of_text(shared: World, carrier: Carrier, tmp_path: Path) -> None:
    """The verifier looks at the rows that were carried, not at SQLite's own."""
    source = Path(shutil.copy(shared.sample.base / "database.db", tmp_path / "with-moods.db"))
    change(
        source,
        "CREATE TABLE moods (name VARCHAR PRIMARY KEY, body VARCHAR)",
        "INSERT INTO moods VALUES ('a', '1'), ('b', '2')",
    )
    run = shared.migrate(tmp_path, source)
    base = copy_of(run, "base.db")
    run.sql("UPDATE moods SET body = 'theirs' WHERE name = 'a'", "INSERT INTO moods VALUES ('c', 'theirs')")
    change(run.source, "INSERT INTO moods VALUES ('d', 'ours')", "UPDATE moods SET body = 'ours' WHERE name = 'b'")
    carrier.cut(run, POINTS[2], base=base)
    run.sql("UPDATE moods SET body = 'later' WHERE name = 'c'")
    carried = carrier.carry(run, base=base)
    assert {name.decode(): body.decode() for name, body in run.lite("SELECT * FROM moods")} == {
        "a": "theirs",
        "b": "ours",
        "c": "later",
        "d": "ours",
    }
    assert carried["touched"]["moods"] == [["a"], ["c"]]
    run.sql("UPDATE moods SET body = 'damaged' WHERE name = 'c'")
    assert not verify(run.source, run.dsn, jobs=1, only={"moods": [("c",)]}, sequences=False).equal
    shared.server.drop_database(run.dsn.rpartition("/")[2])


@pytest.mark.parametrize("point", COMMITTED)
def test_quarantine(run: Run, carrier: Carrier, base: str, point: str) -> None:
    """A quarantined row that was replaced, and an original that was, before the cut; both are told to PostgreSQL."""
    ((orphan, gone),) = run.lite(
        "SELECT id, tag_id FROM entity_tags WHERE tag_id NOT IN (SELECT id FROM tags) ORDER BY id LIMIT 1"
    )
    ((labelled,),) = run.lite("SELECT min(id) FROM metadata_entries WHERE source_type NOT LIKE '%GENERATED'")
    run.sql(
        "INSERT INTO entity_tags (id, entity_id, tag_id, source)"
        f" SELECT {orphan}, max(e.id), min(t.id), 'USER_GENERATED' FROM entities e, tags t",
        f"UPDATE metadata_entries SET source_type = 'USER_GENERATED', source = 'me' WHERE id = {labelled}",
    )
    carrier.cut(run, point, base=base)
    run.sql(f"DELETE FROM entity_tags WHERE id = {orphan}")
    carried = carrier.carry(run, base=base)
    assert run.lite("SELECT count(*) FROM entity_tags WHERE id = ?", orphan) == [(0,)], "the new row is gone again"
    assert carried["superseded"] >= 2
    kept = run.sql("SELECT source_table, source_column FROM data_copy.superseded")
    assert {("entity_tags", None), ("metadata_entries", "source_type")} <= set(kept)
    assert gone
    require_equal(run)


@pytest.mark.parametrize("point", COMMITTED)
def test_tables_that_changed_wholly(run: Run, carrier: Carrier, base: str, point: str) -> None:
    run.sql("CREATE TABLE kept AS SELECT * FROM entities_vec_v2 WHERE rowid % 2 = 0", "TRUNCATE entities_vec_v2")
    run.sql("INSERT INTO entities_vec_v2 SELECT * FROM kept", "DROP TABLE kept")
    run.sql("CREATE TABLE kept AS SELECT * FROM entity_plugin_status", "TRUNCATE entity_plugin_status")
    run.sql("INSERT INTO entity_plugin_status SELECT entity_id, plugin_id, now() FROM kept", "DROP TABLE kept")
    carrier.cut(run, point, base=base)
    run.sql(
        "DELETE FROM entities_vec_v2 WHERE rowid % 3 = 0", "DELETE FROM entity_plugin_status WHERE entity_id % 2 = 0"
    )
    carried = carrier.carry(run, base=base)
    assert carried["whole"] == ["entities_vec_v2", "entity_plugin_status"]
    assert not carried["conflicts"]
    require_equal(run)


@pytest.mark.parametrize("point", COMMITTED)
def test_a_restored_database_and_an_upgrade(run: Run, carrier: Carrier, base: str, point: str) -> None:
    """All rows are compared, and both sides have got a column since the first run."""
    shutil.copy(base, run.source)
    add(run, NEW, NEW + 1)
    carrier.cut(run, point, base=base, whole=True)
    added = "ALTER TABLE libraries ADD COLUMN kind VARCHAR(16) DEFAULT 'static' NOT NULL"
    run.sql(added, "INSERT INTO libraries (name) VALUES ('later')", f"UPDATE entities SET size = 3 WHERE id = {NEW}")
    change(run.source, added)
    remove(run, NEW + 1)
    carried = carrier.carry(run, base=base, whole=True)
    assert not carried["conflicts"]
    assert holds(run, NEW + 1) == all_of(0)
    require_equal(run)


def test_an_upgrade_alone(run: Run, carrier: Carrier, base: str) -> None:
    upgrade = "UPDATE libraries SET name = name || ' 2' WHERE id = 1"
    change(run.source, upgrade)
    run.sql(upgrade, "UPDATE libraries SET name = 'theirs' WHERE id = 1")
    carrier.cut(run, POINTS[1], base=base, only_upgraded=True)
    run.sql("UPDATE libraries SET name = 'later' WHERE id = 1")
    carried = carrier.carry(run, base=base)
    assert not carried["conflicts"]
    require_equal(run)


@pytest.mark.parametrize("point", [20, POINTS[0], POINTS[7]])
def test_before_the_commit_nothing_has_changed(run: Run, carrier: Carrier, base: str, point: str | int) -> None:
    run.sql("UPDATE metadata_entries SET value = repeat(md5(id::text), 100)")
    before = content(run)
    answer = carrier.cut(run, point, base=base)
    assert "carried" not in answer
    assert content(run) == before
    if "failed" in answer:
        assert "Untouched: every row of SQLite and of PostgreSQL, as before this run" in answer["failed"]
    carrier.carry(run, base=base)
    require_equal(run)


def test_what_is_said_of_sqlite_is_looked_at(run: Run, carrier: Carrier, base: str) -> None:
    add(run, NEW)
    failed = carrier.cut(run, POINTS[4], base=base)["failed"]
    assert holds(run, NEW) == all_of(1)
    assert "Untouched: every row of PostgreSQL. SQLite holds what was carried already" in failed
    assert "run again; it goes on from there" in failed


def test_a_full_disk_at_the_checkpoint_is_no_failure(run: Run, carrier: Carrier, base: str) -> None:
    run.sql("UPDATE metadata_entries SET value = repeat(md5(id::text), 500)")
    assert "carried" in carrier.cut(run, POINTS[6], base=base)
    require_equal(run)
    assert not carrier.carry(run, base=base)["changed"]


def test_the_mark_of_another_log_counts_for_nothing(run: Run, carrier: Carrier, base: str) -> None:
    add(run, NEW)
    carrier.cut(run, POINTS[1], base=base)
    run.sql("UPDATE data_copy.change_log SET run_id = 'another'", "TRUNCATE data_copy.change")
    later = copy_of(run, "later.db")
    run.sql(f"UPDATE entities SET size = 3 WHERE id = {NEW}")
    carrier.write(run, *removal(NEW + 1))
    carrier.carry(run, base=later)
    assert run.lite(f"SELECT DISTINCT table_name FROM {CARRIED} WHERE table_name <> ''") == [
        (b"entities",),
        (b"entities_fts",),
    ]
    assert settle(run.source, run.dsn).settled
    carrier.write(run, *removal(NEW))
    run.sql("UPDATE data_copy.change_log SET run_id = 'a third'", "TRUNCATE data_copy.change")
    carrier.carry(run, base=later)
    assert not run.lite("SELECT name FROM sqlite_master WHERE name = ?", CARRIED), "nothing to carry, nothing written"


def test_settled_only_when_postgresql_knows(run: Run, carrier: Carrier, base: str) -> None:
    assert settle(run.source, run.dsn).settled, "there is no mark"
    add(run, NEW)
    carrier.cut(run, POINTS[1], base=base)
    refused = settle(run.source, run.dsn)
    assert not refused.settled
    assert "was not told" in refused.reason
    assert not settle(run.source, run.dsn + "_gone").settled
    carrier.carry(run, base=base)
    assert settle(run.source, run.dsn, check=True).changed
    assert not settle(run.source, run.dsn + "_gone").settled
    with closing(sqlite3.connect(run.source, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM entities").fetchone()
        assert settle(run.source, run.dsn).settled, "Pensieve reads meanwhile"
    assert run.sql("SELECT count(*) FROM data_copy.change") == [(0,)]
    assert not settle(run.source, run.dsn).changed
    carrier.write(run, *removal(NEW))
    assert not carrier.carry(run, base=base)["changed"]
    assert holds(run, NEW) == all_of(0)


def test_nobody_else_sees_the_mark(run: Run, carrier: Carrier, base: str, tmp_path: Path) -> None:
    add(run, NEW)
    carrier.carry(run, base=base)
    assert run.lite(f"SELECT count(*) > 5 FROM {CARRIED}") == [(1,)]
    require_equal(run)
    found = census(run.source, target_dsn=run.dsn)
    assert CARRIED not in found.tables
    assert not any(CARRIED in note for note in (*found.notes, *found.refused))
    script = [sys.executable, str(ROOT / "scripts" / "export_sqlite_data.py")]
    for action in (["export", str(run.source), str(tmp_path / "export")], ["check", str(tmp_path / "export")]):
        subprocess.run([*script, *action], check=True, capture_output=True)
    assert CARRIED not in (tmp_path / "export" / "manifest.json").read_text()


def test_pensieve_runs_and_upgrades_with_the_mark_there(run: Run, carrier: Carrier, base: str) -> None:
    add(run, NEW)
    carrier.carry(run, base=base)
    ((newest,),) = run.lite("SELECT version_num FROM alembic_version")
    change(run.source, "UPDATE alembic_version SET version_num = '31a1ad0e10b3'")
    with run.serving(str(run.source)) as send:
        assert run.lite("SELECT version_num FROM alembic_version") == [(newest,)]
        assert send("GET", f"/entities/{NEW}").body["filepath"] == f"/new/{NEW}"
        assert send("DELETE", f"/libraries/1/entities/{NEW}").status < 400
        assert settle(run.source, run.dsn).settled
        assert send("GET", "/libraries").status == 200
    assert holds(run, NEW)["entities"] == 0
