"""Migrate a real Pensieve while a writer works on it all the time, prove that nothing is lost or stale, go back, again.

    PENSIEVE_VENV=… PYTHONPATH=roles/data_copy/module_utils:roles/pensieve/module_utils:tests:support \\
        python -m online --seeds 20 --folder /disk/with/room
        python -m online --seeds 1 --database screenshots-50000.db --carry 1000 --folder /disk/with/room

For each seed: `migrate.yml` runs while the writer adds, changes and deletes entities through the REST API. Then every
entity that it touched must be on PostgreSQL as the last answer said, and the whole of the SQLite file, which nobody
writes to any more, is compared with PostgreSQL: rows may differ only of entities that were touched after the switch.
With `--carry` more is written until so many rows have changed on PostgreSQL, and `rollback.yml` carries them back:
every entity must then be on SQLite as the last answer said. Without it they are left behind.

Prints a line of JSON for each seed and one in the end; exit code 1 if a row was lost or stale.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import conftest
import psycopg2
from pensieve_process import find
from sample_installation.environment import version_of
from sample_installation.installation import Installation, Settings
from sqlite_to_postgresql import change_log
from sqlite_to_postgresql.verify import Difference, verify

from .writer import Api, Prober, Writer, wrong

ROOT = conftest.ROOT
OWNERS = {"entities": "id", "entities_fts": "id", "entities_vec_v2": "rowid", "entity_plugin_status": "entity_id"}


class Run:
    """One installation, its names on PostgreSQL, and what was found."""

    def __init__(self, installation: Installation, port: int, options: list[str]) -> None:
        self.installation, self.port = installation, port
        home, name = installation.settings.home, f"online-{port}"
        self._options = [
            *("-e", f"pensieve_user_home={home}", "-e", f"pensieve_venv={installation.settings.venv}"),
            *("-e", f"postgres_container_name={name}", "-e", f"postgres_volume_name={name}"),
            *("-e", f"postgres_port={port}", "-e", "report_directory=", *options),
        ]
        self.name = name
        self._dsn, self._passfile = f"postgresql://autotasktracker@127.0.0.1:{port}/autotasktracker", f"{home}/.pgpass"
        self.log = home.parent / "ansible.log"

    def play(self, book: str, *options: str) -> None:
        """Run a playbook; SystemExit with its last lines when it fails."""
        command = [str(Path(sys.executable).parent / "ansible-playbook"), book, *self._options, *options]
        with self.log.open("w") as log:
            done = subprocess.run(
                command, cwd=ROOT, env={**os.environ, "ANSIBLE_NOCOLOR": "1"}, stdout=log, stderr=log, check=False
            )
        if done.returncode:
            raise SystemExit(f"{book} ended with {done.returncode}:\n{self.log.read_text()[-8000:]}")

    def remove(self) -> None:
        """Remove the container, its volume and its network."""
        subprocess.run(["docker", "rm", "--force", self.name], capture_output=True, check=False)
        subprocess.run(["docker", "volume", "rm", "--force", self.name], capture_output=True, check=False)
        subprocess.run(["docker", "network", "rm", self.name], capture_output=True, check=False)

    def report(self) -> dict[str, Any]:
        """The newest report of the playbook."""
        folder = self.installation.settings.home / ".local/state/pensieve-postgres/reports"
        newest = max(folder.iterdir(), key=lambda path: path.name)
        found: dict[str, Any] = json.loads((newest / "report.json").read_text())
        return found

    def changed(self) -> int:
        """Rows that have changed on PostgreSQL since the cutover."""
        with contextlib.closing(psycopg2.connect(self._dsn, passfile=self._passfile)) as connection:
            log = change_log.read(connection)
            assert log is not None
            return log.count

    def differing(self) -> list[Difference]:
        """Rows in which PostgreSQL is not as the SQLite file."""
        database = self.installation.settings.home / ".memos/database.db"
        return verify(database, self._dsn, passfile=self._passfile, limit=100_000).differences


def owner(difference: Difference, api: Api, entities: dict[str, dict[int, int]]) -> int | None:
    """The entity that a row belongs to, None when it cannot be told."""
    key = difference.key
    if difference.table in OWNERS:
        return int(key[OWNERS[difference.table]])
    text = " ".join(filter(None, (difference.source, difference.target)))
    named = re.match(r"\((\d+), ", text)
    if difference.table in ("metadata_entries", "entity_tags"):
        return int(named.group(1)) if named else entities[difference.table].get(int(key["id"]))
    return None


def once(run: Run, seed: int, pause: float) -> dict[str, Any]:
    """One seed."""
    api = Api(run.installation.endpoint)
    writer, prober = Writer(api, seed, pause), Prober(api)
    writer.start()
    prober.start()
    began = time.monotonic()
    run.play("migrate.yml")
    took = time.monotonic() - began
    writer.end()
    prober.end()
    switched = (run.installation.base / "config.yaml").stat().st_mtime
    refused, back = prober.gap(switched)
    found = wrong(api, writer.known)
    after = {key for key, known in writer.known.items() if known.touched >= refused}
    unexplained = []
    children = _children(run)
    for difference in run.differing():
        if difference.table in ("tags", "(catalog)"):
            continue  # names of tags that were used for the first time, and sequences, move on after the switch
        if owner(difference, api, children) not in after:
            unexplained.append(f"{difference.table} {difference.key} {difference.column}: {difference.what}")
    report = run.report()
    return {
        "seed": seed,
        "wrong": found,
        "unexplained": unexplained,
        "downtime": round(back - refused, 2),
        "other gaps": {
            time.strftime("%H:%M:%S", time.localtime(gap[0])): round(gap[1] - gap[0], 2)
            for gap in prober.gaps
            if gap != (refused, back)
        },
        "predicted": report["seconds"].get("predicted"),
        "difference": report.get("difference"),
        "entities": len(writer.known),
        "unsure": sum(not known.sure for known in writer.known.values()),
        "after the switch": len(after),
        "requests": writer.done,
        "refusals": writer.refusals,
        "errors": writer.errors[:3],
        "migration seconds": round(took, 1),
    }


def carry_back(run: Run, seed: int, rows: int) -> dict[str, Any]:
    """Write until so many rows have changed on PostgreSQL, and roll back."""
    api = Api(run.installation.endpoint)
    writer, prober = Writer(api, seed, 0.0), Prober(api)
    writer.start()
    while run.changed() < rows:
        time.sleep(0.5)
    writer.end()
    changed = run.changed()
    prober.start()
    began = time.time()
    run.play("rollback.yml")
    took = time.time() - began
    prober.end()
    refused, back = prober.gap()
    return {
        "rows to carry back": changed,
        "wrong": wrong(api, writer.known),
        "entities": len(writer.known),
        "from the start to the first answer": round(back - began, 2),
        "downtime": round(back - refused, 2),
        "rollback seconds": round(took, 2),
    }


def _children(run: Run) -> dict[str, dict[int, int]]:
    """Entity of each row of the tables that belong to entities, in the SQLite file."""
    path = run.installation.settings.home / ".memos/database.db"
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return {
            table: dict(connection.execute(f"SELECT id, entity_id FROM {table}"))
            for table in ("metadata_entries", "entity_tags")
        }


def bare(run: Run) -> float:
    """Seconds that nobody answers when Pensieve is only stopped and started."""
    prober = Prober(Api(run.installation.endpoint))
    prober.start()
    served = [process.pid for process in find(run.installation.settings.home) if process.service == "serve"]
    for pid in served:
        os.kill(pid, signal.SIGTERM)
    while any(process.pid in served for process in find(run.installation.settings.home)):
        time.sleep(0.02)
    run.installation.start()
    while not prober.gaps:
        time.sleep(0.02)
    prober.end()
    refused, back = prober.gap()
    return back - refused


def take(installation: Installation, database: Path) -> None:
    """Put a copy of another database into the place of the installation's."""
    installation.stop()
    for name in ("database.db", "database.db-wal", "database.db-shm"):
        (installation.base / name).unlink(missing_ok=True)
    shutil.copyfile(database, installation.base / "database.db")
    installation.start()


def main() -> int:
    """Run all seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20, help="how many; 20")
    parser.add_argument("--first", type=int, default=0, help="the first seed; 0")
    parser.add_argument("--count", type=int, default=300, help="sample screenshots; 300")
    parser.add_argument("--database", type=Path, help="a Pensieve database whose copy takes the place of the samples'")
    parser.add_argument("--carry", type=int, default=0, help="rows to change and carry back; 0: they are left behind")
    parser.add_argument("--pause", type=float, default=0.1, help="seconds between two requests; 0.1")
    parser.add_argument("--folder", type=Path, required=True, help="where the installation is made, and removed")
    parser.add_argument("--port", type=int, default=31000, help="of Pensieve; PostgreSQL gets the one after the next")
    parser.add_argument("options", nargs="*", help="options of ansible-playbook, after --")
    arguments = parser.parse_args()
    venv = os.environ.get("PENSIEVE_VENV")
    if not venv:
        parser.error("PENSIEVE_VENV does not name a virtual environment with Pensieve; scripts/test makes one")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    made = version_of(Path(venv))
    settings = Settings(arguments.folder.resolve(), made, Path(venv), arguments.port, arguments.count)
    installation = Installation(settings)
    installation.make()
    if arguments.database:
        take(installation, arguments.database)
    run = Run(installation, arguments.port + 2, arguments.options)
    results, carried = [], []
    try:
        stop_and_start = [round(bare(run), 2) for _ in range(3)]
        print(json.dumps({"bare stop and start": stop_and_start}), flush=True)
        for seed in range(arguments.first, arguments.first + arguments.seeds):
            results.append(once(run, seed, arguments.pause))
            print(json.dumps(results[-1], ensure_ascii=False), flush=True)
            if arguments.carry:
                carried.append(carry_back(run, 1000 + seed, arguments.carry))
                print(json.dumps(carried[-1], ensure_ascii=False), flush=True)
            else:
                run.play("rollback.yml", "-e", "rollback_discard=true")
    finally:
        run.remove()
        installation.remove()
    bad = [result for result in results if result["wrong"] or result["unexplained"]]
    bad += [result for result in carried if result["wrong"]]
    times = [result["downtime"] for result in results]
    told = {
        "seeds": len(results),
        "with lost or stale rows": len(bad),
        "downtime": {"median": statistics.median(times), "longest": max(times)},
        "bare stop and start": stop_and_start,
    }
    print(json.dumps(told), flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
