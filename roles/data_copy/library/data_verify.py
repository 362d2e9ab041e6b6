#!/usr/bin/python
"""Ansible module: prove that PostgreSQL holds what the SQLite database holds, cell by cell."""

from __future__ import annotations

DOCUMENTATION = r"""
module: data_verify
short_description: Compare a Pensieve database on SQLite and on PostgreSQL, cell by cell
description:
  - Compares every cell of every table in both directions, vectors and floats by bits, timestamps to the microsecond,
    and full text with what jieba makes of the target's rows. Shares no conversion code with M(data_copy).
  - Looks at foreign keys, constraints, indexes and sequences too, and with O(expected_catalog) at every definition.
  - What C(data_copy.quarantine) holds must equal the source, and is the only excuse for a difference.
options:
  source:
    description: The SQLite database. It is opened read-only. Required unless O(only_catalog).
    type: path
  target_dsn:
    description: Connection string of the target, without a password.
    type: str
    required: true
  passfile:
    description: libpq password file with an entry for the target.
    type: path
  jobs:
    description: Worker processes; 0 is one per core.
    type: int
    default: 0
  seed:
    description: Decides which full-text entries plain jieba segments once more, without any memo.
    type: int
    default: 0
  expected_catalog:
    description: RV(catalog) of an earlier run with O(only_catalog), taken right after Pensieve has made its schema.
    type: dict
  only_catalog:
    description: Compare nothing; give the definitions of the target.
    type: bool
    default: false
  only:
    description: Compare just the rows of these primary keys, by table; a key is a list of its columns' values.
    type: dict
  sequences:
    description: Whether sequences must be beyond all ids of both sides. Not after a carry-back, as SQLite goes on then.
    type: bool
    default: true
  fail_on_difference:
    description: Whether a difference is a failure. The result is complete in either case.
    type: bool
    default: true
  progress_file:
    description: File that receives a line of JSON about twice a second while the module runs.
    type: path
attributes:
  check_mode:
    description: Can run in check mode and return changed status prediction without modifying target.
    support: full
    details: It only reads, so check mode is no different.
  diff_mode:
    description: Will return details on what has changed (or possibly needs changing in check_mode).
    support: none
    details: Nothing is changed. Differences of the databases are in RV(differences).
  idempotent:
    description: When run twice in a row outside check mode, with the same arguments, the second invocation
      indicates no change.
    support: full
    details: Nothing is ever changed.
requirements: [psycopg2, jieba 0.42.1]
seealso:
  - module: data_census
  - module: data_copy
author: [Pensieve migration maintainers (@pensieve-migration)]
"""

EXAMPLES = r"""
- name: Remember what Pensieve has made
  data_verify:
    target_dsn: postgresql://autotasktracker@127.0.0.1:5433/autotasktracker
    passfile: /home/user/.pgpass
    only_catalog: true
  register: made

- name: Prove that everything has arrived
  data_verify:
    source: /home/user/.memos/database.db
    target_dsn: postgresql://autotasktracker@127.0.0.1:5433/autotasktracker
    passfile: /home/user/.pgpass
    expected_catalog: "{{ made.catalog }}"

- name: Count what has been written since
  data_verify:
    source: /home/user/.memos/database.db
    target_dsn: postgresql://autotasktracker@127.0.0.1:5433/autotasktracker
    passfile: /home/user/.pgpass
    fail_on_difference: false
  register: since
"""

RETURN = r"""
equal:
  description: The verdict.
  type: bool
  returned: when databases were compared
tables:
  description: Rows of each table in the source, on the target and in quarantine, cells compared, differences, and
    seconds of all processes together.
  type: dict
  returned: when databases were compared
  sample: {entities: {source: 50000, target: 50000, quarantined: 0, compared_cells: 650000}}
differences:
  description: The first 200 differences, each with table, key, column, both values (shortened) and what is wrong.
  type: list
  elements: dict
  returned: when databases were compared
  sample: [{table: entities, key: {id: 7}, column: size, source: '812', target: '813', what: cell differs}]
difference_count:
  description: All differences.
  type: int
  returned: when databases were compared
differing_rows:
  description: Rows that are missing, too many, or different in any cell.
  type: int
  returned: when databases were compared
checks:
  description: How many foreign keys, sequences and definitions were looked at.
  type: dict
  returned: when databases were compared
catalog:
  description: Definitions of columns, constraints, indexes, sequences, enums and owners in schema public.
  type: dict
  returned: when O(only_catalog)
seconds:
  description: Duration.
  type: float
  returned: when databases were compared
"""

import sqlite3
import traceback
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule, missing_required_lib

try:
    import psycopg2
    from ansible.module_utils.sqlite_to_postgresql.progress import ProgressFile
    from ansible.module_utils.sqlite_to_postgresql.verify import catalog, verify

    IMPORT_ERROR = None
except ImportError:
    IMPORT_ERROR = traceback.format_exc()

ARGUMENTS: dict[str, dict[str, Any]] = {
    "source": {"type": "path"},
    "target_dsn": {"type": "str", "required": True},
    "passfile": {"type": "path"},
    "jobs": {"type": "int", "default": 0},
    "seed": {"type": "int", "default": 0},
    "expected_catalog": {"type": "dict"},
    "only_catalog": {"type": "bool", "default": False},
    "only": {"type": "dict"},
    "sequences": {"type": "bool", "default": True},
    "fail_on_difference": {"type": "bool", "default": True},
    "progress_file": {"type": "path"},
}


def told(result: dict[str, Any]) -> str:
    """The failure: found, expected, untouched, next."""
    first = result["differences"][0]
    place = ", ".join(f"{name}={value}" for name, value in first["key"].items())
    column = f".{first['column']}" if first["column"] else ""
    return (
        f"Found: {result['difference_count']} differences; the first: {first['table']}{column} ({place}): "
        f"{first['what']}; source {first['source']}, target {first['target']}\n"
        "Expected: the same value in every cell of both databases\n"
        "Untouched: both databases by this comparison, which only reads; what was written before it stands\n"
        "Next: look at 'differences' of this task; if Pensieve has written to one of them since the copy, copy again"
    )


def keys_of(only: dict[str, list[list[Any]]] | None) -> dict[str, list[tuple[Any, ...]]] | None:
    """Keys as the engine takes them."""
    return None if only is None else {table: [tuple(key) for key in keys] for table, keys in only.items()}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec=ARGUMENTS, supports_check_mode=True, required_if=[("only_catalog", False, ("source",))]
    )
    if IMPORT_ERROR is not None:
        module.fail_json(msg=missing_required_lib("psycopg2-binary and jieba"), exception=IMPORT_ERROR)
    options = module.params
    progress = options["progress_file"]
    try:
        with ProgressFile(Path(progress) if progress else None) as watcher:
            if options["only_catalog"]:
                result: dict[str, Any] = {"catalog": catalog(options["target_dsn"], options["passfile"])}
            else:
                result = verify(
                    Path(options["source"]),
                    options["target_dsn"],
                    progress=watcher,
                    jobs=options["jobs"] or None,
                    passfile=options["passfile"],
                    expected_catalog=options["expected_catalog"],
                    seed=options["seed"],
                    only=keys_of(options["only"]),
                    sequences=options["sequences"],
                ).as_dict()
    except (sqlite3.Error, psycopg2.Error, ImportError, OSError, BrokenProcessPool) as error:
        module.fail_json(
            msg=f"Found: {str(error).strip()}\nExpected: a readable source ({options['source']}), and a target that "
            "answers and holds Pensieve's tables\n"
            "Untouched: both databases by this comparison, which only reads; what was written before it stands\n"
            "Next: put right what the first line says, and run again"
        )
    if options["fail_on_difference"] and not result.get("equal", True):
        module.fail_json(msg=told(result), changed=False, **result)
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
