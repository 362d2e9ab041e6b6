"""A filter that reads YAML in which values stand as JSON."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import yaml

_PAIR = re.compile(r"(?<!\\)((?:\\\\)*)\\u(d[89ab][0-9a-f]{2})\\u(d[c-f][0-9a-f]{2})")
_HALF = re.compile(r"(?<!\\)((?:\\\\)*)\\ud[89a-f][0-9a-f]{2}")


def _joined(pair: re.Match[str]) -> str:
    high, low = int(pair.group(2), 16) - 0xD800, int(pair.group(3), 16) - 0xDC00
    return f"{pair.group(1)}\\U{0x10000 + (high << 10) + low:08x}"


def from_yaml_with_json(text: str) -> Any:
    """What the text says. JSON, which is YAML but for this, writes a character beyond U+FFFF (an emoji) as two escapes
    that YAML refuses, and DEL as it is; a half without the other becomes U+FFFD.
    """
    whole = _HALF.sub(r"\1\\ufffd", _PAIR.sub(_joined, text))
    return yaml.safe_load(whole.replace("\x7f", "\\x7f"))


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """The filter by its name."""
        return {"from_yaml_with_json": from_yaml_with_json}
