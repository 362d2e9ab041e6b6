#!/usr/bin/python
"""Ansible module: say whether a SQLite database is there, intact and Pensieve's."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: preflight_sqlite
short_description: Say whether a SQLite database is there, intact and Pensieve's
description:
  - Opens the file read-only, runs C(PRAGMA integrity_check), and counts. Changes nothing.
  - From SQLite 3.44 on the check is made table by table, since Pensieve's tokenizer is not loaded.
  - Lines of the check that only say that an extension is not loaded (the tokenizer, sqlite-vec) are no damage.
options:
  path:
    description: The database.
    type: path
    required: true
attributes:
  check_mode:
    support: full
    description: It only reads.
  diff_mode:
    support: none
    description: It changes nothing.
author:
  - Pensieve migration maintainers (@pensieve-migration)
"""

EXAMPLES = r"""
- name: Check the database
  preflight_sqlite:
    path: /home/ada/.memos/database.db
"""

RETURN = r"""
problems:
  description: What is wrong with it, each with found, expected and next; empty when nothing is.
  returned: always
  type: list
  elements: dict
bytes:
  description: Size with what still stands in the C(-wal) file.
  returned: when it can be opened
  type: int
entities:
  description: Number of entities.
  returned: when it is Pensieve's
  type: int
revision:
  description: Alembic revision.
  returned: when it is Pensieve's
  type: str
seconds:
  description: How long the check took.
  returned: when it can be opened
  type: float
"""

import contextlib
import sqlite3
import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.sqlite_integrity import damage, held

LOCK_SECONDS = 30.0
"""How long to wait for a program that holds the database."""


def problem(found: str, expected: str, next_step: str) -> dict[str, str]:
    """One obstacle."""
    return {"found": found, "expected": expected, "next": next_step}


def look(path: Path) -> dict[str, Any]:
    """Facts and problems of a database file."""
    restore = f"restore {path} from a backup, or run `sqlite3 {path} .recover`, then run the playbook again"
    if not path.is_file():
        where = "say whose Pensieve it is: -e pensieve_user_home=/home/NAME; or start Pensieve, which makes one"
        return {"problems": [problem(f"no SQLite database at {path}", "the database of Pensieve", where)]}
    size = path.stat().st_size
    with contextlib.suppress(FileNotFoundError):  # the log goes with the last connection, at any moment
        size += Path(f"{path}-wal").stat().st_size
    begun = time.monotonic()
    try:
        with contextlib.closing(
            sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=LOCK_SECONDS)
        ) as connection:
            broken = damage(connection)
            if broken:
                return {
                    "problems": [problem(f"{path} is damaged: {'; '.join(broken)}", "integrity_check: ok", restore)]
                }
            tables = {str(row[0]) for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            missing = {"entities", "metadata_entries", "libraries", "alembic_version"} - tables
            if missing:
                found = f"{path} has no table {', '.join(sorted(missing))}"
                step = "start Pensieve once, which makes or upgrades its tables, then run the playbook again"
                return {"problems": [problem(found, "a database of Pensieve", step)]}
            entities = connection.execute("SELECT count(*) FROM entities").fetchone()[0]
            revision = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.Error as error:
        if held(error):
            found = f"{path} is held by another program: {error} (waited {LOCK_SECONDS:g} s)"
            step = f"end the program that does (fuser -v {path}), then run the playbook again"
            return {"problems": [problem(found, "a database that can be read", step)]}
        return {"problems": [problem(f"{path} cannot be read: {error}", "an intact SQLite database", restore)]}
    return {
        "problems": [],
        "bytes": size,
        "entities": int(entities),
        "revision": None if revision is None else str(revision[0]),
        "seconds": round(time.monotonic() - begun, 3),
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec={"path": {"type": "path", "required": True}}, supports_check_mode=True)
    module.exit_json(changed=False, **look(Path(module.params["path"])))


if __name__ == "__main__":
    main()
