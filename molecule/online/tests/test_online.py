"""What the writer was told is true on PostgreSQL, and Pensieve was away for seconds."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

testinfra_hosts = ["ansible://pensieve"]

MOST = 40.0  # seconds that nobody may answer, on a machine that is busy with other things too


@pytest.fixture(scope="module")
def writer() -> dict[str, Any]:
    """What the writer wrote down."""
    file = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "writer.json"
    told: dict[str, Any] = json.loads(file.read_text())
    return told


@pytest.fixture(scope="module")
def report(host: Host) -> dict[str, Any]:
    """The report of the migration."""
    folder = "/srv/pensieve/home/.local/state/pensieve-postgres/reports"
    newest = sorted(host.file(folder).listdir())[-1]
    found: dict[str, Any] = json.loads(host.file(f"{folder}/{newest}/report.json").content_string)
    return found


def test_nothing_that_was_written_is_lost_or_stale(writer: dict[str, Any]) -> None:
    assert writer["wrong"] == []
    assert writer["entities"] > 20
    assert {"add", "update", "patch", "delete"} <= set(writer["requests"])


def test_the_difference_was_copied_and_compared(report: dict[str, Any]) -> None:
    difference = report["difference"]
    assert (difference["way"], difference["reason"]) == ("difference", "pages found by the write-ahead log")
    assert difference["equal"]
    assert difference["rows"] > 0
    assert difference["compared_cells"] > 0


def test_pensieve_was_away_for_seconds(writer: dict[str, Any], report: dict[str, Any]) -> None:
    assert 0 < writer["back"] - writer["refused"] < MOST
    assert report["seconds"]["predicted"] > 0
    assert report["seconds"]["downtime"] < MOST


def test_the_snapshot_is_gone_and_the_backup_is_of_the_cutover(host: Host) -> None:
    state = "/srv/pensieve/home/.local/state/pensieve-postgres"
    assert not host.file(f"{state}/snapshot").exists
    manifest = json.loads(host.file(f"{state}/manifest.json").content_string)
    assert manifest["phase"] == "complete"
    assert manifest["backup"]["moment"] == "final"
    backup = host.file(manifest["backup"]["database"])
    assert backup.size == manifest["backup"]["bytes"]
    assert backup.sha256sum == manifest["backup"]["sha256"]


def test_its_unit_keeps_it_running(host: Host) -> None:
    shown = host.check_output("systemctl show pensieve.service --property=ActiveState,MainPID,NRestarts")
    server = host.check_output("pgrep -f '[m]emos.commands serve'")
    assert shown.splitlines() == [f"MainPID={server}", "NRestarts=0", "ActiveState=active"]
