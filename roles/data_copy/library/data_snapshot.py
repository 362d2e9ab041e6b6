#!/usr/bin/python
"""Ansible module: hold one moment of a live SQLite database, and keep a copy of it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: data_snapshot
short_description: Hold one moment of a live SQLite database, and keep a copy of it
description:
  - Copies a SQLite database that is in use, at one moment, and leaves a process behind that holds this moment in a read
    transaction. All that is written later then stays in the write-ahead log, where M(data_difference) finds it.
  - The source is opened read-only. What the process knows stands in O(folder).
  - A database without a write-ahead log is copied and not held, since a reader would keep everybody from writing there.
  - The process lets go when the log has grown by O(wal_limit) or by a quarter of the free disk space, whichever is
    less, and after O(seconds). M(data_difference) then compares whole files instead.
options:
  state:
    description: V(held) begins a snapshot, or keeps the one of this source that is held already. V(told) only tells
      what is known. V(absent) ends the process and forgets; the copy stays.
    type: str
    choices: [held, told, absent]
    default: held
  source:
    description: The SQLite database. Required for V(held).
    type: path
  database:
    description: File for the copy. Required for V(held).
    type: path
  folder:
    description: Folder for what the process knows; it is made, and removed by V(absent).
    type: path
    required: true
  wal_limit:
    description: Bytes by which the write-ahead log may grow.
    type: int
    default: 2147483648
  seconds:
    description: How long the moment is held at most.
    type: int
    default: 86400
attributes:
  check_mode:
    support: full
    description: Says whether it would begin or end anything.
  diff_mode:
    support: none
    description: There is no text to compare.
  idempotent:
    support: full
    description: A snapshot that is held is kept.
requirements: [numpy]
author: [Pensieve migration maintainers (@pensieve-migration)]
"""

EXAMPLES = r"""
- name: Hold this moment
  data_snapshot:
    source: /home/ada/.memos/database.db
    database: /home/ada/backup/database.db
    folder: /home/ada/snapshot

- name: Let go
  data_snapshot:
    state: absent
    folder: /home/ada/snapshot
"""

RETURN = r"""
snapshot:
  description: What is known of it. C(held) is whether the moment is held now, C(reason) why not.
  returned: when there is one
  type: dict
  sample: {database: /home/ada/backup/database.db, state: held, held: true, reason: '', mapped: true, bytes: 1030549504,
    wal_bytes: 4124152, wal_limit: 2147483648, seconds: {copy: 1.9, map: 2.2}}
"""

import sqlite3
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule, missing_required_lib

try:
    from ansible.module_utils.sqlite_to_postgresql.model import EngineError
    from ansible.module_utils.sqlite_to_postgresql.snapshot import Snapshot, end, hold, read

    IMPORT_ERROR = None
except ImportError:
    IMPORT_ERROR = traceback.format_exc()


def told(snapshot: Snapshot | None) -> dict[str, Any]:
    """A snapshot as plain data."""
    return {"snapshot": {**asdict(snapshot), "held": snapshot.held}} if snapshot else {}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["held", "told", "absent"], "default": "held"},
            "source": {"type": "path"},
            "database": {"type": "path"},
            "folder": {"type": "path", "required": True},
            "wal_limit": {"type": "int", "default": 2147483648},
            "seconds": {"type": "int", "default": 86400},
        },
        required_if=[("state", "held", ("source", "database"))],
        supports_check_mode=True,
    )
    if IMPORT_ERROR is not None:
        module.fail_json(msg=missing_required_lib("numpy"), exception=IMPORT_ERROR)
    options = module.params
    folder = Path(options["folder"])
    try:
        found = read(folder)
        if options["state"] == "absent":
            module.exit_json(changed=found is not None if module.check_mode else end(folder))
        if options["state"] == "told" or module.check_mode:
            module.exit_json(changed=options["state"] == "held" and not (found and found.held), **told(found))
        changed, made = hold(
            Path(options["source"]), Path(options["database"]), folder, options["wal_limit"], options["seconds"]
        )
    except EngineError as error:
        module.fail_json(msg=str(error))
    except (OSError, ValueError, sqlite3.Error) as error:
        module.fail_json(
            msg=f"Found: {error}\nExpected: room and the right to write in {folder}\n"
            "Untouched: the SQLite database, which was only read\nNext: mend that, then run the playbook again"
        )
    module.exit_json(changed=changed, **told(made))


if __name__ == "__main__":
    main()
