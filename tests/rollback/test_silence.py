"""A server that stands still at a carry-back is given up, nothing was carried, and the next run carries it."""

from __future__ import annotations

import re
import subprocess
import time

import pytest
from engine.silence import SAID, SOON, paused, seconds_until_it_ends
from sqlite_to_postgresql import carry_mark

from rollback.test_carry_back import content, require_equal
from rollback.world import Run

pytestmark = [pytest.mark.docker, pytest.mark.pensieve]

MANY = (
    "INSERT INTO metadata_entries (entity_id, key, value, source_type, data_type)"
    " SELECT e.id, 'note ' || n, 'more', 'USER_GENERATED', 'TEXT_DATA'"
    " FROM generate_series(1, 300) n, entities e"
)


def require_told(run: Run, said: str) -> None:
    """That the server was given up, in time and by name."""
    place = f"PostgreSQL at 127.0.0.1:{run.world.server.port}"
    assert f"waiting: for {place}, which has not answered, 10 s" in said
    assert f"Found: {place} {SAID}\nExpected: " in said


def require_carried(run: Run) -> None:
    """That the next run does it all."""
    assert any(counts["inserted"] or counts["updated"] for counts in run.engine("carry-back")["tables"].values())
    require_equal(run)


def test_before_sqlite_is_written_to(run: Run) -> None:
    run.sql("UPDATE entities SET size = size + 1")
    before = content(run)
    _, failed = seconds_until_it_ends(
        run.world.server, run.dsn, "data_copy.change", lambda: run.engine("carry-back", check=False)
    )
    assert isinstance(failed, dict), failed
    require_told(run, failed["failed"])
    assert content(run) == before
    require_carried(run)


def test_while_sqlite_is_written_to(run: Run) -> None:
    run.sql(MANY)
    before = content(run)
    process = run.begin("carry-back")
    assert process.stderr is not None
    pattern = re.compile(r"carry back: metadata_entries, [1-9][\d,]* of [1-9][\d,]* rows, ")
    assert any(map(pattern.match, process.stderr)), "it told no rows"
    with paused(run.world.server):
        began = time.monotonic()
        try:
            _, said = process.communicate(timeout=SOON)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise
        assert time.monotonic() - began > 10, said
    require_told(run, said)
    assert content(run) == before
    require_carried(run)


def test_while_the_mark_is_taken_away(run: Run) -> None:
    run.sql("UPDATE entities SET size = size + 1")
    run.engine("carry-back")
    _, first = seconds_until_it_ends(
        run.world.server, run.dsn, "data_copy.change", lambda: carry_mark.settle(run.source, run.dsn)
    )
    assert isinstance(first, carry_mark.Settled), first
    assert (first.settled, first.reason.endswith(SAID)) == (False, True), first
    assert carry_mark.settle(run.source, run.dsn).settled
