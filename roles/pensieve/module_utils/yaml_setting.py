"""One top-level setting of a YAML mapping, replaced or put back in place: not one other byte changes."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import yaml
from ansible.module_utils.settings_error import LIMIT, shown, told

ALIASES = 15
"""Aliases of a settings file; with each the time may double that it takes to read it."""


class Place(NamedTuple):
    """Where a setting stands in a text: its key's beginning, its value's beginning and end, and the value."""

    key: int
    start: int
    end: int
    value: str


def parsed(content: bytes) -> Any:
    """Content of a YAML file. Raises ValueError, which quotes nothing of it: the file may hold passwords."""
    if len(content) > LIMIT:
        raise ValueError(f"{len(content)} bytes, where settings have {LIMIT} at most")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(told(error)) from None
    require_few_aliases(text)
    try:
        return yaml.safe_load(text)
    except Exception as error:  # PyYAML raises whatever a value's own conversion does
        raise ValueError(told(error)) from None


def require_few_aliases(text: str) -> None:
    """Raise ValueError for so many aliases that what they stand for, each of them in others, may have no end."""
    if text.count("*") <= ALIASES:
        return
    try:
        found = sum(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader))
    except yaml.YAMLError:  # whoever reads it tells where
        return
    if found > ALIASES:
        raise ValueError(f"{found} aliases, where settings have {ALIASES} at most")


def scalar(value: str) -> str:
    """`value` as a YAML scalar on one line that reads back as the same string."""
    if value and yaml.safe_load(f"key: {value}") == {"key": value}:
        return value
    return json.dumps(value, ensure_ascii=False)


def mapping(text: str) -> yaml.MappingNode | None:
    """The nodes of a YAML mapping; None when there is no content. Raises ValueError for everything else."""
    require_few_aliases(text)
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(told(error)) from None
    if root is not None and not isinstance(root, yaml.MappingNode):
        raise ValueError("the top level is not a mapping")
    return root


def place(text: str, key: str) -> Place | None:
    """Where a top-level scalar stands; None when the key is not there.

    Raises:
        ValueError: the document is no mapping, has the key twice, or the value is none that can be replaced in place
            (an alias, a mapping, a list, a block of several lines).
    """
    root = mapping(text)
    found = [(name, node) for name, node in (root.value if root is not None else ()) if name.value == key]
    if not found:
        return None
    if len(found) > 1:
        raise ValueError(f"{key} stands there {len(found)} times")
    name, node = found[0]
    if not isinstance(node, yaml.ScalarNode) or node.start_mark.index < name.end_mark.index:
        raise ValueError(f"{key} is not a plain value")
    if node.style in ("|", ">"):
        raise ValueError(f"{key} is a block of several lines")
    return Place(name.start_mark.index, node.start_mark.index, node.end_mark.index, str(node.value))


def line(key: str, value: str | None) -> str:
    """A setting, and nothing else of its file, as a person may be shown it; empty when it is not there."""
    return "" if value is None else f"{key}: {scalar(shown(value))}\n"


def with_setting(text: str, key: str, value: str) -> tuple[str, str | None]:
    """Text of a YAML mapping with one top-level scalar replaced, or added at the end.

    Returns:
        The new text, and the value before (None: the key was not there).

    Raises:
        ValueError: it cannot be done in place, or would change more than this.
    """
    settings, here, root = parsed(text.encode("utf-8")), place(text, key), mapping(text)
    if here is not None:
        space = " " if here.start == here.end else ""  # an empty value: `key:`
        after = f"{text[: here.start]}{space}{scalar(value)}{text[here.end :]}"
    elif root is not None and root.flow_style:
        raise ValueError(f"{key} is not there, and the file is written in braces")
    else:
        newline = "\r\n" if "\r\n" in text else "\n"
        separator = "" if not text or text.endswith("\n") else newline
        after = f"{text}{separator}{key}: {scalar(value)}{newline}"
    if parsed(after.encode("utf-8")) != {**(settings or {}), key: value}:
        raise ValueError(f"replacing {key} would change more than {key}")
    return after, None if here is None else here.value


def without(text: str, here: Place, before: str) -> str:
    """The text without a setting that was added at the end of `before`; what else stands on its line stays."""
    end = text.find("\n", here.end) + 1 or len(text)
    above, behind = text[: here.key], text[here.end : end]
    if behind.strip() or not ("\n" + above).endswith("\n"):
        return above + text[here.end :]
    if end == len(text) and before and not before.endswith("\n"):
        above = above[: -2 if above.endswith("\r\n") else -1]  # what separated it from the last line
    return above + text[end:]


def put_back(now: str, before: str, after: str, key: str) -> str:
    """The text of now with one setting as it was before, to the letter; all else stays.

    Args:
        now: what stands there.
        before: what stood there before the setting was written.
        after: what stood there right afterwards.
        key: the setting.

    Raises:
        ValueError: the setting has been changed since, or cannot be put back in place.
    """
    old, ours, here = place(before, key), place(after, key), place(now, key)
    if ours is None:
        raise ValueError(f"the record of what was written lacks {key}")
    if (here and here.value) == (old and old.value):
        return now
    if here is None or here.value != ours.value:
        found = f"{key} is not there any more" if here is None else f"{key}: {shown(here.value)}"
        raise ValueError(f"{found}, where the migration wrote {shown(ours.value)}")
    if old is None:
        back = without(now, here, before)
    else:
        raw = before[old.start : old.end]
        start = here.start - (not raw and now[here.start - 1] == " ")
        back = now[:start] + raw + now[here.end :]
    # A mapping that is merged into this one may have the key, too.
    was, others = parsed(before.encode("utf-8")) or {}, parsed(now.encode("utf-8"))
    wanted = {name: value for name, value in {**others, key: was.get(key)}.items() if name != key or key in was}
    try:
        same = (parsed(back.encode("utf-8")) or {}) == wanted
    except ValueError:
        same = False
    if not same:
        raise ValueError(f"putting {key} back would change more than {key}")
    return back
