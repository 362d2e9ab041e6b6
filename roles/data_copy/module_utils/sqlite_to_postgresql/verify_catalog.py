"""Definitions, constraints, indexes and sequences of the target."""

from __future__ import annotations

import hashlib
import sqlite3

import psycopg2.extensions

from .verify_sides import Differences, open_target
from .verify_values import quoted

# Missing in Pensieve's PostgreSQL schema, made by the copy when the source has them: index → definition.
MADE_INDEXES = {
    "metadata_entries.idx_metadata_active_app": "CREATE INDEX idx_metadata_active_app ON public.metadata_entries"
    " USING btree (key, entity_id, value) WHERE ((key)::text = 'active_app'::text)"
}

# Triggers of the change log: name → definition, by the table's name. They come and go with the tables of a copy, so
# they belong to no catalog.
NOTING_TRIGGERS = {
    "data_copy_note_row": "CREATE TRIGGER data_copy_note_row AFTER INSERT OR DELETE OR UPDATE ON public.{table}"
    " FOR EACH ROW EXECUTE FUNCTION data_copy.{function}()",
    "data_copy_note_truncate": "CREATE TRIGGER data_copy_note_truncate AFTER TRUNCATE ON public.{table}"
    " FOR EACH STATEMENT EXECUTE FUNCTION data_copy.{function}()",
}

_IN_PUBLIC = "n.nspname = 'public' AND NOT EXISTS (SELECT FROM pg_depend x WHERE x.objid = {} AND x.deptype = 'e')"
_CATALOG = {
    "column": (
        "SELECT format('%s.%s', c.relname, a.attname),"
        " format('%s%s%s%s', format_type(a.atttypid, a.atttypmod),"
        " CASE WHEN a.attnotnull THEN ' NOT NULL' END, ' DEFAULT ' || pg_get_expr(d.adbin, d.adrelid),"
        " CASE WHEN a.attgenerated <> '' THEN ' GENERATED' END)"
        " FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid"
        " JOIN pg_namespace n ON n.oid = c.relnamespace"
        " LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum"
        " WHERE c.relkind IN ('r', 'p') AND a.attnum > 0 AND NOT a.attisdropped"
        f" AND {_IN_PUBLIC.format('c.oid')}"
    ),
    "constraint": (
        "SELECT format('%s.%s', c.relname, k.conname), pg_get_constraintdef(k.oid)"
        " FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid"
        " JOIN pg_namespace n ON n.oid = c.relnamespace"
        f" WHERE {_IN_PUBLIC.format('c.oid')}"
    ),
    "index": (
        "SELECT format('%s.%s', t.relname, c.relname), pg_get_indexdef(i.indexrelid)"
        " FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_class t ON t.oid = i.indrelid"
        f" JOIN pg_namespace n ON n.oid = t.relnamespace WHERE {_IN_PUBLIC.format('t.oid')}"
    ),
    "sequence": (
        "SELECT c.relname, format('%s from %s by %s owned by %s.%s', format_type(s.seqtypid, NULL),"
        " s.seqstart, s.seqincrement, t.relname, a.attname)"
        " FROM pg_sequence s JOIN pg_class c ON c.oid = s.seqrelid"
        " JOIN pg_namespace n ON n.oid = c.relnamespace"
        " LEFT JOIN pg_depend o ON o.objid = c.oid AND o.deptype IN ('a', 'i') AND o.refobjsubid > 0"
        " LEFT JOIN pg_class t ON t.oid = o.refobjid"
        " LEFT JOIN pg_attribute a ON a.attrelid = o.refobjid AND a.attnum = o.refobjsubid"
        f" WHERE {_IN_PUBLIC.format('c.oid')}"
    ),
    "enum": (
        "SELECT t.typname, string_agg(e.enumlabel, ', ' ORDER BY e.enumsortorder) FROM pg_enum e"
        " JOIN pg_type t ON t.oid = e.enumtypid JOIN pg_namespace n ON n.oid = t.typnamespace"
        f" WHERE {_IN_PUBLIC.format('t.oid')}"
        " GROUP BY t.typname"
    ),
    "other": (
        "SELECT c.relname::text, format('relation of kind %s', c.relkind) FROM pg_class c"
        " JOIN pg_namespace n ON n.oid = c.relnamespace"
        f" WHERE c.relkind NOT IN ('r', 'p', 'i', 'S', 't', 'c', 'I') AND {_IN_PUBLIC.format('c.oid')}"
        " UNION ALL SELECT format('%s.%s', c.relname, g.tgname), pg_get_triggerdef(g.oid) FROM pg_trigger g"
        " JOIN pg_class c ON c.oid = g.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace"
        f" WHERE NOT g.tgisinternal AND {_IN_PUBLIC.format('c.oid')}"
    ),
    "owner": (
        "SELECT c.relname, pg_get_userbyid(c.relowner) FROM pg_class c"
        " JOIN pg_namespace n ON n.oid = c.relnamespace"
        f" WHERE c.relkind IN ('r', 'p', 'S') AND {_IN_PUBLIC.format('c.oid')}"
    ),
}


def catalog(dsn: str, passfile: str | None = None) -> dict[str, dict[str, str]]:
    """Definitions in schema public: kind → name → definition. Taken after the schema step, it is what
    `verify` takes as `expected_catalog`. Plain data for JSON; nothing in it depends on the rows.
    """
    connection = open_target(dsn, passfile)
    try:
        return read_catalog(connection)
    finally:
        connection.close()


def read_catalog(connection: psycopg2.extensions.connection) -> dict[str, dict[str, str]]:
    result = {}
    with connection.cursor() as cursor:
        for kind, query in _CATALOG.items():
            cursor.execute(query)
            result[kind] = {
                name: definition for name, definition in sorted(cursor.fetchall()) if not _is_noting(name, definition)
            }
    return result


def _is_noting(name: str, definition: str) -> bool:
    """Whether this is a trigger of the change log, just as that makes it."""
    table, _, own = name.rpartition(".")
    function = own.removeprefix("data_copy_") + f"_{table}"
    if len(function.encode()) > 63:
        digest = hashlib.md5(table.encode(), usedforsecurity=False).hexdigest()
        function = own.replace("data_copy_note_", "note_hashed_") + f"_{digest}"
    expected = NOTING_TRIGGERS.get(own, "").format(table=table, function=function)
    # PostgreSQL quotes names where they need it.
    return definition.replace('"', "") == expected.replace('"', "")


def compare_catalogs(
    found: dict[str, dict[str, str]],
    expected: dict[str, dict[str, str]] | None,
    source_tables: set[str],
    source_indexes: set[str],
    findings: Differences,
) -> int:
    """Every expected definition must be there, unchanged; nothing else, but what the source's own extras explain.
    Without an expected catalog, only the indexes that the copy makes itself.
    """
    compared = 0
    known = {name.partition(".")[0] for name in (expected or {}).get("column", {})}
    made = {name: definition for name, definition in MADE_INDEXES.items() if name.partition(".")[2] in source_indexes}
    wanted = {**(expected or {}), "index": {**made, **(expected or {}).get("index", {})}}
    for kind, definitions in wanted.items():
        for name, definition in definitions.items():
            compared += 1
            if found.get(kind, {}).get(name) != definition:
                key = {kind: name}
                findings.add(
                    "(catalog)",
                    key,
                    None,
                    definition,
                    found.get(kind, {}).get(name),
                    f"{kind} is not as made",
                )
    for kind, definitions in found.items() if expected else ():
        for name, definition in definitions.items():
            if name in wanted.get(kind, {}):
                continue
            table, _, own = name.partition(".")
            if table not in known and any(f"{table}_".startswith(f"{extra}_") for extra in source_tables - known):
                continue
            if kind == "index" and own in source_indexes:
                continue
            findings.add("(catalog)", {kind: name}, None, None, definition, f"{kind} that nothing asked for")
    return compared


def check_states(connection: psycopg2.extensions.connection, findings: Differences, *, orphans: bool = True) -> int:
    """Constraints validated and enforced, indexes valid, foreign keys without orphans. Without `orphans` the server is
    believed that a validated, enforced foreign key has none: looking takes time that grows with the tables.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT 'constraint', conrelid::regclass::text, conname FROM pg_constraint WHERE NOT convalidated"
            " UNION ALL SELECT 'index', indrelid::regclass::text, indexrelid::regclass::text FROM pg_index"
            " WHERE NOT (indisvalid AND indisready AND indislive)"
            " UNION ALL SELECT 'trigger', tgrelid::regclass::text, tgname FROM pg_trigger"
            " WHERE tgenabled <> 'O'"
        )
        for kind, table, name in cursor.fetchall():
            findings.add("(catalog)", {kind: name}, None, "valid and enforced", table, f"{kind} is not in force")
        cursor.execute(
            "SELECT k.conname, k.conrelid::regclass::text, k.confrelid::regclass::text,"
            " (SELECT array_agg(a.attname::text ORDER BY o.n) FROM unnest(k.conkey) WITH ORDINALITY o(c, n)"
            "  JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = o.c),"
            " (SELECT array_agg(a.attname::text ORDER BY o.n) FROM unnest(k.confkey) WITH ORDINALITY o(c, n)"
            "  JOIN pg_attribute a ON a.attrelid = k.confrelid AND a.attnum = o.c)"
            " FROM pg_constraint k JOIN pg_namespace n ON n.oid = k.connamespace"
            " WHERE k.contype = 'f' AND n.nspname = 'public'"
        )
        keys = cursor.fetchall()
        for name, child, parent, ours, theirs in keys if orphans else ():
            joined = " AND ".join(f"p.{quoted(b)} = c.{quoted(a)}" for a, b in zip(ours, theirs))
            present = " AND ".join(f"c.{quoted(a)} IS NOT NULL" for a in ours)
            cursor.execute(
                f"SELECT count(*) FROM {child} c WHERE {present} AND NOT EXISTS (SELECT FROM {parent} p WHERE {joined})"
            )
            row = cursor.fetchone()
            if row and row[0]:
                findings.add(child, {"constraint": name}, None, 0, row[0], "rows that refer to no row")
    return len(keys)


def check_sequences(
    source: sqlite3.Connection, connection: psycopg2.extensions.connection, findings: Differences
) -> int:
    """The next value of each sequence is beyond every id of either side, and beyond sqlite_sequence."""
    has_sequences = source.execute("SELECT count(*) FROM sqlite_master WHERE name = 'sqlite_sequence'").fetchone()[0]
    given = dict(source.execute("SELECT name, seq FROM sqlite_sequence")) if has_sequences else {}
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT s.relname, t.relname, a.attname FROM pg_class s"
            " JOIN pg_namespace n ON n.oid = s.relnamespace"
            " JOIN pg_depend o ON o.objid = s.oid AND o.deptype IN ('a', 'i') AND o.refobjsubid > 0"
            " JOIN pg_class t ON t.oid = o.refobjid"
            " JOIN pg_attribute a ON a.attrelid = o.refobjid AND a.attnum = o.refobjsubid"
            " WHERE s.relkind = 'S' AND n.nspname = 'public'"
        )
        sequences = cursor.fetchall()
        for sequence, table, column in sequences:
            cursor.execute(
                "SELECT CASE WHEN is_called THEN last_value + 1 ELSE last_value END,"
                f" (SELECT max({quoted(column)}) FROM public.{quoted(table)}) FROM public.{quoted(sequence)}"
            )
            coming, largest = cursor.fetchone() or (0, None)
            known = [largest or 0, given.get(table) or 0]
            if source.execute("SELECT count(*) FROM sqlite_master WHERE name = ?", (table,)).fetchone()[0]:
                ids = source.execute(
                    f"SELECT max({quoted(column)}) FROM {quoted(table)}"
                    f" WHERE typeof({quoted(column)}) = 'integer' AND {quoted(column)} < 2147483647"
                ).fetchone()
                known.append(ids[0] or 0)
            if coming <= max(known):
                findings.add(
                    table,
                    {"sequence": sequence},
                    None,
                    f"> {max(known)}",
                    coming,
                    "sequence would repeat an id",
                )
    return len(sequences)
