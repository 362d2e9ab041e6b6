#!/usr/bin/python
"""Ansible module: remove the copies of the database that migrations which came to nothing have left."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: backup_superseded
short_description: Remove the copies of the database that migrations which came to nothing have left
description:
  - The manifest names the one backup that a rollback, or a migration that goes on, can need. It stays, and so does what
    stands in its folder.
  - Of the other backups those stay that belong to a migration which has switched, whatever became of it, those of
    which nothing is known, and folders that a person has made.
  - What is removed are copies of the database of a migration that has failed or was stopped before it switched, also of
    one that came to no manifest. Its settings and its manifest stay.
  - Where the manifest is missing or damaged, only copies go whose migration came to no manifest.
options:
  state_dir:
    description: Directory of C(manifest.json), and of the C(backups).
    type: path
    required: true
attributes:
  check_mode:
    support: full
    description: Says what it would remove.
  diff_mode:
    support: none
    description: There is no text to compare.
author:
  - Pensieve migration maintainers (@pensieve-migration)
"""

EXAMPLES = r"""
- name: Remove what failed runs have left
  backup_superseded:
    state_dir: /home/ada/.local/state/pensieve-postgres
"""

RETURN = r"""
removed:
  description: Files that were removed.
  returned: always
  type: list
  elements: str
  sample: ["/home/ada/.local/state/pensieve-postgres/backups/20250701T120000Z/database.db"]
"""

import re
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.migration_manifest import NAME, read

UNSWITCHED = ("prepared", "failed")
"""Phases of a migration that has not switched. Asked while Pensieve is on SQLite, so none is about to go on."""

COPIES = "database.db*"
"""What the copy of the database is called, also while it is being made. That of a cutover has another name."""

STAMP = re.compile(r"\d{8}T\d{6}Z")
"""What a run calls the folder of its backup. One of another name is a person's."""


def usable(manifest: Path) -> dict[str, Any]:
    """A manifest; empty when there is none, or when it cannot be used."""
    try:
        content: dict[str, Any] = read(manifest)
    except (OSError, ValueError):
        return {}
    return content


def superseded(state_dir: Path) -> list[Path]:
    """Copies of the database that no rollback and no later migration can need."""
    backups, current = state_dir / "backups", usable(state_dir / NAME)
    needed = {(backups / current["stamp"]).resolve()} if current else set()
    if current and (named := current["backup"].get("database")):
        needed.add(Path(named).parent.resolve())
    found: list[Path] = []
    for folder in sorted(backups.iterdir()) if backups.is_dir() else ():
        ours = STAMP.fullmatch(folder.name) and folder.is_dir() and not folder.is_symlink()
        if not ours or folder.resolve() in needed:
            continue
        copies = sorted(folder.glob(COPIES))
        # A run that ended before it saved the settings has left nothing else there: no manifest has ever named it.
        unnamed = sorted(folder.iterdir()) == copies
        if unnamed or current and usable(folder / NAME).get("phase") in UNSWITCHED:
            found += copies
    return found


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec={"state_dir": {"type": "path", "required": True}}, supports_check_mode=True)
    try:
        found = superseded(Path(module.params["state_dir"]))
        if not module.check_mode:
            for copy in found:
                copy.unlink()
    except OSError as error:
        module.fail_json(
            msg=f"Found: {error}. Expected: the right to remove copies of the database that failed runs have left. "
            "Untouched: the present backup, the SQLite database and every setting. Next: mend that, then run again."
        )
    module.exit_json(changed=bool(found), removed=[str(copy) for copy in found])


if __name__ == "__main__":
    main()
