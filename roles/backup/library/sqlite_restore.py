#!/usr/bin/python
"""Ansible module: put a SQLite database that is missing or damaged back from its backup."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: sqlite_restore
short_description: Put a SQLite database that is missing or damaged back from its backup
description:
  - An intact database stays as it is. Damaged files are kept aside, with their C(-wal) and C(-shm) files.
  - The backup must be what the manifest says, by its SHA-256. The database appears whole or not at all.
options:
  path:
    description: The database.
    type: path
    required: true
  backup:
    description: Its backup.
    type: path
    required: true
  sha256:
    description: Digest of the backup; empty when it was not noted.
    type: str
    default: ''
  seconds:
    description:
      - How long to look for damage with C(PRAGMA quick_check). What has been looked at by then decides, since a service
        may be waiting. 0 looks at the header and at the list of tables only.
    type: float
    default: 5
attributes:
  check_mode:
    support: full
    description: Says whether it would restore, and fails where it would.
  diff_mode:
    support: none
    description: There is no text to compare.
author:
  - Pensieve migration maintainers (@pensieve-migration)
"""

EXAMPLES = r"""
- name: Put the database back if it is damaged
  sqlite_restore:
    path: /home/ada/.memos/database.db
    backup: /home/ada/backup/database.db
"""

RETURN = r"""
damage:
  description: What is wrong with the database; empty when it is intact.
  returned: always
  type: str
aside:
  description: Where the damaged database is kept; empty when there was none.
  returned: always
  type: str
"""

import contextlib
import multiprocessing
import os
import shutil
import sqlite3
import stat
import time
from multiprocessing.connection import Connection
from pathlib import Path

from ansible.module_utils import sqlite_integrity
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.whole_file import digest, flush, folder_of, opened, status_in, status_of

SIDE_FILES = ("", "-wal", "-shm")

COPIED = 1 << 20
"""Bytes that are copied at a time."""

LOCK_SECONDS = 30.0
"""How long to wait for a program that holds the database; that it does is no damage."""


def damage(path: Path, seconds: float) -> str:
    """What is wrong with a database, as far as `seconds` tell; empty when nothing is.

    Raises:
        sqlite3.OperationalError: another program holds it, or the machine does not let it be read.
    """
    path = path.resolve()  # SQLite keeps the log beside the file itself, not beside a link to it
    if not path.is_file():
        return f"there is no {path}"
    try:
        with contextlib.closing(
            sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=LOCK_SECONDS)
        ) as connection:
            if not connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'entities'").fetchone()[0]:
                return f"{path} has no table entities"
            pages = connection.execute("PRAGMA page_count").fetchone()[0]
            size = pages * connection.execute("PRAGMA page_size").fetchone()[0]
            if not Path(f"{path}-wal").exists() and path.stat().st_size < size:
                return f"{path} has {path.stat().st_size} of {size} bytes"
    except sqlite3.DatabaseError as error:
        if sqlite_integrity.held(error) or sqlite_integrity.hindered(error):
            raise
        return f"{path} cannot be read: {error}"
    if not seconds:
        return ""
    # A process of its own, since SQLite cannot be interrupted within a check.
    context = multiprocessing.get_context("fork")
    answer, sender = context.Pipe(duplex=False)
    checker = context.Process(target=check, args=(path, sender))
    checker.start()
    broken = answer.recv() if answer.poll(seconds) else []
    checker.terminate()
    checker.join()
    return f"{path}: {broken[0]}" if broken else ""


def check(path: Path, sender: Connection) -> None:
    """Look at every page, and send what is wrong."""
    try:
        with contextlib.closing(
            sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=LOCK_SECONDS)
        ) as connection:
            sender.send(sqlite_integrity.damage(connection, "quick_check"))
    except sqlite3.DatabaseError as error:
        no_damage = sqlite_integrity.held(error) or sqlite_integrity.hindered(error)
        sender.send([] if no_damage else [str(error)])


def missing_bytes(path: Path, backup: Path) -> int:
    """How much room lacks beside a database for a copy of its backup; none where this is not positive."""
    return backup.stat().st_size - shutil.disk_usage(path.resolve().parent).free


def restore(path: Path, backup: Path, stamp: str) -> str:
    """Move what is there aside, and put a copy of the backup in its place; give where the old one is. A link stays."""
    try:
        mode = stat.S_IMODE(status_of(path).st_mode)
    except FileNotFoundError:
        mode = 0o600
    with folder_of(path) as (folder, name), opened(backup) as source:
        part = f".{name}.restored"
        if status_in(folder, part) is not None:
            os.unlink(part, dir_fd=folder)
        handle = os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o600, dir_fd=folder)
        try:
            with os.fdopen(handle, "wb") as file:
                shutil.copyfileobj(source, file, COPIED)
                file.flush()
                os.fchmod(handle, mode)
                os.fsync(handle)
        except BaseException:
            os.unlink(part, dir_fd=folder)
            raise
        aside = ""
        for suffix in SIDE_FILES:
            if status_in(folder, f"{name}{suffix}") is not None:
                kept = f"{name}.damaged-{stamp}{suffix}"
                os.rename(f"{name}{suffix}", kept, src_dir_fd=folder, dst_dir_fd=folder)
                aside = aside or str(path.resolve().with_name(kept))
        os.rename(part, name, src_dir_fd=folder, dst_dir_fd=folder)
        flush(folder)
    return aside


def places(path: Path) -> str:
    """Where the files of a damaged database are, as the folder says now: at their places, or put aside."""
    path = path.resolve()
    there = [file for suffix in SIDE_FILES if (file := Path(f"{path}{suffix}")).exists()]
    return (
        ", ".join(map(str, [*there, *sorted(path.parent.glob(f"{path.name}.damaged-*"))])) or "no place: there are none"
    )


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "backup": {"type": "path", "required": True},
            "sha256": {"type": "str", "default": ""},
            "seconds": {"type": "float", "default": 5.0},
        },
        supports_check_mode=True,
    )
    params = module.params
    path, backup = Path(params["path"]), Path(params["backup"])
    try:
        wrong = damage(path, params["seconds"])
    except sqlite3.OperationalError as error:
        held = sqlite_integrity.held(error)
        module.fail_json(
            msg=f"Found: {path}: {error} (waited {LOCK_SECONDS:g} s). Expected: nobody else holds it. "
            f"Untouched: everything. Next: end the program that does (fuser -v {path}), then run the playbook again."
            if held
            else f"Found: {path}: {error}. Expected: a database that can be looked at, damaged or not. "
            f"Untouched: everything. Next: mend that (room on its disk, the right to write beside it), or move it "
            "away, so that its backup takes its place; then run the playbook again."
        )
    if not wrong:
        module.exit_json(changed=False, damage="", aside="")
    found = digest(backup) if backup.is_file() else ""
    if not found or params["sha256"] and found != params["sha256"]:
        state = "another file than the manifest says" if found else "missing"
        module.fail_json(
            msg=f"Found: {wrong}; and its backup {backup} is {state}. "
            f"Expected: an intact database or an intact backup (SHA-256 {params['sha256'] or 'unknown'}). "
            f"Untouched: everything. Next: put a SQLite database of Pensieve at {path} (sqlite3 {path} .recover may "
            "help), then run the playbook again."
        )
    # In check mode, too: a rollback asks before it stops anything.
    if (lacking := missing_bytes(path, backup)) > 0:
        module.fail_json(
            msg=f"Found: {wrong}; and for the copy of its backup {lacking} bytes lack beside it. "
            f"Expected: room for {backup}, since the damaged file is kept. "
            f"Untouched: everything. Next: free some space on the disk of {path}, then run the playbook again."
        )
    try:
        aside = "" if module.check_mode else restore(path, backup, time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()))
    except OSError as error:
        module.fail_json(
            msg=f"Found: {wrong}; and its backup cannot be put there: {error}. Expected: room and the right to write "
            f"there. Untouched: {backup}, and the content of the damaged files, which lie at {places(path)}. "
            "Next: mend that, then run the playbook again."
        )
    module.exit_json(changed=True, damage=wrong, aside=aside)


if __name__ == "__main__":
    main()
