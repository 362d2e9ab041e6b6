"""The dirt that real files hold: every kind is found before anything changes, and met as the policy says."""

from __future__ import annotations

import hashlib
import math
import shutil
import sqlite3
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from sqlite_to_postgresql.census import census
from sqlite_to_postgresql.copier import copy
from sqlite_to_postgresql.fts import Tokenizer
from sqlite_to_postgresql.model import DEFAULT_POLICY, FindingsError
from sqlite_to_postgresql.verify import VerifyResult, verify

from engine.conftest import Catalog
from engine.server import Server

pytestmark = [pytest.mark.docker, pytest.mark.pensieve]

NOW = "2025-07-01 00:00:00"
# What later versions of Pensieve make: unique paths, columns of limited length.
NEWER = [
    "ALTER TABLE entities ADD CONSTRAINT uq_library_filepath UNIQUE (library_id, filepath)",
    "ALTER TABLE tags ALTER color TYPE varchar(16)",
]
DIMENSIONS = 768


@dataclass(frozen=True)
class Dirt:
    """`make` soils a source; the census must then report `kind` in `table`.`column` (None: the row)."""

    kind: str
    table: str
    column: str | None
    make: Callable[[sqlite3.Connection], None]
    note: str


def change(kind: str, table: str, column: str, key: int, value: Any, note: str = "", cast: bool = False) -> Dirt:
    """A cell gets a value. `cast`: bytes become text as they are."""

    def make(source: sqlite3.Connection) -> None:
        marker = "CAST(? AS TEXT)" if cast else "?"
        found = source.execute(f"UPDATE {table} SET {column} = {marker} WHERE rowid = ?", (value, key))
        assert found.rowcount == 1

    return Dirt(kind, table, column, make, note or repr(value)[:30])


def statement(kind: str, table: str, column: str | None, note: str, *statements: str) -> Dirt:
    """Something that is said in SQL."""

    def make(source: sqlite3.Connection) -> None:
        for sql in statements:
            source.execute(sql)

    return Dirt(kind, table, column, make, note)


def soil_vector(kind: str, offset: int, note: str, change_blob: Callable[[bytes], bytes]) -> Dirt:
    """The blob of the only chunk of vectors is changed."""

    def make(source: sqlite3.Connection) -> None:
        chunk, blob = source.execute("SELECT rowid, vectors FROM entities_vec_v2_vector_chunks00").fetchone()
        source.execute(
            "UPDATE entities_vec_v2_vector_chunks00 SET vectors = ? WHERE rowid = ?", (change_blob(blob), chunk)
        )

    return Dirt(kind, "entities_vec_v2", "embedding", make, f"{note} at {offset}")


def with_number(offset: int, number: float) -> Callable[[bytes], bytes]:
    """Puts a number into the vector at an offset of the chunk."""
    start = offset * DIMENSIONS * 4
    return lambda blob: blob[:start] + struct.pack("<f", number) + blob[start + 4 :]


def drop_not_null(table: str, column: str, type_name: str) -> tuple[str, ...]:
    """SQLite forgets that a column is NOT NULL."""
    old, new = f"{column} {type_name} NOT NULL", f"{column} {type_name}"
    return (
        "PRAGMA writable_schema = ON",
        f"UPDATE sqlite_master SET sql = replace(sql, '{old}', '{new}') WHERE name = '{table}'",
        "PRAGMA writable_schema = RESET",
    )


def drop_unique_path() -> tuple[str, ...]:
    """SQLite forgets that paths are unique, where a later version of Pensieve (from 0.32 on) has made them so."""
    rule = "CONSTRAINT entities_library_filepath_unique UNIQUE (library_id, filepath), "
    return (
        "PRAGMA writable_schema = ON",
        f"UPDATE sqlite_master SET sql = replace(sql, '{rule}', '') WHERE name = 'entities'",
        "DELETE FROM sqlite_master WHERE name = 'sqlite_autoindex_entities_1'",
        "PRAGMA writable_schema = RESET",
    )


LONG_PATH = "/" + "".join(chr(0x4E00 + (7919 * n) % 20_000) for n in range(3_000))
DIRT = [
    change("nul_character", "metadata_entries", "value", 81, "a\0b\0"),
    change("invalid_utf8", "metadata_entries", "value", 82, b"ok \xff\xfe", cast=True),
    change("invalid_utf8", "metadata_entries", "value", 83, b"\xed\xa0\x80 surrogate", cast=True),
    change("blob_in_text", "metadata_entries", "value", 84, b"bytes"),
    change("unknown_enum_label", "metadata_entries", "source_type", 85, "task_processor"),
    change("unknown_enum_label", "metadata_entries", "data_type", 86, "float"),
    change("unknown_enum_label", "metadata_entries", "data_type", 87, "json_data"),
    statement(
        "unknown_enum_label",
        "metadata_entries",
        "source_type",
        "label of AutoTaskTracker, source NULL",
        "UPDATE metadata_entries SET source_type = 'vlm', data_type = 'text', source = NULL WHERE id = 88",
    ),
    change("not_an_integer", "entities", "size", 1, "abc"),
    change("not_an_integer", "entities", "size", 2, 1.5),
    change("not_an_integer", "entities", "size", 3, ""),
    change("integer_out_of_range", "entities", "size", 4, 3_000_000_000),
    change("unreadable_timestamp", "entities", "created_at", 1, "garbage"),
    change("unreadable_timestamp", "entities", "updated_at", 1, ""),
    change("unreadable_timestamp", "entities", "last_scan_at", 9, 1_751_328_000),
    change("unreadable_timestamp", "entities", "last_scan_at", 10, 1_751_328_000.25),
    change("unreadable_timestamp", "entities", "last_scan_at", 11, "20250701"),
    change("unreadable_timestamp", "entities", "last_scan_at", 5, "now"),
    change("unreadable_timestamp", "entities", "last_scan_at", 6, "01/07/2025"),
    change("unreadable_timestamp", "entities", "last_scan_at", 7, "0000-00-00 00:00:00"),
    change("unreadable_timestamp", "entities", "last_scan_at", 8, "2025-02-29 00:00:00"),
    change("lossy_timestamp", "entities", "file_created_at", 1, "2025-07-01 08:00:00+02:00"),
    change("lossy_timestamp", "entities", "file_created_at", 2, "2025-07-01 08:00:00.123456789"),
    change("index_row_too_large", "entities", "filepath", 5, LONG_PATH, "path of 9 kB"),
    statement(
        "duplicate_key",
        "entities",
        None,
        "same path twice",
        *drop_unique_path(),
        "UPDATE entities SET filepath = (SELECT filepath FROM entities WHERE id = 7) WHERE id = 6",
    ),
    statement(
        "null_in_not_null",
        "plugins",
        "webhook_url",
        "NULL webhook",
        *drop_not_null("plugins", "webhook_url", "VARCHAR"),
        f"INSERT INTO plugins(id, name, created_at, updated_at) VALUES (70, 'broken', '{NOW}', '{NOW}')",
    ),
    statement(
        "dependent_row",
        "library_plugins",
        None,
        "refers to the plugin with NULL",
        "INSERT INTO library_plugins(id, library_id, plugin_id, created_at, updated_at)"
        f" VALUES (70, 1, 70, '{NOW}', '{NOW}')",
    ),
    statement(
        "orphaned_foreign_key",
        "entity_tags",
        None,
        "no such entity",
        "INSERT INTO entity_tags(entity_id, tag_id, source, created_at, updated_at)"
        f" VALUES (9999, 1, 'USER_GENERATED', '{NOW}', '{NOW}')",
    ),
    statement(
        "rowid_without_row",
        "entities_vec_v2",
        None,
        "vector and full text of an entity that is gone",
        "DELETE FROM metadata_entries WHERE entity_id = 12",
        "DELETE FROM entity_tags WHERE entity_id = 12",
        "DELETE FROM entity_plugin_status WHERE entity_id = 12",
        "DELETE FROM entities WHERE id = 12",
    ),
    soil_vector("vector_not_finite", 12, "NaN", with_number(12, math.nan)),
    soil_vector("vector_not_finite", 13, "infinity", with_number(13, math.inf)),
    change("too_long", "tags", "color", 1, "x" * 40, "40 characters"),
]  # fmt: skip

# A chunk of vectors that is too short: no vector of it is safe to read, so it spoils what is tested with others.
CUT_OFF = soil_vector("vector_length", 10, "chunk cut off", lambda blob: blob[: 10 * DIMENSIONS * 4 + 100])


@pytest.fixture(scope="module")
def dirty(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of it in one file."""
    database = Path(shutil.copy(small, tmp_path_factory.mktemp("dirty") / "database.db"))
    connection = sqlite3.connect(database, isolation_level=None)
    for dirt in DIRT:
        dirt.make(connection)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    return database


def target_of(server: Server, make_target: Callable[[], str]) -> str:
    """A target as later versions make it."""
    dsn = make_target()
    server.run(*NEWER, database=dsn.rpartition("/")[2])
    return dsn


def digest(file: Path) -> str:
    """Of the bytes of a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def state(dsn: str) -> list[Any]:
    """All rows of all tables of a target, roughly."""
    connection = psycopg2.connect(dsn)
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'")
            found = []
            for (table,) in sorted(cursor.fetchall()):
                cursor.execute(f'SELECT t::text FROM public."{table}" t ORDER BY 1')
                found.append((table, cursor.fetchall()))
            return found
    finally:
        connection.close()


def told(result: VerifyResult) -> str:
    """What an assertion shows."""
    return "\n".join(str(difference) for difference in result.differences[:10])


def test_every_kind_is_in_the_corpus() -> None:
    assert {dirt.kind for dirt in [*DIRT, CUT_OFF]} == set(DEFAULT_POLICY)


def test_census_finds_everything_and_changes_nothing(
    dirty: Path, server: Server, make_target: Callable[[], str]
) -> None:
    dsn = target_of(server, make_target)
    before = digest(dirty), state(dsn)
    found = census(dirty, target_dsn=dsn, policy="strict")
    assert (digest(dirty), state(dsn)) == before
    groups = {(group.kind, group.table, group.column) for group in found.findings.groups()}
    places = {(group.kind, group.table) for group in found.findings.groups()}
    for dirt in DIRT:
        assert (dirt.kind, dirt.table) in places, dirt.note
        if dirt.column is not None:
            assert (dirt.kind, dirt.table, dirt.column) in groups, dirt.note
    assert not found.acceptable()


@pytest.mark.parametrize("dirt", [*DIRT, CUT_OFF], ids=lambda dirt: f"{dirt.kind}: {dirt.note}"[:50])
def test_strict_stops_before_anything_changes(
    dirt: Dirt, small: Path, tmp_path: Path, server: Server, template_target: str
) -> None:
    """Each piece of dirt alone."""
    database = Path(shutil.copy(small, tmp_path / "database.db"))
    connection = sqlite3.connect(database, isolation_level=None)
    if dirt.kind == "dependent_row":
        next(other for other in DIRT if other.kind == "null_in_not_null").make(connection)
    dirt.make(connection)
    connection.close()
    found = census(database, target_dsn=template_target, policy="strict")
    assert dirt.kind in {group.kind for group in found.findings.groups()}


@pytest.fixture(scope="module")
def template_target(server: Server, make_target: Callable[[], str]) -> str:
    """One for tests that change nothing."""
    return target_of(server, make_target)


def test_strict_copy_leaves_the_target_as_it_was(dirty: Path, server: Server, make_target: Callable[[], str]) -> None:
    dsn = target_of(server, make_target)
    before = state(dsn)
    with pytest.raises(FindingsError, match="untouched|Untouched") as caught:
        copy(dirty, dsn, "strict")
    assert state(dsn) == before
    assert caught.value.findings.count() >= len(DIRT)


@pytest.mark.parametrize("action", ["quarantine", "coerce"])
def test_nothing_is_lost(
    action: str, dirty: Path, server: Server, make_target: Callable[[], str], template: Catalog, tokenizer: Tokenizer
) -> None:
    """With every kind let through, what is not equal is in quarantine, exactly."""
    dsn = target_of(server, make_target)
    policy = dict.fromkeys(DEFAULT_POLICY, "quarantine")
    if action == "coerce":
        policy.update(
            nul_character="coerce",
            unknown_enum_label="coerce",
            blob_in_text="coerce",
            invalid_utf8="coerce",
            lossy_timestamp="coerce",
            too_long="coerce",
        )
    result = copy(dirty, dsn, policy)
    verdict = verify(dirty, dsn, tokenizer=tokenizer)
    assert verdict.equal, told(verdict)
    for name, table in verdict.tables.items():
        assert table.source == table.target + table.quarantined, name
    assert {name: count.target for name, count in result.tables.items() if name in verdict.tables} == {
        name: table.target for name, table in verdict.tables.items() if name in result.tables
    }
    database = dsn.rpartition("/")[2]
    for what, damage in {
        "an original changed": "UPDATE data_copy.quarantine SET original = original || 'x' WHERE id ="
        " (SELECT min(id) FROM data_copy.quarantine WHERE source_column IS NOT NULL)",
        "a row's original changed": "UPDATE data_copy.quarantine SET original = overlay(original PLACING"
        " convert_to('f', 'UTF8') FROM position(convert_to('\"hex\": \"', 'UTF8') IN original) + 8) WHERE id ="
        " (SELECT min(id) FROM data_copy.quarantine WHERE source_table = 'entity_tags')",
        "an entry lost": "DELETE FROM data_copy.quarantine WHERE id = (SELECT max(id) FROM data_copy.quarantine"
        " WHERE source_table = 'metadata_entries')",
        "a converted value changed": "UPDATE entities SET last_scan_at = '2025-07-01' WHERE id = 9",
        "a row came back": "INSERT INTO entity_tags(id, entity_id, tag_id, source, created_at, updated_at)"
        f" SELECT (source_key->>'id')::integer, 9, 1, 'USER_GENERATED', '{NOW}', '{NOW}' FROM data_copy.quarantine"
        " WHERE source_table = 'entity_tags' AND kind = 'orphaned_foreign_key'",
    }.items():
        copied = f"{database}_damaged"
        server.run(f'CREATE DATABASE "{copied}" TEMPLATE "{database}"')
        server.run(damage, database=copied)
        assert not verify(dirty, server.dsn(copied), tokenizer=tokenizer).equal, what
        server.drop_database(copied)


def test_numbers_of_time_are_converted(
    small: Path, tmp_path: Path, make_target: Callable[[], str], tokenizer: Tokenizer
) -> None:
    """Seconds, with a fraction, milliseconds, and a date that SQLite has made a number."""
    database = Path(shutil.copy(small, tmp_path / "database.db"))
    connection = sqlite3.connect(database, isolation_level=None)
    numbers = [1_751_328_000, 1_751_328_000.25, 1_751_328_000_123, "20250701"]
    for entity, number in enumerate(numbers, start=1):
        change("unreadable_timestamp", "entities", "last_scan_at", entity, number).make(connection)
    connection.close()
    dsn = make_target()
    copy(database, dsn, {"unreadable_timestamp": "coerce"})
    assert verify(database, dsn, tokenizer=tokenizer).equal
    rows = dict(state(dsn))["entities"]
    expected = ["2025-07-01 00:00:00", "2025-07-01 00:00:00.25", "2025-07-01 00:00:00.123", "2025-07-01 00:00:00"]
    for stamp in expected:
        assert any(f'"{stamp}"' in row[0] for row in rows), stamp
