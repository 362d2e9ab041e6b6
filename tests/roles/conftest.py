"""A real Pensieve for the tests of the playbooks, and a way to run these."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sample_installation.environment import version_of
from sample_installation.installation import Installation, Settings

ROOT = Path(__file__).parents[2]

NOBODY = "autotask-postgres-nobody"

Playbook = Callable[..., "subprocess.CompletedProcess[str]"]


class Refused(Exception):
    """What a module's fail_json does to the one who called it."""


class Module:
    """What tests need of an Ansible module: parameters, warnings, and that it fails."""

    check_mode = False

    def __init__(self, **params: Any) -> None:
        self.params = params
        self.warnings: list[str] = []

    def warn(self, warning: str) -> None:
        self.warnings.append(warning)

    def fail_json(self, msg: str) -> None:
        raise Refused(msg)


def free_ports(count: int) -> list[int]:
    """Ports on the loopback interface that nothing listens on, one after the other.

    By chance, since a server of the tests takes its port minutes later: another run is not to find the same ones.
    """
    for first in random.sample(range(20000, 30000 - count), 100):
        try:
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return list(range(first, first + count))
    raise RuntimeError("no free ports")


@contextmanager
def own_server(name: str) -> Iterator[dict[str, str]]:
    """Variables of a server that playbooks will make; it is removed in the end with its data."""
    yield {"postgres_container_name": name, "postgres_volume_name": name, "postgres_port": str(free_ports(1)[0])}
    subprocess.run(["docker", "rm", "--force", name], check=True, capture_output=True)
    subprocess.run(["docker", "volume", "rm", "--force", name], check=True, capture_output=True)
    subprocess.run(["docker", "network", "rm", name], check=False, capture_output=True)


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A file system of its own, that can be full."""
    folder.mkdir()
    root = [] if os.geteuid() == 0 else ["sudo", "--non-interactive"]
    options = f"size={megabytes}m,mode=700,uid={os.geteuid()},gid={os.getegid()}"
    subprocess.run([*root, "mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run([*root, "umount", "--lazy", str(folder)], check=True)


def fill(disk: Path, left: int) -> Path:
    """Leave so many bytes on a disk; give the file that takes the rest."""
    filler = disk / "filler"
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free - left)
    return filler


def person() -> dict[str, str]:
    """The environment of a person: without the password file that the servers of other tests leave in this process."""
    kept = {name: value for name, value in os.environ.items() if name != "PGPASSFILE"}
    return {**kept, "ANSIBLE_FORCE_COLOR": "0", "ANSIBLE_NOCOLOR": "1"}


@pytest.fixture(scope="session")
def pensieve_venv() -> Path:
    """The virtual environment with Pensieve that `scripts/test` makes."""
    path = os.environ.get("PENSIEVE_VENV")
    if not path:
        pytest.fail("PENSIEVE_VENV is not set; run scripts/test, which makes that environment")
    return Path(path)


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory, pensieve_venv: Path) -> Iterator[Installation]:
    """A real Pensieve with a few records, running on SQLite."""
    settings = Settings(
        root=tmp_path_factory.mktemp("sample"),
        version=version_of(pensieve_venv),
        venv=pensieve_venv,
        port=free_ports(2)[0],
        count=20,
    )
    installation = Installation(settings)
    installation.make()
    yield installation
    installation.remove()


@pytest.fixture
def playbook() -> Playbook:
    """Runs a playbook from the root as a person does, with extra variables.

    The server's names and port are no person's: a demo, or a migrated Pensieve, may have the defaults on this machine.
    """
    own = {"postgres_container_name": NOBODY, "postgres_volume_name": NOBODY, "postgres_port": str(free_ports(1)[0])}

    def run(name: str, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
        ansible = Path(sys.executable).parent / "ansible-playbook"
        command = [
            str(ansible) if ansible.exists() else shutil.which("ansible-playbook") or "ansible-playbook",
            name,
            *options,
        ]
        for variable, value in {**own, **variables}.items():
            command += ["-e", f"{variable}={value}"]
        return subprocess.run(command, cwd=ROOT, env=person(), capture_output=True, text=True, check=False)

    return run
