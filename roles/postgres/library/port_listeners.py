"""Say which processes listen on a TCP port."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: port_listeners
short_description: Processes that listen on a TCP port
description:
  - Reads C(/proc), and needs no program. Nothing is changed.
  - Of other users' processes only root sees the name.
options:
  port:
    description: TCP port.
    type: int
    required: true
  proc:
    description: Where the process file system is mounted.
    type: path
    default: /proc
attributes:
  check_mode:
    description: Only reads.
    support: full
  diff_mode:
    description: Nothing to differ.
    support: none
author: Pensieve migration maintainers
"""

EXAMPLES = r"""
- name: Ask who holds the port
  port_listeners:
    port: 5433
  register: listeners
"""

RETURN = r"""
listeners:
  description: One entry for each socket that a server on 127.0.0.1 would collide with.
  returned: always
  type: list
  elements: dict
  contains:
    address:
      description: Local address, 127.0.0.1, 0.0.0.0 or ::.
      type: str
    pid:
      description: Process, 0 if it is not to be seen.
      type: int
    holder:
      description: Name and number of the process in words, empty if it is not to be seen.
      type: str
"""

import ipaddress
import struct
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

LISTEN = "0A"
# A server on 127.0.0.1 cannot start where one of these addresses is taken on the same port.
COLLIDING = ("127.0.0.1", "0.0.0.0", "::", "::ffff:127.0.0.1", "::ffff:0.0.0.0")


def address(field: str) -> tuple[str, int]:
    """Address and port of a field of /proc/net/tcp: 32-bit words in the machine's byte order, hexadecimal."""
    words, port = field.split(":")
    raw = b"".join(struct.pack("=I", int(words[i : i + 8], 16)) for i in range(0, len(words), 8))
    if len(raw) == 4:
        return str(ipaddress.IPv4Address(raw)), int(port, 16)
    six = ipaddress.IPv6Address(raw)
    return (f"::ffff:{six.ipv4_mapped}" if six.ipv4_mapped else str(six)), int(port, 16)


def sockets(proc: Path, port: int) -> dict[str, str]:
    """Inode to address of the listening sockets on `port`."""
    found: dict[str, str] = {}
    for name in ("tcp", "tcp6"):
        table = proc / "net" / name
        if not table.is_file():
            continue
        for line in table.read_text(encoding="ascii").splitlines()[1:]:
            fields = line.split()
            local, at = address(fields[1])
            if fields[3] == LISTEN and at == port and local in COLLIDING:
                found[fields[9]] = local
    return found


def owners(proc: Path, inodes: dict[str, str]) -> dict[str, tuple[int, str]]:
    """Inode to process id and name, for those that may be seen."""
    found: dict[str, tuple[int, str]] = {}
    wanted = {f"socket:[{inode}]": inode for inode in inodes}
    for process in proc.iterdir():
        if not process.name.isdigit() or len(found) == len(wanted):
            continue
        try:
            for descriptor in (process / "fd").iterdir():
                inode = wanted.get(str(descriptor.readlink()))
                if inode is not None:
                    name = (process / "comm").read_text(encoding="utf-8", errors="replace").strip()
                    found[inode] = (int(process.name), name)
        except OSError:  # gone meanwhile, or another user's
            continue
    return found


def main() -> None:
    """Entry point of the module."""
    module = AnsibleModule(
        argument_spec={
            "port": {"type": "int", "required": True},
            "proc": {"type": "path", "default": "/proc"},
        },
        supports_check_mode=True,
    )
    proc = Path(module.params["proc"])
    found = sockets(proc, module.params["port"])
    names = owners(proc, found) if found else {}
    listeners: list[dict[str, Any]] = []
    for inode, local in sorted(found.items(), key=lambda item: item[1]):
        pid, process = names.get(inode, (0, ""))
        holder = f"{process} (process {pid})" if pid else ""
        listeners.append({"address": local, "pid": pid, "holder": holder})
    module.exit_json(changed=False, listeners=listeners)


if __name__ == "__main__":
    main()
