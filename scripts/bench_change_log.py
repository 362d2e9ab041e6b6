"""Measure what the change log costs whoever writes to PostgreSQL: microseconds for a row, without it and with it.

Run by `scripts/bench log`, which makes what it needs. Rows are metadata entries of 1,000 characters. Loops run inside
the server, so that no round trip hides the cost; the last line is a client that commits each row. Medians.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import psycopg2
from engine.pensieve import Pensieve
from engine.server import Server
from sqlite_to_postgresql import change_log, ledger

SETTINGS = {"fsync": "on", "synchronous_commit": "on", "shared_buffers": "512MB"}
COLUMNS = "entity_id, key, value, source_type, data_type, created_at, updated_at"
VALUES = "%s, 'note', repeat('a word ', 143), 'PLUGIN_GENERATED', 'TEXT_DATA', now(), now()"
ENTITY = """
    WITH library AS (INSERT INTO libraries (name, created_at, updated_at) VALUES ('bench', now(), now()) RETURNING id),
    folder AS (INSERT INTO folders (path, library_id, last_modified_at, type, created_at, updated_at)
               SELECT '/bench', id, now(), 'DEFAULT', now(), now() FROM library RETURNING id, library_id)
    INSERT INTO entities (filepath, filename, size, file_created_at, file_last_modified_at, file_type, file_type_group,
                          library_id, folder_id, created_at, updated_at)
    SELECT '/bench/1', '1', 1, now(), now(), 'webp', 'image', library_id, id, now(), now() FROM folder RETURNING id
"""
LOOP = "DO $$ BEGIN FOR n IN 1..{rows} LOOP {statement}; END LOOP; END $$"


def measure(connection: psycopg2.extensions.connection, entity: int, rows: int) -> dict[str, float]:
    """Microseconds for a row of each kind of writing. Leaves no row behind."""
    values = VALUES % entity
    insert = f"INSERT INTO metadata_entries ({COLUMNS})"
    ids = f"(SELECT min(id) + n - 1 FROM metadata_entries WHERE entity_id = {entity})"
    statements = {
        "INSERT of one row, in a loop": LOOP.format(rows=rows, statement=f"{insert} VALUES ({values})"),
        "UPDATE of one row, in a loop": LOOP.format(
            rows=rows, statement=f"UPDATE metadata_entries SET value = 'short' WHERE id = {ids}"
        ),
        "INSERT … SELECT, a row": f"{insert} SELECT {values} FROM generate_series(1, {rows})",
    }
    took = {}
    with connection.cursor() as cursor:
        for name, statement in statements.items():
            started = time.perf_counter()
            cursor.execute(statement)
            took[name] = time.perf_counter() - started
        started = time.perf_counter()
        for _ in range(rows):
            cursor.execute(f"{insert} VALUES ({values})")
        took["INSERT and COMMIT by a client"] = time.perf_counter() - started
        cursor.execute("DELETE FROM metadata_entries WHERE entity_id = %s", (entity,))
        cursor.execute("VACUUM ANALYZE metadata_entries")
    return {name: 1e6 * seconds / rows for name, seconds in took.items()}


def main() -> int:
    """Print the table, and write the numbers."""
    parser = argparse.ArgumentParser(prog="scripts/bench log", description=__doc__)
    parser.add_argument("--rows", type=int, default=2_000, help="of each kind of writing (2000)")
    parser.add_argument("--runs", type=int, default=5, help="with and without, by turns; medians are shown (5)")
    parser.add_argument("--json", type=Path, default=Path("reports/change-log.json"), help="where all numbers go")
    options = parser.parse_args()
    found: dict[str, dict[str, list[float]]] = {"without": {}, "with": {}}
    with tempfile.TemporaryDirectory() as scratch, Server(Path(scratch), SETTINGS) as server:
        source = Path(scratch) / "database.db"
        dsn = server.create_database("measured")
        pensieve = Pensieve(Path(os.environ["PENSIEVE_VENV"]), Path(scratch) / "home")
        pensieve.init(str(source))
        pensieve.init(dsn)
        connection = psycopg2.connect(dsn)
        connection.autocommit = True
        ledger.create(connection)
        with connection.cursor() as cursor:
            cursor.execute(ENTITY)
            entity = cursor.fetchall()[0][0]
        for _ in range(options.runs):
            for which in found:
                if which == "with":
                    change_log.install(connection, source)
                else:
                    change_log.remove(connection)
                for name, microseconds in measure(connection, entity, options.rows).items():
                    found[which].setdefault(name, []).append(microseconds)
        connection.close()
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(found, indent=1))
    print("| microseconds a row | without | with the log |\n|---|---:|---:|")
    for name in found["with"]:
        print(f"| {name} | {' | '.join(f'{statistics.median(found[which][name]):.1f}' for which in found)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
