"""Nothing is installed but files whose hashes stand in this repository."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
INPUTS = sorted(
    path
    for path in map(Path, subprocess.check_output(["git", "-C", ROOT, "ls-files", "*.in"], text=True).split())
    if path.name != "pensieve-requirements.in"  # a part of two others
)


def names(text: str) -> set[str]:
    """Packages that a requirements file names, as the registry writes them."""
    found = re.findall(r"^([A-Za-z0-9][\w.-]*)(?===)", text, re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower() for name in found}


@pytest.mark.parametrize("file", INPUTS, ids=str)
def test_every_package_has_hashes(file: Path) -> None:
    locked = (ROOT / file).with_suffix(".txt").read_text()
    entries = [entry for entry in re.split(r"\n(?=[A-Za-z0-9])", locked) if not entry.startswith("#")]
    assert entries
    for entry in entries:
        assert re.match(r"[\w.-]+==\S+( ; .*)? \\\n", entry), entry[:80]
        assert "--hash=sha256:" in entry, entry[:80]
    assert names((ROOT / file).read_text()) <= names(locked)
    assert "://" not in locked


def test_pip_is_told_to_look_at_them() -> None:
    """Where this project installs; tests make an environment of a version of Pensieve, without what it needs."""
    files = [*(ROOT / "roles").rglob("tasks/*.yml"), *(ROOT / "scripts").glob("*")]
    installs = [
        file for file in files if file.is_file() and re.search(r"^ +- install$|-m pip install", file.read_text(), re.M)
    ]
    assert {file.name for file in installs} == {"runtime.yml", "packages.yml", "lib.sh"}
    assert all("--require-hashes" in file.read_text() for file in installs)
