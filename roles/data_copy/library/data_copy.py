#!/usr/bin/python
"""Ansible module: copy a Pensieve database from SQLite to PostgreSQL, all or nothing."""

from __future__ import annotations

DOCUMENTATION = r"""
module: data_copy
short_description: Copy a Pensieve database from SQLite to PostgreSQL
description:
  - Copies every table, every vector bit for bit, and full text as Pensieve's own PostgreSQL indexer writes it.
  - The target must hold the tables that Pensieve's own code makes, with no rows but its default ones. Tables are built
    out of sight and shown in one transaction, with the names and definitions of Pensieve's indexes and constraints.
  - A cell that PostgreSQL cannot hold is met by O(policy); its original bytes are kept in C(data_copy.quarantine).
  - A run that was killed goes on where it was when it is run again on an unchanged source.
options:
  source:
    description: The SQLite database. It is opened read-only; what lies in its write-ahead log is read too.
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
    description: Worker processes; 0 is one per core.
    type: int
    default: 0
  examples:
    description: Findings of a kind in a column that are listed one by one; all are counted.
    type: int
    default: 20
  progress_file:
    description: File that receives a line of JSON about twice a second while the module runs.
    type: path
attributes:
  check_mode:
    description: Can run in check mode and return changed status prediction without modifying target.
    support: full
    details: Reads and converts every cell, and fails where the copy would; writes nothing to the target.
  diff_mode:
    description: Will return details on what has changed (or possibly needs changing in check_mode).
    support: full
    details: Rows of each table before and after.
  idempotent:
    description: When run twice in a row outside check mode, with the same arguments, the second invocation
      indicates no change.
    support: full
    details: The ledger in the target says which source it holds.
requirements: [numpy, psycopg2, jieba 0.42.1]
seealso:
  - module: data_census
  - module: data_verify
author: [Pensieve migration maintainers (@pensieve-migration)]
"""

EXAMPLES = r"""
- name: Copy everything
  data_copy:
    source: /home/user/.memos/database.db
    target_dsn: postgresql://autotasktracker@127.0.0.1:5433/autotasktracker
    passfile: /home/user/.pgpass

- name: Copy, with damaged text in quarantine
  data_copy:
    source: /home/user/.memos/database.db
    target_dsn: postgresql://autotasktracker@127.0.0.1:5433/autotasktracker
    passfile: /home/user/.pgpass
    policy:
      invalid_utf8: quarantine
"""

RETURN = r"""
tables:
  description: Rows of each table in the source, on the target and in quarantine; source = target + quarantined.
  type: dict
  returned: success
  sample: {entities: {source: 50000, target: 50000, quarantined: 0, seconds: 0.6, bytes: 11577788}}
findings:
  description: One entry per table, column, kind and action, with a count and examples.
  type: list
  elements: dict
  returned: always
findings_count:
  description: All findings.
  type: int
  returned: always
notes:
  description: What a person should know, such as tables that are not Pensieve's own.
  type: list
  elements: str
  returned: success
run_id:
  description: The run in data_copy.run whose rows the target holds.
  type: str
  returned: success and not in check mode
seconds:
  description: Duration.
  type: float
  returned: success
phases:
  description: Seconds of each phase.
  type: dict
  returned: success and not in check mode
"""

import traceback
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule, missing_required_lib

try:
    from ansible.module_utils.sqlite_to_postgresql.copier import copy, predict
    from ansible.module_utils.sqlite_to_postgresql.model import EngineError, FindingsError, Policy
    from ansible.module_utils.sqlite_to_postgresql.options import full_dsn, plain_census, plain_copy
    from ansible.module_utils.sqlite_to_postgresql.progress import ProgressFile

    IMPORT_ERROR = None
except ImportError:
    IMPORT_ERROR = traceback.format_exc()


def diff_of(before: dict[str, int], tables: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Tell the rows of each table before and after."""
    names = sorted({*before, *tables})
    after = {name: tables[name]["target"] if name in tables else before[name] for name in names}
    return {
        "before": "".join(f"{name}: {before.get(name, 0)} rows\n" for name in names),
        "after": "".join(f"{name}: {after[name]} rows\n" for name in names),
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "source": {"type": "path", "required": True},
            "target_dsn": {"type": "str", "required": True},
            "passfile": {"type": "path"},
            "policy": {"type": "raw", "default": "default"},
            "jobs": {"type": "int", "default": 0},
            "examples": {"type": "int", "default": 20},
            "progress_file": {"type": "path"},
        },
        supports_check_mode=True,
    )
    if IMPORT_ERROR is not None:
        module.fail_json(msg=missing_required_lib("numpy, psycopg2-binary and jieba"), exception=IMPORT_ERROR)
    options = module.params
    progress = options["progress_file"]
    source, jobs, examples = Path(options["source"]), options["jobs"] or None, options["examples"]
    try:
        policy = Policy.of(options["policy"])
        dsn = full_dsn(options["target_dsn"], options["passfile"])
        with ProgressFile(Path(progress) if progress else None) as watcher:
            if module.check_mode:
                prediction = predict(source, dsn, policy, watcher, jobs)
                told = plain_census(prediction.census, examples)
                told["changed"], before = prediction.changed, prediction.before
            else:
                result = copy(source, dsn, policy, watcher, jobs)
                told, before = plain_copy(result, examples), result.before
    except FindingsError as error:
        module.fail_json(
            msg=str(error), findings=error.findings.as_list(examples), findings_count=error.findings.count()
        )
    except (EngineError, ValueError) as error:
        module.fail_json(msg=str(error), findings=[], findings_count=0)
    if module._diff and told["changed"]:
        told["diff"] = diff_of(before, told["tables"])
    module.exit_json(**told)


if __name__ == "__main__":
    main()
