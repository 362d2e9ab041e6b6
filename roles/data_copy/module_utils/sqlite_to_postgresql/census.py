"""The census: everything that a copy would find, found without changing anything."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from .model import Census, FindingLog, Policy, Progress, TableCount
from .plan import Plan, TablePlan, make_plan
from .pool import Pool
from .reading import FullText, Reading
from .reading import full_text as list_full_text
from .relations import Relations, entity_ids, find
from .source import Source
from .target import TargetTable, connect, read_tables
from .work import Outcome, scan

Watcher = Callable[[Progress], None]


def census(
    source: Path,
    *,
    target_dsn: str | None = None,
    policy: Mapping[str, str] | str | Policy | None = None,
    progress: Watcher | None = None,
    jobs: int | None = None,
) -> Census:
    """Look at every cell of the source as the copy would.

    With ``target_dsn`` the types are those of the target's tables; without, those that Pensieve's code makes.
    """
    started = time.monotonic()
    chosen = policy if isinstance(policy, Policy) else Policy.of(policy)
    with Pool(Path(source), jobs or os.cpu_count() or 1) as pool:
        ours, _ = pool.open()
        try:
            return survey(pool, ours, make_plan(ours, target_tables(target_dsn)), chosen, started, progress)
        finally:
            ours.close()


def target_tables(dsn: str | None) -> dict[str, TargetTable] | None:
    """Read the target's tables; None when there is no target, or none of Pensieve's tables on it yet."""
    if dsn is None:
        return None
    # Definitions name their tables without a schema only where search_path finds them first.
    connection = connect(dsn, search_path="public")
    try:
        tables = read_tables(connection)
    finally:
        connection.close()
    return tables if "entities" in tables else None


def reading_of(table: TablePlan, relations: Relations, source: Source, plan: Plan, log: FindingLog) -> Reading:
    """Give what reading a table must know of other tables."""
    if table.table is not None:
        return Reading(dict(relations.left_out.get(table.name, {})), log=log)
    return Reading({}, entity_ids(source, plan, relations), frozenset(relations.gone("entities")), log)


def by_size(source: Source, plan: Plan) -> dict[str, float]:
    """Estimate the bytes of each table that is read row by row, largest first."""
    sizes = {}
    for table in plan.tables.values():
        if table.is_full_text:
            continue
        name = f"{table.name}_rowids" if table.is_vectors else table.name
        width = 60.0 * len(table.columns)
        if table.is_vectors:
            width = sum(4.0 * getattr(codec, "dimensions", 10) for codec in table.codecs)
        sizes[table.name] = source.count(name) * width
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def survey(
    pool: Pool, source: Source, plan: Plan, policy: Policy, started: float, progress: Watcher | None = None
) -> Census:
    """Scan all tables with the workers of a pool."""
    relations = find(source, plan)
    sizes = by_size(source, plan)
    outcomes: dict[str, Outcome] = {}
    total, done = sum(sizes.values()) or 1.0, 0.0
    waiting = list(sizes)
    while True:
        while waiting or pool.busy():
            while waiting and pool.idle():
                table = plan.tables[waiting.pop(0)]
                pool.submit(table.name, scan, table, policy, reading_of(table, relations, source, plan, FindingLog()))
            for step in pool.steps(1.0):
                if step.done:
                    outcomes[step.name] = step.result
                    done += sizes[step.name]
                    _tell(progress, step.result, done / total, started)
        seeds = {name: outcome.dropped for name, outcome in outcomes.items() if outcome.dropped}
        if seeds == relations.seeds:
            break
        # Rows went into quarantine for a cell of theirs: their children go with them, and are looked at again.
        again = find(source, plan, seeds)
        waiting = touched(plan, relations, again)
        done -= sum(sizes[name] for name in waiting)
        relations = again
    log = FindingLog()
    tables: dict[str, TableCount] = {}
    for name, table in plan.tables.items():
        if table.is_full_text:
            reading = reading_of(table, relations, source, plan, FindingLog())
            found = list_full_text(source, table, policy, reading)
            tables[name] = TableCount(found.source_rows, len(found.ids), found.source_rows - len(found.ids))
            plan.notes.extend(_repeated(name, found))
            log.merge(reading.log.groups())
        else:
            tables[name] = outcomes[name].count
            log.merge(outcomes[name].findings)
    return Census(tables, log, list(plan.refused), list(plan.notes), time.monotonic() - started)


def _repeated(name: str, found: FullText) -> list[str]:
    if not found.repeated:
        return []
    return [f"{name}: {found.repeated} entries repeat an entity that was indexed more than once; it is indexed once"]


def touched(plan: Plan, before: Relations, after: Relations) -> list[str]:
    """Tables whose left-out rows have changed, and the vectors if entities have."""
    names = [
        name
        for name, table in plan.tables.items()
        if table.table is not None and before.left_out.get(name) != after.left_out.get(name)
    ]
    if before.gone("entities") != after.gone("entities"):
        names += [name for name, table in plan.tables.items() if table.is_vectors]
    return names


def _tell(progress: Watcher | None, outcome: Outcome, fraction: float, started: float) -> None:
    if progress is None:
        return
    elapsed = time.monotonic() - started
    eta = elapsed / fraction - elapsed if fraction > 0 else None
    count = replace(outcome.count)
    progress(
        Progress(
            "census", outcome.table, count.source, count.source, count.bytes / 1e6, min(fraction, 1.0), elapsed, eta
        )
    )
