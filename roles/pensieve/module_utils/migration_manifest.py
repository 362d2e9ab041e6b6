"""The manifest of a migration: what its file is called, and whether it can be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

NAME = "manifest.json"

TYPES = {
    **dict.fromkeys(("phase", "stamp", "uri", "setting"), str),
    **dict.fromkeys(("source", "backup"), dict),
    **dict.fromkeys(("files", "services"), list),
}
"""What every manifest has."""


def read(file: Path) -> dict[str, Any]:
    """A manifest. Raises OSError or ValueError when it cannot be used."""
    content = json.loads(file.read_bytes())
    if not isinstance(content, dict):
        raise ValueError("not a mapping")
    if missing := [name for name, kind in TYPES.items() if not isinstance(content.get(name), kind)]:
        raise ValueError(f"without {', '.join(missing)}")
    return content
