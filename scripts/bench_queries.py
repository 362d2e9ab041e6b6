"""Time both applications' queries on SQLite and on PostgreSQL with many screenshots, and measure the vector search.

Run by `scripts/bench queries`, which makes what it needs. The source is that of the other benchmark, with two changes
in a copy: vectors are made of the screenshots' words, as the demo's embeddings are (`--random-vectors` keeps those that
are near nothing), and AutoTaskTracker's indexes are there. The server has the settings of the role postgres on 8 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from bench import make_source, write_between
from engine.pensieve import Pensieve
from engine.server import Server
from sample_installation.services import WORD, word_vector
from sqlite_to_postgresql.copier import copy

ROOT = Path(__file__).resolve().parents[1]
MEASURE = ROOT / "roles" / "checks" / "module_utils" / "application_queries.py"
SETTINGS = {
    "fsync": "on",
    "shared_buffers": "1GB",
    "effective_cache_size": "4GB",
    "maintenance_work_mem": "512MB",
    "work_mem": "16MB",
    "default_toast_compression": "lz4",
    "random_page_cost": "1.1",
    "effective_io_concurrency": "100",
    "jit": "off",
}
INDEXES = (
    "CREATE INDEX IF NOT EXISTS idx_metadata_entity_key ON metadata_entries(entity_id, key)",
    "CREATE INDEX IF NOT EXISTS idx_entities_created_at ON entities(created_at)",
    "CREATE INDEX IF NOT EXISTS idx_metadata_created_at ON metadata_entries(created_at)",
)


def embed_words(connection: sqlite3.Connection) -> None:
    """Put a vector of its words in the place of each screenshot's vector: in the chunks of the shadow table."""
    texts = dict(connection.execute("SELECT c0, c3 FROM entities_fts_content"))
    chunks = connection.execute("SELECT chunk_id, size, rowids, validity FROM entities_vec_v2_chunks").fetchall()
    for chunk, size, rowids, validity in chunks:
        valid = np.unpackbits(np.frombuffer(validity, np.uint8), bitorder="little")[:size].astype(bool)
        vectors = np.zeros((size, 768), "<f4")
        for slot in np.flatnonzero(valid):
            words = WORD.findall(texts[int(np.frombuffer(rowids, "<i8")[slot])].lower())
            total = np.sum([word_vector(word) for word in words], axis=0)
            vectors[slot] = total / np.linalg.norm(total)
        sql = "UPDATE entities_vec_v2_vector_chunks00 SET vectors = ? WHERE rowid = ?"
        connection.execute(sql, (vectors.tobytes(), chunk))


def tables(found: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        f"{found['entities']:,} screenshots, {os.cpu_count()} cores, load {os.getloadavg()[1]:.1f}; milliseconds.",
        "",
        "| query | SQLite p50 | p95 | PostgreSQL p50 | p95 | times as fast | bar |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    for query in found["queries"]:
        times = [query[f"{side}{part}_ms"] for side in ("sqlite", "postgresql") for part in ("", "_p95")]
        shown = " | ".join(f"{value:.1f}" for value in times)
        held = "**missed**" if query["missed"] else "held"
        lines.append(f"| {query['name']} | {shown} | {query['times_faster']:.2f} | {held} |")
    lines += ["", "| point | result | evidence |", "|---|---|---|"]
    lines += [f"| {check['point']} | {check['result']} | {check['evidence']} |" for check in found["checks"]]
    return "\n".join(lines)


def main() -> int:
    """Exit code 1: a check failed."""
    parser = argparse.ArgumentParser(prog="scripts/bench queries", description=__doc__)
    parser.add_argument("--screenshots", type=int, default=50_000, help="size of the database (50000)")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each query on each side (2)")
    parser.add_argument("--random-vectors", action="store_true", help="keep vectors that are near nothing")
    parser.add_argument("--folder", type=Path, default=Path(".cache/bench"), help="where sources are kept")
    parser.add_argument("--json", type=Path, default=Path("reports/queries.json"), help="where all numbers go")
    parser.add_argument("--document", type=Path, help="a page whose part between the marks becomes the tables")
    options = parser.parse_args()
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    defaults = yaml.safe_load((ROOT / "roles" / "postgres" / "defaults" / "main.yml").read_text())
    pensieve = Pensieve(Path(os.environ["PENSIEVE_VENV"]), folder / "home")
    with tempfile.TemporaryDirectory() as scratch, Server(Path(scratch), SETTINGS) as server:
        source = Path(shutil.copy(make_source(pensieve, folder, options.screenshots), Path(scratch) / "database.db"))
        with closing(sqlite3.connect(source)) as connection:
            if not options.random_vectors:
                embed_words(connection)
            for statement in INDEXES:
                connection.execute(statement)
            connection.commit()
        target = server.create_database("measured")
        pensieve.init(target)
        for name, value in defaults["postgres_database_settings"].items():
            server.run(f"ALTER DATABASE measured SET {name} TO '{value}'")
        copy(source, target)
        service = subprocess.Popen(
            [
                str(pensieve.folder / "bin" / "python"),
                "-m",
                "sample_installation.services",
                "--port",
                str(server.port + 1),
            ],
            env={**os.environ, "PYTHONPATH": str(ROOT / "support")},
        )
        try:
            config = pensieve.home / ".memos" / "config.yaml"
            place = f"  endpoint: http://127.0.0.1:{server.port + 1}/v1/embeddings\n"
            if not options.random_vectors:
                config.write_text(config.read_text() + place)
            words = ["--source", str(source), "--target", target, "--seconds", str(options.seconds)]
            done = pensieve.run("python", str(MEASURE), *words, database=str(source))
        finally:
            service.terminate()
            service.wait()
    found: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(found, indent=1, ensure_ascii=False))
    print(tables(found))
    if options.document:
        write_between(options.document, tables(found))
    return int(any(check["result"] == "fail" for check in found["checks"]))


if __name__ == "__main__":
    sys.exit(main())
