"""A fresh start copies nothing and leaves SQLite as it is; verify.yml tells a dead server; a rollback works."""

from __future__ import annotations

import json
import re
import sqlite3
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sample_installation.installation import Installation

from .conftest import Playbook, own_server

pytestmark = [pytest.mark.pensieve, pytest.mark.docker, pytest.mark.incident]

NAME = "autotask-postgres-fresh-test"


@pytest.fixture
def target() -> Iterator[dict[str, str]]:
    """Names of a server that this test makes."""
    with own_server(NAME) as variables:
        yield variables


def rows(database: Path) -> dict[str, list[tuple[object, ...]]]:
    """Everything in the ordinary tables."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND rootpage > 0").fetchall()
        return {name: connection.execute(f'SELECT * FROM "{name}"').fetchall() for (name,) in names}


def entities(installation: Installation) -> int:
    """Screenshots that Pensieve's server lists."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{installation.endpoint}/api/search?q=&limit=200", timeout=60) as answer:
        return len(json.loads(answer.read())["hits"])


def checks(folder: Path) -> dict[str, dict[str, str]]:
    """Checks of the last report, by point."""
    found = json.loads((folder / "localhost" / "report.json").read_text())
    return {check["point"]: check for check in found["checks"]}


def test_fresh_start(
    playbook: Playbook, sample: Installation, pensieve_venv: Path, target: dict[str, str], tmp_path: Path
) -> None:
    variables = {
        "pensieve_user_home": str(sample.settings.home),
        "pensieve_venv": str(pensieve_venv),
        "report_directory": str(tmp_path),
        **target,
    }
    before = rows(sample.base / "database.db")
    config = (sample.base / "config.yaml").read_bytes()
    assert len(before["entities"]) > 10

    done = playbook("migrate.yml", migrate_data="false", **variables)
    assert done.returncode == 0, done.stdout[-4000:]
    assert "copy | Copy every row" not in done.stdout
    assert rows(sample.base / "database.db") == before
    assert entities(sample) == 0
    storage = "SELECT attstorage, attcompression FROM pg_attribute WHERE attname = 'search_vector'"
    storage += " AND attrelid = 'entities_fts'::regclass"
    asked = ["docker", "exec", "--user=postgres", NAME, "psql", "-AXtd", "autotasktracker", "-c", storage]
    assert subprocess.run(asked, check=True, capture_output=True, text=True).stdout == "m|p\n"
    report = checks(tmp_path)
    assert report["3.2.3"]["result"] == "not applicable"
    assert "started fresh" in report["3.2.3"]["evidence"]

    done = playbook("verify.yml", **variables)
    assert done.returncode == 0, done.stdout[-4000:]
    report = checks(tmp_path)
    assert {point for point, check in report.items() if check["result"] == "fail"} == set()
    assert report["1.1.6"]["result"] == report["SC-2"]["result"] == report["SC-5"]["result"] == "pass"
    assert report["SC-3"]["result"] == report["SC-4"]["result"] == "not applicable"

    subprocess.run(["docker", "stop", NAME], check=True, capture_output=True)
    done = playbook("verify.yml", **variables)
    said = re.sub(r"\s+", " ", done.stdout + done.stderr)
    assert done.returncode == 2
    assert "Found: PostgreSQL does not answer at postgresql://autotasktracker@127.0.0.1" in said
    assert "Expected: the server that Pensieve is set to" in said
    assert "Untouched: everything; this playbook only reads." in said
    assert f"Next: docker start {NAME}" in said

    subprocess.run(["docker", "start", NAME], check=True, capture_output=True)
    health = ["docker", "inspect", "--format={{.State.Health.Status}}", NAME]
    while subprocess.run(health, check=True, capture_output=True, text=True).stdout.strip() == "starting":
        subprocess.run(["docker", "exec", NAME, "pg_isready", "--timeout=5"], check=False, capture_output=True)
    done = playbook("rollback.yml", **variables)
    assert done.returncode == 0, done.stdout[-4000:]
    assert (sample.base / "config.yaml").read_bytes() == config
    after = rows(sample.base / "database.db")
    assert after["entities"] == before["entities"]
    assert after["metadata_entries"] == before["metadata_entries"]
