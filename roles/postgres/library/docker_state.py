"""Say what a Docker engine holds under the names of this project."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: docker_state
short_description: What the Docker engine holds under our names
description:
  - Asks the engine through its command line client, so that it works before anything is installed.
  - Nothing is changed.
  - An engine that is missing, stopped or not to be spoken to by this user is an answer and no failure.
options:
  container:
    description: Name of the container.
    type: str
    required: true
  volume:
    description: Name of the volume.
    type: str
    required: true
  network:
    description: Name of the network.
    type: str
    required: true
  images:
    description: Names of images.
    type: list
    elements: str
    required: true
  port:
    description: Port whose publishing containers are wanted.
    type: int
    required: true
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
- name: Look at what is there
  docker_state:
    container: autotask-postgres
    volume: autotask-postgres-data
    network: autotask-postgres
    images: [autotask-postgres:15-debian]
    port: 5433
"""

RETURN = r"""
reachable:
  description: Whether the engine answers this user.
  type: bool
  returned: always
root_user:
  description: Whether this was asked as root.
  type: bool
  returned: always
host:
  description:
    - Engine that the client speaks to by C(DOCKER_HOST) or by its context (Docker Desktop, a rootless engine), so that
      root and modules, which know no contexts, can be told to speak to the same one. Empty for the usual one.
  type: str
  returned: always
error:
  description: What the client said when the engine did not answer.
  type: str
  returned: always
client:
  description: Path of the client, empty if there is none.
  type: str
  returned: always
daemon:
  description: Path of the engine's program on this machine, empty if there is none.
  type: str
  returned: always
apt_get:
  description: Whether this machine has apt.
  type: bool
  returned: always
systemd:
  description: Whether systemd runs this machine.
  type: bool
  returned: always
memory_gb:
  description: Whole gigabytes of memory that containers may use.
  type: int
  returned: always
cores:
  description: Processors that containers may use.
  type: int
  returned: always
free_bytes:
  description: Bytes free where the engine keeps its data; -1 if that is not on this machine.
  type: int
  returned: always
root:
  description: Folder of the engine's data.
  type: str
  returned: always
container:
  description: The container of that name.
  type: dict
  returned: always
  contains:
    exists: {description: Whether it is there., type: bool}
    running: {description: Whether it runs., type: bool}
    image: {description: Name of its image., type: str}
    labels: {description: Its labels., type: dict}
    volumes: {description: Names of the volumes that it mounts., type: list}
    ports: {description: "Addresses that it publishes, as 127.0.0.1:5433.", type: list}
volume:
  description: The volume of that name.
  type: dict
  returned: always
  contains:
    exists: {description: Whether it is there., type: bool}
    labels: {description: Its labels., type: dict}
network:
  description: The network of that name.
  type: dict
  returned: always
  contains:
    exists: {description: Whether it is there., type: bool}
    labels: {description: Its labels., type: dict}
limits:
  description: What of a container the engine can limit.
  type: dict
  returned: always
  contains:
    memory: {description: Its memory., type: bool}
    pids: {description: The number of its processes., type: bool}
images:
  description: Of each image present its id and labels, by name.
  type: dict
  returned: always
publishing:
  description: Names of running containers that publish the port.
  type: list
  returned: always
"""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

# Seconds: an engine that accepts the connection and never answers must not hang the run.
TIMEOUT = 60


class Client:
    """The Docker command line client."""

    def __init__(self, program: str) -> None:
        self.program = program

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the client; its exit code tells, nothing is raised but for a time out."""
        return subprocess.run(
            [self.program, *arguments],
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=False,
            timeout=TIMEOUT,
        )

    def inspect(self, kind: str, name: str) -> dict[str, Any]:
        """What `docker <kind> inspect` says of `name`, empty if there is none."""
        answer = self.run(kind, "inspect", name)
        found: list[dict[str, Any]] = json.loads(answer.stdout) if answer.returncode == 0 else []
        return found[0] if found else {}


def engine(client: Client) -> str:
    """Address of the engine that the client speaks to; empty for the usual one."""
    named = os.environ.get("DOCKER_HOST", "")
    if named:
        return named
    address = client.run("context", "inspect", "--format", "{{.Endpoints.docker.Host}}").stdout.strip()
    return "" if address == "unix:///var/run/docker.sock" else address


def published(container: dict[str, Any]) -> list[str]:
    """Addresses that a container is configured to publish, running or not."""
    bindings: dict[str, list[dict[str, str]] | None] = container.get("HostConfig", {}).get("PortBindings") or {}
    return sorted(
        f"{binding.get('HostIp') or '0.0.0.0'}:{binding.get('HostPort', '')}"
        for each in bindings.values()
        for binding in each or []
    )


def empty() -> dict[str, Any]:
    """The answer for a machine where no engine answers."""
    return {
        "reachable": False,
        "root_user": os.geteuid() == 0,
        "host": os.environ.get("DOCKER_HOST", ""),
        "error": "",
        "client": shutil.which("docker") or "",
        "daemon": shutil.which("dockerd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin") or "",
        "apt_get": shutil.which("apt-get") is not None,
        "systemd": Path("/run/systemd/system").is_dir(),
        "memory_gb": 1,
        "cores": 1,
        "free_bytes": -1,
        "root": "",
        "container": {
            "exists": False,
            "running": False,
            "image": "",
            "labels": {},
            "volumes": [],
            "ports": [],
        },
        "volume": {"exists": False, "labels": {}},
        "network": {"exists": False, "labels": {}},
        "limits": {"memory": False, "pids": False},
        "images": {},
        "publishing": [],
    }


def observe(params: dict[str, Any]) -> dict[str, Any]:
    """Everything that the engine says of the names in `params`."""
    state = empty()
    if not state["client"]:
        state["error"] = "docker: command not found"
        return state
    client = Client(state["client"])
    try:
        state["host"] = engine(client)
        answer = client.run("info", "--format", "{{json .}}")
    except subprocess.TimeoutExpired:
        state["error"] = f"docker: no answer in {TIMEOUT} seconds"
        return state
    try:
        info: dict[str, Any] = json.loads(answer.stdout)
    except ValueError:
        info = {}
    if not info.get("ServerVersion"):
        errors = info.get("ServerErrors") or [answer.stderr.strip() or "docker info: no answer"]
        state["error"] = "; ".join(str(error).strip() for error in errors)
        return state

    state["reachable"] = True
    # At least one: an engine that does not tell is treated as a small machine.
    state["memory_gb"] = max(int(info.get("MemTotal", 0)) // 2**30, 1)
    state["cores"] = max(int(info.get("NCPU", 0)), 1)
    state["limits"] = {"memory": bool(info.get("MemoryLimit")), "pids": bool(info.get("PidsLimit"))}
    state["root"] = info.get("DockerRootDir", "")
    if state["root"] and Path(state["root"]).exists():
        disk = os.statvfs(state["root"])
        state["free_bytes"] = disk.f_bavail * disk.f_frsize

    container = client.inspect("container", params["container"])
    if container:
        state["container"] = {
            "exists": True,
            "running": bool(container["State"]["Running"]),
            "image": container["Config"]["Image"],
            "labels": container["Config"].get("Labels") or {},
            "volumes": sorted(mount["Name"] for mount in container.get("Mounts", []) if mount.get("Name")),
            "ports": published(container),
        }
    for kind in ("volume", "network"):
        found = client.inspect(kind, params[kind])
        if found:
            state[kind] = {"exists": True, "labels": found.get("Labels") or {}}
    for name in params["images"]:
        image = client.inspect("image", name)
        if image:
            state["images"][name] = {
                "id": image["Id"],
                "labels": (image.get("Config") or {}).get("Labels") or {},
            }
    names = client.run("ps", "--filter", f"publish={params['port']}", "--format", "{{.Names}}").stdout.split()
    state["publishing"] = sorted(names)
    return state


def main() -> None:
    """Entry point of the module."""
    module = AnsibleModule(
        argument_spec={
            "container": {"type": "str", "required": True},
            "volume": {"type": "str", "required": True},
            "network": {"type": "str", "required": True},
            "images": {"type": "list", "elements": "str", "required": True},
            "port": {"type": "int", "required": True},
        },
        supports_check_mode=True,
    )
    module.exit_json(changed=False, **observe(module.params))


if __name__ == "__main__":
    main()
