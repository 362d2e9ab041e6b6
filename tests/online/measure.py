"""Measure the parts of an online migration on a database of any size.

    PENSIEVE_VENV=… TEST_POSTGRES_IMAGE=… PYTHONPATH=roles/data_copy/module_utils:tests:support \\
        python -m online.measure --source screenshots-50000.db --changes 200 --folder /disk/with/room

Copies the database first, and removes the copy and its server at the end. ``--changes`` are steps of
``engine/change.py``, each a transaction of some rows, by Pensieve's interpreter in another process. While the snapshot
and the bulk are copied, a third process commits ten times a second, and tells how long it had to wait. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.pensieve import Pensieve, venv
from engine.server import Server
from sqlite_to_postgresql import snapshot
from sqlite_to_postgresql.copier import copy
from sqlite_to_postgresql.difference import difference
from sqlite_to_postgresql.fts import Tokenizer
from sqlite_to_postgresql.verify import verify

from .committer import committing

CHANGE = Path(__file__).parents[1] / "engine" / "change.py"
ALONE = 100  # commits with nothing beside them, to compare with


def measure(source: Path, folder: Path, changes: int) -> dict[str, Any]:
    """Snapshot, bulk, changes, difference, verification."""
    environment = venv()
    if environment is None:
        raise SystemExit("PENSIEVE_VENV does not name a virtual environment with Pensieve; scripts/test makes one")
    database = folder / "database.db"
    shutil.copyfile(source, database)
    pensieve = Pensieve(environment, folder / "home")
    told: dict[str, Any] = {"source bytes": database.stat().st_size}
    state = folder / "snapshot"
    try:
        (folder / "server").mkdir()
        with Server(folder / "server") as server:
            dsn = server.create_database("measured")
            pensieve.init(dsn)
            told["longest commit"] = longest = {}
            with committing(database, folder / "commits") as commits:
                parts: dict[str, Callable[[], object]] = {
                    f"{ALONE} commits alone": lambda: commits.see(ALONE),
                    "snapshot": lambda: snapshot.hold(database, folder / "copy.db", state, 1 << 31, 3600),
                    "bulk": lambda: copy(folder / "copy.db", dsn),
                }
                for part, work in parts.items():
                    began = time.time()
                    work()
                    ended = time.time()
                    told[f"{part}: seconds"] = round(ended - began, 2)
                    longest[part] = round(commits.longest(began, ended), 2)
            held = snapshot.read(state)
            assert held is not None
            assert held.mapped
            told["snapshot: its own seconds"] = held.seconds
            told["difference"] = _changed(pensieve, database, 1, changes, state, dsn)
    finally:
        snapshot.end(state)
    return told


def _changed(pensieve: Pensieve, database: Path, seed: int, steps: int, state: Path, dsn: str) -> dict[str, Any]:
    pensieve.run("python", str(CHANGE), str(seed), str(steps), database=str(database))
    tokenizer = Tokenizer()
    made = difference(database, state, dsn, tokenizer=tokenizer)
    proven = verify(database, dsn, only=made.only, tokenizer=tokenizer)
    return {
        "way": f"{made.way}, {made.reason}",
        "changed rows of the source": sum(change.changed for change in made.tables.values()),
        "rows upserted or deleted": made.rows,
        "pages written": made.pages,
        "wal bytes": made.wal_bytes,
        "seconds": round(made.seconds, 2),
        "phases": {name: round(seconds, 2) for name, seconds in made.phases.items()},
        "verification seconds": round(proven.seconds, 2),
        "equal": proven.equal,
        "rows compared": sum(verdict.source for verdict in proven.tables.values()),
    }


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--changes", type=int, default=200)
    parser.add_argument("--folder", type=Path, help="where to work (default: the temporary folder)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        print(json.dumps(measure(arguments.source, Path(folder), arguments.changes), indent=2))


if __name__ == "__main__":
    main()
