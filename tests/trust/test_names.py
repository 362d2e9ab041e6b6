"""Names and links that are made to be taken for something else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from ansible.module_utils.migration_manifest import UNIT
from ansible.module_utils.ownership import ForeignError, require_own_environment


@pytest.mark.parametrize("name", ["-Hmallory@example.org.service", "--host.service", "a b.service", "pensieve"])
def test_what_is_no_name_of_a_unit(name: str) -> None:
    assert UNIT.fullmatch(name) is None


def test_a_link_in_a_circle_hides_no_file_that_others_may_write(tmp_path: Path) -> None:
    packages = tmp_path / "venv" / "lib" / "python3.11" / "site-packages"
    packages.mkdir(parents=True)
    (tmp_path / "venv" / "bin").mkdir()
    for file in ("bin/python", "pyvenv.cfg"):
        (tmp_path / "venv" / file).touch()
    for folder in (tmp_path, *tmp_path.rglob("*")):
        folder.chmod(0o755)
    (packages / "loop").symlink_to("loop")
    with pytest.raises(ForeignError, match="cannot be followed"):
        require_own_environment(tmp_path / "venv", os.geteuid())
