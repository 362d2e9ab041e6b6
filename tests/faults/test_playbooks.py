"""Twenty cells of the campaign, and five times there and back; `scripts/test faults` runs as many as one likes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PATHS = ("tests", "support", "roles/data_copy/module_utils", "roles/pensieve/module_utils")

pytestmark = [pytest.mark.pensieve, pytest.mark.docker, pytest.mark.incident]


def campaign(folder: Path, *options: str) -> None:
    """Run it; all that it says is the test's output, with the command that repeats each cell that failed."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(str(ROOT / path) for path in PATHS)}
    command = [sys.executable, "-m", "faults.playbooks", f"--folder={folder}", *options]
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False)
    assert done.returncode == 0


def seed() -> int:
    """Each commit has cells of its own, which are the same wherever it is tested; FAULTS_SEED chooses others."""
    if chosen := os.environ.get("FAULTS_SEED"):
        return int(chosen)
    command = ["git", "-C", str(ROOT), "rev-parse", "--short=6", "HEAD"]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout, 16)


def test_twenty_cells(tmp_path: Path) -> None:
    campaign(tmp_path, f"--seed={seed()}", "--cells=20")


def test_five_cycles(tmp_path: Path) -> None:
    campaign(tmp_path, f"--seed={seed()}", "--cycles=5")
