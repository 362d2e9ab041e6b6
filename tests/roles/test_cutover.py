"""A failure between the stop and the healthy start brings Pensieve back on SQLite, with every setting as it was."""

from __future__ import annotations

import re
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from sample_installation.installation import Installation

from .conftest import Playbook, free_ports

pytestmark = [pytest.mark.pensieve, pytest.mark.docker]

NAME = "autotask-postgres-cutover-test"


@pytest.fixture
def target() -> Iterator[dict[str, str]]:
    """Names of a server that this test makes; removed afterwards with its data."""
    yield {
        "postgres_container_name": NAME,
        "postgres_volume_name": NAME,
        "postgres_port": str(free_ports(1)[0]),
    }
    subprocess.run(["docker", "rm", "--force", NAME], check=True, capture_output=True)
    subprocess.run(["docker", "volume", "rm", "--force", NAME], check=True, capture_output=True)


def test_a_failure_after_the_switch_goes_back(
    playbook: Playbook, sample: Installation, pensieve_venv: Path, target: dict[str, str], tmp_path: Path
) -> None:
    config = sample.base / "config.yaml"
    config.chmod(0o640)
    before, mode = config.read_bytes(), config.stat().st_mode
    done = playbook(
        "migrate.yml",
        pensieve_user_home=str(sample.settings.home),
        pensieve_venv=str(pensieve_venv),
        autotasktracker_dir=str(tmp_path),
        # Asked for after Pensieve's own settings have been switched.
        autotasktracker_database_uri="{{ a_name_that_nobody_defines }}",
        report_directory="",
        **target,
    )
    said = re.sub(r"\s+", " ", done.stdout + done.stderr)
    assert done.returncode == 2, said
    assert re.search('Found: the step ".*?" failed: .*?a_name_that_nobody_defines', said), said
    assert "Pensieve is back on it, started and healthy, with its settings as before" in said, said
    assert "switch | Point database_path in Pensieve's config.yaml at PostgreSQL] *** changed" in re.sub(
        r"\*+", "***", said
    )
    assert config.read_bytes() == before
    assert config.stat().st_mode == mode
    with urllib.request.urlopen(f"{sample.endpoint}/api/libraries", timeout=30) as answer:
        assert answer.status == 200
