"""Migrate, write, roll back, write, several times over; everything is compared at each turn."""

from __future__ import annotations

import time

from .playbooks_bench import BURST, Bench, Outcome, Story
from .playbooks_cells import Cell


def cycle(bench: Bench, count: int, seed: int) -> list[str]:
    """What was wrong in so many turns there and back."""
    outcome = Outcome(Cell(seed, 0, "first", "none", "", 0))
    with bench.begun("first", seed) as world:
        for turn in range(1, count + 1):
            for book in ("migrate.yml", "rollback.yml"):
                began = time.time()
                story = Story(bench, world, outcome.cell, outcome)
                world.burst(2 * BURST)
                before, known = world.look(), len(outcome.wrong)
                code = story.play(book)
                story.require(code == 0, story.plays[-1])
                story.observe(before, story.plays[-1], code)
                story.judge_end(before, began)
                outcome.wrong[known:] = [f"turn {turn}, {book}: {each}" for each in outcome.wrong[known:]]
                print(f"turn {turn}: {book} and all comparisons, {time.time() - began:.0f} s", flush=True)
    return outcome.wrong
