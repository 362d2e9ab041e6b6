"""The change log: which rows of the target others than the copy have added, changed or deleted, by triggers.

The triggers stand from the moment at which a copy shows its tables. What the difference writes itself is taken out of
the log before it commits, so until the cutover the log names rows of others, which nothing may overwrite. From the
cutover on it names the rows that are to be carried back.

Triggers on every table of schema public write the primary keys of touched rows into ``data_copy.change``; values are
not kept, since the rows themselves hold the present ones. A row that is touched again costs a look, no entry. The
functions belong to the owner of the tables and run with that role's rights (SECURITY DEFINER), so that whoever may
write to a table may be noted; every name in them is qualified, so that no search_path changes what they do. Triggers
for each row, not for each statement: the application writes rows singly, and a statement's transition table is joined
with the log by a plan made without statistics.

No trigger survives when its table is dropped and made again (``memos reindex`` with ``--force`` does that with both
search tables): a table without our triggers counts as changed wholly, and so does one that was emptied by TRUNCATE or
that has no primary key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from . import ledger
from .model import EngineError
from .source import fingerprint, quoted
from .target import BOOKKEEPING, Connection, query, run, transaction

LOG = f"{BOOKKEEPING}.change"
#: Bytes of a name that PostgreSQL keeps.
LONGEST_NAME = 63
ROW_TRIGGER, TRUNCATE_TRIGGER = "data_copy_note_row", "data_copy_note_truncate"

_BOOKS = f"""
CREATE SCHEMA IF NOT EXISTS {BOOKKEEPING};
CREATE TABLE IF NOT EXISTS {LOG} (table_name text NOT NULL, key jsonb);
COMMENT ON TABLE {LOG} IS 'Primary keys of rows that others than the copy have touched; key NULL: any row';
CREATE INDEX IF NOT EXISTS change_table_name_key_idx ON {LOG} (table_name, key);
CREATE TABLE IF NOT EXISTS {BOOKKEEPING}.change_log (
    since timestamptz NOT NULL DEFAULT now(),
    source text NOT NULL,
    fingerprint text NOT NULL,
    run_id text NOT NULL,
    tables text[] NOT NULL
);
COMMENT ON TABLE {BOOKKEEPING}.change_log IS 'The source as it was when both sides were equal, and the tables watched';
"""

# Each: the relations of schema public, without those of extensions.
_TABLES = """
    SELECT c.relname,
           (SELECT array_agg(a.attname::text ORDER BY o.n) FROM pg_index i
              CROSS JOIN unnest(i.indkey) WITH ORDINALITY o(num, n)
              JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = o.num
             WHERE i.indrelid = c.oid AND i.indisprimary),
           (SELECT array_agg(pg_get_triggerdef(t.oid)::text) FROM pg_trigger t
             WHERE t.tgrelid = c.oid AND NOT t.tgisinternal AND t.tgenabled = 'O')
      FROM pg_class c
     WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')
       AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.classid = 'pg_class'::regclass
                          AND d.deptype = 'e')
     ORDER BY c.relname
"""


@dataclass(frozen=True)
class Watched:
    """A table of the target: its primary key, and whether our triggers stand on it, as we made them."""

    name: str
    key: tuple[str, ...]
    complete: bool


@dataclass(frozen=True)
class ChangeLog:
    """What the log says. ``rows``: touched keys of each table; ``whole``: tables in which any row may have changed."""

    since: str
    source: str
    fingerprint: str
    rows: dict[str, int]
    whole: list[str]

    @property
    def count(self) -> int:
        """Touched rows, those of tables that changed wholly left out."""
        return sum(self.rows.values())


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _noting(table: str, key: str) -> str:
    """Statements that note a key, unless a committed entry of it is there."""
    return f"""
        noted := {key};
        IF NOT EXISTS (SELECT FROM {LOG} c WHERE c.table_name OPERATOR(pg_catalog.=) {_literal(table)}
                          AND c.key OPERATOR(pg_catalog.=) noted) THEN
            INSERT INTO {LOG} (table_name, key) VALUES ({_literal(table)}, noted);
        END IF;"""


def _whole(table: str) -> str:
    return f"""
        IF NOT EXISTS (SELECT FROM {LOG} c WHERE c.table_name OPERATOR(pg_catalog.=) {_literal(table)}
                          AND c.key IS NULL) THEN
            INSERT INTO {LOG} (table_name) VALUES ({_literal(table)});
        END IF;"""


def _function(name: str, body: str) -> str:
    # A literal: no name in the body ends it, as one could end a dollar quote.
    block = _literal(f"DECLARE noted pg_catalog.jsonb; BEGIN{body} RETURN NULL; END")
    return (
        f"CREATE OR REPLACE FUNCTION {BOOKKEEPING}.{quoted(name)}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER"
        f" AS {block}"
    )


def _name(kind: str, table: str) -> str:
    """Name of a function of a table: with the table's, or where PostgreSQL would cut that off, with a digest of it."""
    name = f"note_{kind}_{table}"
    if len(name.encode()) <= LONGEST_NAME:
        return name
    return f"note_hashed_{kind}_{hashlib.md5(table.encode(), usedforsecurity=False).hexdigest()}"


def _names(table: str) -> tuple[str, str]:
    """Names of the functions of a table."""
    return _name("row", table), _name("truncate", table)


def _statements(table: Watched) -> list[str]:
    """What makes the triggers of one table."""
    row, truncate = _names(table.name)

    def keys(record: str) -> str:
        return f"pg_catalog.jsonb_build_array({', '.join(f'{record}.{quoted(name)}' for name in table.key)})"

    if table.key:
        moved = " OR ".join(f"NEW.{quoted(name)} IS DISTINCT FROM OLD.{quoted(name)}" for name in table.key)
        body = (
            f"\n    IF TG_OP <> 'INSERT' THEN{_noting(table.name, keys('OLD'))}\n    END IF;"
            f"\n    IF TG_OP = 'INSERT' THEN{_noting(table.name, keys('NEW'))}"
            f"\n    ELSIF TG_OP = 'UPDATE' THEN\n    IF {moved} THEN{_noting(table.name, keys('NEW'))}\n    END IF;"
            "\n    END IF;"
        )
    else:
        body = _whole(table.name)
    on = f"ON public.{quoted(table.name)}"
    return [
        _function(row, body),
        _function(truncate, _whole(table.name)),
        f"DROP TRIGGER IF EXISTS {ROW_TRIGGER} {on}",
        f"DROP TRIGGER IF EXISTS {TRUNCATE_TRIGGER} {on}",
        f"CREATE TRIGGER {ROW_TRIGGER} AFTER INSERT OR DELETE OR UPDATE {on}"
        f" FOR EACH ROW EXECUTE FUNCTION {BOOKKEEPING}.{quoted(row)}()",
        f"CREATE TRIGGER {TRUNCATE_TRIGGER} AFTER TRUNCATE {on}"
        f" FOR EACH STATEMENT EXECUTE FUNCTION {BOOKKEEPING}.{quoted(truncate)}()",
    ]


def _is_watched(table: str, definitions: list[str]) -> bool:
    """Whether both triggers of a table are there and call the functions of that table."""
    row, truncate = _names(table)
    wanted = (
        (f"CREATE TRIGGER {ROW_TRIGGER} AFTER INSERT OR DELETE OR UPDATE ", row),
        (f"CREATE TRIGGER {TRUNCATE_TRIGGER} AFTER TRUNCATE ", truncate),
    )
    return all(
        any(
            made.startswith(start)
            and made.endswith((f"{BOOKKEEPING}.{function}()", f"{BOOKKEEPING}.{quoted(function)}()"))
            for made in definitions
        )
        for start, function in wanted
    )


def tables(connection: Connection) -> list[Watched]:
    """Give the tables of schema public."""
    return [
        Watched(name, tuple(key or ()), _is_watched(name, list(definitions or ())))
        for name, key, definitions in query(connection, _TABLES)
    ]


def exists(connection: Connection) -> bool:
    """Tell whether the target keeps a change log."""
    there = query(connection, "SELECT to_regclass(%s) IS NOT NULL", (f"{BOOKKEEPING}.change_log",))[0][0]
    return bool(there and query(connection, f"SELECT 1 FROM {BOOKKEEPING}.change_log"))


def _shown(connection: Connection) -> ledger.Run | None:
    """The copy whose rows the target shows."""
    return next((run for run in ledger.runs(connection) if run.state == "complete"), None)


def _is_of_this_copy(connection: Connection) -> bool:
    """Whether there is a log, and it began after the latest copy."""
    if not exists(connection):
        return False
    shown = _shown(connection)
    sql = f"SELECT 1 FROM {BOOKKEEPING}.change_log WHERE run_id = %s"
    return bool(query(connection, sql, (shown.run_id if shown else "",)))


def is_complete(connection: Connection) -> bool:
    """Tell whether there is a log since the latest copy, and every table is watched."""
    return _is_of_this_copy(connection) and all(table.complete for table in tables(connection))


def watch(connection: Connection) -> None:
    """Have all tables watched and nothing noted, in the transaction that shows a copy. A log of an earlier one ends."""
    _make(connection, tables(connection))
    run(connection, f"TRUNCATE {LOG}, {BOOKKEEPING}.change_log")


def require_ours(connection: Connection, shown: ledger.Run) -> None:
    """Refuse a copy when others have written to its tables since, or may have."""
    if not shown.watched:
        raise _not_ours("a copy that an earlier version of this project has made, whose tables were not watched since")
    if not query(connection, "SELECT to_regclass(%s) IS NOT NULL", (LOG,))[0][0]:
        raise _not_ours(f"a copy whose log of what others write, {LOG}, was dropped")
    sql = f"SELECT table_name, count(DISTINCT key), bool_or(key IS NULL) FROM {LOG} GROUP BY 1"
    rows = {name: "any of the rows" if wholly else f"{count} rows" for name, count, wholly in query(connection, sql)}
    for table in tables(connection):
        if not table.complete:
            rows[table.name] = "any of the rows (made anew, or without its triggers)"
    if rows:
        found = ", ".join(f"{rows[name]} in table {name}" for name in sorted(rows))
        raise _not_ours(f"rows that others have written, changed or deleted since the copy: {found} (keys: {LOG})")


def _not_ours(found: str) -> EngineError:
    return EngineError(
        found,
        "tables to which nobody but the copy has written",
        "the source, and all that others have written",
        "use another database (-e postgres_database=another_name), or drop this one if nothing in it is needed, and run"
        " again",
    )


@contextmanager
def writing(connection: Connection, shown: ledger.Run) -> Iterator[None]:
    """Write to the tables of a copy within the open transaction, and leave none of that in the log.

    Others who write meanwhile wait with their entries for the end of the transaction, so none of them is taken out.
    """
    run(connection, f"LOCK TABLE {LOG} IN EXCLUSIVE MODE")
    require_ours(connection, shown)
    yield
    run(connection, f"DELETE FROM {LOG}")


def install(connection: Connection, source: Path) -> bool:
    """Begin the log of what is to be carried back; False if it has begun already.

    Both sides must be equal at this moment, and nothing may write to either. What a copy has made is watched since:
    others must not have written to it. A log of an earlier copy is begun anew.
    """
    if is_complete(connection):
        return False
    found, fresh, shown = tables(connection), not _is_of_this_copy(connection), _shown(connection)
    with transaction(connection):
        if fresh and shown is not None and shown.watched:
            require_ours(connection, shown)
        else:
            _make(connection, found)
        if fresh:
            run(connection, f"DELETE FROM {BOOKKEEPING}.change_log")
            run(
                connection,
                f"INSERT INTO {BOOKKEEPING}.change_log (source, fingerprint, run_id, tables) VALUES (%s, %s, %s, %s)",
                (str(source), fingerprint(source), shown.run_id if shown else "", [table.name for table in found]),
            )
        else:
            # These were not watched for a while: what happened then is not known.
            for table in found:
                if not table.complete:
                    run(connection, f"INSERT INTO {LOG} (table_name) VALUES (%s)", (table.name,))
    return True


def _make(connection: Connection, found: list[Watched]) -> None:
    """Make the log, and the triggers that are missing."""
    run(connection, _BOOKS)
    for table in found:
        if not table.complete:
            for statement in _statements(table):
                run(connection, statement)


def remove(connection: Connection) -> bool:
    """Drop triggers, functions and log; False if there are none."""
    found = [(table, *_names(table.name)) for table in tables(connection)]
    there = exists(connection) or any(table.complete for table, _, _ in found)
    if not there:
        return False
    with transaction(connection):
        for table, row, truncate in found:
            on = f"ON public.{quoted(table.name)}"
            run(connection, f"DROP TRIGGER IF EXISTS {ROW_TRIGGER} {on}")
            run(connection, f"DROP TRIGGER IF EXISTS {TRUNCATE_TRIGGER} {on}")
            for function in (row, truncate):
                run(connection, f"DROP FUNCTION IF EXISTS {BOOKKEEPING}.{quoted(function)}()")
        run(connection, f"DROP TABLE IF EXISTS {LOG}, {BOOKKEEPING}.change_log")
    return True


def read(connection: Connection) -> ChangeLog | None:
    """Read what the log says; None if the target keeps none."""
    if not exists(connection):
        return None
    since, source, mark = query(
        connection, f"SELECT since::text, source, fingerprint FROM {BOOKKEEPING}.change_log ORDER BY since LIMIT 1"
    )[0]
    found = tables(connection)
    counts = dict(
        query(connection, f"SELECT table_name, count(DISTINCT key) FROM {LOG} WHERE key IS NOT NULL GROUP BY 1")
    )
    marked = {name for (name,) in query(connection, f"SELECT DISTINCT table_name FROM {LOG} WHERE key IS NULL")}
    whole = sorted({table.name for table in found if not table.complete or table.name in marked})
    rows = {table.name: int(counts[table.name]) for table in found if table.name in counts and table.name not in whole}
    return ChangeLog(since, source, mark, rows, whole)
