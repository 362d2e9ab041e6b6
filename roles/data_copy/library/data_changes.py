#!/usr/bin/python
"""Ansible module: note in PostgreSQL which rows change from now on, so that they can be carried back."""

from __future__ import annotations

DOCUMENTATION = r"""
module: data_changes
short_description: Note in PostgreSQL which rows change from now on
description:
  - Triggers on every table of schema C(public), made by M(data_copy), write the primary keys of touched rows into
    C(data_copy.change). Values are not kept. M(data_carry_back) carries these rows back into SQLite.
  - Begin at the cutover, when the target has been verified and nothing writes to either side. Rows that others have
    written since the copy are refused. The triggers run with the rights of the tables' owner, whoever writes.
  - A table that is made anew later, without the triggers, counts as changed wholly.
options:
  source:
    description: The SQLite database, equal to the target at the cutover. It is only looked at. Needed for V(present).
    type: path
  target_dsn:
    description: Connection string of the target, without a password.
    type: str
    required: true
  passfile:
    description: libpq password file with an entry for the target.
    type: path
  state:
    description: V(present) begins a log unless there is one of the latest copy; V(absent) removes log and triggers;
      V(told) only counts, and does not fail when the server does not answer.
    type: str
    choices: [present, absent, told]
    default: present
  progress_file:
    description: File that receives a line of JSON while the server does not answer.
    type: path
attributes:
  check_mode:
    description: Can run in check mode and return changed status prediction without modifying target.
    support: full
  diff_mode:
    description: Will return details on what has changed (or possibly needs changing in check_mode).
    support: none
    details: There is no text to compare.
  idempotent:
    description: When run twice in a row outside check mode, with the same arguments, the second invocation
      indicates no change.
    support: full
requirements: [numpy, psycopg2]
seealso:
  - module: data_carry_back
author: [Pensieve migration maintainers (@pensieve-migration)]
"""

EXAMPLES = r"""
- name: Note what changes from now on
  data_changes:
    source: /home/user/.memos/database.db
    target_dsn: postgresql://autotasktracker@127.0.0.1:5433/autotasktracker
    passfile: /home/user/.pgpass

- name: Count what has changed
  data_changes:
    target_dsn: postgresql://autotasktracker@127.0.0.1:5433/autotasktracker
    passfile: /home/user/.pgpass
    state: told
"""

RETURN = r"""
available:
  description: Whether the server answers.
  type: bool
  returned: success
reason:
  description: Why it does not.
  type: str
  returned: when it does not
log:
  description: What the log holds; missing when there is none. C(rows) counts touched rows of each table, C(whole) names
    tables in which any row may have changed, C(count) adds up C(rows). C(source_unchanged) tells whether SQLite is as
    it was then, C(same_schema) whether both databases are at the same revision of Pensieve's schema.
  type: dict
  returned: when there is a log
  sample: {since: "2025-11-22 20:37:20+00", count: 12, rows: {entities: 12}, whole: []}
"""

import sqlite3
import traceback
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule, missing_required_lib

try:
    import psycopg2
    from ansible.module_utils.sqlite_to_postgresql import change_log
    from ansible.module_utils.sqlite_to_postgresql.carry_sides import revisions
    from ansible.module_utils.sqlite_to_postgresql.model import EngineError
    from ansible.module_utils.sqlite_to_postgresql.options import full_dsn
    from ansible.module_utils.sqlite_to_postgresql.progress import ProgressFile, RowCount
    from ansible.module_utils.sqlite_to_postgresql.source import Source, fingerprint
    from ansible.module_utils.sqlite_to_postgresql.target import connect
    from ansible.module_utils.sqlite_to_postgresql.watch import watched

    IMPORT_ERROR = None
except ImportError:
    IMPORT_ERROR = traceback.format_exc()

ARGUMENTS: dict[str, dict[str, Any]] = {
    "source": {"type": "path"},
    "target_dsn": {"type": "str", "required": True},
    "passfile": {"type": "path"},
    "state": {"type": "str", "choices": ["present", "absent", "told"], "default": "present"},
    "progress_file": {"type": "path"},
}


def same_schema(source: Path, connection: Any) -> bool:
    """Whether both are at the same revision; not, where one cannot be read."""
    try:
        with closing(Source(source)) as reader:
            ours, theirs = revisions(reader, connection)
    except (EngineError, sqlite3.Error, psycopg2.Error):
        if connection.closed:
            raise
        return False
    return bool(ours == theirs)


def is_gone(error: Exception) -> bool:
    """Whether an error says that the server is gone (57P: it shuts down), and not that it refuses something."""
    return isinstance(error, psycopg2.Error) and (error.pgcode or "57P").startswith("57P")


def reach(options: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Bring about the state; give the module's result."""
    try:
        connection = connect(full_dsn(options["target_dsn"], options["passfile"]))
    except EngineError as error:
        if options["state"] != "told":
            raise
        return {"changed": False, "available": False, "reason": error.found}
    try:
        changed = False
        if options["state"] == "present":
            source = Path(options["source"])
            changed = not change_log.is_complete(connection) if check_mode else change_log.install(connection, source)
        elif options["state"] == "absent":
            changed = change_log.exists(connection) if check_mode else change_log.remove(connection)
        result: dict[str, Any] = {"changed": changed, "available": True}
        log = change_log.read(connection)
        if log is not None:
            source = Path(options["source"] or log.source)
            looked_at = {
                "source_unchanged": source.is_file() and fingerprint(source) == log.fingerprint,
                "same_schema": same_schema(source, connection),
            }
            result["log"] = {**asdict(log), "count": log.count, **looked_at}
    finally:
        connection.close()
    return result


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec=ARGUMENTS, supports_check_mode=True, required_if=[("state", "present", ("source",))]
    )
    if IMPORT_ERROR is not None:
        module.fail_json(msg=missing_required_lib("numpy and psycopg2-binary"), exception=IMPORT_ERROR)
    try:
        progress = module.params["progress_file"]
        with ProgressFile(Path(progress) if progress else None) as watcher, watched(watcher):
            RowCount(watcher, "changes")("asking PostgreSQL")
            result = reach(module.params, module.check_mode)
    except EngineError as error:
        module.fail_json(msg=str(error))
    except (psycopg2.Error, OSError) as error:
        if module.params["state"] == "told" and is_gone(error):
            module.exit_json(changed=False, available=False, reason=str(error).strip())
        module.fail_json(
            msg=f"Found: {str(error).strip()}\nExpected: a target that holds Pensieve's tables, and the source\n"
            "Untouched: every row of both databases\nNext: put right what the first line says, and run again"
        )
    module.exit_json(**result)


if __name__ == "__main__":
    main()
