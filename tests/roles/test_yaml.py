"""Ansible reads each YAML file without a warning, which a person would see at every run."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible.parsing.dataloader import DataLoader

ROOT = Path(__file__).parents[2]
FOLDERS = ("inventories", "molecule", "playbooks", "roles", "support")
FILES = sorted([*ROOT.glob("*.yml"), *(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.yml"))])


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_key_stands_twice_in_a_mapping(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A key that comes with a YAML merge (<<) and is written again counts, too.
    monkeypatch.setenv("ANSIBLE_DUPLICATE_YAML_DICT_KEY", "error")
    DataLoader().load_from_file(str(file), cache="none")
