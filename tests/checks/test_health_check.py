"""scripts/pensieve_health_check.py tells a healthy Pensieve from each way of being sick."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from engine.pensieve import Pensieve
from engine.server import Server
from sqlite_to_postgresql.copier import copy

from .conftest import ROOT, Served, free_port, make_home

pytestmark = [pytest.mark.pensieve, pytest.mark.docker]

Health = Callable[..., "tuple[int, dict[str, dict[str, str]]]"]
Serve = Callable[[str, Path], Served]


def failed(checks: dict[str, dict[str, str]]) -> set[str]:
    """Names of the checks that failed, each with all parts of its message."""
    names = {name for name, check in checks.items() if check["result"] == "fail"}
    assert all(checks[name][part] for name in names for part in ("found", "expected", "next"))
    return names


def test_healthy(serve: Serve, health: Health, server: Server, make_target: Callable[[], str], medium: Path) -> None:
    database = make_target()
    copy(medium, database)
    served = serve(database, server.passfile)
    status, checks = health(served.home)
    assert failed(checks) == set()
    assert status == 0
    assert len(checks) == 10
    assert {check["result"] for check in checks.values()} == {"pass"}
    assert "entities 40" in checks["rows"]["found"]
    # The server is asked by the address in its settings, and the running server uses this database, not a copy of it.
    other = make_target()
    copy(medium, other)
    status, checks = health(served.home, "--database", other)
    assert (status, failed(checks)) == (1, {"database of the running server"})
    status, checks = health(served.home, "--expect", "sqlite")
    assert (status, failed(checks)) == (1, {"database setting"})


def test_without_psycopg2(serve: Serve, health: Health, server: Server, make_target: Callable[[], str]) -> None:
    served = serve(make_target(), server.passfile)
    status, checks = health(served.home, isolated=True)
    assert status == 0
    assert checks["server"]["result"] == checks["database through the server"]["result"] == "pass"
    assert checks["connection"]["result"] == "not applicable"
    assert "has no psycopg2" in checks["connection"]["found"]


def test_database_stopped(serve: Serve, health: Health, pensieve: Pensieve, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    with Server(tmp_path / "own") as own:
        database = own.create_database("pensieve")
        pensieve.init(database)
        served = serve(database, own.passfile)
        assert health(served.home)[0] == 0
    status, checks = health(served.home)
    # /api/health still says that all is well.
    assert checks["server"]["result"] == "pass"
    assert (status, failed(checks)) == (1, {"database through the server", "connection"})
    assert "docker start" in checks["connection"]["next"]
    script = [sys.executable, str(ROOT / "scripts" / "pensieve_health_check.py"), "--home", str(served.home)]
    told = subprocess.run(script, capture_output=True, text=True, check=False)
    assert told.returncode == 1
    for part in (
        "Found: ",
        "Expected: ",
        "Untouched: everything",
        "Next: ",
        "Pensieve is not healthy: 2 checks failed",
    ):
        assert part in told.stdout


@pytest.mark.parametrize(
    ("damage", "check"),
    [
        ("DROP INDEX idx_entities_vec_v2_embedding", "vector index"),
        (
            "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'idx_entities_vec_v2_embedding'::regclass",
            "vector index",
        ),
        ("SELECT setval('entities_id_seq', 1, false)", "sequences"),
        ("DROP EXTENSION pg_trgm CASCADE", "extensions"),
        ("TRUNCATE metadata_entries", "rows"),
        ("DROP TABLE entities_fts", "rows"),
    ],
)
def test_broken(
    damage: str,
    check: str,
    health: Health,
    server: Server,
    make_target: Callable[[], str],
    medium: Path,
    tmp_path: Path,
) -> None:
    database = make_target()
    copy(medium, database)
    home = make_home(tmp_path / "home", database, free_port(), server.passfile)
    sick_anyway = {"server", "processes"}  # nothing is served here
    assert failed(health(home)[1]) == sick_anyway
    server.run("SET allow_system_table_mods = on", damage, database=database.rpartition("/")[2])
    status, checks = health(home)
    assert (status, failed(checks)) == (1, sick_anyway | {check})


def test_other_dimensions(health: Health, server: Server, make_target: Callable[[], str], tmp_path: Path) -> None:
    home = make_home(tmp_path / "home", make_target(), free_port(), server.passfile, dimensions=512)
    checks = health(home)[1]
    assert checks["vector index"]["result"] == "fail"
    assert "768 dimensions" in checks["vector index"]["found"]
    assert "512" in checks["vector index"]["expected"]


def test_what_the_rest_api_cannot_carry(serve: Serve, server: Server, make_target: Callable[[], str]) -> None:
    """Why an import through Pensieve's REST API is refused: ids and times change, and no vector comes with a row."""
    database = make_target()
    served = serve(database, server.passfile)
    (served.home / "screenshots").mkdir()
    library = served.ask("GET", "/libraries")[0]["id"]
    place = {"path": str(served.home / "screenshots"), "last_modified_at": "2025-01-01T00:00:00"}
    folder = served.ask("POST", f"/libraries/{library}/folders", {"folders": [place]})["folders"][0]["id"]
    sent: dict[str, Any] = {
        "id": 777,
        "created_at": "2020-01-01T00:00:00",
        "updated_at": "2020-01-01T00:00:00",
        "filepath": "/screenshots/one.webp",
        "filename": "one.webp",
        "size": 1,
        "file_created_at": "2020-01-01T00:00:00Z",
        "file_last_modified_at": "2020-01-01T00:00:00Z",
        "file_type": "webp",
        "file_type_group": "image",
        "folder_id": folder,
        "metadata_entries": [
            {"key": "active_app", "value": "Code", "source": "x", "source_type": "system", "data_type": "text"}
        ],
    }
    made = served.ask("POST", f"/libraries/{library}/entities?trigger_webhooks_flag=false&update_index=false", sent)
    with psycopg2.connect(database) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT id, created_at > now() - interval '1 hour', file_created_at::date::text FROM entities")
        assert cursor.fetchall() == [(made["id"], True, "2020-01-01")]
        assert made["id"] != sent["id"]
        cursor.execute("SELECT source_type::text, created_at > now() - interval '1 hour' FROM metadata_entries")
        assert cursor.fetchall() == [("PLUGIN_GENERATED", True)]
        cursor.execute("SELECT (SELECT count(*) FROM entities_vec_v2), (SELECT count(*) FROM entities_fts)")
        assert cursor.fetchall() == [(0, 0)]
    many, began = 100, time.monotonic()
    for number in range(many):
        name = f"more-{number}.webp"
        entries = [
            {**sent["metadata_entries"][0], "key": f"key_{key}", "value": "some words " * 20} for key in range(8)
        ]
        more = {**sent, "filepath": f"/screenshots/{name}", "filename": name, "metadata_entries": entries}
        served.ask("POST", f"/libraries/{library}/entities?trigger_webhooks_flag=false&update_index=false", more)
    took = time.monotonic() - began
    with psycopg2.connect(database) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT (SELECT count(*) FROM entities), (SELECT count(*) FROM metadata_entries)")
        assert cursor.fetchall() == [(1 + many, 1 + 8 * many)]
    print(f"REST API: {many / took:.0f} screenshots a second with eight metadata entries each")
