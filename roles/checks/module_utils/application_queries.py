"""How long both applications' queries take on SQLite and on PostgreSQL, and whether vector search finds what is near.

Runs in the interpreter of Pensieve's virtual environment. What Pensieve asks is asked with Pensieve's own code
(`memos.search`, `memos.crud`). What AutoTaskTracker asks is asked as AutoTaskTracker does, with statements in SQLite's
SQL, each with the place where it was seen: SQLite through a connection that is kept, PostgreSQL through the module that
the migration puts into AutoTaskTracker. The SQLite file is one that may be changed: a copy of the backup. PostgreSQL is
only read; the insert is rolled back.

Times are milliseconds for one call, connection included, the first calls left out.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import logging
import math
import re
import sqlite3
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from memos import crud
from memos.config import settings
from memos.databases.initializers import create_db_initializer
from memos.embedding import get_embeddings
from memos.models import EntityMetadataModel, EntityModel
from memos.schemas import MetadataSource, MetadataType
from memos.search import create_search_provider
from sqlalchemy import event, text
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

try:
    from ansible.module_utils import postgresql_first
except ImportError:  # as a program of its own
    sys.path.append(str(Path(__file__).resolve().parents[2] / "autotasktracker" / "module_utils"))
    import postgresql_first

Vector = npt.NDArray[np.float32]

VECTORS = "entities_vec_v2"
HITS = 48  # what Pensieve's page asks for
NEIGHBOURS = 2 * HITS  # what hybrid_search then asks the vectors for
NEWEST = 2000  # entities from which words are chosen
VARIANTS = 12  # different parameters of each query
WORD = re.compile(r"(?<![\w./\\:@#%+&-])[a-z]{4,16}(?![\w./\\:@#%+&-])")
CHINESE = re.compile(r"[\u4e00-\u9fff]{2,4}")
WORDS = 24  # of a screenshot's text, as a question
SMALL = 10_000  # rows below which a planner may rightly prefer to read the whole table


class Kept:
    """A SQLite file as AutoTaskTracker keeps it open for reading."""

    def __init__(self, path: str) -> None:
        self.connection = sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro", uri=True)
        self.connection.row_factory = sqlite3.Row

    def getconn(self) -> sqlite3.Connection:
        """It is tried each time before it is used."""
        self.connection.execute("SELECT 1")
        return self.connection

    def putconn(self, connection: sqlite3.Connection) -> None:
        """And again afterwards."""
        connection.execute("SELECT 1")

    def closeall(self) -> None:
        """There is one."""
        self.connection.close()


class Side:
    """One database, opened as Pensieve opens it, and as AutoTaskTracker does."""

    def __init__(self, database: str) -> None:
        self.settings = settings.model_copy(update={"database_path": database})
        with contextlib.redirect_stdout(io.StringIO()):
            self.engine: Engine = create_db_initializer(self.settings)[0]
        self.provider = create_search_provider(self.settings.database_url)
        self.tracker: Any = (
            Kept(database) if self.settings.is_sqlite else postgresql_first.ThreadedConnectionPool(1, 5, database)
        )

    def close(self) -> None:
        """End all connections."""
        self.engine.dispose()
        self.tracker.closeall()

    def asked_by_tracker(self, statement: str, parameters: Sequence[Any]) -> int:
        """Rows that AutoTaskTracker gets for a statement, on a connection of its pool."""
        connection = self.tracker.getconn()
        try:
            return len(connection.execute(statement, parameters).fetchall())
        finally:
            self.tracker.putconn(connection)

    def rows(self, sql: str, **parameters: Any) -> list[Any]:
        """Run a query of ours."""
        with Session(self.engine) as session:
            return list(session.execute(text(sql), parameters).fetchall())

    def captured(self, run: Callable[[Session], Any]) -> tuple[str, Any]:
        """The last statement that `run` sends to the driver, with its parameters."""
        seen: list[tuple[str, Any]] = []

        def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_rest: Any) -> None:
            seen.append((statement, parameters))

        event.listen(self.engine, "before_cursor_execute", note)
        try:
            with Session(self.engine) as session:
                run(session)
        finally:
            event.remove(self.engine, "before_cursor_execute", note)
        return seen[-1]


@dataclass(frozen=True)
class Bars:
    """What PostgreSQL must hold.

    Attributes:
        milliseconds: that the median of any query may be above SQLite's.
        speedup: how many times faster searches must be.
        speedup_from: screenshots from which that is asked; a smaller database has nothing to search.
        judged_from: screenshots from which times are judged at all: below, they are those of a round trip.
        recall: part of the ten nearest neighbours that vector search must find.
    """

    milliseconds: float = 2.0
    speedup: float = 2.0
    speedup_from: int = 50_000
    judged_from: int = 10_000
    recall: float = 0.95


@dataclass
class Sample:
    """Parameters drawn from the database: the same ones for the same database."""

    entities: list[int]
    paths: list[list[str]]
    days: list[tuple[datetime, datetime]]
    apps: list[str]
    words: dict[str, list[str]]
    vectors: list[Vector]
    library: int
    folder: int
    tags: list[str]


@dataclass
class Query:
    """One query. `run(side, session, parameter)` returns how many rows came back."""

    name: str
    kind: str  # full text, vectors, or other
    origin: str
    parameters: Sequence[Any]
    run: Callable[[Side, Session, Any], int]


@dataclass
class Timing:
    """Milliseconds of one query on both sides, and the rows that came back."""

    query: Query
    sqlite: list[float] = field(default_factory=list)
    postgresql: list[float] = field(default_factory=list)
    rows: dict[str, int] = field(default_factory=lambda: {"sqlite": 0, "postgresql": 0})
    unanswered: int = 0
    error: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Medians, 95th percentiles and their ratio as plain data; without times, `error` or `unanswered` tells why."""
        told = {"name": self.query.name, "kind": self.query.kind, "origin": self.query.origin}
        if not self.sqlite:
            return {**told, "calls": [0, 0], "error": self.error, "unanswered": self.unanswered}
        before, after = statistics.median(self.sqlite), statistics.median(self.postgresql)
        return {
            **told,
            "error": "",
            "unanswered": self.unanswered,
            "calls": [len(self.sqlite), len(self.postgresql)],
            "rows": [self.rows["sqlite"], self.rows["postgresql"]],
            "sqlite_ms": round(before, 3),
            "postgresql_ms": round(after, 3),
            "sqlite_p95_ms": round(percentile(self.sqlite, 0.95), 3),
            "postgresql_p95_ms": round(percentile(self.postgresql, 0.95), 3),
            "times_faster": round(before / after, 2),
        }


def percentile(values: Sequence[float], part: float) -> float:
    """The smallest value that `part` of them do not exceed."""
    return sorted(values)[max(0, math.ceil(part * len(values)) - 1)]


def _spread(items: Sequence[Any], count: int) -> list[Any]:
    """`count` items, evenly from the whole sequence."""
    return [items[at * len(items) // count] for at in range(count)] if len(items) >= count else list(items)


def _words(texts: list[str], fraction: float, pattern: re.Pattern[str], count: int) -> list[str]:
    """Words that about `fraction` of the texts hold."""
    found: Counter[str] = Counter()
    for content in texts:
        found.update(set(pattern.findall(content)))
    wanted = fraction * len(texts)
    nearest = sorted(found, key=lambda word: (abs(math.log(found[word] / wanted)), word))
    return sorted(nearest[:count])


def draw(sqlite: Side) -> Sample:
    """Choose what to ask for. The database holds at least one screenshot."""
    import jieba

    entities = [row[0] for row in sqlite.rows("SELECT id FROM entities WHERE file_type_group = 'image' ORDER BY id")]
    chosen = _spread(entities, VARIANTS)
    newest = entities[-NEWEST:]
    documents = [
        str(row[0] or "")
        for row in sqlite.rows("SELECT c3 FROM entities_fts_content WHERE id >= :first", first=newest[0])
    ][:NEWEST]
    english = [content.lower() for content in documents]
    chinese = [" ".join(word for word in jieba.cut(content) if CHINESE.fullmatch(word)) for content in documents[-400:]]
    words = {
        "one in a hundred": _words(english, 0.01, WORD, VARIANTS),
        "one in ten": _words(english, 0.1, WORD, VARIANTS),
        "Chinese": _words(chinese, 0.01, re.compile(r"\S+"), VARIANTS),
    }
    rowids = [row[0] for row in sqlite.rows(f"SELECT rowid FROM {VECTORS}_rowids ORDER BY rowid")]
    stored = [
        np.frombuffer(sqlite.rows(f"SELECT embedding FROM {VECTORS} WHERE rowid = :id", id=rowid)[0][0], "<f4")
        for rowid in _spread(rowids, 2 * VARIANTS)
    ]
    # A question is like one screenshot and a little like another, and equal to none.
    vectors = [(near + 0.5 * far).astype(np.float32) for near, far in zip(stored[::2], stored[1::2])]
    latest = _moment(sqlite.rows("SELECT max(created_at) FROM entities")[0][0])
    first = _moment(sqlite.rows("SELECT min(created_at) FROM entities")[0][0])
    days = [(latest - timedelta(days=day + 1), latest - timedelta(days=day)) for day in range(VARIANTS)]
    days = [day for day in days if day[1] > first]
    paths = [row[0] for row in sqlite.rows("SELECT filepath FROM entities ORDER BY id")]
    apps = Counter(row[0] for row in sqlite.rows("SELECT value FROM metadata_entries WHERE key = 'active_app'"))
    place = sqlite.rows("SELECT library_id, folder_id FROM entities GROUP BY 1, 2 ORDER BY count(*) DESC LIMIT 1")[0]
    return Sample(
        entities=chosen,
        paths=[paths[at : at + 200] for at in _spread(range(len(paths)), VARIANTS)],
        days=days,
        apps=[name for name, _count in apps.most_common(VARIANTS)],
        words=words,
        vectors=vectors,
        library=place[0],
        folder=place[1],
        tags=[row[0] for row in sqlite.rows("SELECT DISTINCT name FROM tags ORDER BY name")][:VARIANTS],
    )


def _moment(stored: str) -> datetime:
    return datetime.fromisoformat(stored[:19])


def pensieve_queries(sample: Sample) -> Iterator[Query]:
    """What Pensieve's server and its `scan` ask, with Pensieve's own functions."""

    def full_text(side: Side, session: Session, word: str, **filters: Any) -> int:
        return len(side.provider.full_text_search(word, session, HITS, **filters))

    def near(side: Side, session: Session, vector: Vector, **filters: Any) -> int:
        return len(side.provider.vector_search(vector.tolist(), session, NEIGHBOURS, **filters))

    def period(day: tuple[datetime, datetime]) -> dict[str, int]:
        return {"start": int(day[0].timestamp()), "end": int(day[1].timestamp())}

    some, day = sample.words["one in a hundred"], sample.days[0]
    for which, words in sample.words.items():
        label = which if which == "Chinese" else f"English, {which}"
        yield Query(f"full-text search ({label})", "full text", "search.py, full_text_search", words, full_text)
    yield Query(
        "full-text search, two words",
        "full text",
        "search.py, full_text_search",
        [f"{first} {second}" for first, second in zip(some, reversed(sample.words["one in ten"]))],
        full_text,
    )
    yield Query(
        "full-text search in one app",
        "full text",
        "search.py, full_text_search with app_names",
        [(word, app) for word, app in zip(some, sample.apps)],
        lambda side, session, of: full_text(side, session, of[0], app_names=[of[1]]),
    )
    yield Query("vector search", "vectors", "search.py, vector_search", sample.vectors, near)
    yield Query(
        "vector search in one app on one day",
        "vectors",
        "search.py, vector_search with app_names, start, end",
        [(vector, app) for vector, app in zip(sample.vectors, sample.apps)],
        lambda side, session, of: near(side, session, of[0], app_names=[of[1]], **period(day)),
    )
    yield Query(
        "search as the page asks it: words and vectors, then the hits",
        "full text",
        "search.py, hybrid_search; crud.py, find_entities_by_ids",
        list(zip(sample.words["one in ten"], sample.vectors)),
        lambda side, session, of: _search(side, session, *of),
    )
    yield Query(
        "newest screenshots",
        "other",
        "crud.py, list_entities",
        [None],
        lambda _side, session, _: len(crud.list_entities(session, HITS)),
    )
    yield Query(
        "screenshots of one day",
        "other",
        "crud.py, list_entities with start, end",
        sample.days,
        lambda _side, session, of: len(crud.list_entities(session, HITS, **period(of))),
    )
    yield Query(
        "one screenshot with its metadata",
        "other",
        "crud.py, get_entity_by_id",
        sample.entities,
        lambda _side, session, entity: _present(crud.get_entity_by_id(entity, session, include_relationships=True)),
    )
    yield Query(
        "hits of a search with their metadata",
        "other",
        "crud.py, find_entities_by_ids",
        [list(range(entity, entity + HITS)) for entity in sample.entities],
        lambda _side, session, ids: len(crud.find_entities_by_ids(ids, session)),
    )
    yield Query(
        "page of a library's folder",
        "other",
        "crud.py, get_entities_of_folder",
        [0, 200],
        lambda _side, session, offset: len(
            crud.get_entities_of_folder(sample.library, sample.folder, session, 200, offset)[0]
        ),
    )
    yield Query(
        "200 files by path",
        "other",
        "crud.py, get_entities_by_filepaths",
        sample.paths,
        lambda _side, session, paths: len(crud.get_entities_by_filepaths(paths, session)),
    )
    yield Query(
        "screenshots before and after one",
        "other",
        "crud.py, get_entity_context",
        sample.entities,
        lambda _side, session, entity: sum(map(len, crud.get_entity_context(session, sample.library, entity, 12, 12))),
    )
    yield Query(
        "insert of a screenshot with eight metadata entries, rolled back",
        "other",
        "crud.py, create_entity",
        list(range(VARIANTS)),
        lambda _side, session, number: _insert(session, sample, number),
    )
    tagged = (
        "SELECT e.id, e.filepath FROM entities e JOIN entity_tags x ON x.entity_id = e.id"
        f" JOIN tags t ON t.id = x.tag_id WHERE t.name = :tag ORDER BY e.created_at DESC LIMIT {HITS}"
    )
    yield Query(
        "screenshots with one tag",
        "other",
        "models.py, EntityModel.tags",
        sample.tags,
        lambda _side, session, tag: len(session.execute(text(tagged), {"tag": tag}).fetchall()),
    )


def _search(side: Side, session: Session, word: str, vector: Vector) -> int:
    """What `hybrid_search` does with an embedding that is there already, and the server with its answer."""
    words = side.provider.full_text_search(word, session, HITS)
    near = side.provider.vector_search(vector.tolist(), session, NEIGHBOURS)
    best = [entity for entity, _score in side.provider.reciprocal_rank_fusion(words, near)][:HITS]
    return len(crud.find_entities_by_ids(best, session))


def _present(found: Any) -> int:
    return int(found is not None)


def _insert(session: Session, sample: Sample, number: int) -> int:
    """What `create_entity` does, without its commits."""
    now = datetime(2025, 1, 1, 12, 0, number)
    entity = EntityModel(
        filepath=f"/checks/{number}.webp",
        filename=f"{number}.webp",
        size=1,
        file_created_at=now,
        file_last_modified_at=now,
        file_type="webp",
        file_type_group="image",
        library_id=sample.library,
        folder_id=sample.folder,
    )
    session.add(entity)
    session.flush()
    session.add_all(
        EntityMetadataModel(
            entity_id=entity.id,
            key=f"check_{key}",
            value="a text of about a hundred characters, " * 3,
            source="checks",
            source_type=MetadataSource.PLUGIN_GENERATED,
            data_type=MetadataType.TEXT_DATA,
        )
        for key in range(8)
    )
    session.flush()
    session.rollback()
    return 1


# The tables of AutoTaskTracker's questions: a screenshot with one row of metadata for each key.
_JOIN = "LEFT JOIN metadata_entries {0} ON e.id = {0}.entity_id AND {0}.key = '{1}'"
_IMAGES = "(e.filepath LIKE '%.png' OR e.filepath LIKE '%.jpg' OR e.filepath LIKE '%.jpeg' OR e.filepath LIKE '%.webp')"


def _joined(**keys: str) -> str:
    return " ".join(_JOIN.format(alias, key) for alias, key in keys.items())


def autotasktracker_queries(sample: Sample) -> Iterator[Query]:
    """What AutoTaskTracker's dashboards ask, in SQLite's SQL."""

    def ask(name: str, origin: str, parameters: Sequence[Sequence[Any]], statement: str) -> Query:
        return Query(name, "other", origin, parameters, lambda side, _session, of: side.asked_by_tracker(statement, of))

    days = [(start.isoformat(sep=" "), end.isoformat(sep=" ")) for start, end in sample.days]
    noons = [((start + timedelta(hours=12)).isoformat(sep=" "),) for start, _end in sample.days]
    between = "e.created_at >= ? AND e.created_at <= ?"
    yield ask(
        "tasks of one day with text and window",
        "core/database.py, fetch_tasks",
        [(*day, 100) for day in days],
        "SELECT e.id, e.filepath, e.created_at, t.value, w.value FROM entities e"
        f" {_joined(t='ocr_result', w='active_window')}"
        f" WHERE {_IMAGES} AND {between} ORDER BY e.created_at DESC LIMIT ?",
    )
    seven = {
        "a": "ocr_result", "b": "active_window", "c": "tasks", "d": "category",
        "f": "minicpm_v_result", "g": "vlm_result", "h": "subtasks",
    }  # fmt: skip
    yield ask(
        "tasks of one day with seven kinds of metadata",
        "dashboards/data/repositories.py, get_tasks_for_period",
        [(*day, 100) for day in days],
        f"SELECT e.id, e.created_at, e.filepath, {', '.join(f'{alias}.value' for alias in seven)} FROM entities e"
        f" {_joined(**seven)} WHERE {between} ORDER BY e.created_at DESC LIMIT ?",
    )
    yield ask(
        "screenshots by app on one day",
        "dashboards/cache.py, get_category_breakdown",
        days,
        "SELECT m.value, count(*) FROM entities e JOIN metadata_entries m"
        " ON m.entity_id = e.id AND m.key = 'active_app'"
        f" WHERE {between} GROUP BY m.value ORDER BY count(*) DESC",
    )
    yield ask(
        "different windows on one day",
        "dashboards/data/repositories.py, metrics summary",
        [(start.date().isoformat(),) * 2 for start, _end in sample.days],
        "SELECT count(DISTINCT m.value) FROM metadata_entries m JOIN entities e ON m.entity_id = e.id"
        " WHERE m.key = 'active_window' AND DATE(e.created_at) >= DATE(?) AND DATE(e.created_at) <= DATE(?)",
    )
    yield ask(
        "screenshots by hour on one day",
        "dashboards/cache.py, get_hourly_activity",
        days,
        "SELECT CAST(strftime('%H', datetime(created_at, 'localtime')) AS INTEGER) AS hour, count(*) FROM entities"
        " WHERE created_at >= ? AND created_at <= ? GROUP BY hour ORDER BY hour",
    )
    yield ask(
        "number of screenshots on one day",
        "core/pensieve_adapter.py, get_screenshot_count_query",
        noons,
        f"SELECT count(*) FROM entities e WHERE {_IMAGES} AND date(created_at, 'localtime') = date(?, 'localtime')",
    )
    yield ask(
        "part of a word anywhere in texts and windows",
        "core/pensieve_adapter.py, get_search_activities_query",
        [(f"%{word}%", f"%{word}%", 50) for word in sample.words["one in a hundred"]],
        f"SELECT e.id, e.filepath, t.value, w.value FROM entities e {_joined(t='ocr_result', w='active_window')}"
        f" WHERE {_IMAGES} AND (t.value LIKE ? OR w.value LIKE ?) ORDER BY e.created_at DESC LIMIT ?",
    )


def measure(query: Query, sqlite: Side, postgresql: Side, seconds: float, least: int) -> Timing:
    """Call a query on both sides by turns, for about `seconds` on each, at least `least` times.

    What Pensieve cannot answer on SQLite (LookupError or ValueError, for AutoTaskTracker's rows) is left out, and told.
    Garbage is collected between calls: that takes longer than most of them, and would meet either side by chance.
    """
    timing = Timing(query)
    sides = {"sqlite": (sqlite, timing.sqlite), "postgresql": (postgresql, timing.postgresql)}

    def call(side: Side, parameter: Any) -> tuple[float, int]:
        gc.collect()
        gc.disable()
        try:
            begin = time.perf_counter()
            with Session(side.engine) as session:
                rows = query.run(side, session, parameter)
            return 1000 * (time.perf_counter() - begin), rows
        finally:
            gc.enable()

    parameters = []
    for parameter in query.parameters:
        try:
            rows = call(postgresql, parameter)[1]
        except Exception as error:
            timing.error = f"{type(error).__name__}: {error}".splitlines()[0]
            return timing
        try:
            timing.rows["sqlite"] += call(sqlite, parameter)[1]
        except (LookupError, ValueError):
            timing.unanswered += 1
            continue
        timing.rows["postgresql"] += rows
        parameters.append(parameter)
    done = dict.fromkeys(sides, not parameters)
    calls = 0
    while not all(done.values()):
        parameter = parameters[calls % len(parameters)]
        calls += 1
        for name, (side, times) in sides.items():
            if not done[name]:
                times.append(call(side, parameter)[0])
                done[name] = len(times) >= least and (sum(times) >= 1000 * seconds or len(times) >= 200)
    return timing


def explain(side: Side, run: Callable[[Session], Any], *local: str) -> list[str]:
    """Names of the indexes in the plan of the last statement that `run` sends, `local` settings made first."""
    statement, parameters = side.captured(run)
    connection = side.engine.raw_connection()
    try:
        with connection.cursor() as cursor:
            for setting in local:
                cursor.execute(f"SET LOCAL {setting}")
            cursor.execute("EXPLAIN (FORMAT JSON) " + statement, parameters)
            plan = cursor.fetchone()[0]
    finally:
        connection.close()
    plan = plan if isinstance(plan, str) else json.dumps(plan)
    return sorted(set(re.findall(r'"Index Name": "([^"]+)"', plan)))


def vector_facts(side: Side, vectors: list[Vector]) -> dict[str, Any]:
    """Count, dimensions, index, settings; and how much of what is near the application's own search finds.

    `recall` is the part of the ten nearest neighbours, by an exact search, among the first ten that it gives.
    """
    index = side.rows(
        "SELECT c.relname, i.indisvalid, pg_get_indexdef(c.oid) FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid"
        f" JOIN pg_am a ON a.oid = c.relam WHERE i.indrelid = 'public.{VECTORS}'::regclass AND a.amname = 'hnsw'"
    )
    rows, images = side.rows(f"SELECT count(*), count(*) FILTER (WHERE file_type_group = 'image') FROM {VECTORS}")[0]
    dimensions = side.rows(
        f"SELECT atttypmod FROM pg_attribute WHERE attrelid = 'public.{VECTORS}'::regclass AND attname = 'embedding'"
    )[0][0]
    found: dict[str, Any] = {
        "rows": rows,
        "images": images,
        "entities": side.rows("SELECT count(*) FROM entities WHERE file_type_group = 'image'")[0][0],
        "dimensions": dimensions,
        "dimensions_set": side.settings.embedding.num_dim,
        "index": index[0][0] if index else None,
        "index_valid": bool(index and index[0][1]),
        "settings": {
            name: side.rows("SELECT current_setting(:name, true)", name=name)[0][0]
            for name in ("hnsw.ef_search", "hnsw.iterative_scan")
        },
    }
    if images == 0 or any(len(vector) != dimensions for vector in vectors):
        return found
    stored = [
        np.array(json.loads(row[0]), np.float32)
        for row in side.rows(
            f"SELECT embedding::text FROM {VECTORS} WHERE file_type_group = 'image' ORDER BY md5(rowid::text) LIMIT 40"
        )
    ]
    questions, found["questions_from"], found["embedder"] = _questions(side, vectors, stored, dimensions)

    def ask(vector: Vector, limit: int) -> list[int]:
        with Session(side.engine) as session:
            return list(side.provider.vector_search(vector.tolist(), session, limit))

    recalls = [_recall(side, question, ask(question, NEIGHBOURS)) for question in questions]
    found["questions"] = len(questions)
    found["recall"] = round(statistics.mean(recalls), 4)
    found["recall_least"] = round(min(recalls), 4)
    found["returned_least"] = min(len(ask(question, NEIGHBOURS)) for question in questions)
    found["returned_expected"] = min(NEIGHBOURS, images)
    found["itself_first"] = sum(_distance(side, vector, ask(vector, 1)[:1]) < 1e-5 for vector in stored)
    found["itself_asked"] = len(stored)

    def own(session: Session) -> Any:
        return side.provider.vector_search(questions[0].tolist(), session, NEIGHBOURS)

    found["index_used"] = bool(index) and index[0][0] in explain(side, own)
    found["index_usable"] = bool(index) and index[0][0] in explain(
        side, own, "enable_seqscan = off", "enable_sort = off", "enable_bitmapscan = off"
    )
    found["small"] = rows < SMALL
    return found


def _questions(
    side: Side, vectors: list[Vector], stored: list[Vector], dimensions: int
) -> tuple[list[Vector], str, str]:
    """Vectors to ask for, what they are made of, and what Pensieve's embedder said.

    Text that stands on a screenshot, embedded by Pensieve's own service; where that runs inside of Pensieve's processes
    (a model of 1 GB) or does not answer, mixtures of stored vectors.
    """
    half = len(stored) // 2
    mixed = [*vectors, *((near + 0.5 * far) for near, far in zip(stored[:half], stored[half:]))]
    if side.settings.embedding.use_local:
        return mixed, "stored vectors, mixed", "a model inside of Pensieve's server"
    texts = [
        " ".join(str(row[0]).split()[-WORDS - 20 : -20])
        for row in side.rows(f"SELECT metadata FROM entities_fts ORDER BY md5(id::text) LIMIT {len(stored)}")
    ]
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            made = get_embeddings([content for content in texts if content])
    except Exception as error:  # whatever the service's client raises: the message is the evidence
        return mixed, "stored vectors, mixed", f"{type(error).__name__}: {error}".splitlines()[0]
    embedded = [np.array(vector, np.float32) for vector in made]
    if not embedded:
        return mixed, "stored vectors, mixed", f"{side.settings.embedding.endpoint} does not answer"
    if len(embedded[0]) != dimensions:
        return mixed, "stored vectors, mixed", f"makes {len(embedded[0])} dimensions, the table takes {dimensions}"
    return embedded, f"{WORDS} words on a screenshot, embedded", f"{len(embedded)} texts embedded"


def _recall(side: Side, question: Vector, given: list[int]) -> float:
    """A row that is as near as the tenth counts as right: neighbours may be equally far."""
    connection = side.engine.raw_connection()
    try:
        with connection.cursor() as cursor:
            cursor.execute("SET LOCAL enable_indexscan = off")
            value = str(question.tolist())
            cursor.execute(
                f"SELECT embedding <=> %s::vector FROM {VECTORS} WHERE file_type_group = 'image' ORDER BY 1 LIMIT 10",
                (value,),
            )
            exact = [row[0] for row in cursor.fetchall()]
            cursor.execute(
                f"SELECT embedding <=> %s::vector FROM {VECTORS} WHERE rowid = ANY (%s)", (value, given[:10])
            )
            right = sum(row[0] <= exact[-1] + 1e-6 for row in cursor.fetchall())
    finally:
        connection.close()
    return float(right / len(exact))


def _distance(side: Side, question: Vector, given: list[int]) -> float:
    rows = side.rows(
        f"SELECT embedding <=> CAST(:value AS vector) FROM {VECTORS} WHERE rowid = ANY (:given)",
        value=str(question.tolist()),
        given=given,
    )
    return float(rows[0][0]) if rows else math.inf


def facts_of_pool(side: Side) -> dict[str, Any]:
    """Pensieve's own pool of connections, as its code makes it."""
    pool: Any = side.engine.pool
    return {
        "kind": type(pool).__name__,
        "size": pool.size(),
        "overflow": getattr(pool, "_max_overflow", None),
        "timeout": getattr(pool, "_timeout", None),
        "recycle": getattr(pool, "_recycle", None),
        "max_connections": int(side.rows("SELECT current_setting('max_connections')")[0][0]),
    }


def misses(timing: dict[str, Any], bars: Bars, entities: int) -> bool:
    """Whether PostgreSQL is slower than the bars allow."""
    if not timing["calls"][0]:
        return bool(timing["error"])
    if entities < bars.judged_from:
        return False
    slower = timing["postgresql_ms"] > timing["sqlite_ms"] + bars.milliseconds
    search = timing["kind"] != "other" and entities >= bars.speedup_from
    return bool(slower or (search and timing["times_faster"] < bars.speedup))


def measure_all(
    source: str | None, target: str, bars: Bars | None = None, seconds: float = 2.0, least: int = 15, only: str = ""
) -> dict[str, Any]:
    """Times of all queries, and facts of the vectors.

    Args:
        source: path of a SQLite file that may be changed; None: there is none, and nothing is timed.
        target: URI of PostgreSQL without a password.
        bars: a query that misses them is measured once more, four times as long, and that counts.
        seconds: for each query on each side.
        least: calls of each query on each side.
        only: part of a name; other queries are left out.

    Times need a screenshot in the SQLite file.
    """
    bars = bars or Bars()
    postgresql = Side(target)
    sqlite = Side(source) if source else None
    found: dict[str, Any] = {"entities": 0, "queries": [], "pool": facts_of_pool(postgresql)}
    try:
        vectors: list[Vector] = []
        if sqlite and sqlite.rows("SELECT 1 FROM entities WHERE file_type_group = 'image' LIMIT 1"):
            sample = draw(sqlite)
            vectors = sample.vectors
            found["entities"] = sqlite.rows("SELECT count(*) FROM entities")[0][0]
            gc.collect()
            gc.freeze()  # what Pensieve has loaded need not be looked through before each call
            for query in [*pensieve_queries(sample), *autotasktracker_queries(sample)]:
                if not query.parameters or only not in query.name:
                    continue
                timing = measure(query, sqlite, postgresql, seconds, least).as_dict()
                if misses(timing, bars, found["entities"]):
                    timing = measure(query, sqlite, postgresql, 4 * seconds, least).as_dict()
                found["queries"].append({**timing, "missed": misses(timing, bars, found["entities"])})
        found["vectors"] = vector_facts(postgresql, vectors)
        return found
    finally:
        postgresql.close()
        if sqlite:
            sqlite.close()


def judge(found: dict[str, Any], bars: Bars | None = None) -> list[dict[str, str]]:
    """The plan's points that this decides: point, what, result (pass, fail, not applicable), evidence."""
    bars = bars or Bars()
    return [*_judge_vectors(found["vectors"], bars), _judge_times(found, bars), _judge_pool(found["pool"])]


def _check(point: str, what: str, wrong: list[str], evidence: str) -> dict[str, str]:
    said = "; ".join([*wrong, evidence])
    return {"point": point, "what": what, "result": "fail" if wrong else "pass", "evidence": said}


def _judge_vectors(vectors: dict[str, Any], bars: Bars) -> Iterator[dict[str, str]]:
    meaning, search = "AI features: what is embedded is found by what it means", "Vector search is indexed and finds"
    if vectors["dimensions"] != vectors["dimensions_set"]:
        wrong = [
            f"the table takes {vectors['dimensions']} dimensions, Pensieve's model makes {vectors['dimensions_set']}"
        ]
        yield _check("SC-3", meaning, wrong, f"{vectors['rows']} vectors")
    elif not vectors["images"]:
        reason = {"result": "not applicable", "evidence": "no screenshot is embedded yet"}
        yield {"point": "SC-3", "what": meaning, **reason}
    else:
        wrong = []
        if vectors["itself_first"] < vectors["itself_asked"]:
            wrong.append(f"only {vectors['itself_first']} of {vectors['itself_asked']} are found by their own vector")
        if vectors["returned_least"] < vectors["returned_expected"]:
            wrong.append(
                f"{vectors['returned_least']} rows come back where {vectors['returned_expected']} were asked for"
            )
        if vectors["recall"] < bars.recall:
            wrong.append(f"{vectors['recall']:.1%} of the nearest ten are found; expected {bars.recall:.0%}")
        evidence = (
            f"{vectors['rows']} vectors of {vectors['dimensions']} dimensions for {vectors['entities']} screenshots;"
            f" {vectors['recall']:.1%} of the ten nearest found for {vectors['questions']} questions"
            f" ({vectors['questions_from']}); embedder: {vectors['embedder']}"
        )
        yield _check("SC-3", meaning, wrong, evidence)
    wrong = []
    if vectors["index"] is None:
        wrong.append(f"no HNSW index on {VECTORS}")
    elif not vectors["index_valid"]:
        wrong.append(f"{vectors['index']} is not valid")
    elif "recall" in vectors:
        if not vectors["index_usable"]:
            wrong.append("Pensieve's own query cannot use the index")
        elif not vectors["index_used"] and not vectors["small"]:
            wrong.append("Pensieve's own query does not use the index")
        if vectors["recall"] < bars.recall:
            wrong.append(f"recall@10 {vectors['recall']:.3f}, expected {bars.recall}")
    used = "used" if vectors.get("index_used") else "usable; at this size reading every row is cheaper"
    evidence = f"{vectors['index']}: {used}; " * bool(vectors["index"]) + ", ".join(
        f"{name} {value}" for name, value in vectors["settings"].items()
    )
    if "recall" in vectors:
        evidence += f"; recall@10 {vectors['recall']:.3f}, least {vectors['recall_least']:.1f}"
    yield _check("SC-5", search, wrong, evidence)


def _judge_times(found: dict[str, Any], bars: Bars) -> dict[str, str]:
    what = "No query got slower"
    if not found["queries"]:
        evidence = "there is no SQLite database with screenshots to compare with"
        return {"point": "SC-4", "what": what, "result": "not applicable", "evidence": evidence}
    wrong = [
        f"{query['name']}: {query['error']}"
        if query["error"]
        else f"{query['name']}: {query['postgresql_ms']:.1f} ms, on SQLite {query['sqlite_ms']:.1f} ms"
        for query in found["queries"]
        if query["missed"]
    ]
    timed = [query["times_faster"] for query in found["queries"] if query["calls"][0]]
    ratios = statistics.median(timed) if timed else math.nan
    unanswered = [query["name"] for query in found["queries"] if query["unanswered"]]
    searches = f", searches {bars.speedup:g} times faster" if found["entities"] >= bars.speedup_from else ""
    evidence = (
        f"{len(timed)} queries at {found['entities']} screenshots, the median {ratios:.1f} times as fast as"
        f" on SQLite; asked: no median more than {bars.milliseconds:g} ms above SQLite's{searches}"
    ) + (f"; on SQLite Pensieve itself fails at: {', '.join(unanswered)}" if unanswered else "")
    if not wrong and found["entities"] < bars.judged_from:
        few = f"measured, and judged from {bars.judged_from} screenshots on; {evidence}"
        return {"point": "SC-4", "what": what, "result": "not applicable", "evidence": few}
    return _check("SC-4", what, wrong, evidence)


def _judge_pool(pool: dict[str, Any]) -> dict[str, str]:
    most = pool["size"] + max(0, pool["overflow"] or 0)
    wrong = []
    if most >= pool["max_connections"]:
        wrong.append(f"the pool may ask for {most} connections, the server has {pool['max_connections']}")
    evidence = (
        f"Pensieve: {pool['kind']} of {pool['size']}, up to {most}, renewed after {pool['recycle']} s; the server takes"
        f" {pool['max_connections']}"
    )
    return _check("4.2.3", "Connections are pooled", wrong, evidence)


def main() -> int:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", required=True, help="path of a SQLite file that may be changed")
    parser.add_argument("--target", required=True, help="URI of PostgreSQL without a password")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each query on each side (2)")
    parser.add_argument(
        "--judged-from", type=int, default=Bars.judged_from, help="screenshots from which times are judged"
    )
    parser.add_argument("--only", default="", help="part of a query's name")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)  # Pensieve logs each search
    bars = Bars(judged_from=options.judged_from)
    found = measure_all(options.source, options.target, bars, options.seconds, only=options.only)
    json.dump({**found, "checks": judge(found, bars)}, sys.stdout, indent=1, ensure_ascii=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
