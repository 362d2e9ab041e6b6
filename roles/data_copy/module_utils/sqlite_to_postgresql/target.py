"""The target: PostgreSQL's catalog of the schema that Pensieve's own code made.

Everything is read from pg_catalog: the types of the columns decide how values are converted, and the definitions of
indexes and constraints are made again, by the same names, on the tables that replace the empty ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg2
import psycopg2.extensions

from . import watch
from .convert import Boolean, Bytea, Codec, Double, Enum, Integer, Text, Timestamp, Vector
from .model import EngineError
from .source import quoted

Connection = psycopg2.extensions.connection

BOOKKEEPING = "data_copy"
STAGING = "data_copy_staging"

#: Most bytes of a btree entry (2704 with its head); what is longer may not fit.
INDEX_LIMIT = 2692

#: What AutoTaskTracker writes where Pensieve's enums stand, and what it means.
_PLUGIN_SOURCES = [
    "plugin",
    "task_processor",
    "auto_processor",
    "realtime_processor",
    "vlm_processor",
    "embedding_generator",
    "ai",
    "vlm",
]
SYNONYMS: dict[str, dict[str, str]] = {
    "metadatasource": dict.fromkeys(_PLUGIN_SOURCES, "PLUGIN_GENERATED"),
    "metadatatype": {"text": "TEXT_DATA", "json": "JSON_DATA", "float": "NUMBER_DATA"},
}


@dataclass(frozen=True)
class TargetColumn:
    """A column: its type as format_type() writes it, and for an enum its labels."""

    name: str
    type: str
    not_null: bool
    generated: bool = False
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class TargetIndex:
    """An index. ``create`` names its table without a schema, so that search_path decides."""

    name: str
    create: str
    method: str
    unique: bool
    columns: tuple[str, ...]
    predicate: str | None = None


@dataclass(frozen=True)
class TargetConstraint:
    """A primary key (p), unique (u) or foreign key (f) constraint."""

    name: str
    kind: str
    definition: str
    columns: tuple[str, ...]
    parent: str | None = None
    parent_columns: tuple[str, ...] = ()


@dataclass
class TargetTable:
    """A table as it shall be. ``create`` is set for one that the target does not have yet."""

    name: str
    columns: dict[str, TargetColumn]
    indexes: list[TargetIndex] = field(default_factory=list)
    constraints: list[TargetConstraint] = field(default_factory=list)
    sequences: dict[str, str] = field(default_factory=dict)  # column -> the sequence that it owns
    identities: set[str] = field(default_factory=set)  # columns whose sequence is an identity's
    create: str | None = None
    added: dict[str, str] = field(default_factory=dict)  # columns that only the source has -> type

    def foreign_keys(self) -> list[TargetConstraint]:
        """The foreign keys only."""
        return [c for c in self.constraints if c.kind == "f"]

    def indexed_columns(self) -> set[str]:
        """Columns that a whole (not partial) btree index holds."""
        return {
            name for index in self.indexes if index.method == "btree" and not index.predicate for name in index.columns
        }


#: Names of our sessions, by which a server tells what we do there.
OWNER, WORKER = "data_copy", "data_copy worker"


def connect(dsn: str, name: str = OWNER, **settings: str) -> Connection:
    """Open a session whose values do not depend on the server's or the user's settings."""
    options = {
        "search_path": f"{STAGING},public",
        "timezone": "UTC",
        "client_min_messages": "warning",
        "statement_timeout": "0",
        "lock_timeout": "0",
        "idle_in_transaction_session_timeout": "0",
        "standard_conforming_strings": "on",
        "client_encoding": "UTF8",
        **settings,
    }
    flags = " ".join(f"-c {name}={value}" for name, value in options.items())
    try:
        connection: Connection = psycopg2.connect(dsn, options=flags, application_name=name, **watch.OPTIONS)
    except psycopg2.OperationalError as error:
        raise EngineError(
            f"no connection to the target: {str(error).strip()}",
            "a PostgreSQL server that lets this role in (password in the password file)",
            "all that this connection was to change",
            "check that the container is healthy and that the password file has an entry for it",
        ) from error
    watch.add(connection, watch.LONGEST if name == WORKER else watch.LONG)
    connection.autocommit = True
    return connection


def query(connection: Connection, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
    """Run a query."""
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters or None)
        return cursor.fetchall()


def run(connection: Connection, sql: str, parameters: Sequence[Any] = ()) -> None:
    """Run a statement."""
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters or None)


@contextmanager
def transaction(connection: Connection) -> Iterator[None]:
    """Commit in the end, or roll back and raise; of a session that is lost, the error that tells so is kept."""
    connection.autocommit = False
    try:
        yield
        connection.commit()
    except BaseException:
        if not connection.closed:
            connection.rollback()
        raise
    finally:
        if not connection.closed:
            connection.autocommit = True


def compress_quickly(connection: Connection) -> None:
    """Let this session compress long values by lz4, where the server has it: several times faster than pglz.

    PostgreSQL keeps the method with each value; no definition changes, and every server of this build reads it.
    """
    run(
        connection,
        "SELECT set_config(name, 'lz4', false) FROM pg_settings"
        " WHERE name = 'default_toast_compression' AND 'lz4' = ANY(enumvals)",
    )


_COLUMNS = """
    SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attgenerated <> '',
           (SELECT array_agg(e.enumlabel ORDER BY e.enumsortorder) FROM pg_enum e WHERE e.enumtypid = a.atttypid)
      FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
     WHERE c.relnamespace = %s::regnamespace AND c.relkind IN ('r', 'p') AND a.attnum > 0 AND NOT a.attisdropped
       AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.classid = 'pg_class'::regclass
                          AND d.deptype = 'e')
     ORDER BY c.relname, a.attnum
"""
_CONSTRAINTS = """
    SELECT t.relname, k.conname, k.contype, pg_get_constraintdef(k.oid, true),
           (SELECT array_agg(a.attname ORDER BY o.n) FROM unnest(k.conkey) WITH ORDINALITY o(num, n)
              JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = o.num),
           f.relname,
           (SELECT array_agg(a.attname ORDER BY o.n) FROM unnest(k.confkey) WITH ORDINALITY o(num, n)
              JOIN pg_attribute a ON a.attrelid = k.confrelid AND a.attnum = o.num)
      FROM pg_constraint k JOIN pg_class t ON t.oid = k.conrelid LEFT JOIN pg_class f ON f.oid = k.confrelid
     WHERE t.relnamespace = %s::regnamespace AND k.contype IN ('p', 'u', 'f')
     ORDER BY t.relname, k.contype DESC, k.conname
"""
_INDEXES = """
    SELECT t.relname, i.relname, pg_get_indexdef(i.oid, 0, true), m.amname, x.indisunique,
           (SELECT coalesce(array_agg(a.attname ORDER BY o.n), '{}') FROM unnest(x.indkey) WITH ORDINALITY o(num, n)
              JOIN pg_attribute a ON a.attrelid = x.indrelid AND a.attnum = o.num),
           pg_get_expr(x.indpred, x.indrelid)
      FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_class t ON t.oid = x.indrelid
      JOIN pg_am m ON m.oid = i.relam
     WHERE t.relnamespace = %s::regnamespace
     ORDER BY t.relname, i.relname
"""
_SEQUENCES = """
    SELECT t.relname, a.attname, s.relname, d.deptype = 'i'
      FROM pg_depend d JOIN pg_class s ON s.oid = d.objid AND s.relkind = 'S'
      JOIN pg_class t ON t.oid = d.refobjid JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = d.refobjsubid
     WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')
       AND t.relnamespace = %s::regnamespace
"""


def read_tables(connection: Connection, schema: str = "public") -> dict[str, TargetTable]:
    """Read the tables of a schema, those of extensions left out."""
    tables: dict[str, TargetTable] = {}
    for table, name, kind, not_null, generated, labels in query(connection, _COLUMNS, (schema,)):
        entry = tables.setdefault(table, TargetTable(table, {}))
        entry.columns[name] = TargetColumn(name, kind, not_null, generated, tuple(labels or ()))
    for table, name, kind, definition, columns, parent, parent_columns in query(connection, _CONSTRAINTS, (schema,)):
        if table in tables:
            tables[table].constraints.append(
                TargetConstraint(name, kind, definition, tuple(columns), parent, tuple(parent_columns or ()))
            )
    for table, name, create, method, unique, columns, predicate in query(connection, _INDEXES, (schema,)):
        if table in tables:
            tables[table].indexes.append(TargetIndex(name, create, method, unique, tuple(columns), predicate))
    for table, column, sequence, identity in query(connection, _SEQUENCES, (schema,)):
        if table in tables:
            tables[table].sequences[column] = sequence
            if identity:
                tables[table].identities.add(column)
    return tables


_VARCHAR = re.compile(r"character varying\((\d+)\)")
_VECTOR = re.compile(r"(?:\w+\.)?vector\((\d+)\)")


def codec(column: TargetColumn, indexed: bool) -> Codec | None:
    """Choose the codec of a column by its type, or None for a type that the engine does not write."""
    if column.labels:
        name = column.type.rsplit(".", 1)[-1].strip('"')
        return Enum(name, column.labels, SYNONYMS.get(name))
    limit = INDEX_LIMIT if indexed else None
    integers = {"smallint": 2, "integer": 4, "bigint": 8}
    if column.type in integers:
        return Integer(integers[column.type])
    if column.type in ("text", "character varying"):
        return Text(None, limit)
    if match := _VARCHAR.fullmatch(column.type):
        return Text(int(match.group(1)), limit)
    if match := _VECTOR.fullmatch(column.type):
        return Vector(int(match.group(1)))
    simple: dict[str, Codec] = {
        "boolean": Boolean(),
        "double precision": Double(),
        "bytea": Bytea(),
        "timestamp without time zone": Timestamp(),
    }
    return simple.get(column.type)


#: Columns that are enums on PostgreSQL, by table and column; SQLite has them as VARCHAR.
_ENUMS: dict[tuple[str, str], tuple[str, tuple[str, ...]]] = {
    ("folders", "type"): ("foldertype", ("DEFAULT", "DUMMY")),
    **dict.fromkeys(
        [("entity_tags", "source"), ("metadata_entries", "source_type")],
        ("metadatasource", ("USER_GENERATED", "SYSTEM_GENERATED", "PLUGIN_GENERATED")),
    ),
    ("metadata_entries", "data_type"): ("metadatatype", ("JSON_DATA", "TEXT_DATA", "NUMBER_DATA")),
    ("libraries", "kind"): ("librarykind", ("record", "static")),
}

PENSIEVE_TABLES = [
    "alembic_version",
    "libraries",
    "plugins",
    "tags",
    "library_plugins",
    "folders",
    "entities",
    "entity_tags",
    "metadata_entries",
    "entity_plugin_status",
]


def expected_column(table: str, name: str, declared: str, not_null: bool) -> TargetColumn:
    """Tell what Pensieve's code makes on PostgreSQL of a column that it declares so on SQLite."""
    if (table, name) in _ENUMS:
        kind, labels = _ENUMS[table, name]
        return TargetColumn(name, kind, not_null, labels=labels)
    kind = declared.upper()
    if match := re.fullmatch(r"VARCHAR\((\d+)\)", kind):
        return TargetColumn(name, f"character varying({match.group(1)})", not_null)
    known = {
        "INTEGER": "integer",
        "VARCHAR": "character varying",
        "DATETIME": "timestamp without time zone",
        "BOOLEAN": "boolean",
        "FLOAT": "double precision",
    }
    return TargetColumn(name, known.get(kind, "text"), not_null)


def derived_type(declared: str, classes: set[str]) -> str | None:
    """Choose the type for a column that only the source has, from its declaration and what it holds.

    The declaration decides as in SQLite's own affinity rules; where it says nothing, or only NUMERIC, the storage
    classes that are there do. None: no type holds them all.
    """
    kind, classes = declared.upper(), classes - {"null"}
    if "INT" in kind:
        return "bigint"
    if "BOOL" in kind:
        return "boolean"
    if any(word in kind for word in ("CHAR", "CLOB", "TEXT", "JSON")):
        return "text"
    if "DATETIME" in kind or "TIMESTAMP" in kind:
        return "timestamp without time zone" if classes <= {"text"} else derived_type("", classes)
    if "BLOB" in kind:
        return "bytea" if classes <= {"blob"} else derived_type("", classes)
    if any(word in kind for word in ("REAL", "FLOA", "DOUB")):
        return "double precision"
    if not classes:
        return "text"
    for allowed, chosen in (
        ({"integer"}, "bigint"),
        ({"integer", "real"}, "double precision"),
        ({"text"}, "text"),
        ({"blob"}, "bytea"),
    ):
        if classes <= allowed:
            return chosen
    return None


def reference(name: str) -> str:
    """Name a table of the staging schema."""
    return f"{STAGING}.{quoted(name)}"
