"""The copy on a real server: dirt met by policy, all or nothing, resume, foreign databases, check mode."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import sqlite_to_postgresql
from sqlite_to_postgresql import change_log, staging
from sqlite_to_postgresql.builder import Builder
from sqlite_to_postgresql.census import census
from sqlite_to_postgresql.copier import copy, predict
from sqlite_to_postgresql.ledger import Entry
from sqlite_to_postgresql.model import DEFAULT_POLICY, CopyResult, EngineError, FindingsError
from sqlite_to_postgresql.target import TargetIndex, connect, query, transaction
from sqlite_to_postgresql.verify import catalog, verify

from engine import server as servers
from engine.conftest import Catalog
from engine.pensieve import OLD_VECTORS, Pensieve
from engine.server import Server

pytestmark = [pytest.mark.docker, pytest.mark.pensieve]

EVERYTHING = dict.fromkeys(DEFAULT_POLICY, "quarantine")

#: Dirt of one kind: SQL for the source; table and column of the finding; what the target holds then under 'coerce'
#: and under 'quarantine' (None: the row is gone, "NULL": the cell is).
DIRT: dict[str, tuple[str, str, str | None]] = {
    "nul_character": (
        "UPDATE metadata_entries SET value = 'a' || char(0) || 'b' WHERE id = 5",
        "metadata_entries",
        "value",
    ),
    "invalid_utf8": (
        "UPDATE metadata_entries SET value = CAST(x'61ff62' AS TEXT) WHERE id = 6",
        "metadata_entries",
        "value",
    ),
    "blob_in_text": ("UPDATE tags SET description = x'c3a9' WHERE id = 1", "tags", "description"),
    "not_an_integer": ("UPDATE entities SET size = 'abc' WHERE id = 3", "entities", "size"),
    "integer_out_of_range": ("UPDATE entities SET size = 3000000000 WHERE id = 4", "entities", "size"),
    "unknown_enum_label": (
        "UPDATE metadata_entries SET source_type = 'stranger' WHERE id = 9",
        "metadata_entries",
        "source_type",
    ),
    "orphaned_foreign_key": ("UPDATE entity_tags SET entity_id = 999999 WHERE id = 1", "entity_tags", "entity_id"),
    "null_in_not_null": (
        "PRAGMA writable_schema = ON; UPDATE sqlite_master"
        " SET sql = replace(sql, 'size INTEGER NOT NULL', 'size INTEGER')"
        " WHERE name = 'entities'; PRAGMA writable_schema = RESET; UPDATE entities SET size = NULL WHERE id = 8",
        "entities",
        "size",
    ),
    "duplicate_key": (
        "PRAGMA writable_schema = ON; UPDATE sqlite_master SET sql = replace(sql, 'UNIQUE (name)', 'CHECK (1)')"
        " WHERE name = 'libraries'; DELETE FROM sqlite_master WHERE name = 'sqlite_autoindex_libraries_1';"
        " PRAGMA writable_schema = RESET; INSERT INTO libraries(id, name) VALUES (70, 'twice'), (71, 'twice')",
        "libraries",
        None,
    ),
    "unreadable_timestamp": ("UPDATE tags SET created_at = 'yesterday' WHERE id = 2", "tags", "created_at"),
    "lossy_timestamp": (
        "UPDATE entities SET last_scan_at = '2025-07-01 12:00:00+02:00' WHERE id = 7",
        "entities",
        "last_scan_at",
    ),
    "vector_length": (
        "UPDATE entities_vec_v2_vector_chunks00 SET vectors = substr(vectors, 1, 3072 * 20 + 8) WHERE rowid = 1",
        "entities_vec_v2",
        "embedding",
    ),
    "vector_not_finite": (
        "UPDATE entities_vec_v2_vector_chunks00"
        " SET vectors = CAST(x'0000c07f' || substr(vectors, 5) AS BLOB) WHERE rowid = 1",
        "entities_vec_v2",
        "embedding",
    ),
    "rowid_without_row": (
        "UPDATE entities_vec_v2_rowids SET chunk_offset = 1000 WHERE rowid = 10",
        "entities_vec_v2",
        None,
    ),
    "index_row_too_large": (
        "UPDATE entities SET filepath = filepath || hex(randomblob(1500)) WHERE id = 12",
        "entities",
        "filepath",
    ),
    "dependent_row": ("UPDATE entities SET folder_id = 999 WHERE id = 20", "metadata_entries", None),
}


def dirty(source: Path, sql: str) -> None:
    """Put dirt into a source, without loading any extension."""
    with closing(sqlite3.connect(source, isolation_level=None)) as connection:
        for statement in sql.split("; "):
            connection.execute(statement)


def rows(dsn: str, sql: str) -> list[tuple[Any, ...]]:
    with closing(psycopg2.connect(dsn)) as connection, connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchall()


def snapshot(dsn: str) -> list[tuple[Any, ...]]:
    """All that a reader of the target can see: objects, definitions, rows and sequences."""
    names = rows(dsn, "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'")
    counts = [(name, rows(dsn, f'SELECT count(*), max(xmin::text::bigint) FROM public."{name}"')) for (name,) in names]
    objects = (
        "SELECT oid, relname, relkind, relnamespace::regnamespace::text FROM pg_class WHERE oid >= 16384 ORDER BY oid"
    )
    return [*counts, *rows(dsn, objects), *rows(dsn, "SELECT sequencename, last_value FROM pg_sequences ORDER BY 1")]


def balanced(result: CopyResult, dsn: str) -> None:
    """Source rows = target rows + rows in quarantine, as the target itself counts them."""
    for name, count in result.tables.items():
        assert count.source == count.target + count.quarantined, name
        assert rows(dsn, f'SELECT count(*) FROM "{name}"') == [(count.target,)], name
        kept = f"SELECT count(*) FROM data_copy.quarantine WHERE source_column IS NULL AND source_table = '{name}'"
        assert rows(dsn, kept) == [(count.quarantined,)], name


def test_clean(source: Path, make_target: Callable[[], str], template: Catalog) -> None:
    """Everything equal, the catalog as Pensieve made it plus one index; a second run changes nothing."""
    dsn = make_target()
    before = source.read_bytes()
    result = copy(source, dsn)
    assert result.changed
    assert result.findings.count() == 0
    balanced(result, dsn)
    assert verify(source, dsn, expected_catalog=template).equal
    after = {
        kind: {n: d for n, d in names.items() if "idx_metadata_active_app" not in n}
        for kind, names in catalog(dsn).items()
    }
    assert after == template
    shown = snapshot(dsn)
    again = copy(source, dsn)
    assert not again.changed
    assert again.tables == result.tables
    assert snapshot(dsn) == shown
    assert source.read_bytes() == before


@pytest.mark.parametrize("kind", sorted(DIRT))
def test_dirt(kind: str, source: Path, make_target: Callable[[], str]) -> None:
    """'fail' stops before anything changed, with the place; 'quarantine' keeps the original, and all else goes over."""
    sql, table, column = DIRT[kind]
    dirty(source, sql)
    dsn = make_target()
    untouched = rows(dsn, "SELECT count(*), max(xmin::text::bigint) FROM libraries")
    seen = census(source, target_dsn=dsn, policy="strict")
    assert (table, column, kind) in {(g.table, g.column, g.kind) for g in seen.findings.groups()}
    assert not seen.acceptable()
    with pytest.raises(FindingsError, match=r"(?s)Found:.*Expected:.*Untouched:.*Next:") as stopped:
        copy(source, dsn, "strict")
    assert stopped.value.findings.as_list() == seen.findings.as_list()
    assert f"{kind} in {table}" in str(stopped.value)
    assert rows(dsn, "SELECT count(*), max(xmin::text::bigint) FROM libraries") == untouched
    assert rows(dsn, "SELECT count(*) FROM entities") == [(0,)]
    assert rows(dsn, "SELECT to_regnamespace('data_copy_staging') IS NULL") == [(True,)]

    result = copy(source, dsn, EVERYTHING)
    balanced(result, dsn)
    kept = rows(dsn, f"SELECT count(*) FROM data_copy.quarantine WHERE kind = '{kind}' AND action = 'quarantine'")
    assert kept[0][0] >= 1
    predicted = census(source, target_dsn=dsn, policy=EVERYTHING)
    assert {name: (c.source, c.target, c.quarantined) for name, c in predicted.tables.items()} == {
        name: (c.source, c.target, c.quarantined) for name, c in result.tables.items()
    }
    found = verify(source, dsn)
    assert found.equal, found.differences[:5]


@pytest.mark.parametrize(
    ("sql", "kind", "held", "expected"),
    [
        (DIRT["nul_character"][0], "nul_character", "SELECT value FROM metadata_entries WHERE id = 5", "a\u2400b"),
        (DIRT["invalid_utf8"][0], "invalid_utf8", "SELECT value FROM metadata_entries WHERE id = 6", "a\ufffdb"),
        (DIRT["blob_in_text"][0], "blob_in_text", "SELECT description FROM tags WHERE id = 1", "é"),
        (
            "UPDATE tags SET created_at = 1751364000 WHERE id = 2",
            "unreadable_timestamp",
            "SELECT created_at::text FROM tags WHERE id = 2",
            "2025-07-01 10:00:00",
        ),
        (
            DIRT["lossy_timestamp"][0],
            "lossy_timestamp",
            "SELECT last_scan_at::text FROM entities WHERE id = 7",
            "2025-07-01 10:00:00",
        ),
    ],
)  # fmt: skip
def test_coerce(sql: str, kind: str, held: str, expected: str, source: Path, make_target: Callable[[], str]) -> None:
    dirty(source, sql)
    dsn = make_target()
    result = copy(source, dsn, {kind: "coerce"})
    balanced(result, dsn)
    assert rows(dsn, held) == [(expected,)]
    kept = rows(dsn, f"SELECT source_column, storage_class, original FROM data_copy.quarantine WHERE kind = '{kind}'")
    assert len(kept) == 1
    assert bytes(kept[0][2]) in {b"a\0b", b"a\xffb", "é".encode(), b"1751364000", b"2025-07-01 12:00:00+02:00"}
    assert verify(source, dsn).equal


def test_labels_of_autotasktracker(source: Path, make_target: Callable[[], str]) -> None:
    """Its labels go over by the mapping; the old label is kept beside it, the NULL that was there in quarantine."""
    dirty(
        source,
        "UPDATE metadata_entries SET source_type = 'vlm_processor', source = NULL, data_type = 'float' WHERE id = 11; "
        "UPDATE metadata_entries SET source_type = 'ai', source = 'kept', data_type = 'json' WHERE id = 12",
    )
    dsn = make_target()
    balanced(copy(source, dsn), dsn)
    held = rows(
        dsn, "SELECT source_type::text, source, data_type::text FROM metadata_entries WHERE id IN (11, 12) ORDER BY id"
    )
    assert held == [("PLUGIN_GENERATED", "vlm_processor", "NUMBER_DATA"), ("PLUGIN_GENERATED", "kept", "JSON_DATA")]
    kept = rows(
        dsn,
        "SELECT source_key ->> 'id', source_column, storage_class, original FROM data_copy.quarantine ORDER BY 1, 2",
    )
    assert [(row[0], row[1], row[2], bytes(row[3])) for row in kept] == [
        ("11", "data_type", "text", b"float"),
        ("11", "source", "null", b""),
        ("11", "source_type", "text", b"vlm_processor"),
        ("12", "data_type", "text", b"json"),
        ("12", "source_type", "text", b"ai"),
    ]
    assert verify(source, dsn).equal


def test_text_that_is_not_utf8_and_infinity_anywhere(source: Path, make_target: Callable[[], str]) -> None:
    """In foreign keys, in full-text entries, in keys of several columns: found, kept exactly, named in jsonb."""
    dirty(
        source,
        "UPDATE entities SET folder_id = CAST(x'e200' AS TEXT) WHERE id = 20; "
        "UPDATE entities SET library_id = 9e999 WHERE id = 21; "
        "UPDATE entities_fts_content SET c1 = CAST(x'61ff' AS TEXT), c2 = CAST(x'fe' AS TEXT) WHERE c0 IN (20, 21); "
        "UPDATE entities_fts_content SET c0 = CAST(x'ff' AS TEXT), c3 = CAST(x'00ff' AS TEXT) WHERE c0 = 22; "
        "UPDATE entities_fts_content SET c0 = 'a' || char(0) WHERE c0 = 23; "
        "UPDATE entities_fts_content SET c0 = 9e999 WHERE c0 = 24; "
        "CREATE TABLE odd_keys (a REAL, b TEXT, PRIMARY KEY (a, b)) WITHOUT ROWID; "
        "INSERT INTO odd_keys VALUES (1e308, 'd' || char(0)), (9e999, 'b' || char(0)), (-9e999, CAST(x'ff00' AS TEXT)),"
        " (1.5, 'c')",
    )
    dsn = make_target()
    assert not census(source, target_dsn=dsn, policy="strict").acceptable()
    result = copy(source, dsn, EVERYTHING)
    balanced(result, dsn)
    assert result.tables["entities_fts"].quarantined == 5
    assert rows(dsn, "SELECT a, b FROM odd_keys") == [(1.5, "c")]
    kept = rows(dsn, "SELECT source_key FROM data_copy.quarantine WHERE source_table = 'odd_keys'")
    assert sorted(row[0]["a"] + " " + row[0]["b"] for row in kept) == ["-inf ff00", "1e+308 d\u2400", "inf b\u2400"]
    found = verify(source, dsn)
    assert found.equal, found.differences[:5]


def test_names_that_are_not_utf8(source: Path, make_target: Callable[[], str]) -> None:
    with closing(sqlite3.connect(source, isolation_level=None)) as connection:
        connection.execute("CREATE TABLE odd (a)")
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute(
            "UPDATE sqlite_master SET sql = CAST('CREATE TABLE odd (a' || x'ff' || ')' AS TEXT) WHERE name = 'odd'"
        )
    with pytest.raises(EngineError, match="definition that is not UTF-8"):
        copy(source, make_target())


def test_too_long_for_full_text(source: Path, make_target: Callable[[], str]) -> None:
    """A tsvector holds at most 1 MB: such an entry goes into quarantine alone, the others of its chunk go over."""
    with closing(sqlite3.connect(source)) as connection:
        words = " ".join(f"word{number}" for number in range(200_000))
        connection.execute("UPDATE metadata_entries SET value = ? WHERE id = 3", (words,))
        connection.commit()
    dsn = make_target()
    with pytest.raises(FindingsError, match="too_long in entities_fts"):
        copy(source, dsn)
    result = copy(source, dsn, {"too_long": "quarantine"})
    balanced(result, dsn)
    assert result.tables["entities_fts"].quarantined == 1


def test_whole_row_comes_back_exactly(source: Path, make_target: Callable[[], str]) -> None:
    dirty(source, "UPDATE entities SET size = 'abc', last_scan_at = x'00ff' WHERE id = 3")
    dsn = make_target()
    result = copy(source, dsn, EVERYTHING)
    balanced(result, dsn)
    with closing(sqlite3.connect(source)) as connection:
        connection.row_factory = sqlite3.Row
        row = dict(connection.execute("SELECT * FROM entities WHERE id = 3").fetchone())
    kept = rows(
        dsn, "SELECT original FROM data_copy.quarantine WHERE source_table = 'entities' AND source_column IS NULL"
    )
    cells = json.loads(bytes(kept[0][0]))
    read = {"text": bytes.decode, "integer": int, "blob": bytes, "null": lambda _: None}
    assert {name: read[cell["class"]](bytes.fromhex(cell["hex"])) for name, cell in cells.items()} == row  # type: ignore[operator]
    children = rows(dsn, "SELECT count(*) FROM data_copy.quarantine WHERE source_table = 'metadata_entries'")
    assert children == [(8,)]
    gone = rows(dsn, "SELECT count(*) FROM entities_vec_v2 WHERE rowid = 3")
    assert gone == [(0,)]
    assert verify(source, dsn).equal


def test_unknown_tables_and_columns(source: Path, make_target: Callable[[], str]) -> None:
    """They are carried over with types derived from SQLite's; their ids go on after the highest ever given."""
    dirty(
        source,
        "CREATE TABLE work_sessions (id INTEGER PRIMARY KEY AUTOINCREMENT, entity_id INTEGER REFERENCES entities(id),"
        " started DATETIME, score REAL, title TEXT NOT NULL, raw BLOB, done BOOLEAN, any_thing); "
        "CREATE INDEX idx_sessions ON work_sessions(title); "
        "INSERT INTO work_sessions VALUES (5, 1, '2025-07-01 10:00:00', 0.1, 'é', x'00ff', 1, 7); "
        "INSERT INTO work_sessions VALUES (9, NULL, NULL, NULL, '', NULL, NULL, NULL); "
        "DELETE FROM work_sessions WHERE id = 9; "
        "CREATE TABLE pairs (a TEXT, b INTEGER, PRIMARY KEY (a, b)) WITHOUT ROWID; "
        "INSERT INTO pairs VALUES ('x', 1), ('x', 2); "
        "ALTER TABLE entities ADD COLUMN mood TEXT; UPDATE entities SET mood = 'calm' WHERE id = 2",
    )
    dsn = make_target()
    result = copy(source, dsn)
    balanced(result, dsn)
    assert any("work_sessions" in note for note in result.notes)
    assert any("entities.mood" in note for note in result.notes)
    held = rows(dsn, "SELECT id, entity_id, started::text, score, title, raw, done, any_thing FROM work_sessions")
    assert [(*row[:5], bytes(row[5]), *row[6:]) for row in held] == [
        (5, 1, "2025-07-01 10:00:00", 0.1, "é", b"\0\xff", True, 7)
    ]
    assert rows(dsn, "SELECT a, b FROM pairs ORDER BY b") == [("x", 1), ("x", 2)]
    assert rows(dsn, "SELECT id FROM entities WHERE mood = 'calm'") == [(2,)]
    assert rows(dsn, "INSERT INTO work_sessions (title) VALUES ('next') RETURNING id") == [(10,)]


def test_vectors_of_a_version_before_0_24(
    source: Path, pensieve: Pensieve, make_target: Callable[[], str], server: Server, template: Catalog
) -> None:
    """Pensieve left its old table of vectors where it was, with those of screenshots that were deleted since."""
    pensieve.run("python", str(OLD_VECTORS), *map(str, [*range(1, 31), 999]), database=str(source))
    dsn = make_target()
    result = copy(source, dsn)
    assert (result.tables["entities_vec"].target, result.tables["entities_vec"].quarantined) == (30, 1)
    assert [note for note in result.notes if note.startswith("table entities_vec is not in Pensieve's schema")]
    assert verify(source, dsn, expected_catalog=template).equal
    for damage, expected in {
        "UPDATE entities_vec SET embedding = (SELECT embedding FROM entities_vec WHERE rowid = 8) WHERE rowid = 7": (
            ("entities_vec", {"rowid": 7}, "embedding")
        ),
        "DELETE FROM entities_vec WHERE rowid = 7": ("entities_vec", {"rowid": 7}, None),
        # Its name begins with that of the old table, which explains nothing of it.
        "CREATE INDEX strange ON entities_vec_v2 (app_name)": ("(catalog)", {"index": "entities_vec_v2.strange"}, None),
    }.items():
        server.run(damage, database=dsn.rpartition("/")[2])
        found = [(d.table, d.key, d.column) for d in verify(source, dsn, expected_catalog=template).differences]
        assert expected in found


def test_indexes_of_autotasktracker(source: Path, make_target: Callable[[], str], template: Catalog) -> None:
    """Indexes that Pensieve does not make are made on the target too, and the verifier knows why they are there."""
    dirty(
        source,
        "CREATE INDEX idx_entities_created_at ON entities(created_at); "
        "CREATE INDEX idx_metadata_entity_key ON metadata_entries(entity_id, key); "
        "CREATE INDEX of_an_expression ON entities(lower(filename))",
    )
    target = make_target()
    result = copy(source, target)
    told = [note for note in result.notes if note.startswith("index ")]
    assert [note.endswith("it is not carried over") for note in sorted(told)] == [False, False, True], told
    made = catalog(target)["index"]
    assert made["entities.idx_entities_created_at"].endswith("USING btree (created_at)")
    assert made["metadata_entries.idx_metadata_entity_key"].endswith("USING btree (entity_id, key)")
    assert verify(source, target, expected_catalog=template).equal
    assert not copy(source, target).changed


@pytest.mark.parametrize(
    ("given", "built", "afterwards"),
    [
        ("m='16', ef_construction='64'", "m='16', ef_construction='128'", "m='16', ef_construction='64'"),
        ("ef_construction='40'", "ef_construction='128'", "ef_construction='40'"),
        ("m='16', ef_construction='400'", "m='16', ef_construction='400'", ""),
        ("m='16'", "m='16'", ""),
    ],
)
def test_graph_of_vectors_is_built_with_more_effort_than_its_definition_says(
    given: str, built: str, afterwards: str
) -> None:
    create = "CREATE INDEX near ON vectors USING hnsw (embedding vector_cosine_ops) WITH ({}) WHERE (library_id = 1)"
    index = TargetIndex("near", create.format(given), "hnsw", False, ("embedding",))
    back = f'; ALTER INDEX data_copy_staging."near" SET ({afterwards})' if afterwards else ""
    assert staging.index_statement(index) == create.format(built) + back


def test_the_server_is_told_to_build_it_so(source: Path, make_target: Callable[[], str], server: Server) -> None:
    target = make_target()
    server.run(f"ALTER DATABASE {target.rpartition('/')[2]} SET log_statement = 'ddl'")
    copy(source, target)
    said = subprocess.run(["docker", "logs", server.container], capture_output=True, text=True, check=True)
    assert "WITH (m='16', ef_construction='128')" in said.stdout + said.stderr


def test_word_lists_stand_in_their_rows(source: Path, make_target: Callable[[], str]) -> None:
    """All but the one that no page holds, which must not be refused."""
    many = " ".join(hashlib.md5(str(number).encode()).hexdigest() for number in range(1000))
    dirty(source, f"UPDATE metadata_entries SET value = '{many}' WHERE id = 1")
    target = make_target()
    copy(source, target)
    assert verify(source, target).equal
    found = rows(
        target,
        "SELECT size > 8000, sum(size), pg_relation_size('entities_fts')"
        " FROM (SELECT pg_column_size(search_vector) AS size FROM entities_fts) sizes GROUP BY 1 ORDER BY 1",
    )
    assert [more for more, _bytes, _table in found] == [False, True]
    assert found[0][1] < found[0][2]


def test_refused_sources(source: Path, make_target: Callable[[], str]) -> None:
    """What is not understood is named, and nothing is copied."""
    dirty(
        source,
        "CREATE VIRTUAL TABLE places USING rtree(id, x1, x2); CREATE TABLE odd (mixed); "
        "INSERT INTO odd VALUES (1), ('a')",
    )
    dsn = make_target()
    with pytest.raises(EngineError) as refused:
        copy(source, dsn)
    assert "places: a virtual table of module rtree" in str(refused.value)
    assert "odd.mixed: no type of PostgreSQL holds all that it does (integer, text)" in str(refused.value)
    assert rows(dsn, "SELECT count(*) FROM entities") == [(0,)]


@pytest.mark.parametrize(
    ("sql", "found"),
    [
        ("CREATE TABLE invoices (id int)", "table invoices"),
        ("CREATE VIEW glance AS SELECT 1", "view glance"),
        ("INSERT INTO tags (name) VALUES ('theirs')", "1 rows .* in table tags"),
        ("INSERT INTO libraries (id, name) VALUES (2, 'theirs')", "1 rows .* in table libraries"),
        ("UPDATE alembic_version SET version_num = 'older'", "schema revision"),
    ],
)
def test_foreign_database(sql: str, found: str, source: Path, make_target: Callable[[], str]) -> None:
    dsn = make_target()
    with closing(psycopg2.connect(dsn)) as connection:
        connection.autocommit = True
        connection.cursor().execute(sql)
    before = snapshot(dsn)
    for attempt in (copy, predict):
        with pytest.raises(EngineError, match=rf"(?s){found}.*Untouched:"):
            attempt(source, dsn)
    assert snapshot(dsn) == before


def refused(source: Path, dsn: str, found: str) -> None:
    """A copy, and the prediction of one, name what others have done; all of it stays."""
    before = snapshot(dsn)
    for attempt in (copy, predict):
        with pytest.raises(EngineError, match=rf"(?s)Found: .*{found}.*Expected: .*Untouched: .*Next: ."):
            attempt(source, dsn)
    assert snapshot(dsn) == before


@pytest.mark.parametrize(
    ("statements", "found"),
    [
        (["INSERT INTO tags (name) VALUES ('new')"], "1 rows in table tags"),
        (["BEGIN", "SAVEPOINT s", "UPDATE tags SET color = 'red' WHERE id < 3", "COMMIT"], "2 rows in table tags"),
        (["DELETE FROM metadata_entries WHERE id = 1"], "1 rows in table metadata_entries"),
        (["TRUNCATE entities_vec_v2"], "any of the rows in table entities_vec_v2"),
        (
            ["DROP TABLE tags CASCADE", "CREATE TABLE tags (id serial PRIMARY KEY, name text)"],
            r"any of the rows \(made anew, or without its triggers\) in table tags",
        ),
        (["ALTER TABLE tags DISABLE TRIGGER USER"], r"any of the rows \(made anew, .* in table tags"),
        (["DROP TABLE data_copy.change"], "data_copy.change, was dropped"),
    ],
)  # fmt: skip
def test_what_others_wrote_since_the_copy_is_not_overwritten(
    statements: list[str], found: str, source: Path, make_target: Callable[[], str]
) -> None:
    dsn = make_target()
    copy(source, dsn)
    dirty(source, "UPDATE tags SET name = 'renamed' WHERE id = 1")
    assert copy(source, dsn).changed, "nobody else wrote"
    assert rows(dsn, "SELECT name FROM tags WHERE id = 1") == [("renamed",)]
    servers.run(dsn, *statements)
    dirty(source, "UPDATE tags SET name = 'again' WHERE id = 1")
    refused(source, dsn, found)


def test_what_others_wrote_while_a_copy_was_made_is_not_overwritten(
    source: Path, make_target: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Into the empty tables, and into those of an earlier copy: found before they go."""
    dsn, fill = make_target(), Builder.fill

    def filled(builder: Builder, done: list[Entry]) -> None:
        servers.run(dsn, "INSERT INTO tags (name) VALUES ('theirs')")
        fill(builder, done)

    with monkeypatch.context() as patched:
        patched.setattr(Builder, "fill", filled)
        with pytest.raises(EngineError, match="1 rows .* in table tags"):
            copy(source, dsn)
    servers.run(dsn, "DELETE FROM tags WHERE name = 'theirs'")
    assert copy(source, dsn).changed
    dirty(source, "UPDATE tags SET name = 'renamed' WHERE id = 1")
    monkeypatch.setattr(Builder, "fill", filled)
    with pytest.raises(EngineError, match="1 rows in table tags"):
        copy(source, dsn)
    assert rows(dsn, "SELECT name FROM tags WHERE name IN ('theirs', 'renamed')") == [("theirs",)]


def test_a_log_that_was_begun_hinders_no_copy_until_somebody_writes(
    source: Path, make_target: Callable[[], str]
) -> None:
    """A cutover that was cut right before the switch, and one after it."""
    dsn = make_target()
    for name in ("one", "two"):
        dirty(source, f"UPDATE tags SET name = '{name}' WHERE id = 1")
        assert copy(source, dsn).changed
        with closing(connect(dsn)) as connection:
            assert change_log.read(connection) is None, "the log of the copy before has ended with its tables"
            assert change_log.install(connection, source)
            assert not change_log.install(connection, source)
    servers.run(dsn, "UPDATE entities SET size = 5 WHERE id = 1")  # Pensieve, after the switch
    dirty(source, "UPDATE tags SET name = 'three' WHERE id = 1")
    refused(source, dsn, "1 rows in table entities")
    with closing(connect(dsn)) as connection:
        found = change_log.read(connection)
    assert found is not None
    assert found.rows == {"entities": 1}


def test_a_log_does_not_begin_where_others_have_written(source: Path, make_target: Callable[[], str]) -> None:
    dsn = make_target()
    copy(source, dsn)
    servers.run(dsn, "DELETE FROM entity_tags WHERE id = 1")
    with closing(connect(dsn)) as connection:
        with pytest.raises(EngineError, match="1 rows in table entity_tags"):
            change_log.install(connection, source)
        assert change_log.read(connection) is None
    assert rows(dsn, "SELECT table_name, key FROM data_copy.change") == [("entity_tags", [1])]


@pytest.mark.parametrize("prepared", [True, False])
def test_a_copy_of_an_earlier_version_is_not_overwritten(
    prepared: bool, source: Path, make_target: Callable[[], str]
) -> None:
    """It noted no one's rows, or those of its own difference too: nobody can tell whose they are."""
    dsn = make_target()
    copy(source, dsn)
    servers.run(
        dsn,
        "UPDATE data_copy.run SET result = result - 'watched'",
        "ALTER TABLE data_copy.run ADD COLUMN boundary text",
        "UPDATE data_copy.run SET boundary = (pg_current_xact_id()::text::bigint + 1)::text",
        "UPDATE tags SET color = 'red' WHERE id = 1",
    )
    if not prepared:
        with closing(connect(dsn)) as connection:
            assert change_log.remove(connection)
    assert not copy(source, dsn).changed, "of the same source there is nothing to do"
    dirty(source, "UPDATE tags SET name = 'renamed' WHERE id = 1")
    refused(source, dsn, "an earlier version of this project")


def test_check_mode_changes_nothing(source: Path, make_target: Callable[[], str]) -> None:
    dsn = make_target()
    before, content = snapshot(dsn), source.read_bytes()
    prediction = predict(source, dsn)
    census(source, target_dsn=dsn)
    assert prediction.changed
    assert prediction.before["entities"] == 0
    assert snapshot(dsn) == before
    assert source.read_bytes() == content
    result = copy(source, dsn)
    assert {name: count.target for name, count in result.tables.items()} == {
        name: count.target for name, count in prediction.census.tables.items()
    }
    assert not predict(source, dsn).changed


ENGINE = str(Path(sqlite_to_postgresql.__file__).parent.parent)


@pytest.fixture
def started(filled: Path, make_target: Callable[[], str]) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A copy in a process group of its own, which a test may kill."""
    dsn = make_target()
    process = subprocess.Popen(
        [sys.executable, "-m", "sqlite_to_postgresql", "copy", "--source", str(filled), "--target", dsn],
        env={**os.environ, "PYTHONPATH": ENGINE},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    yield dsn, process
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.parametrize("moment", ["load:", "index:", "full text:", "show:"])
def test_killed_and_resumed(
    moment: str, started: tuple[str, subprocess.Popen[str]], filled: Path, template: Catalog
) -> None:
    """Killed in any phase, readers see the empty tables; the next run goes on and ends equal."""
    dsn, process = started
    assert process.stderr is not None
    reached = any(line.startswith(moment) for line in process.stderr)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert reached, f"the copy never came to {moment}"
    if rows(dsn, "SELECT count(*) FROM data_copy.run WHERE state = 'complete'") == [(0,)]:
        assert rows(dsn, "SELECT count(*) FROM entities") == [(0,)]
    runs = rows(dsn, "SELECT run_id FROM data_copy.run")
    deadline = time.monotonic() + 30
    while rows(dsn, "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'data_copy'") != [(0,)]:
        assert time.monotonic() < deadline, "the server still works for the killed copy"
    result = copy(filled, dsn)
    assert [(result.run_id,)] == runs
    balanced(result, dsn)
    assert verify(filled, dsn, expected_catalog=template).equal


def test_of_a_lost_session_the_first_error_is_told(make_target: Callable[[], str]) -> None:
    connection = connect(make_target())
    with pytest.raises(psycopg2.OperationalError, match="server closed the connection"), transaction(connection):
        query(connection, "SELECT pg_terminate_backend(pg_backend_pid())")
    assert connection.closed
