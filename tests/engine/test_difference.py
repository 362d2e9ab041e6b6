"""A snapshot, brought up by the difference, is what a copy of the whole source would be: proven by the verifier."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg2
import pytest
from sqlite_to_postgresql import snapshot
from sqlite_to_postgresql.copier import copy
from sqlite_to_postgresql.difference import Difference, difference
from sqlite_to_postgresql.fts import Tokenizer
from sqlite_to_postgresql.verify import verify

from engine.conftest import Catalog
from engine.pensieve import Pensieve

pytestmark = [pytest.mark.pensieve, pytest.mark.docker]

CHANGE = Path(__file__).with_name("change.py")
SEEDS = range(24)
LIMIT = 1 << 30


def change(pensieve: Pensieve, database: Path, seed: int, steps: int, *extra: str) -> None:
    """Change a database in another process, with Pensieve's interpreter."""
    pensieve.run("python", str(CHANGE), str(seed), str(steps), *extra, database=str(database))


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Where a snapshot keeps what it knows; its holder ends with the test."""
    yield tmp_path / "snapshot"
    snapshot.end(tmp_path / "snapshot")


def counts(dsn: str) -> dict[str, list[int]]:
    """What the ledger says that the tables hold, and what they do hold: rows, and rows in quarantine."""
    with psycopg2.connect(dsn) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT result -> 'tables' FROM data_copy.run WHERE state = 'complete'")
        rows = cursor.fetchall()
        assert len(rows) == 1
        found = {}
        for table, said in rows[0][0].items():
            cursor.execute(f'SELECT count(*) FROM public."{table}"')
            target = cursor.fetchone()
            cursor.execute(
                "SELECT count(*) FROM data_copy.quarantine WHERE source_table = %s AND source_column IS NULL", (table,)
            )
            kept = cursor.fetchone()
            assert target
            assert kept
            assert said["source"] == said["target"] + said["quarantined"], table
            found[table] = [said["target"] - target[0], said["quarantined"] - kept[0]]
    connection.close()
    return found


def prove(source: Path, dsn: str, made: Difference, template: Catalog, tokenizer: Tokenizer) -> None:
    """Every cell, quarantine, sequence and definition; the rows that were looked at by themselves; the ledger."""
    result = verify(source, dsn, expected_catalog=template, tokenizer=tokenizer)
    assert result.differences == []
    assert result.equal
    if made.only is not None:
        some = verify(source, dsn, expected_catalog=template, tokenizer=tokenizer, only=made.only)
        assert some.differences == []
    assert {table: wrong for table, wrong in counts(dsn).items() if any(wrong)} == {}


@pytest.mark.parametrize("seed", SEEDS)
def test_difference_equals_a_whole_copy(
    seed: int,
    pensieve: Pensieve,
    medium: Path,
    tmp_path: Path,
    folder: Path,
    make_target: Callable[[], str],
    template: Catalog,
    tokenizer: Tokenizer,
) -> None:
    choose = random.Random(seed)
    source = Path(shutil.copy(medium, tmp_path / "database.db"))
    if seed % 3:
        change(pensieve, source, 1000 + seed, choose.randint(1, 12), *["checkpoint"] * (seed % 2))
    made, held = snapshot.hold(source, tmp_path / "copy.db", folder, LIMIT, 600)
    assert made
    assert held.held
    dsn = make_target()
    copy(tmp_path / "copy.db", dsn, jobs=1)
    extra = [["checkpoint"], ["restart"], ["checkpoint", "restart"], ["truncate"]][seed % 4]
    for part in range(1 + (seed % 5 == 0)):
        change(pensieve, source, 10 * seed + part, choose.randint(1, 25), *extra)
    result = difference(source, folder, dsn, tokenizer=tokenizer)
    assert (result.way, result.reason) == ("difference", "pages found by the write-ahead log")
    assert result.rows > 0
    prove(source, dsn, result, template, tokenizer)
    again = difference(source, folder, dsn, tokenizer=tokenizer)
    assert (again.way, again.changed) == ("nothing", False)
