#!/usr/bin/python
"""Ansible module: bring PostgreSQL from a snapshot up to the SQLite database as it is now, and prove it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: data_difference
short_description: Copy what has changed in a Pensieve database since its snapshot, and prove it
description:
  - The target shows the snapshot of M(data_snapshot), copied by M(data_copy). This module copies what was inserted,
    updated and deleted since, in every table, vectors and full text included, in one transaction.
  - What changed is found by the pages that were written, as the snapshot's process keeps them in the write-ahead log.
    The time grows with the number of changes, not with the database. When the snapshot is not held any more, all pages
    are compared.
  - What cannot be copied so, such as changed table definitions, makes a whole copy instead. RV(way) and RV(reason) say
    which it was.
  - Then every row that was looked at is compared by code of its own, as M(data_verify) does; after a whole copy, every
    row.
  - With O(state=caught_up) Pensieve may run. A later snapshot is made, the target is brought up to it, and it takes the
    place of the first; and so again until little is left. What remains for the stop then depends no longer on how long
    the bulk took.
options:
  state:
    description: V(final) brings the target to the source as it is now, which nobody may write to. V(caught_up) brings
      it to later snapshots while the source is written to, and does nothing when few pages were written.
    type: str
    choices: [final, caught_up]
    default: final
  rounds:
    description: Later snapshots that V(caught_up) makes at most.
    type: int
    default: 3
  source:
    description: The SQLite database. It is opened read-only.
    type: path
    required: true
  folder:
    description: Folder of the snapshot.
    type: path
    required: true
  target_dsn:
    description: Connection string of the target, without a password.
    type: str
    required: true
  passfile:
    description: libpq password file with an entry for the target.
    type: path
  policy:
    description: What is done about findings, as in M(data_census).
    type: raw
    default: default
  jobs:
    description: Worker processes of the verification, and of a whole copy; 0 is one per core.
    type: int
    default: 0
  expected_catalog:
    description: Definitions that the target must have, as in M(data_verify).
    type: dict
  note_changes:
    description: Begin the log of M(data_changes) when both sides have been compared. Only with V(state=final).
    type: bool
    default: false
  progress_file:
    description: File that receives a line of JSON about twice a second while the module runs.
    type: path
attributes:
  check_mode:
    support: none
    description: Nothing can be said without stopping Pensieve, so it is skipped.
  diff_mode:
    support: none
    description: RV(tables) tells the rows.
  idempotent:
    support: full
    description: The ledger in the target says which source it holds.
requirements: [numpy, psycopg2, jieba 0.42.1]
seealso:
  - module: data_snapshot
  - module: data_verify
  - module: data_changes
author: [Pensieve migration maintainers (@pensieve-migration)]
"""

EXAMPLES = r"""
- name: Copy what has changed since
  data_difference:
    source: /home/ada/.memos/database.db
    folder: /home/ada/snapshot
    target_dsn: postgresql://autotasktracker@127.0.0.1:5433/autotasktracker
    passfile: /home/ada/.pgpass
    note_changes: true

- name: Leave less to do while Pensieve is stopped
  data_difference:
    state: caught_up
    source: /home/ada/.memos/database.db
    folder: /home/ada/snapshot
    target_dsn: postgresql://autotasktracker@127.0.0.1:5433/autotasktracker
    passfile: /home/ada/.pgpass
"""

RETURN = r"""
caught_up:
  description: By later snapshot, what the other values here tell of a difference.
  type: list
  elements: dict
  returned: with O(state=caught_up), which returns only this and RV(seconds)
way:
  description: difference, whole copy, or nothing when the target held this source already.
  type: str
  returned: success
reason:
  description: How the pages were found, or why a whole copy was needed.
  type: str
  returned: success
rows:
  description: Rows that were upserted or deleted.
  type: int
  returned: success
tables:
  description: By table, how many rows changed in the source, were upserted and deleted, and how its counts grew.
  type: dict
  returned: success
  sample: {entities: {changed: 12, upserted: 9, deleted: 3, source: 4, target: 4, quarantined: 0}}
pages:
  description: Pages that were written since the snapshot.
  type: int
  returned: success
wal_bytes:
  description: Size of the write-ahead log.
  type: int
  returned: success
findings:
  description: One entry per table, column, kind and action, with a count and examples.
  type: list
  elements: dict
  returned: always
verified:
  description: What the comparison found, as M(data_verify) tells it.
  type: dict
  returned: success
phases:
  description: Seconds of each phase.
  type: dict
  returned: success
seconds:
  description: Duration, verification included.
  type: float
  returned: success
"""

import sqlite3
import time
import traceback
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule, missing_required_lib

try:
    import psycopg2
    from ansible.module_utils.sqlite_to_postgresql import change_log
    from ansible.module_utils.sqlite_to_postgresql.catch_up import Proven, catch_up
    from ansible.module_utils.sqlite_to_postgresql.difference import difference
    from ansible.module_utils.sqlite_to_postgresql.fts import Tokenizer
    from ansible.module_utils.sqlite_to_postgresql.model import EngineError, FindingsError, Policy
    from ansible.module_utils.sqlite_to_postgresql.options import full_dsn, plain_difference
    from ansible.module_utils.sqlite_to_postgresql.progress import ProgressFile
    from ansible.module_utils.sqlite_to_postgresql.target import connect
    from ansible.module_utils.sqlite_to_postgresql.verify import verify

    IMPORT_ERROR = None
except ImportError:
    IMPORT_ERROR = traceback.format_exc()


def told(module: AnsibleModule, proven: Proven) -> dict[str, Any]:
    """A difference and its comparison as plain data; fails the module when the two sides are not equal."""
    made, verified = proven.difference, proven.verified
    result: dict[str, Any] = {**plain_difference(made, 20), "verified": verified.as_dict()}
    result["seconds"] = round(made.seconds + verified.seconds, 3)
    result["phases"]["verify"] = round(verified.seconds, 3)
    if not verified.equal:
        first = verified.differences[0]
        module.fail_json(
            msg=f"Found: {verified.difference_count} differences after the difference was copied; the first: "
            f"{first.table} {first.key} {first.column or ''}: {first.what}; {first.source!r}, {first.target!r}\n"
            "Expected: the same value in every cell of both databases\nUntouched: the SQLite database\n"
            "Next: report this; run again with -e migrate_online=false, which copies all while Pensieve is stopped",
            **result,
        )
    return result


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["final", "caught_up"], "default": "final"},
            "rounds": {"type": "int", "default": 3},
            "source": {"type": "path", "required": True},
            "folder": {"type": "path", "required": True},
            "target_dsn": {"type": "str", "required": True},
            "passfile": {"type": "path"},
            "policy": {"type": "raw", "default": "default"},
            "jobs": {"type": "int", "default": 0},
            "expected_catalog": {"type": "dict"},
            "note_changes": {"type": "bool", "default": False},
            "progress_file": {"type": "path"},
        },
    )
    if IMPORT_ERROR is not None:
        module.fail_json(msg=missing_required_lib("numpy, psycopg2-binary and jieba"), exception=IMPORT_ERROR)
    options = module.params
    source, folder, jobs = Path(options["source"]), Path(options["folder"]), options["jobs"] or None
    began = time.monotonic()
    tokenizer = Tokenizer()
    try:
        dsn, policy = full_dsn(options["target_dsn"], options["passfile"]), Policy.of(options["policy"])
        progress = Path(options["progress_file"]) if options["progress_file"] else None
        with ProgressFile(progress) as watcher:

            def bring(later: Path | None) -> Proven:
                made = difference(source, folder, dsn, policy, watcher, jobs, tokenizer, later)
                verified = verify(
                    later or source,
                    dsn,
                    progress=watcher,
                    jobs=jobs,
                    expected_catalog=options["expected_catalog"],
                    tokenizer=tokenizer,
                    only=made.only,
                )
                return Proven(made, verified)

            if options["state"] == "caught_up":
                rounds = catch_up(source, folder, bring, options["rounds"], progress=watcher)
                caught_up = [told(module, one) for one in rounds]
                result: dict[str, Any] = {"changed": bool(caught_up), "caught_up": caught_up}
            else:
                result = told(module, bring(None))
                if options["note_changes"]:
                    with closing(connect(dsn)) as connection:
                        result["changed"] |= change_log.install(connection, source)
    except FindingsError as error:
        module.fail_json(msg=str(error), findings=error.findings.as_list(20))
    except (EngineError, ValueError, ImportError) as error:
        module.fail_json(msg=str(error), findings=[])
    except (sqlite3.Error, psycopg2.Error, OSError, BrokenProcessPool) as error:
        module.fail_json(
            msg=f"Found: {str(error).strip()}\nExpected: a difference that is compared without an error of the server, "
            f"of SQLite or of the machine\nUntouched: the SQLite database {source}, which was only read\n"
            "Next: put right what the first line says, and run again; what is there already is not copied once more",
            findings=[],
        )
    module.exit_json(**{**result, "seconds": round(time.monotonic() - began, 3)})


if __name__ == "__main__":
    main()
