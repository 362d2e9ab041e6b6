"""The report's templates hold values as JSON, and are read as YAML."""

from __future__ import annotations

import json

import pytest
from yaml_with_json import from_yaml_with_json

TEXTS = [
    "plain",
    "ä 中文 🖥 👩‍💻",
    "\\ud83d\\udda5 as text",
    "\\🖥",
    "\\\\🖥\\",
    "\x1b[1m \x7f \x85 \u2028 \ufeff",
    'a "b": {c}\n- d',
]


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_comes_back(text: str) -> None:
    value = {"evidence": text, "of": [text, 1, None, True]}
    assert from_yaml_with_json(f"checks:\n  - {json.dumps(value)}\nnext: []\n") == {"checks": [value], "next": []}


def test_half_a_character_is_replaced() -> None:
    assert from_yaml_with_json(json.dumps(["a\ud83d", "\udda5b", "\\\ud83d"])) == ["a\ufffd", "\ufffdb", "\\\ufffd"]
