"""Cells: which operation is cut, at which task, by what. A seed decides in which order they come."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TypeVar

from .playbooks_faults import FAULTS
from .playbooks_play import Task

#: From where an operation begins: the saved state, and whether a first migration makes the server.
STARTS = {
    "first": ("migrate", "sqlite", True),  # nothing has been moved yet
    "bare": ("migrate", "sqlite", True),  # nor has the engine an environment
    "stopped": ("migrate", "sqlite", True),  # with migrate_online=false
    "again": ("migrate", "again", False),  # after a rollback
    "migrated": ("rollback", "migrated", False),
    "left": ("carry-back", "left", False),  # after a rollback without a server, which is there again
}
#: Migrations have most tasks, and cost most.
TURNS = ("migrate", "rollback", "migrate", "carry-back")
STOP, START = "pensieve : stop | Stop Pensieve, and prove it", "pensieve : start | Start Pensieve, and wait"
ENGINE = "data_copy : runtime |"

Card = TypeVar("Card")
Tasks = dict[str, list[Task]]  # of a clean run from each start


@dataclass(frozen=True)
class Cell:
    """One of them. ``number`` and ``seed`` decide all that is left to chance in it."""

    seed: int
    number: int
    start: str
    fault: str
    title: str
    occurrence: int

    @property
    def operation(self) -> str:
        """What is cut."""
        return STARTS[self.start][0]

    @property
    def task(self) -> Task:
        """Where."""
        return self.title, self.occurrence

    def chance(self) -> random.Random:
        """Its own."""
        return random.Random(f"{self.seed} {self.number} {self.fault} {self.title}")

    def as_json(self) -> str:
        """For the command that repeats it."""
        return json.dumps(asdict(self), ensure_ascii=False)


def places(tasks: Tasks, operation: str) -> list[tuple[str, Task]]:
    """Every start and task at which an operation can be cut; each only where it is something else."""
    if operation == "rollback":
        return [("migrated", task) for task in tasks["migrated"]]
    if operation == "carry-back":
        return [("left", task) for task in tasks["left"]]
    made = [task for task in tasks["bare"] if task[0].startswith(ENGINE) and task not in tasks["first"]]
    stop = next(at for at, (title, _) in enumerate(tasks["stopped"]) if title == STOP)
    return [
        *(("first", task) for task in tasks["first"]),
        *(("again", task) for task in tasks["again"]),
        *(("bare", task) for task in made),
        *(("stopped", task) for task in tasks["stopped"][stop:]),
    ]


def window(tasks: list[Task]) -> list[Task]:
    """Those while Pensieve is stopped."""
    stop = next(at for at, (title, _) in enumerate(tasks) if title == STOP)
    start = next(at for at, (title, _) in enumerate(tasks) if at > stop and title.startswith(START))
    return tasks[stop : start + 1]


def cells(seed: int, tasks: Tasks) -> Iterator[Cell]:
    """Without end. Faults and tasks of an operation each come in an order of their own, all before one comes again."""
    chance = random.Random(seed)

    def dealt(cards: list[Card]) -> Iterator[Card]:
        while True:
            yield from chance.sample(cards, len(cards))

    faults = {operation: dealt(list(FAULTS)) for operation in TURNS}
    everywhere = {operation: dealt(places(tasks, operation)) for operation in TURNS}
    stopped = {
        operation: dealt([(s, t) for s, t in places(tasks, operation) if t in window(tasks[s])]) for operation in TURNS
    }
    number = 0
    while True:
        for operation in TURNS:
            number += 1
            fault = next(faults[operation])
            start, (title, occurrence) = next((stopped if fault == "Pensieve started" else everywhere)[operation])
            yield Cell(seed, number, start, fault, title, occurrence)
