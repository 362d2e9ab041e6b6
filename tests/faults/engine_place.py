"""What operations under fault work on: what all points share (``World``), and what one point has (``Place``)."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import psycopg2
import psycopg2.extensions
from ansible.module_utils.testing import patch_module_args
from sqlite_to_postgresql.fts import Tokenizer
from sqlite_to_postgresql.model import CARRIED
from sqlite_to_postgresql.verify import catalog, verify

Cursor = psycopg2.extensions.cursor


@cache
def tokenizer() -> Tokenizer:
    """One with its dictionary loaded."""
    return Tokenizer().load()


@dataclass(frozen=True)
class World:
    """What all points share.

    Attributes:
        root: folder of it all; ``sample`` in it is a SQLite database that nobody changes.
        venv: Pensieve's, whose interpreter runs this.
        port: of PostgreSQL, whose database ``base_empty`` has Pensieve's tables.
    """

    root: Path
    venv: Path
    port: int

    @cached_property
    def catalog(self) -> dict[str, dict[str, str]]:
        """Definitions that Pensieve's own code makes."""
        return catalog(self.dsn("base_empty"))

    @property
    def sample(self) -> Path:
        """A SQLite database without a write-ahead log."""
        return self.root / "sample.db"

    def base(self, name: str) -> Path:
        """A folder for what an operation prepares once."""
        folder = self.root / "bases" / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def dsn(self, database: str) -> str:
        """URI without a password."""
        return f"postgresql://autotasktracker@127.0.0.1:{self.port}/{database}"


@dataclass(frozen=True)
class Outcome:
    """How an operation ended: ``done``, ``refused`` (a module said so), ``raised`` or ``killed``."""

    how: str
    told: str = ""
    result: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Place:
    """One point: a disk of its own, whose calls are counted, and a database of its own (``dsn``)."""

    world: World
    root: Path
    dsn: str

    @property
    def disk(self) -> Path:
        """Where faults strike."""
        return self.root / "disk"

    def keep(self, name: str, content: Any) -> None:
        """Note something for a later process."""
        (self.root / f"{name}.json").write_text(json.dumps(content))

    def kept(self, name: str) -> Any:
        """What was noted."""
        return json.loads((self.root / f"{name}.json").read_text())

    def fresh(self) -> None:
        """An empty disk, with room for temporary files."""
        shutil.rmtree(self.root, ignore_errors=True)
        (self.disk / "tmp").mkdir(parents=True)

    def use(self) -> None:
        """Temporary files of this process lie on the disk."""
        os.environ["TMPDIR"] = tempfile.tempdir = str(self.disk / "tmp")


class Refused(Exception):
    """A module has failed with a message."""


def module(name: str, **options: Any) -> dict[str, Any]:
    """Run an Ansible module in this process. Raises Refused, and what the module does not catch."""
    said = io.StringIO()
    try:
        with patch_module_args(options), contextlib.redirect_stdout(said):
            import_module(name).main()
    except SystemExit as end:
        result: dict[str, Any] = json.loads(said.getvalue().splitlines()[-1])
        if end.code:
            raise Refused(result["msg"]) from None
        return result
    raise AssertionError(f"{name} ended without a result")


def copied(source: Path, folder: Path, name: str = "database.db") -> Path:
    """Copy a database with its write-ahead log, times included: by these the engine knows it again."""
    for suffix in ("", "-wal"):
        if (beside := source.with_name(source.name + suffix)).exists():
            shutil.copy2(beside, folder / f"{name}{suffix}")
    return folder / name


def digest(*parts: bytes) -> str:
    """Of several contents."""
    return hashlib.blake2b(b"|".join(hashlib.sha256(part).digest() for part in parts), digest_size=8).hexdigest()


def digest_of_files(*paths: Path) -> str:
    """Of content and mode; a file that is not there counts."""
    return digest(
        *(f"{path.stat().st_mode:o}".encode() + path.read_bytes() if path.exists() else b"" for path in paths)
    )


@contextmanager
def sqlite(path: Path) -> Iterator[sqlite3.Connection]:
    """Read a database, whatever its texts hold, with Pensieve's vec0."""
    uri = f"{path.absolute().as_uri()}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as connection:
        connection.text_factory = bytes
        connection.enable_load_extension(True)
        import_module("sqlite_vec").load(connection)
        yield connection


def content_of_sqlite(path: Path) -> dict[str, str]:
    """A digest of the rows of each table, full text and vectors too; shadow tables may lie in many ways."""
    with sqlite(path) as connection:
        listed = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'").fetchall()
        virtual = [name.decode() for name, sql in listed if sql.upper().startswith(b"CREATE VIRTUAL")]
        queries = {
            name: f'SELECT * FROM "{name}"'
            for name in (row[0].decode() for row in listed)
            # Without the shadows of virtual tables, and without what the engine itself keeps there.
            if not name.startswith(tuple(f"{table}_" for table in virtual)) and name not in ("sqlite_stat1", CARRIED)
        }
        for table in virtual:
            if f"{table}_content".encode() in [row[0] for row in listed]:
                queries[table] = f'SELECT c0, c1, c2, c3 FROM "{table}_content"'
        return {
            name: digest("\n".join(sorted(map(repr, connection.execute(query)))).encode())
            for name, query in queries.items()
        }


@cache
def _session(dsn: str) -> psycopg2.extensions.connection:
    connection = psycopg2.connect(dsn)
    connection.autocommit = True
    return connection


def query(dsn: str, *statements: str) -> list[tuple[Any, ...]]:
    """Run statements, each on its own, in the session that this process has for that; rows of the last one."""
    with _session(dsn).cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
        return cursor.fetchall() if cursor.description else []


_EACH = (
    "SELECT c.relname, (xpath('/row/v/text()', query_to_xml(format('SELECT {what} AS v FROM %I.%I t', n.nspname,"
    " c.relname), true, true, '')))[1]::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
    " WHERE n.nspname = '{schema}' AND c.relkind = 'r' ORDER BY 1"
)


def content_of_target(dsn: str, schema: str = "public") -> dict[str, str]:
    """A digest of the rows of each table of PostgreSQL."""
    rows = "md5(coalesce(string_agg(t::text, chr(10) ORDER BY t::text), ''''))"
    return dict(query(dsn, _EACH.format(schema=schema, what=rows)))


def counts_of_target(dsn: str) -> dict[str, int]:
    """How many rows each table of PostgreSQL has."""
    found = query(dsn, _EACH.format(schema="public", what="count(*)"))
    return {table: int(count) for table, count in found}


def unequal(place: Place, source: Path, sequences: bool = True) -> Iterator[str]:
    """What the independent verifier finds, of every cell."""
    found = verify(
        source,
        place.dsn,
        jobs=1,
        expected_catalog=place.world.catalog,
        tokenizer=tokenizer(),
        sequences=sequences,
    )
    if not found.equal:
        first = found.differences[0]
        yield (
            f"{found.difference_count} differences, the first: {first.table} {first.key} {first.column or ''}: "
            f"{first.what}; {first.source!r}, {first.target!r}"
        )


def await_silence(dsn: str) -> Iterator[str]:
    """Wait until no session of an ended process is left on the server: it may have to finish a statement first."""
    found = query(
        dsn,
        "DO $$ BEGIN FOR n IN 1..500 LOOP PERFORM pg_stat_clear_snapshot(); EXIT WHEN NOT EXISTS (SELECT FROM"
        " pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        " AND backend_type = 'client backend'); PERFORM pg_sleep(0.01); END LOOP; END $$",
        "SELECT query FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        " AND backend_type = 'client backend'",
    )
    if found:
        yield f"after 5 s a session is still on the server: {found[0][0][:100]}"
