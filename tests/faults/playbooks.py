"""Cut playbooks at every task, in every way, and judge what has become of everything.

    scripts/test faults --seed 7 --cells 150            # as many cells, spread over operations, tasks and faults
    scripts/test faults --seed 7 --cells 150 --resume   # the rest of them
    scripts/test faults --cell '{"seed": 7, …}'         # one of them again, exactly
    scripts/test faults --cycles 5                      # migrate, write, roll back, write; all compared at each turn
    scripts/test faults --document docs/faults.md       # the table of what was run
    scripts/test faults --clean                         # remove what a campaign that was killed has left

A cell is an operation (migrate, rollback, carry-back), a task of it, and a fault. A real Pensieve runs, a writer works
on it through its REST API, and the fault comes when Ansible names the task, or up to 1.5 s later. Then the next run
must complete; Pensieve must answer on exactly one backend; settings, every row of the writer's ledger, the
comparison of both databases, and every claim of a message must be right.

Each cell is a line of JSON in --results. Exit code 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from itertools import islice
from pathlib import Path
from typing import Any

from . import playbooks_table as tables
from .playbooks_bench import Bench
from .playbooks_cells import STARTS, Cell, Tasks, cells
from .playbooks_cycles import cycle
from .playbooks_place import ROOT, Place

_bench: list[Bench] = []  # of this worker


def _begin(folder: Path, ports: Any, venv: Path) -> None:
    """A worker begins. Who is interrupted by a person is the campaign, which ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    campaign = os.getppid()

    def watch() -> None:
        while os.getppid() == campaign:
            time.sleep(1)
        os._exit(1)  # It was killed; --clean, or the next one, removes what is left.

    threading.Thread(target=watch, daemon=True).start()
    _bench.append(Bench(folder, ports.get(), venv))


def _happen(cell: Cell) -> dict[str, Any]:
    return _bench[0].happen(cell).as_dict()


def _learn(start: str) -> Tasks:
    return _bench[0].learn(start)


def _cycle(count: int, seed: int) -> list[str]:
    return cycle(_bench[0], count, seed)


def git(*words: str) -> subprocess.CompletedProcess[str]:
    """What git says."""
    return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)


def version() -> str:
    """The commit that is tested, and whether anything else is."""
    changed = git("diff", "--quiet", "HEAD", "--", "roles", "playbooks", "ansible.cfg").returncode
    return git("rev-parse", "--short=12", "HEAD").stdout.strip() + ("+" if changed else "")


def content() -> str:
    """What decides which tasks there are: the same for commits that change none of it."""
    trees = git("rev-parse", "HEAD:roles", "HEAD:playbooks").stdout
    return hashlib.sha256(trees.encode()).hexdigest()[:12]


class Campaign:
    """The workers, and what they leave."""

    def __init__(self, arguments: argparse.Namespace, venv: Path) -> None:
        self.folder: Path = arguments.folder.resolve()
        self.results: Path = arguments.results or self.folder / "cells.jsonl"
        self.venv, self.workers = venv, arguments.workers
        self.ports = [arguments.port + 10 * worker for worker in range(self.workers)]
        self.version = version()
        self.pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Campaign:
        self.folder.mkdir(parents=True, exist_ok=True)
        context = multiprocessing.get_context("spawn")
        ports = context.Queue()
        for port in self.ports:
            ports.put(port)
        self.pool = ProcessPoolExecutor(self.workers, context, _begin, (self.folder, ports, self.venv))
        return self

    def __exit__(self, *_: object) -> None:
        assert self.pool
        workers = list(self.pool._processes.values())
        self.pool.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.kill()
            worker.join()
        self.remove()

    def remove(self) -> None:
        """Containers, volumes, disks and processes of all workers."""
        for port in self.ports:
            Place(self.folder, port, self.venv).remove()

    def submit(self, call: Any, *arguments: Any) -> Future[Any]:
        """Let a worker do something."""
        assert self.pool
        return self.pool.submit(call, *arguments)

    def tasks(self) -> Tasks:
        """Tasks of clean runs; measured once for what is tested."""
        kept = self.folder / f"tasks-{content()}.json"
        if kept.exists() and not self.version.endswith("+"):
            return {start: [tuple(task) for task in found] for start, found in json.loads(kept.read_text()).items()}
        print("→ Clean runs, to know all tasks (some minutes) …", flush=True)
        found: Tasks = {}
        for future in as_completed([self.submit(_learn, start) for start in STARTS]):
            found.update(future.result())
        kept.write_text(json.dumps(found, ensure_ascii=False))
        print("  " + ", ".join(f"{start}: {len(each)}" for start, each in sorted(found.items())), flush=True)
        return found

    def run(self, wanted: list[Cell]) -> list[dict[str, Any]]:
        """Let all of them happen; a line for each when it has."""
        found = []
        futures = {self.submit(_happen, cell): cell for cell in wanted}
        for future in as_completed(futures):
            result = {**future.result(), "commit": self.version}
            found.append(result)
            with self.results.open("a") as file:
                file.write(json.dumps(result, ensure_ascii=False) + "\n")
            self.tell(futures[future], result, f"{len(found)} of {len(wanted)}")
        return found

    def tell(self, cell: Cell, result: dict[str, Any], count: str) -> None:
        """What a person wants to see at once."""
        where = f"{cell.operation} ({cell.start}) · {cell.title}" + (f" · {cell.occurrence}" if cell.occurrence else "")
        print(f"[{count}] {result['outcome']}: {cell.fault} · {where} · {result['seconds']:.0f} s", flush=True)
        print(
            f"    {', '.join(result['runs'])}; without an answer {result['down']} s {result['notes'] or ''}", flush=True
        )
        for wrong in result["wrong"]:
            print(f"    {wrong}", flush=True)
        if result["outcome"] in ("wrong", "broken"):
            print(f"    seed {cell.seed}, commit {self.version}, logs {result['logs'] or '-'}", flush=True)
            print(f"    scripts/test faults --cell {shlex.quote(cell.as_json())}", flush=True)


def main() -> int:
    """Run a campaign."""
    parser = argparse.ArgumentParser(
        prog="scripts/test faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=1, help="1")
    parser.add_argument("--cells", type=int, help="how many; 20")
    parser.add_argument("--resume", action="store_true", help="leave out those of this seed that --results has")
    parser.add_argument("--cell", action="append", default=[], help="one cell, as a failure prints it; may come again")
    parser.add_argument("--cycles", type=int, help="so many times there and back")
    parser.add_argument("--document", type=Path, help="write the table of --results into this page")
    parser.add_argument("--clean", action="store_true", help="only remove what is left of a campaign in --folder")
    parser.add_argument("--workers", type=int, default=2, help="each with an installation and a server of its own; 2")
    parser.add_argument("--port", type=int, default=27000, help="the first of ten for each worker; 27000")
    parser.add_argument("--folder", type=Path, default=ROOT / ".cache" / "faults", help=".cache/faults")
    parser.add_argument("--results", type=Path, help="file that lines are added to; cells.jsonl in the folder")
    arguments = parser.parse_args()
    venv = os.environ.get("PENSIEVE_VENV")
    if not venv:
        parser.error("PENSIEVE_VENV does not name a virtual environment with Pensieve; scripts/test makes one")
    if len(arguments.cell) == 1 or arguments.cycles:
        arguments.workers = 1
    campaign = Campaign(arguments, Path(venv))
    if arguments.clean:
        campaign.remove()
        return 0
    if not (arguments.cells or arguments.cell or arguments.cycles or arguments.document):
        arguments.cells = 20
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    wrong: list[Any] = []
    if arguments.cells or arguments.cell or arguments.cycles:
        with campaign:
            if arguments.cycles:
                wrong += campaign.submit(_cycle, arguments.cycles, arguments.seed).result()
                print(f"{arguments.cycles} cycles: {'; '.join(wrong) or 'everything as it must be'}", flush=True)
            if arguments.cells or arguments.cell:
                print(f"seed {arguments.seed}, commit {campaign.version}", flush=True)
                wanted = [Cell(**json.loads(cell)) for cell in arguments.cell]
                if arguments.cells:
                    done = {each["number"] for each in tables.read(campaign.results) if each["seed"] == arguments.seed}
                    wanted = list(islice(cells(arguments.seed, campaign.tasks()), arguments.cells))
                    wanted = [cell for cell in wanted if not (arguments.resume and cell.number in done)]
                found = campaign.run(wanted)
                print(f"\n{tables.summary(found)}\n\n{tables.table(found)}", flush=True)
                wrong += [each for each in found if each["outcome"] in ("wrong", "broken")]
                # A campaign in which nothing happened has shown nothing.
                wrong += found[:1] if all(each["outcome"] == "missed" for each in found) else []
    if arguments.document:
        command = " ".join(["scripts/test", "faults", *(word for word in sys.argv[1:] if word != "--resume")])
        tables.document(arguments.document, tables.read(campaign.results), command)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
