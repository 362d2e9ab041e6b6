"""A fault at every write, fsync, rename and statement of the engine; exit code 1 when a point fails.

    PYTHONPATH=tests python -m faults.engine                                        every point
    PYTHONPATH=tests python -m faults.engine --points 100 --seed 7                  a sample
    PYTHONPATH=tests python -m faults.engine --operation copy --point unheard:482   one point
    PYTHONPATH=tests python -m faults.engine --document docs/faults.md              every point, into the docs

Needs gcc, and what `scripts/test` exports: PENSIEVE_VENV and TEST_POSTGRES_IMAGE.

A *point* is an operation, a kind of fault, and a number k: the k-th call of the operation by which it changes a file
below its disk, or sends something to PostgreSQL, is struck. A library that is loaded into all its processes counts
these calls and strikes, so k is every one there is; a run that only counts tells how many there are. Afterwards an
error has four parts, what it calls untouched is so, and what may not change has not. Then the operation is run again
without a fault, must complete, and the independent verifier compares every cell; files are compared byte by byte.

    engine_shim.c, engine_shim.py      count calls, and let one fail
    engine_place.py                    what a point works on, and how its state is told
    engine_fill.py, engine_writes.py   the sample, and what Pensieve writes in between
    engine_operations.py               the operations and their judgement
    engine_lane.py                     a process of Pensieve's interpreter that has all imported, and forks for a point
    engine.py                          the driver: a server, lanes, points, a table

The order of calls in processes that work at the same time may differ by a few from run to run; a point that fails is
told with the call that it struck.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any

import ansible
import psycopg2
import psycopg2.errors
from engine import server as servers
from engine.pensieve import Pensieve, venv

from faults.engine_shim import VARIABLE, Control, Kind, build, missing_reason

ROOT = Path(__file__).parents[2]
PATHS = [ROOT / "tests", ROOT / "support", ROOT / "roles" / "data_copy" / "module_utils"]
DIMENSIONS = 8
SETTINGS = {
    "autovacuum": "off",
    "jit": "off",
    "max_wal_senders": "0",
    "wal_level": "minimal",
    "max_parallel_workers": "0",
}
SECONDS_FOR_SESSIONS = 10.0

MARKS = ("<!-- engine: begin -->", "<!-- engine: end -->")

#: What a fault is, as the table tells it.
KINDS = {
    Kind.NONE: "none",
    Kind.EIO: "EIO",
    Kind.FULL: "ENOSPC, and from then on",
    Kind.KILL: "SIGKILL before it",
    Kind.TORN: "SIGKILL after half of it",
    Kind.POWER: "power cut before it",
    Kind.CUT: "session lost before it",
    Kind.UNHEARD: "session lost after it, no answer",
    Kind.GONE: "server gone from then on",
}


#: Calls with which something counts from then on, or is gone.
DECIDING = ("send Q COMMIT", "rename", "unlink", "fsync", "fdatasync", "ftruncate")


@dataclass(frozen=True)
class Point:
    """The k-th call of an operation, and what it meets. ``deciding``: what the call does decides something."""

    operation: str
    kind: Kind
    wanted: int
    deciding: bool = field(default=False, compare=False)

    def __str__(self) -> str:
        return f"{self.kind.name.lower()}:{self.wanted}"


@dataclass(frozen=True)
class Verdict:
    """What came of a point. ``told``: the call that was struck; empty when the operation ended before it."""

    point: Point
    told: str
    outcome: str
    message: str
    wrong: list[str]
    seconds: float


class Lane:
    """A process that plays points."""

    def __init__(self, folder: Path, library: Path, world: dict[str, Any]) -> None:
        folder.mkdir()
        Control(folder / "control")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("MEMOS_", "PYTHON"))}
        environment.update(
            PYTHONPATH=os.pathsep.join(map(str, [*PATHS, folder.parent / "ansible"])),
            PYTHONDONTWRITEBYTECODE="1",
            LD_PRELOAD=str(library),
            HOME=str(folder.parent / "home"),
        )
        environment[VARIABLE] = str(folder / "control")
        self._log = folder / "lane.log"
        with self._log.open("w") as errors:
            self._process = subprocess.Popen(
                [
                    str(Path(world["venv"]) / "bin" / "python"),
                    "-m",
                    "faults.engine_lane",
                    json.dumps({**world, "lane": str(folder)}),
                ],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def ask(self, **request: Any) -> dict[str, Any]:
        """Let it do something."""
        assert self._process.stdin
        assert self._process.stdout
        try:
            print(json.dumps(request), file=self._process.stdin, flush=True)
            answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        except (OSError, ValueError) as error:
            raise RuntimeError(f"a lane has ended: {self._log.read_text()[-3000:]}") from error
        return answer

    def close(self) -> None:
        """End it, and what it has begun."""
        self._process.communicate(timeout=60)


class Campaign:
    """A server, a sample, what operations begin with, and lanes that play points."""

    def __init__(self, server: servers.Server, lanes: list[Lane]) -> None:
        self._server, self._lanes = server, lanes
        self._numbers = itertools.count()
        self._needs: dict[str, str] = {}

    def make_bases(self) -> None:
        """Make what operations begin with, once."""
        listed = self._lanes[0].ask(do="list")
        self._needs = listed["operations"]
        for base, template in listed["bases"]:
            name = f"base_{base}"
            if template:
                self._create(name, f"base_{template}")
            self._lanes[0].ask(do="make", base=base, dsn=name)

    @property
    def operations(self) -> list[str]:
        """Their names."""
        return list(self._needs)

    def points(self, operations: Iterable[str]) -> tuple[list[Point], list[Verdict]]:
        """Every point of some operations; and what is wrong already without a fault."""
        counted = [(Point(operation, Kind.NONE, 0)) for operation in operations]
        found: list[Point] = []
        wrong = []
        for verdict, answer in self._play(counted):
            operation = verdict.point.operation
            for number, call, kinds in answer["calls"]:
                found += [Point(operation, Kind(kind), number, call.startswith(DECIDING)) for kind in kinds]
            # When it has just ended, the power can go, too.
            if Kind.POWER in {point.kind for point in found if point.operation == operation}:
                found.append(Point(operation, Kind.POWER, answer["count"] + 1, True))
            if verdict.wrong or verdict.outcome != "done":
                wrong.append(verdict)
        order = {name: place for place, name in enumerate(self.operations)}
        return sorted(found, key=lambda point: (order[point.operation], point.kind, point.wanted)), wrong

    def play(self, points: Sequence[Point]) -> Iterator[Verdict]:
        """Play points, in lanes."""
        return (verdict for verdict, _answer in self._play(points))

    def _play(self, points: Sequence[Point]) -> Iterator[tuple[Verdict, dict[str, Any]]]:
        ready: Queue[tuple[Point, str] | None] = Queue(len(self._lanes) + 1)
        done: Queue[tuple[Verdict, dict[str, Any]] | BaseException | None] = Queue()

        def make() -> None:
            try:
                for point in points:
                    base = self._needs[point.operation]
                    name = f"point_{next(self._numbers)}" if base else ""
                    if name:
                        self._create(name, f"base_{base}")
                    ready.put((point, name))
            except BaseException as error:
                done.put(error)
            for _lane in self._lanes:
                ready.put(None)

        def run(lane: Lane) -> None:
            try:
                while (taken := ready.get()) is not None:
                    point, name = taken
                    answer = lane.ask(
                        do="point", operation=point.operation, kind=point.kind, wanted=point.wanted, dsn=name
                    )
                    if name:
                        self._server.run(f"DROP DATABASE {name} WITH (FORCE)")
                    verdict = Verdict(
                        point, answer["told"], answer["outcome"], answer["message"], answer["wrong"], answer["seconds"]
                    )
                    done.put((verdict, answer))
                done.put(None)
            except BaseException as error:
                done.put(error)

        threads = [Thread(target=make, daemon=True)]
        threads += [Thread(target=run, args=(lane,), daemon=True) for lane in self._lanes]
        for thread in threads:
            thread.start()
        running = len(self._lanes)
        while running:
            got = done.get()
            if isinstance(got, BaseException):
                raise got
            if got is None:
                running -= 1
            else:
                yield got

    def _create(self, name: str, template: str) -> None:
        """A database; sessions of a template that has just been made may have to end first."""
        deadline = time.monotonic() + SECONDS_FOR_SESSIONS
        while True:
            try:
                self._server.run(f"CREATE DATABASE {name} OWNER {servers.OWNER} TEMPLATE {template} STRATEGY file_copy")
                return
            except psycopg2.errors.ObjectInUse:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)


@contextmanager
def campaign(root: Path, lanes: int = 2) -> Iterator[Campaign]:
    """Make all that points share. Raises RuntimeError where something is missing."""
    reason = missing_reason() or servers.missing_reason()
    folder = venv()
    if reason or folder is None:
        raise RuntimeError(f"{reason or 'PENSIEVE_VENV names no environment with Pensieve'}; scripts/test makes it")
    library = build(root)
    # Of Ansible only what modules import, beside Pensieve's own packages.
    (root / "ansible").mkdir()
    (root / "ansible" / "ansible").symlink_to(Path(ansible.__file__).parent)
    with ExitStack() as stack, ThreadPoolExecutor() as threads:
        pensieve = Pensieve(folder, root / "home", DIMENSIONS)
        sample = threads.submit(pensieve.init, str(root / "sample.db"))
        server = stack.enter_context(servers.Server(root, SETTINGS))
        pensieve.init(server.create_database("base_empty"))
        sample.result()
        world = {"root": str(root), "venv": str(folder), "port": server.port}
        running = [Lane(root / f"lane{number}", library, world) for number in range(lanes)]
        for lane in running:
            stack.callback(lane.close)
        made = Campaign(server, running)
        made.make_bases()
        yield made


def sampled(points: Sequence[Point], count: int, seed: int) -> list[Point]:
    """Some points, of all operations and kinds alike; of each, those that decide something as often as the others."""
    chance = random.Random(seed)
    groups: dict[tuple[str, Kind], dict[bool, list[Point]]] = {}
    for point in chance.sample(points, len(points)):
        groups.setdefault((point.operation, point.kind), {True: [], False: []})[point.deciding].append(point)
    order = [_in_turn(list(group.values())) for group in groups.values()]
    return _in_turn(order)[:count]


def _in_turn(lists: Sequence[list[Point]]) -> list[Point]:
    return [point for turn in itertools.zip_longest(*lists) for point in turn if point is not None]


def told(verdict: Verdict, seed: int) -> str:
    """A failure, and the command that makes it again."""
    point = verdict.point
    lines = [f"FAILED {point.operation}, {point}, seed {seed}: struck {verdict.told or 'nothing'}; {verdict.outcome}"]
    lines += [f"    {line}" for wrong in verdict.wrong for line in wrong.strip().splitlines()]
    lines.append(f"    again: PYTHONPATH=tests python -m faults.engine --operation '{point.operation}' --point {point}")
    return "\n".join(lines)


def table(points: Iterable[Verdict]) -> str:
    """Operations, kinds of faults, points that were struck, those that failed, and how the operation ended."""
    rows: dict[tuple[str, Kind], Counter[str]] = {}
    for verdict in points:
        row = rows.setdefault((verdict.point.operation, verdict.point.kind), Counter())
        row["points"] += 1
        row[verdict.outcome] += 1
        row["failed"] += bool(verdict.wrong)
    columns = ("points", "refused", "killed", "done", "failed")
    lines = [
        "| operation | fault | points | refused | killed | done all the same | failed |",
        "|---|---|" + "---:|" * 5,
    ]
    total: Counter[str] = Counter()
    for (operation, kind), row in rows.items():
        total += row
        lines.append(f"| {operation} | {KINDS[kind]} | " + " | ".join(f"{row[name]:,}" for name in columns) + " |")
    lines.append("| **all** | | " + " | ".join(f"**{total[name]:,}**" for name in columns) + " |")
    return "\n".join(lines)


def main() -> int:
    """Play points; tell what came of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, help="so many, spread over operations and kinds (default: every one)")
    parser.add_argument("--seed", type=int, default=1, help="which ones")
    parser.add_argument("--operation", action="append", help="only this one; may be given several times")
    parser.add_argument("--point", help="only this one: KIND:NUMBER, as a failure tells it")
    parser.add_argument("--document", type=Path, help="write the table into this file, between its marks")
    parser.add_argument("--lanes", type=int, default=len(os.sched_getaffinity(0)), help="points at a time")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C does: the server ends, too
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as root, campaign(Path(root).resolve(), arguments.lanes) as made:
        chosen = arguments.operation or made.operations
        if unknown := set(chosen) - set(made.operations):
            parser.error(f"no operation {', '.join(unknown)}; there are {', '.join(made.operations)}")
        if arguments.point:
            kind, _, number = arguments.point.partition(":")
            points = [Point(operation, Kind[kind.upper()], int(number)) for operation in chosen]
            wrong: list[Verdict] = []
        else:
            points, wrong = made.points(chosen)
            if arguments.points is not None:
                points = sampled(points, arguments.points, arguments.seed)
        print(f"{len(points):,} points, made ready in {time.monotonic() - began:.0f} s", flush=True)
        played = []
        for verdict in itertools.chain(wrong, made.play(points)):
            if verdict.wrong:
                print(told(verdict, arguments.seed), flush=True)
            if verdict.told or verdict.wrong or arguments.point:
                played.append(verdict)
            if arguments.point and not verdict.wrong:
                print(f"{verdict.point}: struck {verdict.told or 'nothing'}; {verdict.outcome}\n{verdict.message}")
    names = list(dict.fromkeys(verdict.point.operation for verdict in played))
    shown = table(sorted(played, key=lambda verdict: (names.index(verdict.point.operation), verdict.point.kind)))
    failed = sum(bool(verdict.wrong) for verdict in played)
    summary = f"{len(played):,} points, {failed} failed, {(time.monotonic() - began) / 60:.0f} minutes"
    print(f"{shown}\n{summary}")
    if arguments.document:
        document(arguments.document, f"{shown}\n\n{summary}.")
    return 1 if failed else 0


def document(file: Path, text: str) -> None:
    """Put a text between the marks of a file."""
    head, _, rest = file.read_text().partition(MARKS[0])
    _, _, tail = rest.partition(MARKS[1])
    file.write_text(f"{head}{MARKS[0]}\n{text}\n{MARKS[1]}{tail}")


if __name__ == "__main__":
    sys.exit(main())
