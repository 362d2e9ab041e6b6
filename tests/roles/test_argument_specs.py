"""Each role's argument_specs say what its defaults say: names, types and values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

ROLES = sorted((Path(__file__).parents[2] / "roles").iterdir())
TYPES: dict[str, type | tuple[type, ...]] = {
    "bool": bool,
    "dict": dict,
    "float": (int, float),
    "int": int,
    "list": list,
    "path": str,
    "raw": object,
    "str": str,
}


def load(path: Path) -> dict[str, Any]:
    """Content of a YAML file."""
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content


def is_template(value: object) -> bool:
    """True for a value that Ansible works out."""
    return isinstance(value, str) and "{{" in value


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_defaults_and_specs_are_equal(role: Path) -> None:
    defaults = load(role / "defaults" / "main.yml")
    entry_points = load(role / "meta" / "argument_specs.yml")["argument_specs"]
    assert "main" in entry_points
    stated: dict[str, Any] = {}
    for name, entry_point in entry_points.items():
        assert (role / "tasks" / f"{name}.yml").is_file(), f"no tasks/{name}.yml"
        for option, spec in entry_point["options"].items():
            assert option.startswith(f"{role.name}_"), option
            assert spec["description"], option
            if "default" in spec:
                assert stated.setdefault(option, spec["default"]) == spec["default"]
                if not is_template(spec["default"]):
                    assert isinstance(spec["default"], TYPES[spec["type"]]), option
            else:
                assert option not in defaults, f"{option} has a default that the specs do not state"
    assert stated == defaults
