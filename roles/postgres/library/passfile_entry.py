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
  - Returns the password, so that the role in the database can be given it; tasks need C(no_log).
    It is never part of a difference.
options:
  state:
    description: Whether the entry is to be there.
    type: str
    choices: [present, absent]
    default: present
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
  register: entry
  no_log: true
"""

RETURN = r"""
action:
  description: What happened to the entry.
  returned: always
  type: str
  choices: [kept, moved, generated, removed]
password:
  description: The password of the entry.
  returned: with state present
  type: str
"""

import os
import re
import secrets
import stat
import string
import tempfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

MODE = 0o600
# libpq takes all characters; these need no escaping in the file, in a URI and in a shell.
ALPHABET = string.ascii_letters + string.digits


def split_lines(content: bytes) -> list[bytes]:
    """Lines with their ends, as libpq reads them: only a line feed ends one."""
    return re.findall(rb"[^\n]*\n|[^\n]+", content)


def split_entry(line: bytes) -> list[bytes]:
    """Fields of a line, unescaped, with lone asterisks as they are: host, port, database, user, password."""
    fields = [b""]
    escaped = False
    for value in line:
        char = bytes([value])
        if escaped:
            fields[-1] += char
            escaped = False
        elif char == b"\\":
            escaped = True
        elif char == b":" and len(fields) < 5:
            fields.append(b"")
        else:
            fields[-1] += char
    return fields


def escape(field: str) -> str:
    """`field` as it stands in the file."""
    return field.replace("\\", "\\\\").replace(":", "\\:")


def matches(line: bytes, key: list[bytes]) -> bool:
    """Whether libpq would take this line for host, port, database and user in `key`."""
    if line.startswith(b"#"):
        return False
    fields = split_entry(line.rstrip(b"\r\n"))
    # An escaped asterisk is no wildcard for libpq either, but no name here holds one.
    return len(fields) == 5 and all(field in (b"*", wanted) for field, wanted in zip(fields, key))


def find_password(content: bytes, key: list[bytes]) -> bytes | None:
    """Password of the line that is exactly for `key`; wildcard lines are for others."""
    for line in split_lines(content):
        if not line.startswith(b"#"):
            fields = split_entry(line.rstrip(b"\r\n"))
            if len(fields) == 5 and fields[:4] == key and fields[4]:
                return fields[4]
    return None


def with_entry(content: bytes, key: list[bytes], password: bytes) -> bytes:
    """`content` with an entry for `key` that wins; itself if that is so already."""
    lines = split_lines(content)
    winner = next((line for line in lines if matches(line, key)), None)
    if winner is not None and split_entry(winner.rstrip(b"\r\n")) == [*key, password]:
        return content
    entry = ":".join(escape(field.decode()) for field in [*key, password]).encode() + b"\n"
    return entry + without_entry(content, key)


def without_entry(content: bytes, key: list[bytes]) -> bytes:
    """`content` without entries for exactly `key`."""
    lines = split_lines(content)
    others = [line for line in lines if line.startswith(b"#") or split_entry(line.rstrip(b"\r\n"))[:4] != key]
    return b"".join(others)


def remove(module: AnsibleModule, path: Path, before: bytes, key: list[bytes]) -> None:
    """Take the entry out, and end the module."""
    after = without_entry(before, key)
    if after != before and not module.check_mode:
        status = path.stat()
        try:
            write(path, after, status.st_uid, status.st_gid)
        except OSError as error:
            module.fail_json(msg=f"{path} is not writable: {error.strerror}")
    module.exit_json(changed=after != before, action="removed" if after != before else "kept")


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
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
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

    if params["state"] == "absent":
        remove(module, path, before, key)
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
        password=password.decode(),
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
