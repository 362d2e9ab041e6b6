#!/usr/bin/python
"""Ansible module: look at every cell of a Pensieve database as the copy to PostgreSQL would."""

from __future__ import annotations

DOCUMENTATION = r"""
module: data_census
short_description: Find what PostgreSQL cannot hold of a Pensieve database in SQLite
description:
  - Reads every row and every vector of a SQLite database as M(data_copy) would, and changes nothing.
  - Names each cell that PostgreSQL would refuse, and each that it would silently change, as a finding, with the action
    that the policy takes.
  - Uses the very converters of the copy, so that what passes here passes there.
options:
  source:
    description: The SQLite database. It is opened read-only; what lies in its write-ahead log is read too.
    type: path
    required: true
  target_dsn:
    description:
      - Connection string of the target, without a password. Its tables decide the types.
      - Without it, or while the target has no tables of Pensieve, the types are those that Pensieve's code makes.
    type: str
  passfile:
    description: libpq password file with an entry for the target.
    type: path
  policy:
    description:
      - What is done about findings. V(default), V(strict) (every finding stops the copy), or a dictionary of kinds and
        actions (V(fail), V(quarantine), V(coerce)) that differ from the default.
      - Kinds are nul_character, invalid_utf8, not_an_integer, integer_out_of_range, unknown_enum_label,
        orphaned_foreign_key, duplicate_key, null_in_not_null, unreadable_timestamp, lossy_timestamp, vector_length,
        vector_not_finite, too_long, blob_in_text, rowid_without_row, index_row_too_large, dependent_row.
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
  fail_on_findings:
    description: Fail when the policy would stop the copy.
    type: bool
    default: true
  progress_file:
    description: File that receives a line of JSON about twice a second while the module runs.
    type: path
attributes:
  check_mode:
    description: Can run in check mode and return changed status prediction without modifying target.
    support: full
    details: The module changes nothing in either mode.
  diff_mode:
    description: Will return details on what has changed (or possibly needs changing in check_mode).
    support: none
  idempotent:
    description: When run twice in a row outside check mode, with the same arguments, the second invocation
      indicates no change.
    support: full
requirements: [numpy, psycopg2]
author: [Pensieve migration maintainers (@pensieve-migration)]
"""

EXAMPLES = r"""
- name: Look at every cell before anything is changed
  data_census:
    source: /home/user/.memos/database.db
    target_dsn: postgresql://autotasktracker@127.0.0.1:5433/autotasktracker
    passfile: /home/user/.pgpass
  register: census

- name: Stop at every finding
  data_census:
    source: /home/user/.memos/database.db
    policy: strict
"""

RETURN = r"""
tables:
  description: Rows of each table, those that would go over, those that would go to quarantine, bytes of binary COPY.
  type: dict
  returned: always
  sample: {entities: {source: 50000, target: 50000, quarantined: 0, seconds: 0.3, bytes: 11577788}}
findings:
  description: One entry per table, column, kind and action, with a count and examples.
  type: list
  elements: dict
  returned: always
  sample:
    - {table: entity_tags, column: entity_id, kind: orphaned_foreign_key, action: quarantine, count: 33, examples: []}
findings_count:
  description: All findings.
  type: int
  returned: always
refused:
  description: Tables and columns that the engine does not understand; the copy would refuse them.
  type: list
  elements: str
  returned: always
notes:
  description: What a person should know, such as tables that are not Pensieve's own.
  type: list
  elements: str
  returned: always
acceptable:
  description: Whether the copy would go through.
  type: bool
  returned: always
seconds:
  description: Duration.
  type: float
  returned: always
"""

import traceback
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule, missing_required_lib

try:
    from ansible.module_utils.sqlite_to_postgresql.census import census
    from ansible.module_utils.sqlite_to_postgresql.model import EngineError, FindingsError, Policy
    from ansible.module_utils.sqlite_to_postgresql.options import full_dsn, plain_census
    from ansible.module_utils.sqlite_to_postgresql.progress import ProgressFile

    IMPORT_ERROR = None
except ImportError:
    IMPORT_ERROR = traceback.format_exc()


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "source": {"type": "path", "required": True},
            "target_dsn": {"type": "str"},
            "passfile": {"type": "path"},
            "policy": {"type": "raw", "default": "default"},
            "jobs": {"type": "int", "default": 0},
            "examples": {"type": "int", "default": 20},
            "fail_on_findings": {"type": "bool", "default": True},
            "progress_file": {"type": "path"},
        },
        supports_check_mode=True,
    )
    if IMPORT_ERROR is not None:
        module.fail_json(msg=missing_required_lib("numpy and psycopg2-binary"), exception=IMPORT_ERROR)
    options = module.params
    progress = options["progress_file"]
    try:
        with ProgressFile(Path(progress) if progress else None) as watcher:
            result = census(
                Path(options["source"]),
                target_dsn=full_dsn(options["target_dsn"], options["passfile"]) if options["target_dsn"] else None,
                policy=Policy.of(options["policy"]),
                progress=watcher,
                jobs=options["jobs"] or None,
            )
    except (EngineError, ValueError) as error:
        module.fail_json(msg=str(error))
    told = plain_census(result, options["examples"])
    if options["fail_on_findings"] and result.refused:
        module.fail_json(msg="The copy would refuse this source: " + "; ".join(result.refused), **told)
    if options["fail_on_findings"] and result.findings.failing():
        module.fail_json(msg=str(FindingsError(result.findings)), **told)
    module.exit_json(changed=False, **told)


if __name__ == "__main__":
    main()
