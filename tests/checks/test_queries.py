"""The queries of both applications are answered on both databases, and each check fails on what it is there for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine.pensieve import Pensieve
from engine.server import Server
from sqlite_to_postgresql.copier import copy

from .conftest import ROOT

pytestmark = [pytest.mark.pensieve, pytest.mark.docker]

SCRIPT = ROOT / "roles" / "checks" / "module_utils" / "application_queries.py"
NEVER = "no query has this name"


@pytest.fixture
def measured(
    pensieve: Pensieve, filled: Path, make_target: Callable[[], str], server: Server, tmp_path: Path
) -> Callable[..., dict[str, Any]]:
    """Copies 300 screenshots to PostgreSQL, does damage there, and measures; results and checks by point."""

    def run(*damage: str, only: str = NEVER, user: Pensieve = pensieve) -> dict[str, Any]:
        source = Path(shutil.copy(filled, tmp_path / "database.db"))
        database = make_target()
        copy(source, database)
        name = database.rpartition("/")[2]
        settings = ("hnsw.ef_search = 1000", "hnsw.iterative_scan = strict_order")
        server.run(*(f'ALTER DATABASE "{name}" SET {setting}' for setting in settings))
        server.run(*(statement.replace("DATABASE", f'DATABASE "{name}"') for statement in damage), database=name)
        options = ["--source", str(source), "--target", database, "--seconds", "0.05", "--only", only]
        options += ["--judged-from", "0" if "one tag" in only else "10000"]
        done = user.run("python", str(SCRIPT), *options, database=str(source))
        found: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
        found["by_point"] = {check["point"]: check for check in found["checks"]}
        return found

    return run


def test_all_queries(measured: Callable[..., dict[str, Any]]) -> None:
    found = measured(only="")
    queries = {query["name"]: query for query in found["queries"]}
    assert len(queries) == 24
    for name, query in queries.items():
        before, after = query["rows"]
        assert query["error"] == "", name
        assert min(query["calls"]) >= 15, name
        # Pensieve searches prefixes on SQLite only, and understands two words as three.
        if query["kind"] == "other":
            assert before == after > 0, name
        assert after > 0, name
    assert queries["vector search"]["rows"][0] == queries["vector search"]["rows"][1]
    checks = found["by_point"]
    assert checks["SC-3"]["result"] == checks["SC-5"]["result"] == checks["4.2.3"]["result"] == "pass", checks
    assert checks["SC-4"]["result"] == "not applicable"
    assert "judged from 10000 screenshots on; 24 queries at 300 screenshots" in checks["SC-4"]["evidence"]
    assert "QueuePool of 10, up to 30" in checks["4.2.3"]["evidence"]


@pytest.mark.parametrize(
    ("damage", "point", "said"),
    [
        (("DROP INDEX idx_entities_vec_v2_embedding",), "SC-5", "no HNSW index"),
        (
            (
                "SET allow_system_table_mods = on",
                "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'idx_entities_vec_v2_embedding'::regclass",
            ),
            "SC-5",
            "is not valid",
        ),
        (
            (
                "DROP INDEX idx_entities_vec_v2_embedding",
                "CREATE INDEX other ON entities_vec_v2 USING hnsw (embedding vector_l2_ops)",
            ),
            "SC-5",
            "cannot use the index",
        ),
        (
            ("ALTER DATABASE SET hnsw.ef_search = 1", "ALTER DATABASE SET hnsw.iterative_scan = off")
            + tuple(f"ALTER DATABASE SET enable_{way} = off" for way in ("seqscan", "sort", "bitmapscan")),
            "SC-3",
            "rows come back where 96 were asked for",
        ),
        (
            (
                "ALTER TABLE tags RENAME TO slow",
                "CREATE VIEW tags AS SELECT * FROM slow WHERE pg_sleep(0.02) IS NOT NULL",
                "GRANT SELECT ON tags TO autotasktracker",
            ),
            "SC-4",
            "screenshots with one tag: ",
        ),
        (
            ("DROP TABLE entity_tags",),
            "SC-4",
            "screenshots with one tag: ProgrammingError",
        ),
    ],
    ids=["no index", "index not valid", "index of another distance", "few rows", "slow", "broken"],
)
def test_each_check_fails(
    damage: tuple[str, ...], point: str, said: str, measured: Callable[..., dict[str, Any]]
) -> None:
    bad = measured(*damage, only="one tag")["by_point"][point]
    assert bad["result"] == "fail", bad
    assert said in bad["evidence"]


def test_other_dimensions(measured: Callable[..., dict[str, Any]], pensieve: Pensieve, tmp_path: Path) -> None:
    user = Pensieve(pensieve.folder, tmp_path / "home", dimensions=512)
    check = measured(user=user)["by_point"]["SC-3"]
    assert check["result"] == "fail"
    assert "takes 768 dimensions, Pensieve's model makes 512" in check["evidence"]
