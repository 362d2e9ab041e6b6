"""Of a snapshot, a process is ended only where it is this user's, and a folder removed only where it is ours."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
from ansible.module_utils import processes
from sqlite_to_postgresql.snapshot import Snapshot, end, read

NOBODY = 65534


@pytest.fixture
def theirs() -> Iterator[int]:
    """A process of another user: of nobody where this is root, else the machine's first one."""
    if os.geteuid() != 0:
        yield 1
        return
    process = subprocess.Popen(["sleep", "600"], user=NOBODY, group=NOBODY, extra_groups=[])
    yield process.pid
    process.kill()
    process.wait()


def test_another_users_process_is_not_ended(theirs: int, tmp_path: Path) -> None:
    folder = tmp_path / "snapshot"
    folder.mkdir()
    began = processes.started(theirs)
    assert began
    named = Snapshot("", "", state="held", pid=theirs, started=began)
    (folder / "snapshot.json").write_text(json.dumps(asdict(named)))
    found = read(folder)
    assert found is not None
    assert not found.held
    assert end(folder)
    assert not folder.exists()
    assert processes.started(theirs) == began


@pytest.mark.parametrize("name", ["snapshot", "snapshot.next"])
@pytest.mark.parametrize("left", [[], ["snapshot.json.part"], ["mine"]])
def test_what_a_killed_process_has_left_is_removed_and_nothing_else(tmp_path: Path, name: str, left: list[str]) -> None:
    (tmp_path / name).mkdir()
    for file in left:
        (tmp_path / name / file).touch()
    ours = left != ["mine"]
    assert end(tmp_path / "snapshot") is ours
    assert (tmp_path / name).exists() is not ours
