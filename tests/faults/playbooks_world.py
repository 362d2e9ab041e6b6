"""What is true at one moment: processes, settings, rows of both databases; and the ledger of a writer."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psycopg2
import yaml
from online.__main__ import owner
from online.writer import Api, Known, Refused, Writer, wrong
from sqlite_to_postgresql.fts import Tokenizer
from sqlite_to_postgresql.verify import Difference, verify
from sqlite_to_postgresql.verify_sides import open_source
from sqlite_to_postgresql.verify_vectors import Vectors

from .playbooks_place import Place

SQLITE, POSTGRESQL = "SQLite", "PostgreSQL"
#: column that names the entity of a row
OWNERS = {
    "entities": "id",
    "metadata_entries": "entity_id",
    "entity_tags": "entity_id",
    "entity_plugin_status": "entity_id",
    "entities_fts": "id",
    "entities_fts_content": "c0",
    "entities_vec_v2": "rowid",
    "entities_vec_v2_rowids": "rowid",
}
#: What a vector's neighbours in a chunk are does not belong to one entity; the verifier compares vectors.
CHUNKS = ("chunks00", "chunks01", "chunks02", "chunks03", "chunks04", "text00", "text03")
UNREAD = ("_data", "_idx", "_docsize", "_config", "_chunks", "_info", *CHUNKS)
WRITTEN = "online"  # in the names of all files and tags that the writer makes

Rows = Counter[tuple[str, int | None, str]]  # table, entity, the row


def rows_of_sqlite(database: Path) -> Rows:
    """All rows, without those of search indexes."""
    rows: Rows = Counter()
    with contextlib.closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=30)) as connection:
        connection.text_factory = bytes
        tables = [
            name.decode() for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        ]
        for table in tables:
            virtual = table in ("entities_fts", "entities_vec_v2", "entities_vec")
            if virtual or table.endswith(UNREAD) or table.startswith("sqlite_"):
                continue
            owner = OWNERS.get(table, "NULL")
            columns = [row[1].decode() for row in connection.execute(f"PRAGMA table_info({table})")]
            # Keys of an index's own have no meaning.
            told = [f'"{name}"' for name in columns if table not in OWNERS or name not in ("chunk_id", "chunk_offset")]
            if table.endswith("_content"):
                told = told[1:]
            for row in connection.execute(f"SELECT {owner}, {', '.join(told)} FROM {table}"):
                rows[table, _number(row[0]), repr(row[1:])] += 1
    return rows


def _number(value: Any) -> int | None:
    try:
        return int(value)
    except (TypeError, ValueError):
        return None


def rows_of_postgresql(place: Place) -> Rows:
    """The same. Raises psycopg2.Error when the server, or the database, is not there."""
    rows: Rows = Counter()
    with contextlib.closing(psycopg2.connect(place.dsn, passfile=place.passfile, connect_timeout=5)) as connection:
        connection.set_session(isolation_level="REPEATABLE READ", readonly=True)
        with connection.cursor() as cursor:
            cursor.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
            for (table,) in cursor.fetchall():
                cursor.execute(f"SELECT {OWNERS.get(table, 'NULL::int')}, t::text FROM public.{table} t")
                for owner, row in cursor:
                    rows[table, _number(owner), row] += 1
    return rows


def entities(place: Place, backend: str) -> list[tuple[int, str]]:
    """Id and path of every entity."""
    query = "SELECT id, filepath FROM entities"
    if backend == SQLITE:
        with contextlib.closing(sqlite3.connect(f"{place.database.as_uri()}?mode=ro", uri=True, timeout=30)) as source:
            return source.execute(query).fetchall()
    with (
        contextlib.closing(psycopg2.connect(place.dsn, passfile=place.passfile, connect_timeout=5)) as target,
        target.cursor() as cursor,
    ):
        cursor.execute(query)
        return cursor.fetchall()


@dataclass
class View:
    """What was seen. ``backend``: what the one server that answers is set to; None when none does."""

    serving: list[int]
    backend: str | None
    odd: str  # what is not as it must be, wherever Pensieve is
    config: bytes
    mode: int
    others: dict[str, bytes]  # further settings
    manifest: bytes
    sqlite: Rows
    postgresql: Rows | None


class World:
    """A place, the writer that works there, and what it was told."""

    def __init__(self, place: Place, seed: int) -> None:
        self.place = place
        self.api = Api(place.installation.endpoint)
        self.writer = Writer(self.api, seed, 0.3)
        old = self.writer._old
        self.writer._old = {key: each for key, each in old.items() if key in place.readable}
        self.monitor = Monitor(self)
        self.seen: set[int] = set()  # ids that the writer has ever touched
        self.resting, self._guard = False, threading.Lock()
        self.rest()
        self.writer.start()
        self.monitor.start()

    def end(self) -> None:
        """No thread goes on."""
        self.go_on()
        self.writer.end()
        self.monitor.end()

    # ---- the writer

    def rest(self) -> None:
        """The writer waits, from the end of its present request on."""
        with self._guard:
            if not self.resting:
                self.writer.turn.acquire()
                self.resting = True
            self.seen |= set(self.writer.known)

    def go_on(self) -> None:
        """The writer writes again."""
        if self.resting:
            self.resting = False
            self.writer.turn.release()

    def burst(self, count: int) -> None:
        """So many changes at once, while the writer rests."""
        assert self.resting
        for _ in range(count):
            self.writer.once()
        self.seen |= set(self.writer.known)

    def leave_alone(self) -> None:
        """Change nothing from now on that was known before: a change on the other side is not yet here."""
        self.writer.former += self.writer.known.values()
        self.writer.known.clear()
        self.writer._old.clear()

    def all_known(self) -> list[Known]:
        """The ledger."""
        return [*self.writer.known.values(), *self.writer.former]

    def astray(self, backend: str) -> list[str]:
        """What is not as the last answer said, on the server that answers now, which has ``backend``."""
        ids: dict[str, int] = {}
        found = []
        for number, path in entities(self.place, backend):
            if path in ids:
                found.append(f"{Path(path).name} is there twice, as entities {ids[path]} and {number}")
            ids[path] = number
        there: dict[int, Known] = {}
        for known in self.all_known():
            if not known.sure:
                continue
            if known.size is None and known.path in ids:
                found.append(f"{Path(known.path).name} was deleted, and is there (revived)")
            elif known.size is not None and known.path not in ids:
                found.append(f"{Path(known.path).name} is lost")
            elif known.size is not None:
                there[ids[known.path]] = known
        # They may have other ids now; changes go on with these.
        moved = {ids[known.path]: known for known in self.writer.known.values() if known.path in ids}
        self.writer.former += [known for known in self.writer.known.values() if known.path not in ids]
        self.writer.known = moved
        self.seen |= set(moved)
        return found + wrong(self.api, there)

    # ---- the view

    def look(self, rows: bool = True) -> View:
        """See what is there now."""
        serving = self.place.serving()
        backend, odd = self.backend(serving)
        content, mode = b"", 0
        if self.place.config.exists():
            content, mode = self.place.config.read_bytes(), self.place.config.stat().st_mode & 0o7777
        manifest = self.place.state / "manifest.json"
        target = None
        if rows:
            with contextlib.suppress(psycopg2.Error):
                target = rows_of_postgresql(self.place)
        environment = self.place.tracker / "autotasktracker.env"
        return View(
            serving,
            backend,
            odd,
            content,
            mode,
            {environment.name: environment.read_bytes() if environment.exists() else b""},
            manifest.read_bytes() if manifest.exists() else b"",
            rows_of_sqlite(self.place.database) if rows and self.place.database.exists() else Counter(),
            target,
        )

    def backend(self, serving: list[int]) -> tuple[str | None, str]:
        """On what the server that answers is, and what is odd about it."""
        try:
            status, _ = self.api.ask("GET", "/libraries", timeout=10)
            told = self.api.ask("GET", "/config", timeout=10)[1]["database_path"] if status == 200 else ""
        except Refused:
            status, told = 0, ""
        if status != 200:
            return None, "" if not serving else f"a server runs ({serving}), and answers {status or 'nothing'}"
        backend = POSTGRESQL if told.startswith("postgresql:") else SQLITE
        odd = []
        if len(serving) != 1:
            odd.append(f"{len(serving)} servers run ({serving})")
        elif backend == SQLITE and serving[0] not in self.place.has_database_open():
            odd.append(f"the server is set to {told}, and has not {self.place.database} open")
        if (set_to := self.set_to()) != told:
            odd.append(f"the server is set to {told}, config.yaml to {set_to}")
        return backend, "; ".join(odd)

    def set_to(self) -> str:
        """What config.yaml says."""
        try:
            return str(yaml.safe_load(self.place.config.read_bytes())["database_path"])
        except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
            return f"nothing ({type(error).__name__})"

    def touched(self, before: View, after: View) -> set[int]:
        """Entities that the writer may have changed."""
        self.seen |= set(self.writer.known)
        rows = [*before.sqlite, *after.sqlite, *(before.postgresql or ()), *(after.postgresql or ())]
        made = {owner for table, owner, row in rows if table == "entities" and f"/{WRITTEN}-" in row}
        return self.seen | {number for number in made if number is not None}

    def changed(self, before: Rows, after: Rows, touched: set[int]) -> list[str]:
        """Rows that nobody has touched, and that are not as before."""
        gone, new = before - after, after - before
        return [
            f"{what} {table} {owner if owner is not None else ''}: {row[:120]}"
            for what, rows in (("gone:", gone), ("new:", new))
            for table, owner, row in rows
            if owner not in touched and not (table == "tags" and f"{WRITTEN} " in row)
        ]

    # ---- the engine's own proof

    def differing(self, tokenizer: Tokenizer, since: float) -> list[str]:
        """Rows in which both databases differ, but those of entities that were touched since a moment.

        Full text may lag behind its rows, as Pensieve leaves it; then it must be what SQLite's own entry gives.
        """
        arguments: dict[str, Any] = {"passfile": self.place.passfile, "jobs": 1, "tokenizer": tokenizer}
        found = verify(self.place.database, self.place.dsn, limit=100_000, **arguments).differences
        allowed = {key for key, known in self.writer.known.items() if known.touched >= since or not known.sure}
        # Ids of entities that are gone, or were made by a request that got no answer.
        late = any(known.touched >= since for known in self.all_known())
        children = self._children()
        apart = ("characters differ", "words differ", "cell differs")
        lagging = {each.key["id"] for each in found if each.table == "entities_fts" and each.what.startswith(apart)}
        if lagging:
            with contextlib.closing(sqlite3.connect(f"{self.place.database.as_uri()}?mode=ro", uri=True)) as source:
                marks = ", ".join("?" * len(lagging))
                newest = f"SELECT max(id) FROM entities_fts_content WHERE c0 IN ({marks}) GROUP BY c0"
                rowids = source.execute(newest, sorted(lagging)).fetchall()
            only = {"entities_fts": [(number,) for number in lagging], "entities_fts_content": rowids}
            found = [each for each in found if each.table != "entities_fts" or each.key.get("id") not in lagging]
            found += verify(self.place.database, self.place.dsn, only=only, **arguments).differences
        return [
            f"{each.table} {each.key} {each.column or ''}: {each.what} ({each.source} | {each.target})"
            for each in found
            if not late or not self._moves(each)
            if self._owner(each, children) not in allowed | self._gone(since)
        ]

    def _moves(self, difference: Difference) -> bool:
        """Whether what the writer does on one side moves it, whichever entity it is about."""
        moving = difference.table in ("tags", "(catalog)") or "sequence" in difference.key
        return moving or difference.what.startswith("row in quarantine")

    def _gone(self, since: float) -> set[int]:
        return {key for key in self.seen if key not in self.writer.known} if since else set()

    def _owner(self, difference: Difference, children: dict[str, dict[int, int]]) -> int | None:
        """The entity that a row belongs to; None for what is no row."""
        try:
            return owner(difference, self.api, children)
        except (KeyError, TypeError):
            return None

    def indexes_differ(self) -> list[str]:
        """After rows were joined, whose ids may differ: the vectors and entries of what was written to PostgreSQL."""
        query = (
            "SELECT e.filepath, v.embedding::text, f.id IS NOT NULL FROM entities e"
            " LEFT JOIN entities_vec_v2 v ON v.rowid = e.id LEFT JOIN entities_fts f ON f.id = e.id"
        )
        with (
            contextlib.closing(psycopg2.connect(self.place.dsn, passfile=self.place.passfile)) as target,
            target.cursor() as cursor,
        ):
            cursor.execute(query)
            theirs = {path: (vector, entries) for path, vector, entries in cursor}
        with contextlib.closing(open_source(self.place.database)) as source:
            vectors: dict[int, Any] = {}
            reader = Vectors(source, "entities_vec_v2")
            at = next(place for place, column in enumerate(reader.columns) if column.role == "vector")
            for chunk in reader.rows(0, 1 << 62):
                vectors.update({number: values and bytes(values[at]) for number, values in chunk.items()})
            entries = dict(source.execute("SELECT CAST(c0 AS INTEGER), count(*) FROM entities_fts_content GROUP BY 1"))
            ids = {path: number for number, path in entities(self.place, SQLITE)}
        found = []
        for known in self.writer.former:
            if known.path not in theirs or known.path not in ids or not known.sure:
                continue
            vector, entry = theirs[known.path]
            bits = np.array(json.loads(vector), np.float32).tobytes() if vector else None
            if vectors.get(ids[known.path]) != bits:
                found.append(f"{Path(known.path).name} has another vector than in PostgreSQL")
            # Pensieve adds an entry to SQLite each time that it indexes one anew.
            if bool(entries.get(ids[known.path], 0)) != bool(entry):
                found.append(f"{Path(known.path).name} has {entries.get(ids[known.path], 0)} entries of full text")
        return found

    def _children(self) -> dict[str, dict[int, int]]:
        with contextlib.closing(sqlite3.connect(f"{self.place.database.as_uri()}?mode=ro", uri=True)) as connection:
            return {
                table: dict(connection.execute(f"SELECT id, entity_id FROM {table}"))
                for table in ("metadata_entries", "entity_tags")
            }


@dataclass
class Gap:
    """From the first refusal to the first good answer after it; ``end`` 0 while it lasts."""

    begin: float
    end: float = 0.0


@dataclass
class Period:
    """Since when Pensieve has been on a backend."""

    begin: float
    backend: str


@dataclass
class _Log:
    gaps: list[Gap] = field(default_factory=list)
    periods: list[Period] = field(default_factory=list)


class Monitor(threading.Thread):
    """Asks five times a second whether Pensieve answers, and after each gap on which backend it is."""

    def __init__(self, world: World) -> None:
        super().__init__(daemon=True)
        self._world, self._ended, self._log = world, threading.Event(), _Log()
        self.turn = threading.Lock()  # held by whoever forks, or wants it to rest
        self._refused: Gap | None = None
        self._known, self._changed = False, 0.0

    def end(self) -> None:
        """Stop asking."""
        self._ended.set()
        self.join()

    def run(self) -> None:
        while not self._ended.wait(0.2):
            with self.turn:
                self._ask()

    def _ask(self) -> None:
        began = time.time()
        try:
            good = self._world.api.ask("GET", "/libraries", timeout=10)[0] == 200
        except Refused:
            good = False
        if not good:
            self._known = False
            if self._refused is None:
                self._refused = Gap(began)
                self._log.gaps.append(self._refused)
            return
        if self._refused:
            self._changed = self._refused.begin
            self._refused.end, self._refused = time.time(), None
        if not self._known:
            backend, _ = self._world.backend(self._world.place.serving())
            if backend:
                self._known = True
                self._log.periods.append(Period(self._changed or began, backend))

    def down(self, since: float, until: float) -> float:
        """Seconds between two moments in which nobody answered."""
        spans = [(max(gap.begin, since), min(gap.end or until, until)) for gap in list(self._log.gaps)]
        return sum(end - begin for begin, end in spans if end > begin)

    def is_down(self, moment: float) -> bool:
        """Whether nobody answered then."""
        return any(gap.begin <= moment and (not gap.end or moment <= gap.end) for gap in list(self._log.gaps))

    def since(self, backend: str) -> float | None:
        """Since when Pensieve has been on the backend on which it is now; None when it has been there all the time.

        Whatever else was meanwhile must have been on the same.
        """
        periods = list(self._log.periods)
        begin: float | None = None
        for period in reversed(periods):
            if period.backend != backend:
                return begin
            begin = period.begin
        return None
