"""The manifest is written twice, as a whole; a damaged one is told, with the command that brings its copy back."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .conftest import ROOT, person

MANIFEST: dict[str, Any] = {
    "phase": "complete",
    "stamp": "20251125T110555Z",
    "uri": "postgresql://autotasktracker@127.0.0.1:5433/autotasktracker",
    "setting": "база.db",
    "source": {"database": "/home/ada/.memos/database.db"},
    "backup": {"database": ""},
    "files": [],
    "services": ["serve"],
}


def run(state: Path, content: dict[str, Any] | None = None, *options: str) -> dict[str, Any]:
    """The module by itself, as Ansible runs it."""
    arguments = json.dumps({"state_dir": str(state), **({"content": content} if content else {})})
    done = subprocess.run(
        [
            str(Path(sys.executable).parent / "ansible"),
            "localhost",
            "--connection=local",
            "--module-name=pensieve_manifest",
            f"--args={arguments}",
            *options,
        ],
        cwd=ROOT,
        env={
            **person(),
            "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.minimal",
            "ANSIBLE_CALLBACK_RESULT_FORMAT": "json",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told: dict[str, Any] = json.loads(done.stdout.partition("=>")[2])
    return told


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A state directory with a manifest."""
    assert run(tmp_path / "state", MANIFEST)["changed"]
    return tmp_path / "state"


def test_it_is_written_twice_and_read_again(tmp_path: Path) -> None:
    state = tmp_path / "state"
    assert run(state)["manifest"] == {"phase": "none"}
    assert run(state, MANIFEST, "--check")["changed"]
    assert not state.exists()
    assert run(state, MANIFEST)["changed"]
    assert not run(state, MANIFEST)["changed"]
    told = run(state)
    assert (told["changed"], told["manifest"], told["problems"]) == (False, MANIFEST, [])
    file, copy = state / "manifest.json", state / "backups" / MANIFEST["stamp"] / "manifest.json"
    assert file.read_bytes() == copy.read_bytes()
    for path, mode in ((file, 0o600), (copy, 0o600), (copy.parent, 0o700), (copy.parent.parent, 0o700)):
        assert path.stat().st_mode & 0o777 == mode, path
    assert run(state, {**MANIFEST, "phase": "rolled_back"})["changed"]
    assert json.loads(copy.read_text())["phase"] == json.loads(file.read_text())["phase"] == "rolled_back"


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "Expecting value"),
        (json.dumps(MANIFEST).encode()[:100], "is damaged: "),
        (b"\xff\xfe", "is damaged: "),
        (b"[]", "not a mapping"),
        (b'{"phase": "complete"}', "without stamp, uri, setting, source, backup, files, services"),
        (json.dumps({**MANIFEST, "files": "none"}).encode(), "without files"),
    ],
)
def test_a_damaged_one_is_told_and_its_copy_named(written: Path, content: bytes, found: str) -> None:
    file = written / "manifest.json"
    file.write_bytes(content)
    told = run(written)
    assert told["manifest"] == {"phase": "damaged"}
    (problem,) = told["problems"]
    assert str(file) in problem["found"]
    assert found in problem["found"]
    command = problem["next"].partition(" (its copy)")[0]
    subprocess.run(command.split(), check=True)
    assert run(written)["manifest"] == MANIFEST


@pytest.mark.parametrize("copy", [None, b""])
def test_where_there_is_no_copy_nothing_older_is_offered(written: Path, copy: bytes | None) -> None:
    latest = written / "backups" / "20251125T120000Z"
    latest.mkdir()
    if copy is None:
        (written / "backups" / MANIFEST["stamp"] / "manifest.json").unlink()
    else:
        (latest / "manifest.json").write_bytes(copy)
    (written / "manifest.json").write_bytes(b"")
    (problem,) = run(written)["problems"]
    assert problem["next"].startswith(f"mv {written}/manifest.json {written}/manifest.json.damaged (it has no copy")
