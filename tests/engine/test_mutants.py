"""The verifier finds every damage: seeded mutants of a correct copy, of all tables and types."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from sqlite_to_postgresql import verify as whole
from sqlite_to_postgresql import verify_sides
from sqlite_to_postgresql.copier import copy
from sqlite_to_postgresql.fts import Tokenizer
from sqlite_to_postgresql.verify import Difference, Only, VerifyResult, verify

from engine.conftest import Catalog, note
from engine.mutants import Mutant, Workshop, of_the_catalog
from engine.server import Server

pytestmark = [pytest.mark.docker, pytest.mark.pensieve]

SEED = 20250701
AT_LEAST = 200
SCREENSHOTS = 40
AT_ONCE = 40  # mutants of rows and cells in one damaged copy, no two of one row or column
CORRECT = "mutants_correct"


@pytest.fixture(scope="module", autouse=True)
def _small_parts() -> Iterator[None]:
    """The verifier works in so small parts that tables have several, as large ones have."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify_sides, "BATCH", 50)
        patch.setattr(whole, "RANGE_ROWS", 150)
        patch.setattr(whole, "FTS_RANGE", 25)
        yield


@pytest.fixture(scope="module")
def correct(server: Server, template: Catalog, medium: Path) -> str:
    """DSN of a correct copy."""
    assert template
    dsn = server.create_database(CORRECT, "pensieve_template")
    copy(medium, dsn)
    return dsn


@pytest.fixture(scope="module")
def mutants(correct: str) -> tuple[list[Mutant], list[Mutant]]:
    """Of rows and cells, and of the catalog. Nobody stays connected: the database is a template."""
    connection = psycopg2.connect(correct)
    try:
        workshop = Workshop(connection, SEED)
        return workshop.all(), of_the_catalog(workshop)
    finally:
        connection.close()


def names(difference: Difference, mutant: Mutant) -> bool:
    """Whether a difference names what the mutant has damaged."""
    return (
        difference.table == mutant.table
        and (mutant.key is None or difference.key == mutant.key)
        and (mutant.column is None or difference.column == mutant.column)
    )


def damaged(
    server: Server,
    source: Path,
    template: Catalog,
    tokenizer: Tokenizer,
    mutants: list[Mutant],
    only: Only | None = None,
) -> VerifyResult:
    """Verify a copy with these mutants in it. Foreign keys and triggers do not keep them out."""
    name = f"mutants_{os.getpid()}"
    dsn = server.create_database(name, CORRECT)
    try:
        server.run(
            "SET session_replication_role = replica",
            "SET allow_system_table_mods = on",
            *(statement for mutant in mutants for statement in mutant.statements),
            database=name,
        )
        return verify(source, dsn, expected_catalog=template, tokenizer=tokenizer, limit=5_000, only=only)
    finally:
        server.drop_database(name)


def groups(mutants: list[Mutant]) -> list[list[Mutant]]:
    """Some at once, of different rows and columns, so that none hides another. Full text is damaged apart from
    what it is made of: of a tag and of the words made of it, both changed alike, only the tag is wrong.
    """
    made: list[tuple[list[Mutant], set[str]]] = []
    for mutant in mutants:
        touched = {f"{mutant.table} {key}" for key in (mutant.key, mutant.also) if key}
        touched.add(f"{mutant.table}.{mutant.column}")
        for group, taken in made:
            alike = (group[0].table == "entities_fts") == (mutant.table == "entities_fts")
            if alike and len(group) < AT_ONCE and not taken & touched:
                group.append(mutant)
                taken |= touched
                break
        else:
            made.append(([mutant], set(touched)))
    return [group for group, _taken in made]


def test_correct_copy_is_equal(correct: str, medium: Path, template: Catalog, tokenizer: Tokenizer) -> None:
    result = verify(medium, correct, expected_catalog=template, tokenizer=tokenizer)
    assert result.differences == []
    assert result.equal
    assert result.tables["metadata_entries"].compared_cells == SCREENSHOTS * 8 * 9
    assert result.tables["entities_vec_v2"].source == result.tables["entities_vec_v2"].target == SCREENSHOTS
    assert result.tables["entities_fts"].source == result.tables["entities_fts"].target == SCREENSHOTS


def test_every_mutant_of_rows_and_cells_is_caught(
    server: Server,
    medium: Path,
    template: Catalog,
    mutants: tuple[list[Mutant], list[Mutant]],
    tokenizer: Tokenizer,
    request: pytest.FixtureRequest,
) -> None:
    made = mutants[0]
    missed = []
    for group in groups(made):
        result = damaged(server, medium, template, tokenizer, group)
        missed += [m.told() for m in group if not any(names(d, m) for d in result.differences)]
    kinds = Counter(mutant.kind for mutant in made)
    tables = sorted({mutant.table for mutant in made})
    note(
        request.node,
        f"mutants of rows and cells (seed {SEED}): {len(made) - len(missed)} of {len(made)} caught,"
        f" {len(kinds)} kinds, {len(tables)} tables",
    )
    assert missed == []
    assert len(made) >= AT_LEAST
    assert len(tables) == 12


def keys_of(mutants: list[Mutant]) -> dict[str, set[tuple[Any, ...]]]:
    """The rows that mutants damage, as `verify` takes them as `only`."""
    found: dict[str, set[tuple[Any, ...]]] = {}
    for mutant in mutants:
        for key in (mutant.key, mutant.also):
            found.setdefault(mutant.table, set()).add(tuple((key or {"any": None}).values()))
    return found


def test_mutants_are_caught_when_only_their_rows_are_compared(
    server: Server,
    medium: Path,
    correct: str,
    template: Catalog,
    mutants: tuple[list[Mutant], list[Mutant]],
    tokenizer: Tokenizer,
) -> None:
    made = mutants[0][::3]
    missed = []
    for group in groups(made):
        only = keys_of(group)
        assert verify(medium, correct, expected_catalog=template, tokenizer=tokenizer, only=only).differences == []
        result = damaged(server, medium, template, tokenizer, group, only)
        missed += [m.told() for m in group if not any(names(d, m) for d in result.differences)]
    assert missed == []
    assert len({mutant.table for mutant in made}) >= 11


def test_rows_that_are_not_named_are_not_compared(
    server: Server, medium: Path, template: Catalog, tokenizer: Tokenizer
) -> None:
    other = Mutant("another row", "entities", {"id": 2}, "size", ("UPDATE entities SET size = size + 1 WHERE id = 2",))
    result = damaged(server, medium, template, tokenizer, [other], {"entities": {(1,)}, "entities_fts": {(3,)}})
    assert result.differences == []
    assert {name: verdict.source for name, verdict in result.tables.items() if verdict.source} == {
        "entities": 1,
        "entities_fts": 1,
    }


def test_every_mutant_of_the_catalog_is_caught(
    server: Server,
    medium: Path,
    template: Catalog,
    mutants: tuple[list[Mutant], list[Mutant]],
    tokenizer: Tokenizer,
    request: pytest.FixtureRequest,
) -> None:
    made = mutants[1]
    missed = []
    alone = [[mutant] for mutant in made if mutant.kind in ("table lost", "type changed")]
    lost = [mutant for mutant in made if mutant.kind.endswith(" lost") and [mutant] not in alone]
    changed = [mutant for mutant in made if not mutant.kind.endswith(" lost") and [mutant] not in alone]
    for group in (lost, changed, *alone):
        result = damaged(server, medium, template, tokenizer, group)
        missed += [m.told() for m in group if not any(names(d, m) for d in result.differences)]
    note(request.node, f"mutants of the catalog: {len(made) - len(missed)} of {len(made)} caught")
    assert missed == []
