"""Both sides of a carry-back: PostgreSQL as one moment shows it, and SQLite files with Pensieve's own extensions."""

from __future__ import annotations

import importlib
import json
import sqlite3
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from .carry_values import held, selected
from .change_log import LOG
from .convert import Codec, Enum, Integer, Text
from .model import EngineError
from .plan import Plan, TablePlan
from .source import Source, quoted, stored_text
from .target import BOOKKEEPING, Connection, query, run

Key = tuple[Any, ...]
Row = tuple[Any, ...]

AT_ONCE = 500  # rows fetched together
_LIBRARIES = {"linux": "linux/libsimple", "darwin": "macos/libsimple", "win32": "windows/simple"}


def chunks(items: Sequence[Any], size: int = AT_ONCE) -> Iterator[Sequence[Any]]:
    """Cut a sequence into parts."""
    return (items[at : at + size] for at in range(0, len(items), size))


def key_columns(table: TablePlan) -> tuple[str, ...]:
    """The primary key of the target's table; vectors and full text have the entity's id."""
    if table.is_vectors or table.is_full_text:
        return (table.columns[0],)
    return next((constraint.columns for constraint in table.target.constraints if constraint.kind == "p"), ())


class Target:
    """The target within one transaction, during which nobody else notes changes."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def rows(self, table: TablePlan, keys: Sequence[Key]) -> dict[Key, Row]:
        """Give rows by key, every value as its codec's ``cell`` would give it."""
        sql = self._by_key(table, ", ".join(map(selected, table.columns, table.codecs)))
        places = [table.columns.index(name) for name in key_columns(table)]
        found: dict[Key, Row] = {}
        for some in chunks(keys):
            for row in query(self.connection, sql, ([json.dumps(list(key)) for key in some],)):
                values = tuple(map(held, table.codecs, row))
                found[tuple(values[place] for place in places)] = values
        return found

    def present(self, table: TablePlan, keys: Sequence[Key]) -> set[Key]:
        """Give those of some keys whose row is there."""
        codecs = dict(zip(table.columns, table.codecs))
        names = key_columns(table)
        sql = self._by_key(table, ", ".join(selected(name, codecs[name]) for name in names))
        found = query(self.connection, sql, ([json.dumps(list(key)) for key in keys],))
        return {tuple(held(codecs[name], part) for name, part in zip(names, row)) for row in found}

    @staticmethod
    def _by_key(table: TablePlan, wanted: str) -> str:
        same = " AND ".join(
            f"t.{quoted(name)} = (w.key ->> {at})::{table.target.columns[name].type}"
            for at, name in enumerate(key_columns(table))
        )
        return f"SELECT {wanted} FROM unnest(%s::jsonb[]) AS w(key) JOIN public.{quoted(table.name)} t ON {same}"

    def all_rows(self, table: TablePlan) -> list[Row]:
        """Give all rows of a table that has no key."""
        wanted = ", ".join(map(selected, table.columns, table.codecs))
        sql = f"SELECT {wanted} FROM public.{quoted(table.name)} t"
        return [tuple(map(held, table.codecs, row)) for row in query(self.connection, sql)]

    def touched(self, table: TablePlan) -> list[Key]:
        """Give the keys that the change log names."""
        sql = f"SELECT DISTINCT key FROM {LOG} WHERE table_name = %s AND key IS NOT NULL"
        return sorted((tuple(key) for (key,) in query(self.connection, sql, (table.name,))), key=repr)

    def keys(self, table: TablePlan) -> list[Key]:
        """Give all keys of a table."""
        names = ", ".join(
            f"{quoted(name)}::text" if table.target.columns[name].labels else quoted(name)
            for name in key_columns(table)
        )
        return query(self.connection, f"SELECT {names} FROM public.{quoted(table.name)}")

    def highest(self, table: TablePlan) -> int:
        """The highest key of a table whose key is one whole number, 0 if it has no rows."""
        (name,) = key_columns(table)
        sql = f"SELECT coalesce(max({quoted(name)}), 0) FROM public.{quoted(table.name)}"
        return int(query(self.connection, sql)[0][0])

    def entity_texts(self, ids: Sequence[int]) -> dict[int, tuple[str, list[str], list[tuple[str, str]]]]:
        """Give path, tags (each once, in the order of their links) and metadata of entities."""
        found: dict[int, tuple[str, list[str], list[tuple[str, str]]]] = {
            entity: (path, [], [])
            for entity, path in query(
                self.connection, "SELECT id, filepath FROM public.entities WHERE id = ANY(%s)", (list(ids),)
            )
        }
        seen: set[tuple[int, int]] = set()
        for entity, tag, name in query(
            self.connection,
            "SELECT l.entity_id, l.tag_id, t.name FROM public.entity_tags l JOIN public.tags t ON t.id = l.tag_id"
            " WHERE l.entity_id = ANY(%s) ORDER BY l.id",
            (list(ids),),
        ):
            if entity in found and (entity, tag) not in seen:
                seen.add((entity, tag))
                found[entity][1].append(name)
        for entity, key, value in query(
            self.connection,
            "SELECT entity_id, key, value FROM public.metadata_entries WHERE entity_id = ANY(%s) ORDER BY id",
            (list(ids),),
        ):
            if entity in found:
                found[entity][2].append((key, value))
        return found

    def kept_rows(self, plan: Plan) -> dict[str, dict[Key, list[int]]]:
        """Ids of the records in quarantine that keep whole rows, by table and the row's key of whole numbers."""
        found: dict[str, dict[Key, list[int]]] = {}
        names = {name: key_columns(table) or ("rowid",) for name, table in plan.tables.items()}
        if not self.has_quarantine():
            return found
        sql = f"SELECT id, source_table, source_key::text FROM {BOOKKEEPING}.quarantine WHERE source_column IS NULL"
        for number, table, text in query(self.connection, sql):
            key = json.loads(text)
            if not isinstance(key, dict) or set(key) != set(names.get(table, ())):
                continue
            if all(isinstance(part, int) for part in key.values()):
                at = tuple(key[name] for name in names[table])
                found.setdefault(table, {}).setdefault(at, []).append(number)
        return found

    def kept_cells(
        self, table: TablePlan, keys: Sequence[Key] | None = None
    ) -> dict[tuple[Key, str], list[tuple[int, str, Any]]]:
        """Records of single cells of some rows, or of all: (id, action, (storage class, original bytes))."""
        names = key_columns(table) or ("rowid",)
        if not self.has_quarantine():
            return {}
        objects = None if keys is None else [json.dumps(dict(zip(names, key))) for key in keys]
        found: dict[tuple[Key, str], list[tuple[int, str, Any]]] = {}
        for number, text, column, action, storage, original in query(
            self.connection,
            f"SELECT id, source_key::text, source_column, action, storage_class, original FROM {BOOKKEEPING}.quarantine"
            " WHERE source_table = %s AND source_column IS NOT NULL"
            " AND (source_key = ANY(%s::jsonb[]) OR %s) ORDER BY id",
            (table.name, objects, keys is None),
        ):
            key = json.loads(text)
            if set(key) != set(names):
                continue
            at = (tuple(key[name] for name in names), column)
            found.setdefault(at, []).append((number, action, (storage, bytes(original))))
        return found

    def has_quarantine(self) -> bool:
        """Whether anything was ever put into quarantine."""
        sql = "SELECT to_regclass(%s) IS NOT NULL"
        return bool(query(self.connection, sql, (f"{BOOKKEEPING}.quarantine",))[0][0])

    def supersede(self, records: Iterable[int]) -> None:
        """Set records aside whose originals no longer stand in the source; nothing of them is lost."""
        numbers = sorted(records)
        if numbers:
            run(
                self.connection,
                f"CREATE TABLE IF NOT EXISTS {BOOKKEEPING}.superseded (LIKE {BOOKKEEPING}.quarantine);"
                f"COMMENT ON TABLE {BOOKKEEPING}.superseded IS"
                " 'Originals in place of which the source holds values of the target since a carry-back';"
                f"WITH gone AS (DELETE FROM {BOOKKEEPING}.quarantine WHERE id = ANY(%s) RETURNING *)"
                f" INSERT INTO {BOOKKEEPING}.superseded SELECT * FROM gone",
                (numbers,),
            )


class Database:
    """A SQLite file, opened as Pensieve opens it: tokenizer and vec0 loaded; ``read_only`` for one to compare with."""

    def __init__(self, path: Path, package: Path, read_only: bool = False) -> None:
        self.path = path
        self._columns: dict[str, frozenset[str]] = {}
        self._selects: dict[str, str] = {}
        mode = "ro" if read_only else "rw"
        try:
            self.connection = sqlite3.connect(
                f"file:{quote(str(path.resolve()))}?mode={mode}", uri=True, isolation_level=None, timeout=60
            )
            self.connection.text_factory = stored_text
            self.connection.execute("PRAGMA synchronous = FULL")  # PostgreSQL is told of what is on the disk
            _load_extensions(self.connection, package)
        except (AttributeError, ImportError, sqlite3.Error) as error:
            raise EngineError(
                f"{path} cannot be opened with Pensieve's extensions: {error}",
                "Pensieve's own interpreter, which loads its tokenizer and sqlite-vec",
                "everything",
                f"check that Pensieve runs on SQLite: {sys.executable} -m memos.commands ps",
            ) from error

    def close(self) -> None:
        """Leave nothing in the write-ahead log."""
        self.connection.close()

    def execute(self, sql: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        """Run a statement."""
        return self.connection.execute(sql, values)

    def row(self, table: TablePlan, key: Key) -> Row | None:
        """Read one row, every cell as it is stored; NULL where an older schema has no such column."""
        if table.name not in self._selects:
            known = self.columns(table.name)
            where = " AND ".join(f"{quoted(name)} = ?" for name in key_columns(table))
            columns = ", ".join(quoted(name) if name in known else "NULL" for name in table.columns)
            self._selects[table.name] = f"SELECT {columns} FROM {quoted(table.name)} WHERE {where}" if known else ""
        sql = self._selects[table.name]
        found: Row | None = self.execute(sql, key).fetchone() if sql else None
        return found

    def columns(self, table: str) -> frozenset[str]:
        """Names of the columns of a table, none if there is no such table. In SQL an unknown name would be a text."""
        if table not in self._columns:
            self._columns[table] = frozenset(row[1] for row in self.execute(f"PRAGMA table_xinfo({quoted(table)})"))
        return self._columns[table]

    def keys(self, table: TablePlan) -> list[Key]:
        """Give all keys of a table; those of vectors as vec0 lists them."""
        if table.is_vectors:
            return self.execute(f"SELECT rowid FROM {quoted(table.name + '_rowids')}").fetchall()
        names = ", ".join(map(quoted, key_columns(table)))
        return self.execute(f"SELECT {names} FROM {quoted(table.name)}").fetchall()

    def entries_of(self, table: TablePlan, entity: int) -> list[int]:
        """Rowids of the full-text entries of one entity, which the index itself finds: it holds their ids as words."""
        name = quoted(table.name)
        found = [
            row[0] for row in self.execute(f"SELECT rowid FROM {name} WHERE {name} MATCH ?", (f'id : "{entity}"',))
        ]
        sql = f"SELECT c0 FROM {quoted(table.name + '_content')} WHERE id = ?"
        return sorted(rowid for rowid in found if self.execute(sql, (rowid,)).fetchone()[0] == entity)

    def entries(self, table: TablePlan) -> dict[int, list[int]]:
        """Rowids of the full-text entries of each entity, in one pass over the index."""
        found: dict[int, list[int]] = {}
        for rowid, entity in self.execute(
            f"SELECT id, c0 FROM {quoted(table.name + '_content')} WHERE typeof(c0) = 'integer' ORDER BY id"
        ):
            found.setdefault(entity, []).append(rowid)
        return found

    def entry(self, table: TablePlan, rowid: int) -> Row:
        """Read one full-text entry: path, tags, metadata."""
        sql = f"SELECT c1, c2, c3 FROM {quoted(table.name + '_content')} WHERE id = ?"
        return tuple(self.execute(sql, (rowid,)).fetchone())


def _load_extensions(connection: sqlite3.Connection, package: Path) -> None:
    """Load what Pensieve loads; ``package`` is the folder of its package ``memos``."""
    tokenizer = package / "simple_tokenizer"
    connection.enable_load_extension(True)
    connection.load_extension(str(tokenizer / _LIBRARIES.get(sys.platform, _LIBRARIES["linux"])))
    connection.execute("SELECT jieba_dict(?)", (str(tokenizer / "dict"),))
    importlib.import_module("sqlite_vec").load(connection)
    connection.enable_load_extension(False)


def revisions(source: Source, connection: Connection) -> tuple[set[str], set[str]]:
    """Revisions of Pensieve's schema: in SQLite, and in PostgreSQL."""
    sql = "SELECT version_num FROM {}alembic_version"
    ours, theirs = source.rows(sql.format("")), query(connection, sql.format("public."))
    return {row[0] for row in ours}, {row[0] for row in theirs}


def require_same_shape(plan: Plan, source: Source, target: Target, path: Path) -> None:
    """Refuse by name what only one side has: an upgrade of Pensieve since the cutover leaves such things behind."""
    found = list(plan.refused)
    for table in plan.tables.values():
        if table.target.create is not None:
            found.append(f"table {table.name} (only in SQLite)")
            continue
        found += [f"column {table.name}.{name} (only in SQLite)" for name in table.target.added]
        found += [
            f"column {table.name}.{name} (only in PostgreSQL)"
            for name, column in table.target.columns.items()
            if name not in table.columns and not column.generated
        ]
        codecs: dict[str, Codec] = dict(zip(table.columns, table.codecs))
        found += [
            f"key column {table.name}.{name} of type {table.target.columns[name].type}"
            for name in key_columns(table)
            if not isinstance(codecs.get(name), (Integer, Text, Enum))
        ]
    there = query(
        target.connection,
        "SELECT c.relname FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')"
        " AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype = 'e') ORDER BY 1",
    )
    found += [f"table {name} (only in PostgreSQL)" for (name,) in there if name not in plan.tables]
    if "alembic_version" in plan.tables:
        ours, theirs = revisions(source, target.connection)
        if ours != theirs:
            found.append(f"revision {', '.join(sorted(theirs))} of the schema in PostgreSQL, {ours} in SQLite")
    if found:
        raise EngineError(
            "; ".join(found),
            "the same tables and columns on both sides; was Pensieve upgraded since the cutover?",
            "everything; nothing was carried back",
            f"let this Pensieve upgrade SQLite too (MEMOS_DATABASE_PATH={path} memos init), then run again",
        )
