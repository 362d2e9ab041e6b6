"""Statements in SQLite's SQL give on PostgreSQL what they give on SQLite."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any

import pandas as pd
import postgresql_first
import psycopg2
import pytest
from postgresql_first import Catalog, Translator

from .conftest import Both, plain

TASKS = 'FROM entities e JOIN metadata_entries m ON m.entity_id = e.id AND m."key" = "tasks"'
FILES = "e.filepath LIKE '%.PNG' OR e.filepath LIKE '%.webp'"

QUERIES: dict[str, tuple[str, tuple[Any, ...]]] = {
    "text in double quotes": ('SELECT count(*) FROM metadata_entries WHERE key = "tasks"', ()),
    "several of them": ('SELECT count(*) FROM metadata_entries WHERE key IN ("tasks", \'category\')', ()),
    "a column in double quotes": ('SELECT "value" FROM metadata_entries WHERE "key" = ? ORDER BY "id"', ("tasks",)),
    "its table's name before it": (f'SELECT e."id", m."value" {TASKS} ORDER BY e."id"', ()),
    "a name of the result to sort by": (
        'SELECT key AS k, count(*) AS "n" FROM metadata_entries GROUP BY "k" ORDER BY "n", k',
        (),
    ),
    "placeholders": ("SELECT id FROM entities WHERE id > ? AND id <= ? ORDER BY id LIMIT ?", (3, 30, 5)),
    "a question mark in text": ("SELECT count(*) FROM entities WHERE filepath <> 'what?' AND id > ?", (1,)),
    "a question mark in a comment": ("SELECT count(*) -- why?\nFROM entities /* ? '%s' */ WHERE id > ?", (1,)),
    "an apostrophe in text": ("SELECT count(*) FROM entities WHERE filepath <> 'it''s ?' AND id > ?", (1,)),
    "per cent without parameters": (f"SELECT count(*) FROM entities e WHERE {FILES}", ()),
    "per cent with parameters": (f"SELECT count(*) FROM entities e WHERE ({FILES}) AND id > ?", (1,)),
    "per cent as an operator": ("SELECT count(*) FROM entities WHERE id % 2 = ?", (1,)),
    "LIKE ignores case": ("SELECT count(*) FROM metadata_entries WHERE value LIKE ?", ("%WRITE the%",)),
    "the case of ASCII alone": ("SELECT 'ÉCRIT' LIKE 'Écrit', 'Ab' NOT LIKE ?, 'É' NOT LIKE 'é'", ("aB",)),
    "LIKE has no escape character": ("SELECT count(*) FROM metadata_entries WHERE value LIKE ?", (r"c:\WORK\notes%",)),
    "nor in its text": (r"SELECT count(*) FROM metadata_entries WHERE value LIKE 'c:\work\notes%'", ()),
    "unless it is given one": (r"SELECT count(*) FROM metadata_entries WHERE value LIKE ? ESCAPE '\'", (r"%100\%%",)),
    "a pattern put together": ("SELECT count(*) FROM metadata_entries WHERE value LIKE '%' || ? || '%'", ("PLAN",)),
    "an underscore": ("SELECT count(*) FROM metadata_entries WHERE value LIKE ?", ("%notes_1%",)),
    "datetime": ("SELECT datetime(created_at) FROM entities ORDER BY id LIMIT 3", ()),
    "datetime of the place": ("SELECT datetime(created_at, 'localtime') AS t FROM entities ORDER BY id", ()),
    "datetime between": (
        "SELECT count(*) FROM entities WHERE datetime(file_created_at) BETWEEN ? AND ?",
        ("2025-07-01 06:00:00", "2025-07-01 07:00:00"),
    ),
    "datetime of now": ("SELECT count(*) FROM entities WHERE created_at <= datetime('now', '+1 hour')", ()),
    "datetime earlier": ("SELECT count(*) FROM entities WHERE created_at > datetime('now', '-7 days')", ()),
    "datetime by a parameter": ("SELECT count(*) FROM entities WHERE created_at > datetime('now', ?)", ("-2 hours",)),
    "date": ("SELECT DISTINCT date(file_created_at) AS d FROM entities ORDER BY d", ()),
    "DATE of a parameter": (
        "SELECT count(*) FROM entities WHERE DATE(file_created_at) = DATE(?)",
        ("2025-07-01T23:59:59",),
    ),
    "date of the place": (
        "SELECT count(*) FROM entities e WHERE date(e.file_created_at, 'localtime') = date(?, 'localtime')",
        ("2025-07-01 12:00:00",),
    ),
    "dates between": (
        "SELECT count(*) FROM entities WHERE DATE(file_created_at) >= DATE(?) AND DATE(file_created_at) <= DATE(?)",
        ("2025-06-30", "2025-07-01"),
    ),
    "a date under a column's name": (
        "SELECT count(*) FROM (SELECT '2025-07-01' AS created_at) n, entities e"
        " WHERE date(n.created_at, 'localtime') = date('2025-07-01') AND date(e.file_created_at) <> '2025-07-02'",
        (),
    ),
    "a date within something": (
        "SELECT count(*) FROM entities WHERE '' || date(file_created_at) = ? AND (date(file_created_at) <= ?)",
        ("2025-07-01", "2025-07-01"),
    ),
    "no date at all": ("SELECT date() = date('now'), date('now', 'localtime') >= date()", ()),
    "start of day": ("SELECT datetime(file_created_at, 'start of day') FROM entities ORDER BY id LIMIT 3", ()),
    "strftime": ("SELECT strftime('%Y-%m-%d %H:00', file_created_at) AS h, count(*) FROM entities GROUP BY h", ()),
    "strftime as a number": (
        "SELECT CAST(strftime('%H', datetime(file_created_at, 'localtime')) AS INTEGER) AS hour, count(*) AS n"
        " FROM entities WHERE id > ? GROUP BY hour ORDER BY hour",
        (0,),
    ),
    "ifnull": ("SELECT IFNULL(m.value, 'none') FROM entities e LEFT JOIN metadata_entries m"
               " ON m.entity_id = e.id AND m.key = 'tasks' ORDER BY e.id", ()),
    "equal twice": ("SELECT count(*) FROM entities WHERE id == ?", (3,)),
    "a label that Pensieve does not know": (
        "SELECT count(*) FROM metadata_entries m WHERE m.source_type = 'task_processor'",
        (),
    ),
    "such a label as a parameter": ("SELECT count(*) FROM metadata_entries WHERE source_type = ?", ("ai",)),
    "a label that it knows": ("SELECT count(*) FROM metadata_entries WHERE source_type = 'SYSTEM_GENERATED'", ()),
    "distinct sorted by something else": (
        f"SELECT DISTINCT e.id, m.value AS task {TASKS} ORDER BY e.created_at, e.id",
        (),
    ),
    "distinct sorted by what it selects": ("SELECT DISTINCT key AS k FROM metadata_entries ORDER BY k", ()),
    "tables": ("SELECT count(*) FROM sqlite_master WHERE type='table' AND name IN ('entities', 'tags')", ()),
    "not exists": (
        "SELECT count(*) FROM entities WHERE NOT EXISTS"
        ' (SELECT 1 FROM metadata_entries WHERE entity_id = entities.id AND key = "tasks")',
        (),
    ),
    "union": (
        "SELECT id AS n, 'a' AS kind FROM entities WHERE id < 3 UNION ALL SELECT id, 'b' FROM tags ORDER BY kind, n",
        (),
    ),
    "brackets in text": ("SELECT datetime(')', '+1 day') IS NULL", ()),
}  # fmt: skip
"""What AutoTaskTracker's own queries are made of."""
DIFFERENT = {"brackets in text"}
"""PostgreSQL refuses them where SQLite answers NULL."""


@pytest.mark.parametrize("name", QUERIES)
def test_a_query_answers_as_on_sqlite(name: str, unchanged: Both) -> None:
    query, parameters = QUERIES[name]
    expected = plain(unchanged.sqlite.execute(query, parameters))
    if name in DIFFERENT:
        with pytest.raises(psycopg2.DataError):
            unchanged.postgresql.execute(query, parameters)
        return
    assert plain(unchanged.postgresql.execute(query, parameters)) == expected
    assert expected, "a query that finds nothing proves nothing"
    assert expected != [(0,)]


def test_quotes_mean_text_where_sqlite_takes_a_name_of_the_result(unchanged: Both) -> None:
    query = 'SELECT m.value AS tasks FROM metadata_entries m WHERE m.key = "tasks"'
    assert plain(unchanged.sqlite.execute(query)) == []
    assert len(plain(unchanged.postgresql.execute(query))) == 13


def test_a_place_in_another_zone(unchanged: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    ((here,),) = plain(unchanged.postgresql.execute("SELECT datetime('2025-07-01 20:00:00', 'localtime')"))
    ((there,),) = plain(unchanged.postgresql.execute("SELECT datetime('2025-07-02 05:00:00', 'utc')"))
    assert (here, there) == ("2025-07-02 05:00:00", "2025-07-01 20:00:00")


@pytest.fixture
def st_johns(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Clocks there were set back a minute after midnight, so that a day began, went on with the one before, and began
    again.
    """
    monkeypatch.setenv("TZ", "America/St_Johns")
    time.tzset()
    postgresql_first._translated.cache_clear()
    yield
    monkeypatch.undo()
    time.tzset()
    postgresql_first._translated.cache_clear()


def test_a_day_of_the_place_has_the_same_moments(both: Both, st_johns: None) -> None:
    back = datetime(2010, 11, 7, 2, 31)
    moments = [(str(back + step * timedelta(seconds=20)),) for step in range(-500, 500)]
    moments += [(str(back + step * timedelta(hours=1)),) for step in range(-60, 60)]
    for side in (both.sqlite, both.postgresql):
        side.execute("CREATE TABLE moments (at DATETIME)")
        side.executemany("INSERT INTO moments (at) VALUES (?)", moments)
    counts = set()
    for sign in ("=", "==", "<", "<=", ">", ">="):
        for compared in (f"date(at, 'localtime') {sign} ?", f"DATE( m.at , 'localtime' ) {sign} date(?, 'localtime')",
                         f"date(at) {sign} ?", f"NOT date(at) {sign} DATE(?)"):  # fmt: skip
            for day in ("2010-11-05", "2010-11-06", "2010-11-07", "2010-11-08"):
                query = f"SELECT count(*) FROM moments m WHERE {compared}"
                expected = plain(both.sqlite.execute(query, (day,)))
                assert plain(both.postgresql.execute(query, (day,))) == expected, (compared, day)
                counts.add(expected[0])
    assert len(counts) > 20


def test_a_day_with_something_after_it(unchanged: Both) -> None:
    ((days, rows),) = plain(
        unchanged.postgresql.execute(
            "SELECT count(*) FILTER (WHERE date(file_created_at) = %s::date + 0 AND date(file_created_at)"
            " >= date(%s) - 1), count(*) FROM entities WHERE DATE(file_created_at) >= %s::date",
            ("2025-07-01", "2025-07-01", "2025-07-01"),
        )
    )
    assert days == rows > 0


def test_a_day_is_looked_up_in_the_index_of_the_column(unchanged: Both) -> None:
    today = "date(e.file_created_at, 'localtime') = date('now', 'localtime')"
    unchanged.postgresql.execute("SET enable_seqscan = off")
    try:
        plan = " ".join(
            line for (line,) in plain(unchanged.postgresql.execute(f"EXPLAIN SELECT 1 FROM entities e WHERE {today}"))
        )
    finally:
        unchanged.postgresql.execute("SET enable_seqscan = on")
    assert "Index Cond: ((file_created_at >= " in plan


@pytest.mark.parametrize(
    ("zone", "offset", "expected"),
    [("UTC", 0, "UTC"), ("Europe/Berlin", 0, "Europe/Berlin"), ("<+0530>-5:30", 19800, "<local>-05:30"),
     ("EST5", -18000, "<local>+05:00")],
)  # fmt: skip
def test_the_zone_is_one_that_postgresql_knows(
    zone: str, offset: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Local:
        tm_gmtoff = offset

    monkeypatch.setenv("TZ", zone)
    monkeypatch.setattr("postgresql_first.time.localtime", lambda: Local)
    assert postgresql_first.local_zone() == expected


def insert(both: Both, statement: str, *parameters: Any) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    """Execute on both; what the new metadata is on both, newest first."""
    query = "SELECT entity_id, key, value FROM metadata_entries ORDER BY id DESC LIMIT 3"
    both.sqlite.execute(statement, parameters)
    both.postgresql.execute(statement, parameters)
    return plain(both.sqlite.execute(query)), plain(both.postgresql.execute(query))


COLUMNS = "(entity_id, key, value, source_type, data_type, created_at, updated_at)"
NOW = "datetime('now'), datetime('now')"


@pytest.mark.parametrize("way", ["INSERT INTO", "INSERT OR REPLACE INTO", "INSERT OR IGNORE INTO"])
def test_metadata_is_added_with_labels_that_pensieve_knows(way: str, both: Both) -> None:
    ours, theirs = insert(
        both, f"{way} metadata_entries {COLUMNS} VALUES (?, \"tasks\", ?, 'vlm', 'text', {NOW})", 1, "what? 50%"
    )
    assert ours == theirs
    newest = plain(
        both.postgresql.execute(
            "SELECT source, source_type::text AS a, data_type::text AS b FROM metadata_entries ORDER BY id DESC LIMIT 1"
        )
    )
    assert newest == [("vlm", "PLUGIN_GENERATED", "TEXT_DATA")]


@pytest.mark.parametrize(
    ("source", "label", "kind", "expected"),
    [
        (None, "realtime_processor", "json", ("realtime_processor", "PLUGIN_GENERATED", "JSON_DATA")),
        ("manual_ocr", "plugin", "text", ("manual_ocr", "PLUGIN_GENERATED", "TEXT_DATA")),
        (None, "SYSTEM_GENERATED", "NUMBER_DATA", (None, "SYSTEM_GENERATED", "NUMBER_DATA")),
        (None, "ai", "float", ("ai", "PLUGIN_GENERATED", "NUMBER_DATA")),
    ],
)
def test_labels_as_parameters(
    source: str | None, label: str, kind: str, expected: tuple[str | None, str, str], both: Both
) -> None:
    cursor = both.postgresql.execute(
        "INSERT INTO metadata_entries (entity_id, key, value, source, source_type, data_type)"
        " VALUES (?, 'k', 'v', ?, ?, ?)",
        (1, source, label, kind),
    )
    found = both.postgresql.execute(
        "SELECT source, source_type::text, data_type::text FROM metadata_entries WHERE id = ?", (cursor.lastrowid,)
    )
    assert plain(found) == [expected]


def test_a_label_that_no_one_knows_is_refused(unchanged: Both) -> None:
    with pytest.raises(psycopg2.DataError, match="invalid input value"):
        unchanged.postgresql.execute(
            f"INSERT INTO metadata_entries {COLUMNS} VALUES (1, 'k', 'v', 'ai', 'blob', {NOW})"
        )


def test_or_replace_replaces_what_has_the_same_key(both: Both) -> None:
    columns = "(entity_id, plugin_id, processed_at)"
    statement = f"INSERT OR REPLACE INTO entity_plugin_status {columns} VALUES (?, ?, datetime('now'))"
    count = "SELECT count(*) FROM entity_plugin_status"
    key = tuple(both.sqlite.execute("SELECT entity_id, plugin_id FROM entity_plugin_status").fetchone())
    before = plain(both.sqlite.execute(count))
    for _ in range(2):
        both.sqlite.execute(statement, key)
        both.postgresql.execute(statement, key)
    assert plain(both.sqlite.execute(count)) == plain(both.postgresql.execute(count)) == before


def test_on_conflict_without_such_an_index_changes_or_adds(both: Both) -> None:
    statement = (
        f"INSERT INTO metadata_entries {COLUMNS} VALUES (%s, 'session', %s, 'dual', 'text', NOW(), NOW())"
        " ON CONFLICT (entity_id, key) DO UPDATE SET value = EXCLUDED.value, updated_at = NOW()"
    )
    for value in ("first", "second"):
        both.postgresql.execute(statement, (1, value))
    found = both.postgresql.execute("SELECT value, source FROM metadata_entries WHERE key = 'session'")
    assert plain(found) == [("second", "dual")]


def test_statements_for_postgresql_stay_what_they_are(unchanged: Both) -> None:
    found = unchanged.postgresql.execute(
        "SELECT count(*)::int, %(a)s || '%%' FROM entities WHERE created_at > NOW() - interval '1 day'", {"a": "x"}
    )
    assert plain(found) == [(40, "x%")]
    found = unchanged.postgresql.execute(
        "SELECT key FROM metadata_entries WHERE value LIKE '%%the 100%%' AND id > %s LIMIT 1", (0,)
    )
    assert plain(found) == [("tasks",)]


def test_a_table_of_its_own(both: Both) -> None:
    create = (
        "CREATE TABLE IF NOT EXISTS sessions (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL,"
        " begun DATETIME NOT NULL, share REAL, made DATETIME DEFAULT CURRENT_TIMESTAMP)"
    )
    for connection in (both.sqlite, both.postgresql):
        for _ in range(2):
            connection.execute(create)
        connection.executemany(
            "INSERT INTO sessions (name, begun, share) VALUES (?, ?, ?)",
            [("a", "2025-07-01 10:00:00", 0.5), ("b", "2025-07-01 11:00:00", 1.0)],
        )
    query = 'SELECT id, "name", begun, share FROM sessions ORDER BY "begun"'
    assert plain(both.postgresql.execute(query)) == plain(both.sqlite.execute(query))


def test_rows_answer_to_index_and_name(unchanged: Both) -> None:
    query = "SELECT id, filepath AS Path, created_at FROM entities ORDER BY id LIMIT 1"
    left, right = unchanged.sqlite.execute(query).fetchone(), unchanged.postgresql.execute(query).fetchone()
    assert right["id"] == right[0] == left["id"]
    assert right["PATH"] == right["path"] == left["PATH"]
    assert {name.lower(): value for name, value in dict(right).items()} == {
        name.lower(): value for name, value in dict(left).items()
    }
    assert len(right) == 3
    assert list(right) == list(left)
    with pytest.raises(IndexError):
        right["nothing"]


def test_pandas_reads_it(unchanged: Both) -> None:
    query = "SELECT id, filepath, datetime(created_at) AS t FROM entities WHERE filepath LIKE ? ORDER BY id"
    left = pd.read_sql_query(query, unchanged.sqlite, params=("%screenshot%",))
    right = pd.read_sql_query(query, unchanged.postgresql, params=("%screenshot%",))
    assert len(left) > 0
    assert left.equals(right)


def test_times_of_before_and_after_the_switch_are_alike(both: Both) -> None:
    """SQLite's own clock has no decimals, PostgreSQL's has; pandas takes the first row's form for that of all."""
    oldest = "(SELECT min(id) FROM entities)"
    both.postgresql.execute("UPDATE entities SET created_at = '2025-01-31 12:00:00'")
    rows = both.postgresql.execute("SELECT DISTINCT created_at FROM entities").fetchall()
    assert [tuple(row) for row in rows] == [("2025-01-31 12:00:00",)]
    both.postgresql.execute(f"UPDATE entities SET created_at = '2025-01-31 11:00:00.25' WHERE id > {oldest}")
    query = f"SELECT CASE WHEN id > {oldest} + 1 OR id = {oldest} THEN created_at END AS created_at FROM entities"
    read = pd.read_sql_query(query, both.postgresql)
    assert sorted(set(read["created_at"].dropna())) == ["2025-01-31 11:00:00.250000", "2025-01-31 12:00:00.000000"]
    assert read["created_at"].isna().sum() == 1
    assert pd.to_datetime(read["created_at"]).max() == datetime(2025, 1, 31, 12)


def test_numbers_of_numpy_are_sent(unchanged: Both) -> None:
    number = pd.Series([3]).iloc[0]
    assert plain(unchanged.postgresql.execute("SELECT id FROM entities WHERE id = ?", (number,))) == [(3,)]


def test_dictionaries_for_code_that_asks_for_them(unchanged: Both) -> None:
    cursor = unchanged.postgresql.cursor(cursor_factory=postgresql_first.RealDictCursor)
    cursor.execute("SELECT id, created_at FROM entities WHERE filepath LIKE '%.webp' OR id > %s LIMIT 1", (0,))
    (row,) = cursor.fetchall()
    assert isinstance(row["created_at"], datetime)


def test_pragmas_answer_or_mean_nothing(unchanged: Both) -> None:
    names = [row["name"] for row in unchanged.postgresql.execute("PRAGMA table_info(tags)")]
    assert names == [row["name"] for row in unchanged.sqlite.execute("PRAGMA table_info(tags)")]
    assert unchanged.postgresql.execute("PRAGMA journal_mode=WAL").fetchone() is None


def test_each_statement_is_committed(both: Both) -> None:
    both.postgresql.autocommit = False
    both.postgresql.execute("INSERT INTO tags (name) VALUES (?)", ("kept",))
    with pytest.raises(psycopg2.Error):
        both.postgresql.execute("SELECT nothing FROM nowhere")
    both.postgresql.rollback()
    other = postgresql_first.connect(both.dsn)
    assert plain(other.execute("SELECT count(*) FROM tags WHERE name = 'kept'")) == [(1,)]
    other.close()


def test_a_script_is_executed_to_its_end(both: Both) -> None:
    both.postgresql.executescript("INSERT INTO tags (name) VALUES ('a;b'); -- ;\nINSERT INTO tags (name) VALUES ('c');")
    assert plain(both.postgresql.execute("SELECT name FROM tags ORDER BY id DESC LIMIT 2")) == [("c",), ("a;b",)]


@pytest.mark.parametrize(
    "query", ["SELECT strftime('%Q', created_at) FROM entities", "SELECT date('now', 'weekday 1')"]
)
def test_what_is_not_known_is_refused_and_named(query: str, unchanged: Both) -> None:
    with pytest.raises(psycopg2.NotSupportedError, match="not known here"):
        unchanged.postgresql.execute(query)


def test_too_few_values_are_refused(unchanged: Both) -> None:
    with pytest.raises(psycopg2.ProgrammingError, match="2 placeholders, 1 values"):
        unchanged.postgresql.execute("SELECT ? + ?", (1,))


def test_nothing_is_looked_for_in_text_comments_and_names() -> None:
    made = Translator(Catalog({"t": {"a b": "text"}}, {}), bound=True)
    found = made.translate('SELECT \'LIKE ? "x" %\', "a b" FROM t -- ? LIKE \'x\nWHERE "a b" <> "it\'s" AND 1 = ?')
    assert found.marks == 1
    assert re.sub(r"\s+", " ", found.sql) == (
        "SELECT 'LIKE ? \"x\" %%', \"a b\" FROM t WHERE \"a b\" <> 'it''s' AND 1 = %(p0)s"
    )


def test_a_pattern_is_not_known_when_the_query_is_planned() -> None:
    made = Translator(Catalog({"t": {"a": "text"}}, {}), bound=True)
    found = made.translate("SELECT a FROM t WHERE a LIKE ? OR a LIKE '%' || ? OR a LIKE ? ESCAPE '!' OR a LIKE 'x%'")
    assert found.sql == (
        'SELECT a FROM t WHERE a COLLATE "C" ILIKE (SELECT %(like0)s)'
        """ OR a COLLATE "C" ILIKE '%%' || (SELECT %(like1)s)"""
        """ OR a COLLATE "C" ILIKE %(p2)s ESCAPE '!' OR a COLLATE "C" ILIKE 'x%%'"""
    )


def test_managers_share_connections_and_wait_for_them(unchanged: Both) -> None:
    pools = [postgresql_first.ThreadedConnectionPool(1, 3, unchanged.dsn) for _ in range(4)]

    def use(number: int) -> int:
        pool = pools[number % 4]
        connection = pool.getconn()
        try:
            found: int = connection.execute("SELECT pg_backend_pid() AS pid, pg_sleep(0.01)").fetchone()["pid"]
            return found
        finally:
            pool.putconn(connection)

    with ThreadPoolExecutor(8) as threads:
        assert len(set(threads.map(use, range(64)))) <= 3
    assert pools[0].statistics()["max_connections"] == 3
    for pool in pools:
        pool.closeall()
        pool.closeall()


def test_a_connection_that_the_server_has_closed_is_replaced(unchanged: Both) -> None:
    pool = postgresql_first.ThreadedConnectionPool(1, 2, unchanged.dsn)
    connection = pool.getconn()
    ((old,),) = plain(connection.execute("SELECT pg_backend_pid()"))
    pool.putconn(connection)
    unchanged.postgresql.execute("SELECT pg_terminate_backend(?, 5000)", (old,))
    ((new,),) = plain(pool.getconn().execute("SELECT pg_backend_pid()"))
    assert new != old
    pool.closeall()
