#!/usr/bin/python
"""Ansible module: copy a SQLite database that may be in use, completely."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: sqlite_backup
short_description: Copy a SQLite database that may be in use, completely
description:
  - Uses SQLite's online backup API, so that what still stands in the C(-wal) file is in the copy. A plain file copy
    loses it, since Pensieve's server exits without closing its database.
  - The source is opened read-only. The copy is checked with C(PRAGMA integrity_check) and gets mode 0600.
    From SQLite 3.44 on the check is made table by table, since Pensieve's tokenizer is not loaded.
options:
  src:
    description: Database to copy.
    type: path
    required: true
  dest:
    description: File to write. It appears whole or not at all. It must not exist.
    type: path
    required: true
attributes:
  check_mode:
    support: full
    description: Says that it would copy.
  diff_mode:
    support: none
    description: There is no text to compare.
author:
  - Pensieve migration maintainers (@pensieve-migration)
"""

EXAMPLES = r"""
- name: Copy the database
  sqlite_backup:
    src: /home/ada/.memos/database.db
    dest: /home/ada/backup/database.db
"""

RETURN = r"""
sha256:
  description: Digest of the copy.
  returned: when copied
  type: str
bytes:
  description: Size of the copy.
  returned: when copied
  type: int
seconds:
  description: How long it took.
  returned: when copied
  type: float
"""

import contextlib
import os
import sqlite3
import time
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.sqlite_integrity import damage
from ansible.module_utils.whole_file import digest

PAGES_PER_STEP = 4096
"""Pages copied between two looks at the lock (16 MiB at SQLite's usual page size)."""


def copy(source: Path, destination: Path) -> None:
    """Write a complete copy of `source`; nothing appears at `destination` when that fails.

    Raises:
        sqlite3.Error: the source cannot be read, or the copy is not intact.
    """
    part = destination.with_name(destination.name + ".part")
    part.unlink(missing_ok=True)
    written = os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        with (
            contextlib.closing(
                sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True, timeout=60)
            ) as reader,
            contextlib.closing(sqlite3.connect(part)) as writer,
        ):
            # What is copied goes to the disk step by step, or other programs' commits wait for gigabytes of it.
            reader.backup(writer, pages=PAGES_PER_STEP, progress=lambda *_: os.fdatasync(written))
            writer.execute("PRAGMA journal_mode=DELETE")
            broken = damage(writer, limit=1)
            if broken:
                raise sqlite3.DatabaseError(f"integrity_check of the copy says: {broken[0]}")
        part.replace(destination)
    finally:
        os.close(written)  # not while SQLite has the file open: it drops the locks that this process has on it
        part.unlink(missing_ok=True)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={"src": {"type": "path", "required": True}, "dest": {"type": "path", "required": True}},
        supports_check_mode=True,
    )
    source, destination = Path(module.params["src"]), Path(module.params["dest"])
    if destination.exists():
        module.fail_json(
            msg=f"Found: {destination} exists. Expected: a new name. Untouched: both files. "
            "Next: move it away, then run again."
        )
    if module.check_mode:
        module.exit_json(changed=True)
    begun = time.monotonic()
    try:
        copy(source, destination)
    except (sqlite3.Error, OSError) as error:
        module.fail_json(
            msg=f"Found: {source} cannot be copied: {error}. Expected: an intact SQLite database and room for a copy. "
            f"Untouched: {source}. Next: mend what stands above, then run the playbook again."
        )
    module.exit_json(
        changed=True,
        sha256=digest(destination),
        bytes=destination.stat().st_size,
        seconds=round(time.monotonic() - begun, 3),
    )


if __name__ == "__main__":
    main()
