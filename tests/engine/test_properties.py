"""Arbitrary SQLite values in arbitrary columns: copied exactly, or reported; never altered, never an exception."""

from __future__ import annotations

import itertools
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st
from sqlite_to_postgresql.census import census
from sqlite_to_postgresql.copier import copy
from sqlite_to_postgresql.fts import Tokenizer
from sqlite_to_postgresql.model import DEFAULT_POLICY, FindingsError
from sqlite_to_postgresql.verify import verify
from sqlite_to_postgresql.verify_values import read_stamp, source_form, target_form

from engine.server import Server

EXAMPLES = 12
CELLS = {
    "libraries": ["name", "created_at"],
    "folders": ["path", "type", "library_id", "last_modified_at"],
    "tags": ["name", "description", "color", "created_at", "updated_at"],
    "entities": [
        "filepath",
        "filename",
        "size",
        "file_created_at",
        "file_last_modified_at",
        "file_type",
        "last_scan_at",
        "library_id",
        "folder_id",
        "created_at",
    ],
    "entity_tags": ["entity_id", "tag_id", "source", "created_at"],
    "metadata_entries": ["entity_id", "key", "value", "source_type", "source", "data_type", "created_at"],
    "entity_plugin_status": ["entity_id", "plugin_id", "processed_at"],
    "entities_fts_content": ["c0", "c1", "c2", "c3"],
}
ROWS = 16
PLACES = [(table, column) for table, columns in CELLS.items() for column in columns]
INTEGERS = st.one_of(
    st.integers(-3, 40), st.integers(-(2**63), 2**63 - 1), st.sampled_from([2**31 - 1, 2**31, -(2**31)])
)
REALS = st.one_of(st.floats(), st.sampled_from([1.0, 1.5, -0.0, 1e308, 5e-324, 1.7513e9]))
STAMPS = st.one_of(
    st.datetimes().map(str),
    st.datetimes().map(lambda moment: moment.isoformat() + "Z"),
    st.sampled_from(
        [
            "now",
            "today",
            "infinity",
            "2025-07-01",
            "2025-07-01T08:00",
            "2025-07-01 08:00:00+02:00",
            "2025-07-01 08:00:00.1234567",
            "2025-07-01 24:00:00",
            "2025-06-30 23:59:60",
            "0001-01-01 00:00:00",
            "9999-12-31 23:59:59.999999",
            "0000-01-01 00:00:00",
            "01/07/2025",
            "20250701",
            "２０２５-07-01 00:00:00",
            "2025-07-01 00:00:00 ",
            "2025-07-01 00:00:00 BC",
        ]
    ),
)
WORDS = st.sampled_from(
    [
        "",
        " ",
        "\0",
        "a\0b",
        "DEFAULT",
        "default",
        "PLUGIN_GENERATED",
        "plugin",
        "vlm",
        "JSON_DATA",
        "json",
        "float",
        "x" * 3000,
    ]
)
TEXTS = st.one_of(st.text(max_size=30), st.text(alphabet=st.characters(codec="utf-8"), max_size=30), STAMPS, WORDS)
BLOBS = st.one_of(st.binary(max_size=12), st.sampled_from([b"\xff", b"\xed\xa0\x80", b"text", b"a\0b"]))
# (storage class, value): a text is given as bytes, so that it need not be UTF-8.
VALUES = st.one_of(
    st.tuples(st.just("as it is"), st.one_of(st.none(), INTEGERS, REALS)),
    st.tuples(st.just("blob"), BLOBS),
    st.tuples(st.just("text"), st.one_of(TEXTS.map(lambda text: text.encode("utf-8", "surrogatepass")), BLOBS)),
)
CHANGES = st.lists(st.tuples(st.sampled_from(PLACES), st.integers(0, ROWS - 1), VALUES), min_size=1, max_size=40)
POLICIES = st.one_of(
    st.just("strict"),
    st.just("default"),
    st.just(dict.fromkeys(DEFAULT_POLICY, "quarantine")),
    st.fixed_dictionaries({kind: st.sampled_from(["quarantine", "coerce"]) for kind in DEFAULT_POLICY}),
)


@pytest.fixture(scope="module")
def loose(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source whose tables take NULL everywhere but in their keys, and forget that names are unique."""
    database = Path(shutil.copy(small, tmp_path_factory.mktemp("loose") / "database.db"))
    connection = sqlite3.connect(database, isolation_level=None)
    connection.executescript(
        "PRAGMA writable_schema = ON;"
        "UPDATE sqlite_master SET sql = replace(sql, 'NOT NULL', '') WHERE type = 'table'"
        " AND name NOT LIKE 'entities_%' AND name <> 'alembic_version' OR name = 'entities';"
        "PRAGMA writable_schema = RESET;"
    )
    connection.close()
    return database


def soil(database: Path, changes: list[tuple[tuple[str, str], int, tuple[str, Any]]]) -> None:
    """Put the values into the cells, as far as SQLite takes them."""
    connection = sqlite3.connect(database, isolation_level=None)
    for (table, column), row, (storage, value) in changes:
        cast = "CAST(? AS TEXT)" if storage == "text" else "?"
        rowids = [found[0] for found in connection.execute(f"SELECT rowid FROM {table} ORDER BY rowid")]
        try:
            connection.execute(
                f'UPDATE {table} SET "{column}" = {cast} WHERE rowid = ?', (value, rowids[row % len(rowids)])
            )
        except sqlite3.IntegrityError:
            note(f"not taken by SQLite: {table}.{column}")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


@pytest.mark.docker
@pytest.mark.pensieve
def test_values_are_copied_exactly_or_reported(
    loose: Path,
    make_target: Callable[[], str],
    server: Server,
    tokenizer: Tokenizer,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    numbers = itertools.count()
    folder = tmp_path_factory.mktemp("properties")

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(changes=CHANGES, policy=POLICIES)
    def check(changes: list[tuple[tuple[str, str], int, tuple[str, Any]]], policy: Any) -> None:
        database = Path(shutil.copy(loose, folder / f"{next(numbers)}.db"))
        soil(database, changes)
        before = database.read_bytes()
        dsn = make_target()
        try:
            found = census(database, target_dsn=dsn, policy=policy)
            if not found.acceptable():
                with pytest.raises(FindingsError) as stopped:
                    copy(database, dsn, policy)
                assert stopped.value.findings.count() > 0
                return
            copy(database, dsn, policy)
            verdict = verify(database, dsn, tokenizer=tokenizer)
            assert verdict.equal, "\n".join(map(str, verdict.differences[:5]))
            for name, table in verdict.tables.items():
                assert table.source == table.target + table.quarantined, (name, table)
            assert database.read_bytes() == before
        finally:
            server.drop_database(dsn.rpartition("/")[2])
            database.unlink()

    check()


@pytest.mark.docker
def test_what_the_verifier_calls_equal_is_what_the_server_stores(server: Server) -> None:
    """The verifier's reading of source timestamps against PostgreSQL's own, and of numbers of every bit pattern."""
    connection = psycopg2.connect(server.dsn("postgres", "postgres"))
    connection.autocommit = True
    cursor = connection.cursor()
    cursor.execute("SET timezone = 'UTC'; SET datestyle = 'ISO'; SET extra_float_digits = 1")

    @settings(max_examples=300, deadline=None, derandomize=True, database=None)
    @given(st.one_of(STAMPS, st.text(alphabet="0123456789-:. TZ+", max_size=30)))
    def stamps(text: str) -> None:
        read = read_stamp(text)
        if read is None or not read[1]:
            return
        cursor.execute(
            "SELECT %s::timestamp::text, (extract(epoch FROM %s::timestamp) * 1000000)::bigint", (text, text)
        )
        shown, micros = cursor.fetchone() or ("", 0)
        assert read[0] == micros
        assert target_form("timestamp", shown) == source_form("timestamp", text)

    @settings(max_examples=300, deadline=None, derandomize=True, database=None)
    @given(st.floats(allow_nan=False))
    def floats(number: float) -> None:
        cursor.execute("SELECT %s::float8", (number,))
        (back,) = cursor.fetchone() or (None,)
        assert target_form("float8", back) == source_form("float8", number)

    stamps()
    floats()
    connection.close()
