#!/usr/bin/python
"""Ansible module: time both applications' queries on SQLite and PostgreSQL, and judge the vector search."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: application_queries_measured
short_description: Time both applications' queries on SQLite and on PostgreSQL, and judge the vector search
description:
  - Runs with Pensieve's interpreter. Pensieve's questions are asked with Pensieve's own code, AutoTaskTracker's in
    SQLite's SQL, on PostgreSQL through the module that the migration puts into AutoTaskTracker.
  - The SQLite database is copied beside itself first, asked there, and the copy removed. PostgreSQL is only read; an
    insert is measured in a transaction that is rolled back (it uses up an id of the sequence).
options:
  source:
    description:
      - SQLite database to compare with, such as the backup of the migration.
      - Empty, only the vectors are looked at.
    type: path
    default: ''
  target:
    description: URI of PostgreSQL, without a password.
    type: str
    required: true
  seconds:
    description:
      - How long each query is repeated on each side.
      - One that misses a bar is measured again, four times as long, and that counts.
    type: float
    default: 1.0
  milliseconds:
    description: How much the median of a query may be above SQLite's.
    type: float
    default: 2.0
  speedup:
    description: How many times faster searches must be.
    type: float
    default: 2.0
  speedup_from:
    description: Screenshots from which O(speedup) is asked for.
    type: int
    default: 50000
  judged_from:
    description: Screenshots from which times are judged; below, they are those of a round trip.
    type: int
    default: 10000
  recall:
    description: Part of the ten nearest neighbours that vector search must find.
    type: float
    default: 0.95
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
- name: Measure
  application_queries_measured:
    source: /home/ada/.local/state/pensieve-postgres/backups/20250701T120000Z/database.db
    target: postgresql://autotasktracker@127.0.0.1:5433/autotasktracker
  environment:
    HOME: /home/ada
  register: measured
"""

RETURN = r"""
checks:
  description: The points of the plan that this decides, each with C(point), C(what), C(result) and C(evidence).
  returned: success
  type: list
  elements: dict
queries:
  description: Median and 95th percentile of each query on both sides, in milliseconds, and how many rows came back.
  returned: success
  type: list
  elements: dict
vectors:
  description: Count, dimensions, index, settings and recall of the vector search.
  returned: success
  type: dict
pool:
  description: Pensieve's pool of connections.
  returned: success
  type: dict
entities:
  description: Screenshots in the SQLite database.
  returned: success
  type: int
"""

import contextlib
import io
import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule


class Refusal(Exception):
    """What was found, what was expected, what to do next."""


def measured(parameters: dict[str, Any]) -> dict[str, Any]:
    """Copy the SQLite database, measure, and judge. Raises Refusal when that cannot be."""
    source = Path(parameters["source"]) if parameters["source"] else None
    if source and not source.is_file():
        raise Refusal(f"no {source}", "the backup that the migration made", "restore that file from your own backups")
    try:
        from ansible.module_utils import application_queries as measuring
    except ImportError as error:
        raise Refusal(
            f"the interpreter cannot import what Pensieve needs ({error})",
            "the interpreter of Pensieve's virtual environment",
            "name that environment: -e pensieve_venv=/path/to/venv",
        ) from error
    logging.disable(logging.CRITICAL)
    bars = measuring.Bars(
        **{name: parameters[name] for name in ("milliseconds", "speedup", "speedup_from", "judged_from", "recall")}
    )
    with tempfile.TemporaryDirectory(dir=source.parent if source else None, prefix="measure-") as scratch:
        copy = Path(scratch) / "database.db" if source else None
        if source and copy:
            room, size = shutil.disk_usage(scratch).free, source.stat().st_size
            if room < 1.2 * size:
                raise Refusal(
                    f"{room} bytes free in {source.parent}",
                    f"{int(1.2 * size)} bytes, for a copy of the SQLite database to be asked",
                    "make room there, or leave this out: -e checks_compare=false",
                )
            shutil.copyfile(source, copy)
        try:
            found = measuring.measure_all(
                str(copy) if copy else None, parameters["target"], bars, parameters["seconds"]
            )
        except Exception as error:
            raise Refusal(
                f"a query fails: {type(error).__name__}: {str(error).splitlines()[0]}",
                "answers from both databases",
                "ansible-playbook status.yml, and scripts/pensieve_health_check.py on the host",
            ) from error
    return {**found, "checks": measuring.judge(found, bars)}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "source": {"type": "path", "default": ""},
            "target": {"type": "str", "required": True},
            "seconds": {"type": "float", "default": 1.0},
            "milliseconds": {"type": "float", "default": 2.0},
            "speedup": {"type": "float", "default": 2.0},
            "speedup_from": {"type": "int", "default": 50000},
            "judged_from": {"type": "int", "default": 10000},
            "recall": {"type": "float", "default": 0.95},
        },
        supports_check_mode=True,
    )
    output = io.StringIO()
    try:
        # Pensieve's modules print and log while they are imported.
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            result = measured(module.params)
    except Refusal as refusal:
        found, expected, next_step = refusal.args
        module.fail_json(
            msg=f"Found: {found}\nExpected: {expected}\nUntouched: both databases.\nNext: {next_step}",
            output=output.getvalue()[-3000:],
        )
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
