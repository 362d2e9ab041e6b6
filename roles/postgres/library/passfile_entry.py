"""Keep one entry of a libpq password file, and every other byte of it as it is."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: passfile_entry
short_description: An entry of a libpq password file (C(.pgpass))
description:
  - Makes sure that libpq finds a password for a server, port, database and user, and that no earlier wildcard
    entry wins over it.
  - All other lines stay byte for byte. The file gets mode 0600, without which libpq ignores it.
  - V(absent) takes the entry out.
  - The password is in the file alone, and no part of what the module returns.
options:
  state:
    description: Whether the entry is to be there.
    type: str
    choices: [present, absent]
    default: present
  path:
    description:
      - The password file. A link of the owner's to a file of the owner's is followed. Its folder is made, mode 0700.
      - One that belongs to somebody else is refused, whatever leads to it.
    type: path
    required: true
  host:
    description: Server, as the application names it.
    type: str
    default: 127.0.0.1
  port:
    description: Port of the server.
    type: int
    required: true
  database:
    description: Database.
    type: str
    required: true
  user:
    description: Role.
    type: str
    required: true
  owner:
    description: Number of the user who owns the file, and as whom root reads and writes it. Minus one is this process'.
    type: int
    default: -1
  length:
    description: Length of a password that has to be generated.
    type: int
    default: 32
attributes:
  check_mode:
    description: Predicts without writing.
    support: full
  diff_mode:
    description: Shows what happens to the entry and the mode, without the password.
    support: full
author: Pensieve migration maintainers
"""

EXAMPLES = r"""
- name: Let the application find its password
  passfile_entry:
    path: /home/ann/.pgpass
    port: 5433
    database: autotasktracker
    user: autotasktracker
"""

RETURN = r"""
action:
  description: What happened to the entry.
  returned: always
  type: str
  choices: [kept, moved, generated, removed]
"""

import contextlib
import os
import secrets
import stat
import string
from pathlib import Path

from ansible.module_utils import whole_file
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.ownership import acting_as, name_of
from ansible.module_utils.passfile import find_password, with_entry, without_entry

MODE = 0o600
# libpq takes all characters; these need no escaping in the file, in a URI and in a shell.
ALPHABET = string.ascii_letters + string.digits


def main() -> None:
    """Entry point of the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "path": {"type": "path", "required": True},
            "host": {"type": "str", "default": "127.0.0.1"},
            "port": {"type": "int", "required": True},
            "database": {"type": "str", "required": True},
            "user": {"type": "str", "required": True},
            "owner": {"type": "int", "default": -1},
            "length": {"type": "int", "default": 32},
        },
        supports_check_mode=True,
    )
    params = module.params
    path = Path(params["path"])
    key = [str(params[name]).encode() for name in ("host", "port", "database", "user")]
    owner = params["owner"] if params["owner"] >= 0 else os.geteuid()
    before, mode, action = b"", None, "kept"
    try:
        with acting_as(owner):
            with contextlib.suppress(FileNotFoundError):
                before, mode = whole_file.read(path, owner), stat.S_IMODE(whole_file.status_of(path).st_mode)
            found = find_password(before, key)
            if params["state"] == "absent":
                after = without_entry(before, key)
                action = "removed" if after != before else "kept"
            else:
                action = "kept" if found else "generated"
                password = found or "".join(secrets.choice(ALPHABET) for _ in range(params["length"])).encode()
                after = with_entry(before, key, password)
                action = "moved" if found and after != before else action
            changed = after != before or (params["state"] == "present" and mode != MODE)
            if changed and not module.check_mode:
                whole_file.make_folder(path.parent)
                whole_file.write(path, after, MODE)
    except OSError as error:
        module.fail_json(
            msg=f"Found: {path}: {error.strerror}. Expected: a password file that {name_of(owner)} owns and may write, "
            "or none; a link has to be this user's, too. Untouched: that file, and what it leads to. "
            "Next: put it right, or move it away; then run the playbook again."
        )

    name = ":".join(field.decode() for field in key)
    module.exit_json(
        changed=changed,
        action=action,
        diff={
            "before_header": str(path),
            "after_header": str(path),
            "before": {
                "mode": f"{mode:04o}" if mode is not None else "absent",
                name: "first" if action == "kept" else "",
            },
            "after": {"mode": f"{MODE:04o}", name: "first" if params["state"] == "present" else ""},
        },
    )


if __name__ == "__main__":
    main()
