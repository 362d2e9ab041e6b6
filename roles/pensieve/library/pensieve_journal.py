#!/usr/bin/python
"""Ansible module: claim an installation for one operation, and keep the journal of what is done to it."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: pensieve_journal
short_description: Claim an installation for one operation, and keep the journal of what is done to it
description:
  - The journal is a file to which records are only added. A record is on the disk before the act that it names.
  - The claim says which operation is under way. A second one is refused, and told who began the first. The claim of a
    run that was killed is taken over; it lives by the process C(ansible-playbook), or by the login over SSH. What its
    modules still do then is ended.
options:
  state_dir:
    description: Directory of the journal.
    type: path
    required: true
  state:
    description: V(claimed) begins an operation, V(released) ends it, V(recorded) adds a record, V(told) only reads.
    type: str
    choices: [claimed, released, recorded, told]
    required: true
  operation:
    description: Name of the playbook. Needed for V(claimed).
    type: str
  who:
    description: Person and machine that begin it, for the message that refuses another one.
    type: str
    default: somebody
  user_home:
    description:
      - Home of the user who runs Pensieve. V(claimed) refuses one of another user than that of this process, and leaves
        everything as it is in one that holds no settings of Pensieve, where the run is refused anyway. V(told) reads as
        that user's what lies in O(state_dir).
    type: path
  record:
    description: What to add, for V(recorded).
    type: dict
  required:
    description: Whether a record that cannot be written is a failure. If not, it is a warning.
    type: bool
    default: true
attributes:
  check_mode:
    support: full
    description: Neither claims nor records, but refuses what it would refuse.
  diff_mode:
    support: none
    description: There is no text to compare.
author:
  - Pensieve migration maintainers (@pensieve-migration)
"""

EXAMPLES = r"""
- name: Begin
  pensieve_journal:
    state_dir: /home/ada/.local/state/pensieve-postgres
    user_home: /home/ada
    operation: migrate
    who: ada@laptop
    state: claimed
"""

RETURN = r"""
standing:
  description: What the journal says. C(backend) is the database that Pensieve is to run on, C(owes_start) tells that it
    was stopped and not started since, C(operation), C(step) and C(at) are those of the last record.
  returned: always
  type: dict
  sample: {"backend": "sqlite", "owes_start": true, "operation": "migrate.yml", "step": "stop", "at": "…"}
holder:
  description: The operation whose claim is there; C(lives) tells whether it is under way. Empty when there is none.
  returned: always
  type: dict
interrupted:
  description: The operation before, which came to no end. Empty when there is none.
  returned: with state claimed
  type: dict
"""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ansible.module_utils import migration_journal as journal
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.ownership import name_of, owner_of


def told(state_dir: Path, uid: int | None) -> dict[str, Any]:
    """Standing and claim, as plain data; of a user's state directory, by default that of this process."""
    held = journal.holder(state_dir, uid)
    holder = {} if held is None else {**asdict(held), "lives": journal.lives(state_dir, held)}
    standing = asdict(journal.read(state_dir, uid))
    standing.pop("facts")
    return {"standing": standing, "holder": holder}


def owner(path: Path) -> int | None:
    """The user who owns a folder; None when there is none, or nobody can tell."""
    try:
        return int(owner_of(path))
    except OSError:
        return None


def not_own(home: Path, uid: int) -> str:
    """Why nothing begins in the home of another user."""
    own, whose = name_of(os.geteuid()), name_of(uid)
    return (
        f"Found: this runs as {own}, and {home} belongs to {whose}.\n"
        f"Expected: both the same user; with sudo or the group docker, {whose} needs no root.\n"
        "Untouched: everything; this run has read nothing there and changed nothing.\n"
        f"Next: as {whose}: ansible-playbook …; on another machine: ansible_user: {whose} in the inventory."
    )


def still_working(pids: list[int]) -> str:
    """Why no operation begins while processes of one that is dead still work."""
    named = ", ".join(map(str, pids))
    return (
        f"Found: processes {named} still work for an earlier run, which is gone.\n"
        "Expected: one operation at a time on an installation.\n"
        "Untouched: everything; this run has changed nothing.\n"
        f"Next: wait until they have ended (ps {named}), or end them; then run the playbook again."
    )


def refusal(held: journal.Holder, state_dir: Path) -> str:
    """Why a second operation does not begin."""
    process = f"process {held.pid}" if held.pid else "its process is not of this machine"
    end = f"end process {held.pid}" if held.pid else f"remove {state_dir / journal.CLAIM}"
    return (
        f"Found: {held.operation} is under way here, begun by {held.who} at {held.since} ({process}).\n"
        "Expected: one operation at a time on an installation.\n"
        "Untouched: everything; this run has changed nothing.\n"
        "Next: wait until it has ended (ansible-playbook status.yml tells), then run the playbook again. "
        f"If nobody is there any more who could end it: {end}."
    )


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state_dir": {"type": "path", "required": True},
            "state": {"type": "str", "choices": ["claimed", "released", "recorded", "told"], "required": True},
            "operation": {"type": "str"},
            "who": {"type": "str", "default": "somebody"},
            "user_home": {"type": "path"},
            "record": {"type": "dict"},
            "required": {"type": "bool", "default": True},
        },
        required_if=[("state", "claimed", ("operation", "user_home")), ("state", "recorded", ("record",))],
        supports_check_mode=True,
    )
    params = module.params
    uid = owner(Path(params["user_home"])) if params["user_home"] else None
    state_dir, state = Path(params["state_dir"]), params["state"]
    before: journal.Holder | None = None
    try:
        if state == "claimed":
            home = Path(params["user_home"])
            if uid not in (os.geteuid(), None):
                module.fail_json(msg=not_own(home, uid))
            held = journal.holder(state_dir)
            if module.check_mode:
                if held and not journal.is_own(held) and journal.lives(state_dir, held):
                    raise journal.HeldError(held)
            elif uid is not None and (home / ".memos" / "config.yaml").exists() or owner(state_dir) == os.geteuid():
                before = journal.claim(state_dir, params["operation"], params["who"])
                # Only a migration goes on with a snapshot; any other would leave its reader to SQLite for hours.
                if working := journal.end_left_over(state_dir, snapshot=params["operation"] != "migrate.yml"):
                    journal.release(state_dir)
                    module.fail_json(msg=still_working(working))
        elif state == "released" and not module.check_mode:
            journal.release(state_dir)
        elif state == "recorded" and not module.check_mode:
            journal.append(state_dir, params["record"])
    except journal.HeldError as error:
        module.fail_json(msg=refusal(error.holder, state_dir))
    except OSError as error:
        if not params["required"]:
            module.warn(f"the journal in {state_dir} cannot be written: {error}")
            module.exit_json(changed=False, interrupted={}, **told(state_dir, uid))
        module.fail_json(
            msg=f"Found: the journal in {state_dir} cannot be written: {error}. Expected: room and the right to write "
            "there. Untouched: Pensieve, its settings and both databases by this step, which has done nothing. "
            "Next: mend that, then run the playbook again."
        )
    interrupted = {} if before is None else asdict(before)
    try:
        module.exit_json(changed=state == "recorded", interrupted=interrupted, **told(state_dir, uid))
    except OSError as error:
        module.fail_json(
            msg=f"Found: the journal in {state_dir} cannot be read: {error}. Expected: a journal of the user who runs "
            "this. Untouched: Pensieve, its settings and both databases by this step. "
            "Next: see whose it is, and mend that, then run the playbook again."
        )


if __name__ == "__main__":
    main()
