"""Seeded mutants of a correct copy: SQL that damages the target, and what the verifier must name for it."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psycopg2
import psycopg2.extensions

Key = dict[str, Any]
Value = Any

KEYS = {
    "entity_plugin_status": ("entity_id", "plugin_id"),
    "entities_vec_v2": ("rowid",),
    "alembic_version": ("version_num",),
}
UNIQUE = {"libraries": "name", "entities": "filepath"}  # texts that no two rows share; of entities since 0.32
GENERATED = {("entities_fts", "search_vector"), ("entities_fts", "search_text")}
UNSTABLE_KEYS = ("id", "rowid")  # changing one is a mutant of its own: a row is lost and another appears


@dataclass(frozen=True)
class Mutant:
    """`statements` damage the target. The verifier must name `table`, and `key` and `column` unless None."""

    kind: str
    table: str
    key: Key | None
    column: str | None
    statements: tuple[str, ...]
    also: Key | None = None  # a second row that is touched

    def told(self) -> str:
        """For a test's report."""
        return f"{self.kind} in {self.table}.{self.column or '(row)'} at {self.key}"


def _flip_text(choose: random.Random, text: str) -> str:
    at = choose.randrange(len(text))
    other = chr(ord(text[at]) ^ 1) if ord(text[at]) > 33 and ord(text[at]) not in range(0xD7FE, 0xE000) else "x"
    return text[:at] + other + text[at + 1 :]


def _swap_neighbours(choose: random.Random, text: str) -> str:
    places = [at for at in range(len(text) - 1) if text[at] != text[at + 1]]
    if not places:
        return text + "?"
    at = choose.choice(places)
    return text[:at] + text[at + 1] + text[at] + text[at + 2 :]


TEXT_CHANGES: dict[str, Callable[[random.Random, str], str]] = {
    "one bit": _flip_text,
    "truncated by one": lambda _choose, text: text[:-1],
    "truncated to half": lambda _choose, text: text[: len(text) // 2],
    "emptied": lambda _choose, _text: "",
    "space at the end": lambda _choose, text: text + " ",
    "space in front": lambda _choose, text: " " + text,
    "other case": lambda _choose, text: text.swapcase() if text.swapcase() != text else text + "A",
    "neighbours swapped": _swap_neighbours,
    "line feed at the end": lambda _choose, text: text + "\n",
    "combining mark": lambda _choose, text: text + "\u0301",
}
INTEGER_CHANGES = {"one bit": "# 1", "plus one": "+ 1", "bit 20": "# 1048576", "sign": "* -1 - 1"}
TIMESTAMP_CHANGES = {
    "plus 1 µs": "1 microsecond",
    "minus 1 µs": "-1 microsecond",
    "plus 1 ms": "1 millisecond",
    "plus 1 s": "1 second",
    "plus 8 h": "8 hours",
    "a day less": "-1 day",
}


class Workshop:
    """Makes mutants of one table at a time. `connection` reads a correct copy."""

    def __init__(self, connection: psycopg2.extensions.connection, seed: int) -> None:
        self.connection = connection
        self.choose = random.Random(seed)
        self.columns: dict[str, list[tuple[str, str, bool]]] = {}
        rows = self.ask(
            "SELECT c.relname, a.attname, CASE t.typtype WHEN 'e' THEN 'enum' ELSE t.typname END, a.attnotnull"
            " FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_type t ON t.oid = a.atttypid"
            " WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND a.attnum > 0"
            " AND NOT a.attisdropped ORDER BY c.relname, a.attnum"
        )
        for table, column, kind, not_null in rows:
            if (table, column) not in GENERATED:
                self.columns.setdefault(table, []).append((column, kind, not_null))

    def ask(self, query: str, *values: Value) -> list[tuple[Value, ...]]:
        """Rows of a query."""
        with self.connection.cursor() as cursor:
            cursor.execute(query, values or None)
            return cursor.fetchall()

    def sql(self, query: str, *values: Value) -> str:
        """A statement with its values in it."""
        with self.connection.cursor() as cursor:
            return cursor.mogrify(query, values).decode()

    def key_columns(self, table: str) -> tuple[str, ...]:
        """Columns that name a row."""
        return KEYS.get(table, ("id",))

    def where(self, table: str, key: Key) -> str:
        """Condition that finds one row."""
        if not key:
            return "true"
        return " AND ".join(self.sql(f'"{name}" = %s', value) for name, value in key.items())

    def key(self, table: str, not_null: str | None = None) -> Key | None:
        """A row, with a value in `not_null`; None if there is none."""
        names = ", ".join(f'"{name}"' for name in self.key_columns(table)) or "1"
        condition = f'WHERE "{not_null}" IS NOT NULL' if not_null else ""
        rows = self.ask(f'SELECT {names} FROM public."{table}" {condition} ORDER BY 1')
        return dict(zip(self.key_columns(table), self.choose.choice(rows))) if rows else None

    def cell(self, kind: str, table: str, column: str, key: Key, expression: str) -> Mutant:
        """One cell becomes an expression."""
        statement = f'UPDATE public."{table}" SET "{column}" = {expression} WHERE {self.where(table, key)}'
        return Mutant(kind, table, key or None, column, (statement,))

    def cells(self, table: str) -> Iterator[Mutant]:
        """Every kind of change of every column."""
        for column, kind, not_null in self.columns[table]:
            if column in self.key_columns(table):
                continue
            for name, expression in self.changes(table, column, kind):
                yield self.cell(name, table, column, *expression)
            key = self.key(table, column)
            if not not_null and key is not None:
                yield self.cell("value lost", table, column, key, "NULL")
            nulls = self.ask(f'SELECT min(ctid) FROM public."{table}" WHERE "{column}" IS NULL')
            if not not_null and kind == "text" and nulls[0][0] is not None:
                names = ", ".join(self.key_columns(table))
                row = self.ask(f'SELECT {names} FROM public."{table}" WHERE "{column}" IS NULL LIMIT 1')[0]
                yield self.cell("NULL became empty", table, column, dict(zip(self.key_columns(table), row)), "''")

    def changes(self, table: str, column: str, kind: str) -> Iterator[tuple[str, tuple[Key, str]]]:
        """(name, (key, expression)) for the type of a column."""
        if kind in ("text", "varchar"):
            for name, change in TEXT_CHANGES.items():
                key = self.key(table, column)
                if key is None:
                    return
                old = self.ask(f'SELECT "{column}" FROM public."{table}" WHERE {self.where(table, key)}')[0][0]
                if old and change(self.choose, old) != old:
                    yield name, (key, self.sql("%s", change(self.choose, old)))
        elif kind in ("int4", "int8"):
            for name, change_sql in INTEGER_CHANGES.items():
                key = self.key(table, column)
                if key is not None:
                    yield name, (key, f'("{column}" {change_sql})')
        elif kind == "timestamp":
            for name, interval in TIMESTAMP_CHANGES.items():
                key = self.key(table, column)
                if key is not None:
                    yield name, (key, f"\"{column}\" + interval '{interval}'")
        elif kind == "enum":
            key = self.key(table, column)
            if key is not None:
                label = (
                    f"(SELECT e.enumlabel FROM pg_enum e WHERE e.enumtypid = pg_typeof(\"{column}\") AND e.enumlabel"
                    f" <> \"{column}\"::text LIMIT 1)"
                )  # fmt: skip
                type_name = self.ask(f'SELECT pg_typeof("{column}")::text FROM public."{table}" LIMIT 1')[0][0]
                yield "another label", (key, f"{label}::{type_name}")
        elif kind == "vector":
            yield from self.vector_changes(table, column)

    def vector_changes(self, table: str, column: str) -> Iterator[tuple[str, tuple[Key, str]]]:
        """One bit of one number, two numbers swapped, another row's vector, a zero's sign."""
        for name in ("lowest bit", "lowest bit", "sign bit", "neighbours", "reversed", "of another row"):
            key = self.key(table, column)
            if key is None:
                return
            sent = bytes(
                self.ask(f'SELECT vector_send("{column}") FROM public."{table}" WHERE {self.where(table, key)}')[0][0]
            )
            count = (len(sent) - 4) // 4
            bits = list(struct.unpack(f">{count}I", sent[4:]))
            at = self.choose.randrange(count - 1)
            if name == "lowest bit":
                bits[at] ^= 1
            elif name == "sign bit":
                bits[at] ^= 1 << 31
            elif name == "neighbours":
                bits[at], bits[at + 1] = bits[at + 1], bits[at]
            elif name == "reversed":
                bits.reverse()
            else:
                other = f'SELECT "{column}" FROM public."{table}" o WHERE o.rowid <> {key["rowid"]} LIMIT 1'
                yield name, (key, f"({other})")
                continue
            numbers = struct.unpack(f">{count}f", struct.pack(f">{count}I", *bits))
            yield name, (key, self.sql("%s::vector", "[" + ",".join(map(repr, numbers)) + "]"))

    def rows(self, table: str) -> Iterator[Mutant]:
        """A row lost, one too many, one under another key, two values of a column exchanged."""
        names = [column for column, _kind, _null in self.columns[table]]
        listed = ", ".join(f'"{name}"' for name in names)
        for _ in range(2):
            key = self.key(table)
            if key is None:
                return
            yield Mutant(
                "row lost", table, key or None, None, (f'DELETE FROM public."{table}" WHERE {self.where(table, key)}',)
            )
        key = self.key(table)
        first = self.key_columns(table)[0] if self.key_columns(table) else None
        if key and first:
            if self.columns[table][0][1] not in ("int4", "int8") and first == "version_num":
                return
            moved = {**key, first: 1_000_000 + self.choose.randrange(1_000_000)}
            values = ", ".join(str(moved[first]) if name == first else f'"{name}"' for name in names)
            if table in UNIQUE:
                values = values.replace(f'"{UNIQUE[table]}"', "'another'")
            where = self.where(table, key)
            yield Mutant(
                "row too many",
                table,
                moved,
                None,
                (f'INSERT INTO public."{table}" ({listed}) SELECT {values} FROM public."{table}" WHERE {where}',),
            )
            other = self.key(table)
            if other:
                there = {**other, first: 2_000_000 + self.choose.randrange(1_000_000)}
                yield Mutant(
                    "row under another key",
                    table,
                    there,
                    None,
                    (f'UPDATE public."{table}" SET "{first}" = {there[first]} WHERE {self.where(table, other)}',),
                    other,
                )
        yield from self.exchanges(table)

    def exchanges(self, table: str) -> Iterator[Mutant]:
        """Values of two rows exchanged, in columns where two rows differ."""
        for column, _kind, _null in self.columns[table]:
            if column in self.key_columns(table) or not self.key_columns(table):
                continue
            names = ", ".join(f'"{name}"' for name in self.key_columns(table))
            kinds = self.ask(
                f'SELECT DISTINCT ON ("{column}"::text) {names} FROM public."{table}" WHERE "{column}" IS NOT NULL'
                f' ORDER BY "{column}"::text LIMIT 50'
            )
            if len(kinds) < 2:
                continue
            one, two = (dict(zip(self.key_columns(table), row)) for row in self.choose.sample(kinds, 2))
            first, second = self.where(table, one), self.where(table, two)
            old = self.ask(
                f'SELECT (SELECT "{column}"::text FROM public."{table}" WHERE {first}),'
                f' (SELECT "{column}"::text FROM public."{table}" WHERE {second}), pg_typeof("{column}")::text'
                f' FROM public."{table}" LIMIT 1'
            )[0]
            steps = [(first, old[1]), (second, old[0])]
            if UNIQUE.get(table) == column:  # only there a third value must stand in between
                steps.insert(0, (second, "aside"))
            statements = tuple(
                f'UPDATE public."{table}" SET "{column}" = {self.sql("%s", value)}::{old[2]} WHERE {where}'
                for where, value in steps
            )
            yield Mutant("values exchanged", table, one, column, statements, two)

    def all(self) -> list[Mutant]:
        """All mutants of rows and cells, in a random but seeded order."""
        made = [mutant for table in sorted(self.columns) for mutant in (*self.cells(table), *self.rows(table))]
        self.choose.shuffle(made)
        return made


def of_the_catalog(workshop: Workshop) -> list[Mutant]:
    """Definitions and sequences changed."""
    made = []
    for table, name, unique in workshop.ask(
        "SELECT indrelid::regclass::text, indexrelid::regclass::text, indisunique FROM pg_index"
        " WHERE indrelid::regclass::text IN (SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace)"
        " AND NOT indisprimary ORDER BY 1, 2"
    ):
        if not unique:
            made.append(Mutant("index lost", "(catalog)", {"index": f"{table}.{name}"}, None, (f"DROP INDEX {name}",)))
    for table, name, kind in workshop.ask(
        "SELECT conrelid::regclass::text, conname, contype FROM pg_constraint"
        " WHERE connamespace = 'public'::regnamespace AND contype IN ('f', 'u') ORDER BY 1, 2"
    ):
        key = {"constraint": f"{table}.{name}"}
        made.append(Mutant("constraint lost", "(catalog)", key, None, (f"ALTER TABLE {table} DROP CONSTRAINT {name}",)))
        if kind == "f":
            statement = f"UPDATE pg_constraint SET convalidated = false WHERE conname = '{name}'"
            made.append(Mutant("constraint not validated", "(catalog)", {"constraint": name}, None, (statement,)))
    for table, sequence in workshop.ask(
        "SELECT t.relname, s.relname FROM pg_class s JOIN pg_depend d ON d.objid = s.oid AND d.deptype = 'a'"
        " JOIN pg_class t ON t.oid = d.refobjid WHERE s.relkind = 'S'"
        " AND s.relnamespace = 'public'::regnamespace ORDER BY 1"
    ):
        if workshop.ask(f'SELECT count(*) FROM public."{table}"')[0][0]:
            back = f"SELECT setval('{sequence}', max(id), false) FROM public.{table}"
            made.append(Mutant("sequence one behind", table, {"sequence": sequence}, None, (back,)))
    others: list[tuple[str, Key | None, str]] = [
        ("index invalid", {"index": "idx_filename"}, "UPDATE pg_index SET indisvalid = false WHERE indexrelid"
         " = 'idx_filename'::regclass"),
        ("default lost", {"column": "entities.created_at"}, "ALTER TABLE entities ALTER created_at DROP DEFAULT"),
        ("not null lost", {"column": "entities.size"}, "ALTER TABLE entities ALTER size DROP NOT NULL"),
        ("type changed", {"column": "entities.size"}, "ALTER TABLE entities ALTER size TYPE bigint"),
        ("label added", {"enum": "foldertype"}, "ALTER TYPE foldertype ADD VALUE 'OTHER'"),
        ("table added", None, "CREATE TABLE public.stranger (id integer)"),
        ("column added", None, "ALTER TABLE tags ADD COLUMN stranger text"),
        ("view added", {"other": "strange_view"}, "CREATE VIEW public.strange_view AS SELECT 1 AS one"),
        ("owner changed", {"owner": "tags"}, "ALTER TABLE tags OWNER TO postgres;"
         " GRANT SELECT ON tags, tags_id_seq TO autotasktracker"),
        ("triggers off", None, "ALTER TABLE entity_tags DISABLE TRIGGER ALL"),
        ("table lost", None, "DROP TABLE entity_plugin_status"),
    ]  # fmt: skip
    for kind, named, statement in others:
        tables = {"table added": "stranger", "column added": "tags", "table lost": "entity_plugin_status"}
        made.append(Mutant(kind, tables.get(kind, "(catalog)"), named, None, (statement,)))
    return made
