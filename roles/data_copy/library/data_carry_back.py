#!/usr/bin/python
"""Ansible module: carry what was written to PostgreSQL since the cutover back into SQLite."""

from __future__ import annotations

DOCUMENTATION = r"""
module: data_carry_back
short_description: Carry what was written to PostgreSQL since the cutover back into SQLite
description:
  - For every key in the change log of M(data_changes), writes PostgreSQL's row into SQLite, or deletes it there; full
    text with Pensieve's tokenizer and vectors with sqlite-vec included. All of it is one transaction.
  - A cell that gives PostgreSQL's value already stays as it is, so that originals which PostgreSQL cannot hold survive.
  - Runs with Pensieve's own interpreter, which loads the extensions. Pensieve must be stopped.
  - Where SQLite was written to since the cutover too, nothing of either side is overwritten. Rows of PostgreSQL whose
    id SQLite has given to another row get a new id everywhere; rows that both sides have changed stay as SQLite has
    them, and are told in RV(conflicts).
  - The same transaction marks in SQLite which rows were carried (table C(data_copy_carried)), and PostgreSQL notes
    afterwards that it ended. Wherever a run ends, it can be run again, also when Pensieve has gone on on either side
    in between. O(state=settled) ends that, once Pensieve is on SQLite for good.
options:
  source:
    description: The SQLite database to write to.
    type: path
    required: true
  target_dsn:
    description: Connection string of PostgreSQL, without a password.
    type: str
    required: true
  passfile:
    description: libpq password file with an entry for it.
    type: path
  state:
    description: V(carried) carries back. V(settled) empties the change log and drops the mark, if both tell of the same
      carry-back; it needs no extension, and Pensieve may be running. Where they do not, or PostgreSQL does not answer,
      everything stays for a later carry-back, and RV(reason) tells why; that is no failure.
    type: str
    choices: [carried, settled]
    default: carried
  base:
    description: SQLite as it was at the cutover. Needed where it was written to since; it need not exist.
    type: path
  whole:
    description: Compare all rows, whatever the log says, as O(source) was restored from a copy older than the cutover.
    type: bool
    default: false
  only_upgraded:
    description: Since the cutover O(source) was written to by an upgrade of its schema alone, which PostgreSQL has had
      too. What PostgreSQL holds goes into it then.
    type: bool
    default: false
  progress_file:
    description: File that receives a line of JSON about twice a second while the module runs.
    type: path
attributes:
  check_mode:
    description: Can run in check mode and return changed status prediction without modifying target.
    support: partial
    details: Tells what the log holds, without looking at the rows, which may be equal on both sides.
  diff_mode:
    description: Will return details on what has changed (or possibly needs changing in check_mode).
    support: none
    details: Rows are counted in RV(tables).
  idempotent:
    description: When run twice in a row outside check mode, with the same arguments, the second invocation
      indicates no change.
    support: full
requirements: [numpy, psycopg2, sqlite-vec, jieba]
seealso:
  - module: data_changes
  - module: data_verify
author: [Pensieve migration maintainers (@pensieve-migration)]
"""

EXAMPLES = r"""
- name: Carry everything back
  data_carry_back:
    source: /home/user/.memos/database.db
    target_dsn: postgresql://autotasktracker@127.0.0.1:5433/autotasktracker
    passfile: /home/user/.pgpass
  vars:
    ansible_python_interpreter: /home/user/.memos/venv/bin/python

- name: Settle it, when Pensieve answers on SQLite
  data_carry_back:
    source: /home/user/.memos/database.db
    target_dsn: postgresql://autotasktracker@127.0.0.1:5433/autotasktracker
    passfile: /home/user/.pgpass
    state: settled
"""

RETURN = r"""
tables:
  description: Rows of each table that were inserted, updated, deleted, or touched and the same on both sides.
  type: dict
  returned: success, when carried
  sample: {entities: {inserted: 10, updated: 2, deleted: 1, unchanged: 0}}
rows:
  description: All rows written or deleted.
  type: int
  returned: success, when carried and not in check mode
touched:
  description: Keys by table whose rows are equal on both sides now, as the option C(only) of M(data_verify) takes them.
  type: dict
  returned: success, when carried and not in check mode
mapped:
  description: Rows of PostgreSQL that have another key in SQLite or refer to one, so that M(data_verify) cannot find
    them. Each was read back and compared before the transaction ended.
  type: int
  returned: success, when carried and not in check mode
whole:
  description: Tables that were compared wholly.
  type: list
  elements: str
  returned: success, when carried
superseded:
  description: Originals in quarantine that have moved to C(data_copy.superseded), since SQLite has another value there.
  type: int
  returned: success, when carried and not in check mode
merged:
  description: Whether somebody has written to SQLite since both sides were equal, in rows that PostgreSQL has too.
  type: bool
  returned: success, when carried and not in check mode
renumbered:
  description: Rows of PostgreSQL that have another id in SQLite; C(joined) if SQLite had the same thing already.
  type: list
  elements: dict
  returned: success, when carried and not in check mode
  sample: [{table: entities, postgresql: 101, sqlite: 205, joined: false}]
conflicts:
  description: Rows that were not carried, and why.
  type: list
  elements: dict
  returned: success, when carried and not in check mode
seconds:
  description: Duration.
  type: float
  returned: success, when carried and not in check mode
settled:
  description: Whether no mark is left in SQLite.
  type: bool
  returned: when O(state=settled)
reason:
  description: Why one is left.
  type: str
  returned: when O(state=settled)
"""

import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule, missing_required_lib

try:
    from ansible.module_utils.sqlite_to_postgresql import carry_mark, change_log
    from ansible.module_utils.sqlite_to_postgresql.carry_back import carry_back, pensieve_package
    from ansible.module_utils.sqlite_to_postgresql.model import EngineError
    from ansible.module_utils.sqlite_to_postgresql.options import full_dsn
    from ansible.module_utils.sqlite_to_postgresql.progress import ProgressFile
    from ansible.module_utils.sqlite_to_postgresql.target import connect

    IMPORT_ERROR = None
except ImportError:
    IMPORT_ERROR = traceback.format_exc()

ARGUMENTS: dict[str, dict[str, Any]] = {
    "source": {"type": "path", "required": True},
    "target_dsn": {"type": "str", "required": True},
    "passfile": {"type": "path"},
    "state": {"type": "str", "choices": ["carried", "settled"], "default": "carried"},
    "base": {"type": "path"},
    "whole": {"type": "bool", "default": False},
    "only_upgraded": {"type": "bool", "default": False},
    "progress_file": {"type": "path"},
}


def predicted(dsn: str) -> dict[str, Any]:
    """What the log holds."""
    connection = connect(dsn)
    try:
        log = change_log.read(connection)
    finally:
        connection.close()
    rows = log.rows if log else {}
    whole = log.whole if log else []
    return {"changed": bool(rows or whole), "tables": {name: {"touched": count} for name, count in rows.items()},
            "whole": whole}  # fmt: skip


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    if IMPORT_ERROR is not None:
        module.fail_json(msg=missing_required_lib("numpy and psycopg2-binary"), exception=IMPORT_ERROR)
    options = module.params
    try:
        dsn = full_dsn(options["target_dsn"], options["passfile"])
        if options["state"] == "settled":
            module.exit_json(**asdict(carry_mark.settle(Path(options["source"]), dsn, check=module.check_mode)))
        if module.check_mode:
            module.exit_json(**predicted(dsn))
        base = Path(options["base"]) if options["base"] and Path(options["base"]).is_file() else None
        how = {name: options[name] for name in ("whole", "only_upgraded")}
        progress = options["progress_file"]
        with ProgressFile(Path(progress) if progress else None) as watcher:
            result = carry_back(Path(options["source"]), dsn, pensieve_package(), base=base, progress=watcher, **how)
    except EngineError as error:
        module.fail_json(msg=str(error))
    module.exit_json(rows=result.rows, **result.as_dict())


if __name__ == "__main__":
    main()
