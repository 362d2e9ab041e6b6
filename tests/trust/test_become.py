"""What runs as root by become has an interpreter of root's, not one in a home, which its owner may exchange."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]

BOOKS = sorted([*ROOT.glob("roles/*/tasks/*.yml"), *ROOT.glob("playbooks/**/*.yml")])

OF_ROOT = ("{{ postgres_root_python }}", "{{ __postgres_docker_python }}", "{{ pensieve_root_python }}")

GIVEN = {"docker_install.yml": "docker.yml", "image_base.yml": "image_debian.yml"}
"""Files whose interpreter is given where they are included."""


def tasks(found: list[dict[str, Any]], become: bool, python: str) -> Iterator[tuple[str, bool, str]]:
    """Name of each task, whether it may run as root, and its interpreter."""
    for task in found:
        root = become if "become" not in task else task["become"] is not False
        own = task.get("vars", {}).get("ansible_python_interpreter", python)
        blocks = [task[part] for part in ("tasks", "block", "rescue", "always") if part in task]
        for block in blocks:
            yield from tasks(block, root, own)
        if not blocks:
            yield task["name"], root, own


def given(book: Path) -> str:
    """The interpreter with which a file is included."""
    if book.name not in GIVEN:
        return ""
    text = yaml.safe_load((book.parent / GIVEN[book.name]).read_text())
    (python,) = (
        task["vars"]["ansible_python_interpreter"]
        for outer in text
        for task in outer.get("block", [outer])
        if task.get("ansible.builtin.include_tasks") == book.name
    )
    return str(python)


def test_there_are_tasks_that_run_as_root() -> None:
    assert sum(root for book in BOOKS for _name, root, _own in tasks(yaml.safe_load(book.read_text()), False, "")) > 20


@pytest.mark.parametrize("book", BOOKS, ids=lambda book: str(book.relative_to(ROOT)))
def test_what_may_run_as_root_has_an_interpreter_of_roots(book: Path) -> None:
    wrong = [
        name
        for name, root, own in tasks(yaml.safe_load(book.read_text()) or [], False, given(book))
        if root and not own.startswith(OF_ROOT[:2]) and not own.startswith("{{ pensieve_root_python")
    ]
    assert wrong == []
