"""Faults strike the engine, at points that the commit chooses or at every point; what comes of it is judged."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from faults.engine import Campaign, Point, campaign, sampled, table, told

pytestmark = [pytest.mark.docker, pytest.mark.pensieve]

SAMPLE = 60
AT_LEAST = 2000


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Campaign]:
    """What all points share."""
    with campaign(tmp_path_factory.mktemp("faults").resolve()) as running:
        yield running


@pytest.fixture(scope="module")
def points(made: Campaign) -> list[Point]:
    """Every point; without a fault, all is well."""
    found, wrong = made.points(made.operations)
    assert not wrong, "\n".join(told(verdict, 0) for verdict in wrong)
    return found


@pytest.fixture(scope="module")
def seed() -> int:
    """The commit, so that each one has points of its own."""
    command = ["git", "rev-parse", "HEAD"]
    commit = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return int(commit.stdout[:8] or "1", 16)


def played(made: Campaign, points: Sequence[Point], seed: int) -> int:
    """Play points; how many were struck. None may fail."""
    verdicts = list(made.play(points))
    struck = [verdict for verdict in verdicts if verdict.told]
    print(table(struck))
    failed = [told(verdict, seed) for verdict in verdicts if verdict.wrong]
    assert not failed, f"{len(failed)} of {len(struck)} points\n" + "\n".join(failed)
    return len(struck)


def test_points_of_this_commit(made: Campaign, points: list[Point], seed: int) -> None:
    assert played(made, sampled(points, SAMPLE, seed), seed) > SAMPLE * 0.8


@pytest.mark.incident
@pytest.mark.slow
def test_every_point(made: Campaign, points: list[Point], seed: int) -> None:
    assert played(made, points, seed) >= AT_LEAST
