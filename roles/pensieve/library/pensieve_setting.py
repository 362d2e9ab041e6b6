#!/usr/bin/python
"""Ansible module: change one top-level setting of Pensieve's config.yaml and not one other byte."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: pensieve_setting
short_description: Change one top-level setting of Pensieve's config.yaml and not one other byte
description:
  - Finds the value's place with a YAML parser, and replaces the bytes of that value only. Comments, order, line ends
    and all other keys stay as they are. The result is parsed again, and must differ in that key alone.
  - Runs with Pensieve's interpreter, which has PyYAML.
options:
  path:
    description: The config.yaml.
    type: path
    required: true
  key:
    description: Top-level key, like C(database_path).
    type: str
    required: true
  value:
    description: New value, a string.
    type: str
    required: true
  journal:
    description: Directory of the journal, which is told of the change before it.
    type: path
attributes:
  check_mode:
    support: full
    description: Says what it would change.
  diff_mode:
    support: full
    description: Shows the lines that change.
author:
  - Pensieve migration maintainers (@pensieve-migration)
"""

EXAMPLES = r"""
- name: Point Pensieve at PostgreSQL
  pensieve_setting:
    path: /home/ada/.memos/config.yaml
    key: database_path
    value: postgresql://autotasktracker@127.0.0.1:5433/autotasktracker
"""

RETURN = r"""
previous:
  description: The value before; null when the key was not there.
  returned: always
  type: str
"""

import json
from pathlib import Path
from typing import Any

import yaml
from ansible.module_utils import migration_journal
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.settings_error import masked, told
from ansible.module_utils.whole_file import write_like


def scalar(value: str) -> str:
    """`value` as a YAML scalar on one line that reads back as the same string."""
    if value and yaml.safe_load(f"key: {value}") == {"key": value}:
        return value
    return json.dumps(value, ensure_ascii=False)


def with_setting(text: str, key: str, value: str) -> tuple[str, str | None]:
    """Text of a YAML mapping with one top-level scalar replaced, or added at the end.

    Returns:
        The new text, and the value before (None: the key was not there).

    Raises:
        ValueError: the document is no block mapping, or the value is no plain scalar (an alias, a mapping, a list).
    """
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if root is not None and not isinstance(root, yaml.MappingNode):
        raise ValueError("the top level is not a mapping")
    for name, node in root.value if root is not None else ():
        if name.value != key:
            continue
        if not isinstance(node, yaml.ScalarNode) or node.start_mark.index < name.end_mark.index:
            raise ValueError(f"{key} is not a plain value")
        start, end = node.start_mark.index, node.end_mark.index
        if start == end:  # an empty value: `key:`
            return f"{text[:start]} {scalar(value)}{text[end:]}", ""
        if node.style in ("|", ">"):
            raise ValueError(f"{key} is a block of several lines")
        return f"{text[:start]}{scalar(value)}{text[end:]}", str(node.value)
    if root is not None and root.flow_style:
        raise ValueError(f"{key} is not there, and the file is written in braces")
    newline = "\r\n" if "\r\n" in text else "\n"
    separator = "" if not text or text.endswith("\n") else newline
    return f"{text}{separator}{key}: {scalar(value)}{newline}", None


def parsed(content: bytes) -> Any:
    """Content of a YAML file. Raises ValueError, which quotes nothing of it: the file may hold passwords."""
    try:
        return yaml.safe_load(content.decode("utf-8"))
    except Exception as error:  # PyYAML raises whatever a value's own conversion does
        raise ValueError(told(error)) from None


def write(path: Path, content: bytes) -> None:
    """Replace a file, or the one that a link points to, at once; its mode and owner are kept."""
    path = path.resolve()
    write_like(path, content, path)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "key": {"type": "str", "required": True, "no_log": False},
            "value": {"type": "str", "required": True},
            "journal": {"type": "path"},
        },
        supports_check_mode=True,
    )
    path, key, value = Path(module.params["path"]), module.params["key"], module.params["value"]
    try:
        content = path.read_bytes()
        settings, text = parsed(content), content.decode("utf-8")
        after, previous = with_setting(text, key, value)
        expected: dict[str, Any] = {**(settings or {}), key: value}
        if parsed(after.encode("utf-8")) != expected:
            raise ValueError(f"replacing {key} would change more than {key}")
    except (OSError, ValueError) as error:
        module.fail_json(
            msg=f"Found: {path}: {error}. Expected: a YAML mapping whose {key} can be replaced. "
            f"Untouched: {path}. Next: write {key} on a line of its own, then run the playbook again."
        )
    changed = after != text and previous != value
    if changed and not module.check_mode:
        try:
            if module.params["journal"]:
                record = {"step": "settings", "path": str(path), "key": key}
                migration_journal.append(Path(module.params["journal"]), record)
            write(path, after.encode("utf-8"))
        except OSError as error:
            module.fail_json(
                msg=f"Found: {path} cannot be changed: {error}. Expected: room and the right to write it, and the "
                f"journal before it. Untouched: {path}. Next: mend that, then run the playbook again."
            )
    shown = {"before": masked(text), "after": masked(after)}
    difference = {"before_header": str(path), "after_header": str(path), **shown}
    module.exit_json(changed=changed, previous=previous, diff=difference if changed else {})


if __name__ == "__main__":
    main()
