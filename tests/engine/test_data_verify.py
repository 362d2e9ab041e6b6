"""The module data_verify as Ansible runs it: verdict, failure text, check mode, catalog; nothing is ever changed."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlite_to_postgresql.copier import copy

from engine.server import Server

pytestmark = [pytest.mark.docker, pytest.mark.pensieve]

ROOT = Path(__file__).parents[2]


def run_module(arguments: dict[str, Any], check: bool = False, module: str = "data_verify") -> dict[str, Any]:
    """Result of `ansible localhost -m MODULE`."""
    command = [str(Path(sys.executable).with_name("ansible")), "localhost", "-m", module]
    command += ["-a", json.dumps(arguments), "-e", f"ansible_python_interpreter={sys.executable}", "-c", "local"]
    environment = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_FORCE_COLOR": "0"}
    environment |= {"ANSIBLE_STDOUT_CALLBACK": "minimal", "LC_ALL": "C.UTF-8", "ANSIBLE_CALLBACK_RESULT_FORMAT": "json"}
    done = subprocess.run(
        [*command, *(["--check"] if check else [])],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    start = done.stdout.find("=> {")
    assert start >= 0, done.stdout + done.stderr
    found: dict[str, Any] = json.JSONDecoder().raw_decode(done.stdout[start + 3 :])[0]
    return found | {"failed": "FAILED!" in done.stdout[:start]}


@pytest.fixture(scope="module")
def copied(small: Path, make_target: Callable[[], str]) -> str:
    """DSN of a correct copy."""
    dsn = make_target()
    copy(small, dsn)
    return dsn


def test_equal_databases(small: Path, copied: str, make_target: Callable[[], str], server: Server) -> None:
    made = run_module({"target_dsn": make_target(), "passfile": str(server.passfile), "only_catalog": True})
    assert made["catalog"]["index"]["entities.idx_filepath"].startswith("CREATE INDEX idx_filepath")
    before = hashlib.sha256(small.read_bytes()).digest()
    arguments = {"source": str(small), "target_dsn": copied, "passfile": str(server.passfile)}
    for check in (False, True):
        result = run_module({**arguments, "expected_catalog": made["catalog"]}, check)
        assert result["equal"]
        assert not result["changed"]
        assert result["tables"]["entities"] | {"seconds": 0} == {
            "source": 16,
            "target": 16,
            "quarantined": 0,
            "compared_cells": 16 * 13,
            "differences": 0,
            "seconds": 0,
        }
        assert result["checks"]["definitions"] > 100
    assert hashlib.sha256(small.read_bytes()).digest() == before


def test_difference_fails_with_its_place_and_both_values(small: Path, copied: str, server: Server) -> None:
    database = copied.rpartition("/")[2]
    server.run(f'CREATE DATABASE different TEMPLATE "{database}"')
    server.run("UPDATE entities SET size = 17 WHERE id = 3", "DELETE FROM entity_tags", database="different")
    arguments = {"source": str(small), "target_dsn": server.dsn("different"), "passfile": str(server.passfile)}
    failed = run_module(arguments)
    assert failed["failed"]
    for line in ("Found: ", "\nExpected: ", "\nUntouched: both databases", "\nNext: "):
        assert line in failed["msg"]
    assert {
        "table": "entities",
        "key": {"id": 3},
        "column": "size",
        "target": "17",
        "what": "cell differs",
    }.items() <= next(difference for difference in failed["differences"] if difference["table"] == "entities").items()
    counted = run_module({**arguments, "fail_on_difference": False})
    assert not counted["failed"]
    assert not counted["equal"]
    # One entity; three tags are gone, and so are their words from what the full text must be.
    assert counted["tables"]["entity_tags"]["differences"] == 3
    assert counted["differing_rows"] == 1 + 3 + 3
    server.drop_database("different")


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({"source": "/nowhere/database.db"}, "unable to open database file"),
        ({"target_dsn": "host=127.0.0.1 port=1"}, "refused"),
    ],
)
def test_says_what_cannot_be_read(
    changed: dict[str, str], found: str, small: Path, copied: str, server: Server
) -> None:
    failed = run_module({"source": str(small), "target_dsn": copied, "passfile": str(server.passfile), **changed})
    assert failed["failed"]
    assert found in failed["msg"].splitlines()[0]
    assert "Untouched: both databases" in failed["msg"]
