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
  - The password is in the file alone, and no part of what the module returns.
options:
  path:
    description: The password file. A symbolic link is followed.
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
    description: Owner of the file, as number. Minus one leaves it to the system.
    type: int
    default: -1
  group:
    description: Group of the file, as number. Minus one leaves it to the system.
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
  choices: [kept, moved, generated]
"""

import os
import secrets
import stat
import string
import tempfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.passfile import find_password, with_entry

MODE = 0o600
# libpq takes all characters; these need no escaping in the file, in a URI and in a shell.
ALPHABET = string.ascii_letters + string.digits


def write(path: Path, content: bytes, owner: int, group: int) -> None:
    """Replace `path` at once: a reader sees the old file or the new one, and others see neither."""
    target = Path(os.path.realpath(path))
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=".pgpass-")
    try:
        os.fchmod(descriptor, MODE)
        if os.geteuid() == 0:
            os.fchown(descriptor, owner, group)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink()
        raise


def main() -> None:
    """Entry point of the module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "host": {"type": "str", "default": "127.0.0.1"},
            "port": {"type": "int", "required": True},
            "database": {"type": "str", "required": True},
            "user": {"type": "str", "required": True},
            "owner": {"type": "int", "default": -1},
            "group": {"type": "int", "default": -1},
            "length": {"type": "int", "default": 32},
        },
        supports_check_mode=True,
    )
    params = module.params
    path = Path(params["path"])
    key = [str(params[name]).encode() for name in ("host", "port", "database", "user")]
    try:
        before = path.read_bytes() if path.exists() else b""
        found = path.stat() if path.exists() else None
    except OSError as error:
        module.fail_json(msg=f"{path} is not readable: {error.strerror}")

    password = find_password(before, key)
    action = "kept"
    if password is None:
        action = "generated"
        password = "".join(secrets.choice(ALPHABET) for _ in range(params["length"])).encode()
    after = with_entry(before, key, password)
    if action == "kept" and after != before:
        action = "moved"

    mode = stat.S_IMODE(found.st_mode) if found else None
    owner, group = params["owner"], params["group"]
    owned = found is None or os.geteuid() != 0 or (owner in (-1, found.st_uid) and group in (-1, found.st_gid))
    changed = after != before or mode != MODE or not owned
    if changed and not module.check_mode:
        try:
            write(path, after, owner, group)
        except OSError as error:
            module.fail_json(msg=f"{path} is not writable: {error.strerror}")

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
            "after": {"mode": f"{MODE:04o}", name: "first"},
        },
    )


if __name__ == "__main__":
    main()
