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
  entries:
    description: Entries of the manifest, as M(backup_files) returned them; one names this file's record.
    type: list
    elements: dict
    default: []
attributes:
  check_mode:
    support: full
    description: Says what it would change.
  diff_mode:
    support: full
    description: Shows the old value and the new one, and nothing else of the file, which may hold passwords.
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
  description: The value before, of a URI with a password its scheme alone; null when the key was not there.
  returned: always
  type: str
"""

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.file_record import keep, place_of
from ansible.module_utils.settings_error import shown, told
from ansible.module_utils.whole_file import read, write_like
from ansible.module_utils.yaml_setting import line, with_setting


def content_of(path: Path) -> bytes | None:
    """Bytes of a file, None when it cannot be read."""
    try:
        return bytes(read(path))
    except OSError:
        return None


def replace(
    path: Path, key: str, value: str, entries: list[dict[str, Any]], check_mode: bool
) -> tuple[str, str, str | None]:
    """Set the value, unless it is there already; what the file was is recorded before, if there are entries.

    Returns:
        The text before and after, and the value before (None: the key was not there).

    Raises:
        OSError, ValueError: it cannot be done; nothing was changed.
    """
    content = read(path)
    before = content.decode("utf-8")
    after, previous = with_setting(before, key, value)
    if previous == value:
        return before, before, previous
    if not check_mode:
        if entries:
            keep(place_of(path, entries), path, content, after.encode("utf-8"))
        write_like(path, after.encode("utf-8"), path)
    return before, after, previous


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "key": {"type": "str", "required": True, "no_log": False},
            "value": {"type": "str", "required": True},
            "entries": {"type": "list", "elements": "dict", "default": []},
        },
        supports_check_mode=True,
    )
    path, key, value = Path(module.params["path"]), module.params["key"], module.params["value"]
    found = content_of(path)
    try:
        before, after, previous = replace(path, key, value, module.params["entries"], module.check_mode)
    except (OSError, ValueError) as error:
        untouched = path if content_of(path) == found else f"all but {path.name}, which has the new value already"
        module.fail_json(
            msg=f"Found: {path}: {told(error) if isinstance(error, UnicodeDecodeError) else error}. "
            f"Expected: a YAML mapping whose {key} can be replaced. Untouched: {untouched}. "
            f"Next: write {key} on a line of its own (or mend what stands above), then run the playbook again."
        )
    headers = {"before_header": str(path), "after_header": str(path)}
    difference = {**headers, "before": line(key, previous), "after": line(key, value)}
    previous = None if previous is None else shown(previous)
    module.exit_json(changed=after != before, previous=previous, diff=difference if after != before else {})


if __name__ == "__main__":
    main()
