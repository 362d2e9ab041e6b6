"""Seeded runs: migrate, write at random through Pensieve's REST API on PostgreSQL, carry back, compare everything.

    scripts/test -- tests/rollback                          what the test suite runs
    PYTHONPATH=tests:support:roles/data_copy/module_utils:roles/pensieve/library python -m rollback.runs --seeds 20

Needs what `scripts/test` exports: PENSIEVE_VENV and TEST_POSTGRES_IMAGE.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from engine.pensieve import Pensieve
from engine.server import Server
from pensieve_search import pick_words
from sample_installation.environment import version_of
from sample_installation.installation import Installation, Settings

from rollback.world import Run, World, Writer

TEMPLATE = "carry_back_template"


@dataclass
class Outcome:
    """What one run has shown. ``words``: searched for on both sides with the same hits."""

    seed: int
    writes: dict[str, int]
    refused: dict[str, int]
    carried: int
    cells: int
    words: int
    seconds: float


@contextmanager
def world(folder: Path, venv: Path, port: int, count: int = 40) -> Iterator[World]:
    """Make what all runs share; ``port`` and the next one are free."""
    sample = Installation(Settings(folder, version_of(venv), venv, port, count))
    sample.make()
    sample.stop()
    # Pensieve's server exits with its last rows in the write-ahead log alone.
    with closing(sqlite3.connect(sample.base / "database.db")) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with Server(folder) as server:
        dsn = server.create_database(TEMPLATE)
        Pensieve(venv, folder / "schema").init(dsn)
        services = subprocess.Popen(
            [str(venv / "bin" / "python"), "-m", "sample_installation.services", "--port", str(port + 1)],
            env={
                **os.environ,
                "HOME": str(sample.settings.home),
                "PYTHONPATH": str(Path(__file__).parents[2] / "support"),
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield World(sample, server, TEMPLATE, itertools.count())
        finally:
            services.terminate()
            services.wait()


def words_of(run: Run, count: int = 30) -> list[str]:
    """Whole words that both databases treat alike, of what SQLite holds now."""
    picked: list[str] = pick_words(str(run.source), count)[0]
    return picked


def play(shared: World, folder: Path, seed: int, writes: int) -> Outcome:
    """One run; AssertionError when anything differs."""
    started = time.monotonic()
    run = shared.migrate(folder)
    with run.serving() as send:
        writer = Writer(send, seed)
        writer.write(writes)
    carried = run.engine("carry-back")
    assert carried["changed"], carried
    assert not carried["merged"], carried
    result = run.verify()
    assert result.equal, result.differences[:10]
    again = run.engine("carry-back")
    assert not again["changed"], again
    words = words_of(run)
    assert words, "no words to search for"
    ours, theirs = run.search(str(run.source), words), run.search(run.dsn, words)
    assert ours == theirs, {word: (ours[word], theirs[word]) for word in words if ours[word] != theirs[word]}
    assert any(ours.values()), "no word was found"
    changed = sum(sum(t[kind] for kind in ("inserted", "updated", "deleted")) for t in carried["tables"].values())
    cells = sum(table.compared_cells for table in result.tables.values())
    shared.server.drop_database(run.dsn.rpartition("/")[2])
    return Outcome(seed, writer.done, writer.refused, changed, cells, len(words), time.monotonic() - started)


def main() -> int:
    """Play the runs; exit code 1 when one differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20, help="runs, with the seeds 1, 2, …")
    parser.add_argument("--first", type=int, default=1, help="the first seed")
    parser.add_argument("--writes", type=int, default=120, help="requests in each run")
    parser.add_argument("--port", type=int, default=31190, help="of Pensieve; the next one is used too")
    arguments = parser.parse_args()
    failed = 0
    venv = Path(os.environ["PENSIEVE_VENV"])
    with tempfile.TemporaryDirectory() as root, world(Path(root), venv, arguments.port) as shared:
        for seed in range(arguments.first, arguments.first + arguments.seeds):
            folder = Path(root) / f"seed-{seed}"
            folder.mkdir()
            try:
                print(play(shared, folder, seed, arguments.writes), flush=True)
            except AssertionError as error:
                failed += 1
                print(f"seed {seed}: {error}", flush=True)
    print(f"{arguments.seeds - failed} of {arguments.seeds} runs equal")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
