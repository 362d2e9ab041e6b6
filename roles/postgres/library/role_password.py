"""Have a role of a PostgreSQL server in a container accept the password that a password file holds."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: role_password
short_description: A role's password is the one of a password file
description:
  - Compares what the server keeps of a role's password with an entry of a password file, and sets it where they differ.
  - Speaks to the server through its socket in the container, where the system's user postgres needs no password.
  - The password is in no argument and no result, and the server is given only what it keeps of it (SCRAM-SHA-256).
options:
  container:
    description: Name of the container.
    type: str
    required: true
  role:
    description: Name of the role.
    type: str
    required: true
  passfile:
    description: The password file, with an entry for the very server, port, database and role.
    type: path
    required: true
  owner:
    description: uid of the user whose file it is. One that somebody else owns is refused.
    type: int
    required: true
  host:
    description: Server, as the entry names it.
    type: str
    default: 127.0.0.1
  port:
    description: Port, as the entry names it.
    type: int
    required: true
  database:
    description: Database, as the entry names it.
    type: str
    required: true
attributes:
  check_mode:
    description: Predicts without setting anything.
    support: full
  diff_mode:
    description: Nothing of a password is shown.
    support: none
author: Pensieve migration maintainers
"""

EXAMPLES = r"""
- name: Have the owner's password
  role_password:
    container: autotask-postgres
    role: autotasktracker
    passfile: /home/ann/.pgpass
    owner: 1000
    port: 5433
    database: autotasktracker
"""

RETURN = r"""
"""

import base64
import contextlib
import hashlib
import hmac
import re
import secrets
import subprocess
from pathlib import Path

from ansible.module_utils import whole_file
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.passfile import find_password

# Those of the server itself.
ITERATIONS = 4096
SALT_BYTES = 16
# Seconds: a server that was paused must not hang the run.
TIMEOUT = 60

ASK = "SELECT rolpassword FROM pg_catalog.pg_authid WHERE rolname OPERATOR(pg_catalog.=) :'role';"
SET = "ALTER ROLE :\"role\" PASSWORD '{}';"


def kept(password: bytes, salt: bytes, iterations: int = ITERATIONS) -> str:
    """What a server keeps of `password`, by RFC 5803. ASCII needs no normalization (SASLprep)."""
    salted = hashlib.pbkdf2_hmac("sha256", password, salt, iterations)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    encoded = [base64.b64encode(part).decode() for part in (salt, stored, server)]
    return f"SCRAM-SHA-256${iterations}:{encoded[0]}${encoded[1]}:{encoded[2]}"


def is_kept(password: bytes, verifier: str) -> bool:
    """Whether `verifier` was made of `password`."""
    found = re.fullmatch(r"SCRAM-SHA-256\$(\d+):([^$]+)\$.+", verifier)
    return found is not None and hmac.compare_digest(
        kept(password, base64.b64decode(found[2]), int(found[1])), verifier
    )


def psql(container: str, role: str, statement: str) -> str:
    """Run a statement as superuser; raises RuntimeError with what psql says."""
    command = ["docker", "exec", "--interactive", "--user=postgres", "--env=PGOPTIONS=-c search_path=pg_catalog"]
    command += [container, "psql", "--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1"]
    command += [f"--set=role={role}", "--dbname=postgres", "--file=-"]
    try:
        done = subprocess.run(
            command, input=statement, capture_output=True, text=True, encoding="utf-8", check=False, timeout=TIMEOUT
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"no answer in {TIMEOUT} seconds") from None
    if done.returncode:
        raise RuntimeError(done.stderr.strip() or f"exit code {done.returncode}")
    return done.stdout.strip()


def main() -> None:
    """Entry point of the module."""
    module = AnsibleModule(
        argument_spec={
            "container": {"type": "str", "required": True},
            "role": {"type": "str", "required": True},
            "passfile": {"type": "path", "required": True},
            "owner": {"type": "int", "required": True},
            "host": {"type": "str", "default": "127.0.0.1"},
            "port": {"type": "int", "required": True},
            "database": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    params = module.params
    key = [str(params[name]).encode() for name in ("host", "port", "database", "role")]
    try:
        content = b""
        with contextlib.suppress(FileNotFoundError):
            content = whole_file.read(Path(params["passfile"]), params["owner"])
        password = find_password(content, key)
        if password is None and module.check_mode:
            module.exit_json(changed=True)
        if password is None:
            raise RuntimeError(f"{params['passfile']} has no entry for {b':'.join(key).decode()}")
        differs = not is_kept(password, psql(params["container"], params["role"], ASK))
        if differs and not module.check_mode:
            psql(params["container"], params["role"], SET.format(kept(password, secrets.token_bytes(SALT_BYTES))))
    except (OSError, RuntimeError) as error:
        module.fail_json(
            msg=f"Found: the role {params['role']} cannot be given its password: {error}. Expected: the container "
            f"{params['container']} answers, and {params['passfile']} holds the password. Untouched: that file, and "
            "all rows. Next: mend that, then run the playbook again."
        )
    module.exit_json(changed=differs)


if __name__ == "__main__":
    main()
