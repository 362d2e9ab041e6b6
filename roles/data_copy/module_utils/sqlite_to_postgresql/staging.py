"""The staging schema: tables that are built out of sight and take the places of the empty ones in one transaction."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Mapping

from . import change_log, ledger
from .model import EngineError
from .plan import FULL_TEXT, VECTORS, Plan, TablePlan
from .source import quoted
from .target import (
    PENSIEVE_TABLES,
    STAGING,
    WORKER,
    Connection,
    TargetIndex,
    TargetTable,
    query,
    reference,
    run,
)

#: What `memos init` writes into a fresh database, by table: rows that may be there and that the source replaces.
_DEFAULT_ROWS = {
    "alembic_version": "true",
    "libraries": "id = 1",
    "plugins": "name IN ('builtin_ocr', 'builtin_vlm')",
    "library_plugins": "library_id = 1",
}

_LEFTOVER_SECONDS = 60.0
_GRAPH_BYTES = 1200  # a vector's place in the graph and its neighbours, with m = 16, and some air

#: Vectors that are looked at as neighbours of a new one while an index is built. With Pensieve's own 64 a search among
#: 50,000 misses more of the nearest than verify.yml allows (docs/checks.md).
_EF_CONSTRUCTION = 128

_OTHERS = """
    SELECT CASE c.relkind WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view' WHEN 'f' THEN 'foreign table'
                          ELSE 'sequence' END || ' ' || c.relname
      FROM pg_class c
     WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('v', 'm', 'f', 'S')
       AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.classid = 'pg_class'::regclass
                          AND d.deptype IN ('e', 'a', 'i'))
     ORDER BY 1
"""


def check_target(
    connection: Connection, target: Mapping[str, TargetTable], plan: Plan, complete: ledger.Run | None
) -> None:
    """Refuse a database that is not ours: tables or rows that Pensieve's code did not make.

    ``complete`` is an earlier copy of ours that the target shows: then nobody else may have written to it since.
    """
    foreign = [f"table {name}" for name in target if name not in plan.tables and name not in _pensieve_names()]
    foreign += [row[0] for row in query(connection, _OTHERS)]
    if foreign:
        raise _foreign(f"objects in schema public that Pensieve did not make: {', '.join(sorted(foreign))}")
    if not {"entities", "alembic_version"} <= set(target):
        raise EngineError(
            "no tables of Pensieve on the target",
            "the schema that Pensieve's own code makes, empty",
            "everything",
            "make the schema first (memos init with the target as database_path), then run again",
        )
    if complete is not None:
        change_log.require_ours(connection, complete)
        return
    for name in target:
        allowed = _DEFAULT_ROWS.get(name, "false")
        sql = f"SELECT count(*) FROM public.{quoted(name)} WHERE NOT coalesce({allowed}, false)"
        rows = query(connection, sql)[0][0]
        if rows:
            raise _foreign(f"{rows} rows that this copy did not write in table {name}")


def _pensieve_names() -> set[str]:
    return {*PENSIEVE_TABLES, FULL_TEXT, VECTORS, "entities_vec"}


def _foreign(found: str) -> EngineError:
    return EngineError(
        found,
        "a database for Pensieve alone, with the empty tables of its schema",
        "all of the target and the source",
        "use an empty database (postgres_database), or drop this one if nothing in it is needed, and run again",
    )


def check_revision(connection: Connection, source_revisions: Iterable[str]) -> None:
    """Refuse when source and target are not at the same revision of Pensieve's schema."""
    wanted = sorted(source_revisions)
    found = sorted(row[0] for row in query(connection, "SELECT version_num FROM public.alembic_version"))
    if wanted != found:
        here, there = ", ".join(wanted) or "none", ", ".join(found) or "none"
        raise EngineError(
            f"the source is at schema revision {here}, the target at {there}",
            "the same revision on both",
            "everything",
            "run `memos init` of the installed version on the SQLite database (with a backup), then run again",
        )


def drop(connection: Connection) -> None:
    """Drop the staging schema with all that is in it."""
    run(connection, f"DROP SCHEMA IF EXISTS {STAGING} CASCADE")


def exists(connection: Connection) -> bool:
    """Tell whether a staging schema is there."""
    return bool(query(connection, "SELECT to_regnamespace(%s) IS NOT NULL", (STAGING,))[0][0])


def create(connection: Connection, plan: Plan) -> None:
    """Make the staging tables: the columns of the real ones, no indexes, no keys."""
    run(connection, "BEGIN")
    run(connection, f"CREATE SCHEMA {STAGING}")
    for table in plan.tables.values():
        if table.target.create:
            run(connection, table.target.create)
        else:
            like = f"LIKE public.{quoted(table.name)} INCLUDING ALL EXCLUDING INDEXES"
            run(connection, f"CREATE TABLE {reference(table.name)} ({like})")
        for name, kind in table.target.added.items():
            run(connection, f"ALTER TABLE {reference(table.name)} ADD COLUMN {quoted(name)} {kind}")
        for column in table.target.columns.values():
            if column.type == "tsvector":
                run(connection, f"ALTER TABLE {reference(table.name)} {_in_its_row(column.name)}")
    run(connection, "COMMIT")


def _in_its_row(name: str) -> str:
    """Keep a word list in its row as long as a page holds it, and as it is.

    A search that ranks its matches reads the list of each. Out of line that is five pages, in the row it is one
    (docs/checks.md). lz4 saves 4 to 6 % of such a list, and unpacking takes as long as ranking; pglz leaves alone what
    it cannot make a quarter smaller.
    """
    return f"ALTER {quoted(name)} SET STORAGE MAIN, ALTER {quoted(name)} SET COMPRESSION pglz"


def end_leftover_sessions(connection: Connection) -> None:
    """End the sessions that a killed run has left working on the server; only our own, and only in this database."""
    others = (
        "FROM pg_stat_activity WHERE datname = current_database() AND usename = current_user"
        " AND application_name = %s AND pid <> pg_backend_pid()"
    )
    deadline = time.monotonic() + _LEFTOVER_SECONDS
    while query(connection, f"SELECT count(pg_terminate_backend(pid, 1000)) {others}", (WORKER,))[0][0]:
        if time.monotonic() > deadline:
            raise EngineError(
                f"sessions of an earlier copy that do not end within {_LEFTOVER_SECONDS:.0f} s",
                "no session of another copy",
                "everything",
                f"look at pg_stat_activity for application_name '{WORKER}', end them, and run again",
            )


def index_memory(connection: Connection) -> int:
    """Bytes of memory that index builds may use at the same time: a quarter of the machine's, at least 256 MB.

    The server is taken to be on this machine, or on one like it.
    """
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    floor = int(query(connection, "SELECT pg_size_bytes(current_setting('maintenance_work_mem'))")[0][0])
    return max(pages * size // 4, floor, 256 << 20)


def index_settings(memory: int, jobs: int, index: TargetIndex, rows: int, dimensions: int) -> dict[str, str]:
    """Settings of a session that builds an index.

    A graph of vectors is built at full speed only while it fits into maintenance_work_mem; helpers share that memory by
    /dev/shm, which may be smaller (shm_size of the container), so no more is asked for than the graph needs.
    """
    need = 64 << 20
    if index.method == "hnsw":
        need = int(rows * (4 * dimensions + _GRAPH_BYTES) * 1.1) + (32 << 20)
    elif index.method == "gin":
        need = memory // 4
    return {
        "maintenance_work_mem": f"{max(64 << 20, min(need, memory)) >> 10}kB",
        "max_parallel_maintenance_workers": str(jobs),
        "synchronous_commit": "off",
    }


def index_statement(index: TargetIndex) -> str:
    """Give what makes an index; a graph of vectors is made with more effort than its definition says.

    The more neighbours are looked at for each new vector (ef_construction), the fewer of the nearest a search misses,
    for as long as the index lives; what is missed through a poor graph no hnsw.ef_search finds. The definition is given
    back at once, in the same transaction: what comes later is inserted with the effort that the application wants.
    """
    given = re.search(r" WITH \(([^()]*)\)", index.create)
    effort = re.search(r"\bef_construction='(\d+)'", given[1]) if given else None
    if index.method != "hnsw" or given is None or effort is None or int(effort[1]) >= _EF_CONSTRUCTION:
        return index.create
    raised = given[0].replace(effort[0], f"ef_construction='{_EF_CONSTRUCTION}'")
    built = index.create.replace(given[0], raised)
    return f"{built}; ALTER INDEX {STAGING}.{quoted(index.name)} SET ({given[1]})"


def builds_under_way(connection: Connection) -> list[tuple[str, float]]:
    """Tell how far (0..1) the server is with each index that it builds."""
    return [
        (name, float(share))
        for name, share in query(
            connection,
            "SELECT c.relname, greatest(blocks_done::float8 / nullif(blocks_total, 0),"
            " tuples_done::float8 / nullif(tuples_total, 0))"
            " FROM pg_stat_progress_create_index p JOIN pg_class c ON c.oid = p.index_relid"
            " WHERE datname = current_database()",
        )
        if share is not None
    ]


def missing_indexes(connection: Connection, table: TablePlan) -> list[TargetIndex]:
    """Give the indexes that a staging table does not have yet."""
    staged = query(
        connection,
        "SELECT i.relname FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid WHERE x.indrelid = %s::regclass",
        (reference(table.name),),
    )
    there = {name for (name,) in staged}
    return [index for index in table.target.indexes if index.name not in there]


def key_statements(connection: Connection, plan: Plan, kinds: str) -> list[str]:
    """Give the statements for constraints of some kinds (p, u, f) that the staging tables do not have yet."""
    staged = query(
        connection,
        "SELECT t.relname, k.conname FROM pg_constraint k JOIN pg_class t ON t.oid = k.conrelid"
        " WHERE t.relnamespace = %s::regnamespace",
        (STAGING,),
    )
    statements = []
    for table in plan.tables.values():
        for constraint in table.target.constraints:
            if (table.name, constraint.name) in staged or constraint.kind not in kinds:
                continue
            head = f"ALTER TABLE {reference(table.name)} ADD CONSTRAINT {quoted(constraint.name)}"
            if constraint.kind == "f":
                statements.append(f"{head} {constraint.definition}")
            else:
                word = "PRIMARY KEY" if constraint.kind == "p" else "UNIQUE"
                trailer = re.search(r"( NOT)? DEFERRABLE.*", constraint.definition)
                statements.append(
                    f"{head} {word} USING INDEX {quoted(constraint.name)}{trailer.group() if trailer else ''}"
                )
    return statements


def hold(connection: Connection, target: Mapping[str, TargetTable]) -> None:
    """Wait for whoever writes to the real tables, and keep all others away, until the end of the transaction."""
    run(connection, "SET LOCAL lock_timeout = '60s'")
    run(connection, f"LOCK TABLE {', '.join(f'public.{quoted(name)}' for name in target)} IN ACCESS EXCLUSIVE MODE")


def swap(connection: Connection, plan: Plan, target: Mapping[str, TargetTable], highest: Mapping[str, int]) -> None:
    """Put the staging tables in the places of the real ones. The caller's transaction makes it one moment.

    ``highest`` is the highest id ever given, by table; sequences go on after it.
    """
    old = [name for name in plan.tables if name in target]
    for name in old:
        for column, sequence in target[name].sequences.items():
            if column not in target[name].identities:
                run(connection, f"ALTER SEQUENCE public.{quoted(sequence)} OWNED BY NONE")
    if old:
        run(connection, f"DROP TABLE {', '.join(f'public.{quoted(name)}' for name in old)}")
    for name, table in plan.tables.items():
        run(connection, f"ALTER TABLE {reference(name)} SET SCHEMA public")
        for column, sequence in table.target.sequences.items():
            if column not in table.target.identities:
                run(
                    connection,
                    f"ALTER SEQUENCE public.{quoted(sequence)} OWNED BY public.{quoted(name)}.{quoted(column)}",
                )
            set_sequence(connection, name, column, highest.get(name, 0))
    run(connection, f"DROP SCHEMA {STAGING}")


def set_sequence(connection: Connection, table: str, column: str, highest: int) -> None:
    """Set a sequence within the transaction: RESTART gives it new storage, so that a rollback undoes setval too."""
    sequence = query(connection, "SELECT pg_get_serial_sequence(%s, %s)", (f"public.{quoted(table)}", column))[0][0]
    run(connection, f"ALTER SEQUENCE {sequence} RESTART")
    if highest > 0:
        run(connection, "SELECT setval(%s, %s, true)", (sequence, highest))
