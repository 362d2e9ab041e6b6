"""Measure the engine against pgloader, `memos migrate` and the server's own limits, on one file and one server.

Run by scripts/bench, which makes what it needs. Writes a table to stdout and everything to a JSON file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psycopg2
from engine.pensieve import Pensieve
from engine.server import OWNER, Server
from sqlite_to_postgresql.target import PENSIEVE_TABLES

PACKAGES = Path(__file__).resolve().parents[1] / "roles" / "data_copy" / "module_utils"
TEMPLATE = "pensieve_template"
RELATIONAL = [name for name in PENSIEVE_TABLES if name != "alembic_version"]
VECTORS, WORDS = "entities_vec_v2", "entities_fts"
SAMPLE = 1_000  # entities whose full text Pensieve's own loop makes, and vectors that the extension reads
SAMPLES_PER_SECOND = 5.0  # of memory
MARKS = ("<!-- measured -->", "<!-- end -->")
SETTINGS = {
    "shared_buffers": "512MB",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "30min",
    "fsync": "on",
    "synchronous_commit": "on",
    "max_worker_processes": "8",
    "max_parallel_maintenance_workers": "2",
}
PENSIEVE_WORDS = """
import json, sqlite3, sys, time
from types import SimpleNamespace
from memos.search import PostgreSQLSearchProvider
source = sqlite3.connect(f"file:{sys.argv[1]}?mode=ro", uri=True)
entities = []
for entity, path in source.execute("SELECT id, filepath FROM entities ORDER BY id LIMIT ?", (int(sys.argv[2]),)):
    tags = [row[0] for row in source.execute(
        "SELECT t.name FROM entity_tags e JOIN tags t ON t.id = e.tag_id WHERE entity_id = ? ORDER BY e.id", (entity,))]
    rows = source.execute("SELECT key, value FROM metadata_entries WHERE entity_id = ? ORDER BY id", (entity,))
    entries = [SimpleNamespace(key=key, value=value) for key, value in rows]
    entities.append(SimpleNamespace(filepath=path, tag_names=tags, metadata_entries=entries))
provider = PostgreSQLSearchProvider()
provider.tokenize_text("load the dictionary")
started = time.perf_counter()
for entity in entities:
    provider.prepare_fts_data(entity)
print("RESULT" + json.dumps({"seconds": time.perf_counter() - started, "entities": len(entities)}))
"""
OUR_WORDS = """
import json, multiprocessing, os, sqlite3, sys, time
from sqlite_to_postgresql.fts import Tokenizer
tokenizer = Tokenizer().load()
jobs = os.cpu_count() or 1

def part(number):
    source = sqlite3.connect(f"file:{sys.argv[1]}?mode=ro", uri=True)
    low, high = (int(sys.argv[2]) * edge // jobs for edge in (number, number + 1))
    entities = []
    chosen = "SELECT id, filepath FROM entities ORDER BY id LIMIT ? OFFSET ?"
    named = "SELECT t.name FROM entity_tags e JOIN tags t ON t.id = e.tag_id WHERE entity_id = ? ORDER BY e.id"
    for entity, path in source.execute(chosen, (high - low, low)):
        tags = [row[0] for row in source.execute(named, (entity,))]
        rows = source.execute("SELECT key, value FROM metadata_entries WHERE entity_id = ? ORDER BY id", (entity,))
        entities.append((path, tags, rows.fetchall()))
    started = time.perf_counter()
    for entity in entities:
        tokenizer.prepare(*entity)
    return time.perf_counter() - started, len(entities)

with multiprocessing.get_context("fork").Pool(jobs) as pool:
    parts = pool.map(part, range(jobs), chunksize=1)
seconds, entities = max(part[0] for part in parts), sum(part[1] for part in parts)
print("RESULT" + json.dumps({"seconds": seconds, "entities": entities}))
"""
EXTENSION_VECTORS = """
import json, sqlite3, sys, time
import psycopg2, sqlite_vec
source = sqlite3.connect(f"file:{sys.argv[1]}?mode=ro", uri=True)
source.enable_load_extension(True)
sqlite_vec.load(source)
columns = "file_type_group, created_at_timestamp, file_created_at_timestamp, file_created_at_date, app_name, library_id"
started = time.perf_counter()
rows = source.execute(
    f"SELECT rowid, vec_to_json(embedding), {columns} FROM entities_vec_v2 LIMIT ?", (int(sys.argv[3]),)).fetchall()
read = time.perf_counter() - started
target = psycopg2.connect(sys.argv[2])
with target.cursor() as cursor:
    cursor.execute("CREATE TABLE public.by_text (LIKE public.entities_vec_v2)")
    import io
    text = io.StringIO("".join("\\t".join(map(str, row)) + "\\n" for row in rows))
    started = time.perf_counter()
    cursor.copy_expert("COPY public.by_text FROM STDIN", text)
    written = time.perf_counter() - started
target.rollback()
print("RESULT" + json.dumps({"read": read, "written": written, "vectors": len(rows)}))
"""


@dataclass
class Measure:
    """Seconds of each run of one thing, and what else was seen."""

    seconds: list[float] = field(default_factory=list)
    seen: dict[str, Any] = field(default_factory=dict)

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds) if self.seconds else float("nan")


class MemorySampler:
    """Largest sum of the proportional set sizes of a process and all its descendants, in MB."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.peak = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> MemorySampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(1 / SAMPLES_PER_SECOND):
            self.peak = max(self.peak, sum(map(self._size, self._family())) / 1024)

    def _family(self) -> list[int]:
        parents = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue
        family, waiting = [], [self.pid]
        while waiting:
            current = waiting.pop()
            family.append(current)
            waiting += [child for child, parent in parents.items() if parent == current]
        return family

    @staticmethod
    def _size(pid: int) -> float:
        try:
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    return float(line.split()[1])
        except OSError:
            pass
        return 0.0


class Bench:
    """One server, one source, all contestants."""

    def __init__(self, server: Server, pensieve: Pensieve, source: Path, folder: Path) -> None:
        self.server, self.pensieve = server, pensieve
        self.source, self.folder = source, folder
        self.relational = part_of(source, folder / "relational.db", vectors=False, words=False)
        self.count = 0
        self.results: dict[str, Measure] = {}

    def say(self, text: str) -> None:
        """To a person who waits."""
        print(f"→ {text}", file=sys.stderr, flush=True)

    @contextmanager
    def database(self, template: str = TEMPLATE) -> Iterator[str]:
        """A fresh database; gives its DSN. Starts with an empty write-ahead log, so that nobody pays for another."""
        self.count += 1
        name = f"bench_{self.count}"
        dsn = self.server.create_database(name, template)
        self.server.run("CHECKPOINT")
        try:
            yield dsn
        finally:
            self.server.drop_database(name)

    def add(self, name: str, seconds: float, **seen: Any) -> None:
        """Note one run."""
        measure = self.results.setdefault(name, Measure())
        measure.seconds.append(seconds)
        for key, value in seen.items():
            measure.seen.setdefault(key, []).append(value)

    def engine(self, action: str, source: Path, dsn: str) -> tuple[float, float, dict[str, Any]]:
        """Run the engine's command line: seconds, peak MB, result."""
        command = [sys.executable, "-m", "sqlite_to_postgresql", action, "--quiet", "--source", str(source)]
        environment = {**os.environ, "PYTHONPATH": str(PACKAGES)}
        with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
            started = time.perf_counter()
            process = subprocess.Popen([*command, "--target", dsn], env=environment, stdout=output, stderr=errors)
            with MemorySampler(process.pid) as memory:
                code = process.wait()
            seconds = time.perf_counter() - started
            output.seek(0)
            errors.seek(0)
            if code:
                raise RuntimeError(f"{action}: exit code {code}\n{errors.read()[-2000:]}{output.read()[-2000:]}")
            return seconds, memory.peak, json.load(output)

    def missing(self, dsn: str) -> int:
        """Relational rows of the source that the target does not have."""
        source = sqlite3.connect(f"file:{self.source}?mode=ro", uri=True)
        target = psycopg2.connect(dsn)
        try:
            lost = 0
            with target.cursor() as cursor:
                for table in RELATIONAL:
                    cursor.execute("SELECT to_regclass(%s)", (f"public.{table}",))
                    there = 0
                    if (cursor.fetchone() or (None,))[0]:
                        cursor.execute(f"SELECT count(*) FROM public.{table}")
                        there = (cursor.fetchone() or (0,))[0]
                    lost += source.execute(f"SELECT count(*) FROM {table}").fetchone()[0] - there
            return lost
        finally:
            source.close()
            target.close()

    def ours_relational(self) -> None:
        """Relational tables with keys, indexes and foreign keys."""
        with self.database() as dsn:
            seconds, memory, _result = self.engine("copy", self.relational, dsn)
            self.add("relational, ours", seconds, peak_mb=round(memory), rows_missing=self.missing(dsn))

    def pgloader(self) -> None:
        """The same tables by pgloader. With its default batches it runs out of heap at 50,000 screenshots, says so, and
        ends with all metadata missing; so it gets smaller ones.
        """
        with self.database("template0") as dsn:
            names = ", ".join(f"'{name}'" for name in PENSIEVE_TABLES)
            script = self.folder / "pgloader.load"
            script.write_text(
                f"LOAD DATABASE FROM sqlite://{self.relational} INTO {dsn}\n"
                "WITH include drop, create tables, create indexes, reset sequences,"
                " batch rows = 2000, batch size = 20 MB, prefetch rows = 2000\n"
                f"INCLUDING ONLY TABLE NAMES LIKE {names};\n"
            )
            password = next(
                line.rsplit(":", 1)[1]
                for line in self.server.passfile.read_text().splitlines()
                if line.split(":")[3] == OWNER
            )
            environment = {**os.environ, "PGPASSWORD": password}
            started = time.perf_counter()
            done = subprocess.run(
                ["pgloader", "--root-dir", str(self.folder / "pgloader"), str(script)],
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            seconds = time.perf_counter() - started
            self.add("relational, pgloader", seconds, exit_code=done.returncode, rows_missing=self.missing(dsn))

    def memos_migrate(self) -> None:
        """The same tables by Pensieve's own command."""
        with self.database() as dsn:
            started = time.perf_counter()
            done = self.pensieve.run(
                "memos",
                "migrate",
                "--sqlite-url",
                f"sqlite:///{self.relational}",
                "--pg-url",
                dsn,
                database=dsn,
                stdin="y\n",
                check=False,
            )
            seconds = time.perf_counter() - started
            self.add("relational, memos migrate", seconds, exit_code=done.returncode, rows_missing=self.missing(dsn))

    def whole(self, limits: bool) -> None:
        """Everything by ours, then verified; what the server alone needs for the same."""
        with self.database() as dsn:
            seconds, memory, result = self.engine("copy", self.source, dsn)
            phases = result["phases"]
            self.add("everything, ours", seconds, peak_mb=round(memory), phases=phases)
            seconds, memory, verdict = self.engine("verify", self.source, dsn)
            self.add("verification", seconds, peak_mb=round(memory), equal=verdict["equal"])
            if limits:
                self.server_copy(dsn, [*RELATIONAL, VECTORS])
                self.server_indexes(dsn)
                self.extension(dsn)

    def drop_graph(self, dsn: str) -> None:
        """Have no graph of vectors built, which would take the cores from all else."""
        self.server.run(
            "DO $$ DECLARE i record; BEGIN FOR i IN SELECT c.oid::regclass AS name FROM pg_class c"
            " JOIN pg_am m ON m.oid = c.relam WHERE m.amname = 'hnsw' LOOP"
            " EXECUTE 'DROP INDEX ' || i.name; END LOOP; END $$",
            database=dsn.rpartition("/")[2],
        )

    def alone(self) -> None:
        """Parts of the copy, each from a file without the rest: in the whole copy they share the cores."""
        file = part_of(self.source, self.folder / "part.db", words=False)
        with self.database() as dsn:
            self.drop_graph(dsn)
            _seconds, _memory, result = self.engine("copy", file, dsn)
            self.add("rows and vectors without indexes, ours", result["phases"]["load"])
        file = part_of(self.source, self.folder / "part.db", vectors=False)
        with self.database() as dsn:
            _seconds, _memory, result = self.engine("copy", file, dsn)
            self.add("full text, ours", result["phases"]["full text"], entries=result["tables"][WORDS]["target"])
        file = part_of(self.source, self.folder / "part.db", words=False, metadata=False)
        with self.database() as dsn:
            _seconds, _memory, result = self.engine("copy", file, dsn)
            vectors = result["tables"][VECTORS]
            self.add("vectors, ours", vectors["seconds"], vectors=vectors["target"])

    def ten_times(self, larger: Path) -> list[tuple[str, float, str, bool]]:
        """A database ten times as large. Both without the graph of vectors, whose cost in the server is not linear, and
        both from the disk: only the smaller one would still be in memory.
        """
        for name, file in (("once", self.source), ("ten times", larger)):
            self.say(f"everything but the graph of vectors, ours, {name}")
            with self.database() as dsn:
                self.drop_graph(dsn)
                evict(file)
                seconds, memory, result = self.engine("copy", file, dsn)
                self.add(f"without graph, {name}", seconds, peak_mb=round(memory), phases=result["phases"])
        once, ten = self.results["without graph, once"], self.results["without graph, ten times"]
        ratio, peak = ten.median / once.median, ten.seen["peak_mb"][-1]
        return [
            ("time of ten times as many", ratio, "≤ 11", ratio <= 11),
            ("peak memory of ten times as many (MB)", peak, "≤ 200", peak <= 200),
        ]

    def server_copy(self, dsn: str, tables: list[str]) -> None:
        """The server's own binary COPY of the same rows from prepared files, into tables without any index."""
        database = dsn.rpartition("/")[2]
        columns = {
            table: self.server.run(
                "SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute WHERE attrelid ="
                f" 'public.{table}'::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = ''",
                database=database,
            )[0][0]
            for table in tables
        }
        files = {table: f"/var/lib/postgresql/{database}_{table}" for table in tables}
        for table in tables:
            self.server.run(
                f"COPY public.{table} ({columns[table]}) TO '{files[table]}' (FORMAT binary)", database=database
            )

        def load(table: str, compression: str) -> float:
            started = time.perf_counter()
            self.server.run(
                f"SET default_toast_compression = {compression}",
                f"BEGIN; CREATE TABLE limit_{table} (LIKE public.{table});"
                f" COPY limit_{table} ({columns[table]}) FROM '{files[table]}' (FORMAT binary, FREEZE); COMMIT",
                database=database,
            )
            return time.perf_counter() - started

        largest_first = sorted(tables, key=lambda table: table not in (VECTORS, "metadata_entries"))
        for compression in ("pglz", "lz4"):
            self.server.run("CHECKPOINT")
            one_by_one = sum(load(table, compression) for table in tables)
            self.add(f"limit: the server's binary COPY, one by one, {compression}", one_by_one)
            self.server.run(*(f"DROP TABLE limit_{table}" for table in tables), database=database)
            self.server.run("CHECKPOINT")
            started = time.perf_counter()
            with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
                list(threads.map(load, largest_first, [compression] * len(tables)))
            self.add(f"limit: the server's binary COPY, in parallel, {compression}", time.perf_counter() - started)
            self.server.run(*(f"DROP TABLE limit_{table}" for table in tables), database=database)

    def server_indexes(self, dsn: str) -> None:
        """What the server needs for each index alone, with the best settings."""
        database = dsn.rpartition("/")[2]
        definitions = self.server.run(
            "SELECT i.indrelid::regclass::text, pg_get_indexdef(i.indexrelid), i.indexrelid::regclass::text"
            " FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid"
            " WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND c.relname NOT LIKE 'limit_%'",
            database=database,
        )
        total, each = 0.0, {}
        for _table, definition, name in definitions:
            statement = definition.replace(f"INDEX {name} ON", f"INDEX limit_{name} ON", 1)
            started = time.perf_counter()
            self.server.run(
                "SET maintenance_work_mem = '1GB'",
                f"SET max_parallel_maintenance_workers = {os.cpu_count() or 1}",
                statement,
                database=database,
            )
            each[name] = round(time.perf_counter() - started, 3)
            total += each[name]
            self.server.run(f"DROP INDEX limit_{name}", database=database)
        self.add("limit: every index alone, best settings", total, each=each)

    def extension(self, dsn: str) -> None:
        """Vectors by the extension's SELECT and text COPY."""
        result = self.script(EXTENSION_VECTORS, str(self.source), dsn, str(5 * SAMPLE))
        self.add("vectors, extension and text COPY", result["read"] + result["written"], vectors=result["vectors"])

    def words(self) -> None:
        """Pensieve's own loop over some entities; ours, on all cores, over ten times as many. Nothing is written."""
        result = self.script(PENSIEVE_WORDS, str(self.source), str(SAMPLE))
        self.add("full text, Pensieve's loop (sample)", result["seconds"], entries=result["entities"])
        command = [sys.executable, "-c", OUR_WORDS, str(self.source), str(10 * SAMPLE)]
        environment = {**os.environ, "PYTHONPATH": str(PACKAGES)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        result = json.loads(done.stdout[done.stdout.index("RESULT") + 6 :])
        self.add("full text, ours, only the words (sample)", result["seconds"], entries=result["entities"])

    def script(self, code: str, *arguments: str) -> dict[str, Any]:
        """Run code in Pensieve's interpreter."""
        done = self.pensieve.run("python", "-c", code, *arguments, database=str(self.source))
        found: dict[str, Any] = json.loads(done.stdout[done.stdout.index("RESULT") + 6 :])
        return found


def evict(file: Path) -> None:
    """Have the next one who reads a file read it from the disk."""
    with file.open("rb") as stream:
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def part_of(source: Path, copy: Path, vectors: bool = True, words: bool = True, metadata: bool = True) -> Path:
    """The same file without its vectors, full text or metadata entries."""
    copy.unlink(missing_ok=True)
    shutil.copy(source, copy)
    database = sqlite3.connect(copy, isolation_level=None)
    shadows = [
        row[0]
        for row in database.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name LIKE 'entities_vec_v2_%'"
        )
    ]
    gone = [] if vectors else [name for name in shadows if not name.endswith("_info")]
    gone += [] if words else ["entities_fts_content", "entities_fts_docsize"]
    gone += [] if metadata else ["metadata_entries"]
    for name in gone:
        database.execute(f'DELETE FROM "{name}"')
    database.execute("VACUUM")
    database.close()
    return copy


def rate(measure: Measure, of: str) -> float:
    """Things per second."""
    return float(measure.seen[of][0]) / measure.median


def ratios(results: dict[str, Measure]) -> list[tuple[str, float, str, bool]]:
    """(what, value, bar, held)."""
    found: list[tuple[str, float, str, bool]] = []

    def compare(what: str, value: float, most: float | None = None, least: float | None = None) -> None:
        bar = f"≤ {most:g}" if most is not None else f"≥ {least:g}"
        held = value <= most if most is not None else value >= (least or 0.0)
        found.append((what, value, bar, held))

    ours = results["relational, ours"].median
    if "relational, pgloader" in results:
        compare("relational: ours / pgloader", ours / results["relational, pgloader"].median, most=1 / 5)
    if "relational, memos migrate" in results:
        compare("relational: ours / memos migrate", ours / results["relational, memos migrate"].median, most=1 / 15)
    load = results["rows and vectors without indexes, ours"].median
    for how in ("one by one, pglz", "in parallel, pglz", "one by one, lz4", "in parallel, lz4"):
        limit = results[f"limit: the server's binary COPY, {how}"].median
        compare(f"rows and vectors: ours / server's COPY {how}", load / limit, most=1.5)
    loop, words = results["full text, Pensieve's loop (sample)"], results["full text, ours"]
    alone = results["full text, ours, only the words (sample)"]
    compare("full text: ours / Pensieve's loop (rate)", rate(alone, "entries") / rate(loop, "entries"), least=4)
    compare(
        "full text: ours with reading and writing / the same", rate(words, "entries") / rate(loop, "entries"), least=4
    )
    vectors, text = results["vectors, ours"], results["vectors, extension and text COPY"]
    compare("vectors: ours / extension and text (rate)", rate(vectors, "vectors") / rate(text, "vectors"), least=10)
    everything = results["everything, ours"]
    indexes = sum(everything.seen["phases"][-1][phase] for phase in ("full text", "indexes after full text", "keys"))
    indexes -= words.median
    compare(
        "indexes: what is left of ours / each alone",
        indexes / results["limit: every index alone, best settings"].median,
        most=1.1,
    )
    compare("peak memory of the copy (MB)", max(everything.seen["peak_mb"]), most=200)
    compare("verification / copy", results["verification"].median / everything.median, most=1)
    return found


def table(results: dict[str, Measure], held: list[tuple[str, float, str, bool]]) -> str:
    """Markdown."""
    lines = ["| what | median s | runs | seen |", "|---|---:|---:|---|"]
    for name, measure in results.items():
        seen = ", ".join(f"{key} {value[-1]}" for key, value in measure.seen.items() if key not in ("phases", "each"))
        lines.append(f"| {name} | {measure.median:.2f} | {len(measure.seconds)} | {seen} |")
    lines += ["", "| ratio | value | bar | held |", "|---|---:|---|---|"]
    lines += [f"| {what} | {value:.3g} | {bar} | {'yes' if good else '**no**'} |" for what, value, bar, good in held]
    return "\n".join(lines)


def write_between(page: Path, text: str) -> None:
    """Replace what stands between the two marks of a page."""
    before, start, rest = page.read_text().partition(MARKS[0])
    _old, end, after = rest.partition(MARKS[1])
    if not start or not end:
        raise ValueError(f"{page} has no marks {MARKS[0]} … {MARKS[1]}")
    page.write_text(f"{before}{start}\n{text}\n{end}{after}")


def make_source(pensieve: Pensieve, folder: Path, screenshots: int) -> Path:
    """Kept between runs."""
    source = folder / f"screenshots-{screenshots}.db"
    if not source.exists():
        made = folder / "unfinished.db"
        for leftover in folder.glob("unfinished.db*"):
            leftover.unlink()
        pensieve.make_source(made, screenshots)
        made.rename(source)
    return source


def arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--screenshots", type=int, default=50_000, help="size of the database (50000)")
    parser.add_argument("--runs", type=int, default=3, help="runs of each contestant; medians are shown (3)")
    parser.add_argument("--json", type=Path, default=Path("reports/benchmark.json"), help="where all numbers go")
    parser.add_argument("--folder", type=Path, default=Path(".cache/bench"), help="where sources are kept")
    parser.add_argument("--skip", action="append", default=[], choices=("pgloader", "memos"), help="leave one out")
    parser.add_argument("--document", type=Path, help="a page whose part between the marks becomes the table")
    parser.add_argument("--ten-times", action="store_true", help="copy ten times as many too, and give time and memory")
    return parser.parse_args()


def main() -> int:
    """Exit code 1: a bar is not held."""
    options = arguments()
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    pensieve = Pensieve(Path(os.environ["PENSIEVE_VENV"]), folder / "home")
    with tempfile.TemporaryDirectory(dir=folder) as scratch, Server(Path(scratch), SETTINGS) as server:
        print(f"→ Making a source of {options.screenshots} screenshots, unless kept …", file=sys.stderr, flush=True)
        source = make_source(pensieve, folder, options.screenshots)
        pensieve.init(server.create_database(TEMPLATE))
        bench = Bench(server, pensieve, source, Path(scratch))
        for run in range(options.runs):
            bench.say(f"run {run + 1} of {options.runs}: relational tables, ours")
            bench.ours_relational()
            if "pgloader" not in options.skip:
                bench.say("relational tables, pgloader")
                bench.pgloader()
            if "memos" not in options.skip:
                bench.say("relational tables, memos migrate")
                bench.memos_migrate()
            bench.say("everything, ours, and its verification")
            bench.whole(limits=run == 0)
            bench.say("rows and vectors, full text, vectors, each alone, ours")
            bench.alone()
            bench.say("full text, only the words: Pensieve's own loop over a sample, and ours")
            bench.words()
        held = ratios(bench.results)
        if options.ten_times:
            held += bench.ten_times(make_source(pensieve, folder, 10 * options.screenshots))
    shown = table(bench.results, held)
    print(shown)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    facts = {
        "screenshots": options.screenshots,
        "source_mb": round(source.stat().st_size / 1e6),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "settings": SETTINGS,
    }
    numbers = {name: {"median": measure.median, **asdict(measure)} for name, measure in bench.results.items()}
    bars = [{"what": what, "value": value, "bar": bar, "held": good} for what, value, bar, good in held]
    options.json.write_text(json.dumps({**facts, "results": numbers, "bars": bars}, indent=2) + "\n")
    print(f"\n{options.json}", file=sys.stderr)
    if options.document is not None:
        headline = (
            f"`scripts/bench {' '.join(sys.argv[1:])}`: {options.screenshots:,} screenshots"
            f" ({facts['source_mb']:,} MB of SQLite), {facts['cores']} cores.\n\n"
        )
        write_between(options.document, headline + shown)
    return 0 if all(good for *_rest, good in held) else 1


if __name__ == "__main__":
    sys.exit(main())
