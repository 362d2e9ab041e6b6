"""Pensieve starts again as it was started; and what something else has started meanwhile is seen."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pensieve_service
import pytest
from ansible.module_utils.pensieve_process import Process, find, holders
from sample_installation.installation import Installation

from .conftest import Module, Playbook, Refused

pytestmark = pytest.mark.pensieve


def server(sample: Installation) -> Process:
    """The one server of the sample that runs."""
    (found,) = (process for process in find(sample.settings.home) if process.service == "serve")
    return found


def service(sample: Installation, environment: Path, alone: bool = False) -> pensieve_service.Installation:
    """What the module works with."""
    return pensieve_service.Installation(
        Module(
            user_home=str(sample.settings.home),
            venv=str(sample.settings.venv),
            endpoint=sample.endpoint,
            base_dir=str(sample.base),
            database=str(sample.base / "database.db"),
            reader=None,
            units=[],
            environment=str(environment),
            alone=alone,
            journal=str(environment.parent),
            record={},
            record_required=True,
            timeout=60,
        )
    )


@pytest.fixture
def started(sample: Installation, monkeypatch: pytest.MonkeyPatch) -> Iterator[Installation]:
    """The sample, started in a shell that exports variables of its own; as it was afterwards."""
    sample.stop()
    monkeypatch.setenv("HF_ENDPOINT", "https://models.example.org")
    monkeypatch.setattr(
        sample, "_environment", lambda: {**Installation._environment(sample), "MEMOS_RECORD_INTERVAL": "9"}
    )
    sample.start()
    monkeypatch.undo()
    yield sample
    sample.stop()
    sample.start()


def test_a_service_starts_with_the_variables_that_it_had(started: Installation, tmp_path: Path) -> None:
    kept = tmp_path / "state" / "environment.json"
    before = server(started)
    assert before.environment["HF_ENDPOINT"] == "https://models.example.org"

    service(started, kept).stop()
    assert find(started.settings.home) == []
    assert kept.stat().st_mode & 0o777 == 0o600
    assert "HF_ENDPOINT" not in os.environ
    # What config.yaml has to say is left to it.
    content = json.loads(kept.read_text())
    content["serve"]["MEMOS_DATABASE_PATH"] = "elsewhere.db"
    kept.write_text(json.dumps(content))

    service(started, kept).start(["serve"])
    after = server(started)
    assert after.pid != before.pid
    # `memos start` may add what its own start-up sets.
    assert {**after.environment, **before.environment} == after.environment
    assert "MEMOS_DATABASE_PATH" not in after.environment
    assert after.environment["MEMOS_RECORD_INTERVAL"] == "9"


KEPT = b'{"serve": {"HF_ENDPOINT": "https://models.example.org"}, "watch": {"LANG": "C.UTF-8"}}'


@pytest.mark.parametrize(
    "content",
    [
        b"",
        KEPT[:50],
        KEPT + b"}",
        KEPT.replace(b"models", b"\xff"),
        b"[]",
        b"null",
        b'{"serve": ["HF_ENDPOINT"]}',
        b'{"serve": {"HF_ENDPOINT": 1}}',
    ],
)
def test_damaged_variables_are_put_aside(sample: Installation, tmp_path: Path, content: bytes) -> None:
    kept = tmp_path / "environment.json"
    kept.write_bytes(KEPT)
    here = service(sample, kept)
    assert here.environment("serve")["HF_ENDPOINT"] == "https://models.example.org"
    kept.write_bytes(content)
    assert here.environment("serve") == {
        **{name: value for name, value in os.environ.items() if not name.startswith("MEMOS_")},
        "HOME": str(sample.settings.home),
    }
    (aside,) = tmp_path.iterdir()
    assert aside.name.startswith("environment.json.damaged-")
    assert aside.read_bytes() == content
    here.environment("watch")
    (told,) = here.module.warnings
    assert str(kept) in told
    assert str(aside) in told
    assert "models" not in told, "it may hold secrets"


def test_pensieve_stops_and_starts_beside_damaged_files(started: Installation, tmp_path: Path) -> None:
    kept = tmp_path / "environment.json"
    kept.write_bytes(KEPT[:50])
    here = service(started, kept)
    here.reader = tmp_path / "snapshot.json"
    here.reader.touch()
    here.stop()
    assert find(started.settings.home) == []
    assert json.loads(kept.read_text())["serve"]["HF_ENDPOINT"] == "https://models.example.org"
    kept.write_bytes(b"")
    here.start(["serve"])
    assert "HF_ENDPOINT" not in server(started).environment
    assert len(here.module.warnings) == 2


def test_who_started_it_meanwhile_is_named(started: Installation, tmp_path: Path) -> None:
    service(started, tmp_path / "environment.json").stop()
    started.start()
    with pytest.raises(
        Refused, match=rf"has started Pensieve.*serve as process {server(started).pid}\..*Next: end what"
    ):
        service(started, tmp_path / "environment.json", alone=True).start([])
    service(started, tmp_path / "environment.json").start([])


def test_whoever_has_a_file_open_is_found_by_whatever_path(tmp_path: Path) -> None:
    """A container may have it under another path, and another file under this one."""
    database = tmp_path / "database.db"
    database.touch()
    assert holders(database) == []
    (tmp_path / "mounted.db").hardlink_to(database)
    with (tmp_path / "mounted.db").open() as mounted, subprocess.Popen(["sleep", "60"], stdin=mounted) as other:
        assert holders(database) == [other.pid]
        database.unlink()
        database.touch()
        assert holders(database) == []
        other.kill()


@pytest.mark.docker
def test_a_server_with_settings_of_its_own(
    sample: Installation, playbook: Playbook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With another base directory it records elsewhere, beside a database that is there but old."""
    (tmp_path / "elsewhere").mkdir()
    subprocess.run(["cp", "-r", f"{sample.base}/.", str(tmp_path / "elsewhere")], check=True)
    variables = {"pensieve_user_home": str(sample.settings.home), "pensieve_venv": str(sample.settings.venv)}
    sample.stop()
    with monkeypatch.context() as patch:
        patch.setattr(
            sample,
            "_environment",
            lambda: {**Installation._environment(sample), "memos_base_dir": str(tmp_path / "elsewhere")},
        )
        sample.start()
    try:
        done = playbook("migrate.yml", "--tags", "preflight", **variables)
    finally:
        sample.stop()
        sample.start()
    assert done.returncode == 2
    assert "memos_base_dir in its environment, which beats config.yaml" in done.stdout
    assert f"does not have {sample.base}/database.db open" in done.stdout
    assert "write base_dir there" in done.stdout
    done = playbook("migrate.yml", "--tags", "preflight", **variables)
    assert done.returncode == 0, done.stdout
