"""Find the processes of one Pensieve installation, and nobody else's.

Pensieve's own `memos stop` and `memos ps` match command lines on the whole machine, whoever's home they belong to.
Here a process belongs to an installation when it runs `memos.commands <service>` with that installation's HOME.

Linux only: everything is read from /proc.
"""

from __future__ import annotations

import os
import pwd
import re
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

SERVICES = ("serve", "record", "watch")
"""Services of Pensieve in the order in which they start; they stop in the opposite order."""

RUNNERS = ("memos.commands", "memos", "pen")
"""What a command line calls Pensieve by: the module, or one of its console scripts."""

SETTINGS = ("base_dir", "database_path", "screenshots_dir", "server_host", "server_port", "embedding")
"""Settings of config.yaml that a migration goes by, and that a variable MEMOS_<name> in any case beats."""


@dataclass(frozen=True)
class Process:
    """One running service.

    Attributes:
        pid: process id.
        service: one of SERVICES.
        environment: its variables; none where this user may not read them.
        uid: of the user who runs it.
    """

    pid: int
    service: str
    environment: dict[str, str]
    uid: int


@dataclass(frozen=True)
class Unit:
    """A systemd service.

    Attributes:
        name: like `pensieve.service`.
        scope: whose manager it is of, `user` or `system`.
    """

    name: str
    scope: str


def _read(path: Path) -> bytes:
    """Content of a /proc file, or nothing when the process is gone or not ours to read."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _environment(pid: int) -> dict[str, str]:
    pairs = (item.partition("=") for item in _read(Path(f"/proc/{pid}/environ")).decode(errors="replace").split("\0"))
    return {name: value for name, separator, value in pairs if separator}


def _service_of(argv: list[str]) -> str | None:
    """The service that a command line runs, else None."""
    for position, word in enumerate(argv[:-1]):
        if Path(word).name in RUNNERS and argv[position + 1] in SERVICES:
            return argv[position + 1]
    return None


def _contained(pid: int) -> bool:
    """Whether a process has other files than this one, as in a container, where the same paths mean others."""
    try:
        return not Path(f"/proc/{pid}/root").samefile("/")
    except OSError:  # not this user's to look at
        return False


def _owner(pid: int) -> int | None:
    """The user who runs a process, or None when it is gone."""
    try:
        return Path(f"/proc/{pid}").stat().st_uid
    except OSError:
        return None


def _home_of(uid: int, environment: dict[str, str]) -> Path | None:
    home = environment.get("HOME")
    if not home:
        try:
            home = pwd.getpwuid(uid).pw_dir
        except KeyError:
            return None
    return Path(home).resolve()


def _pids() -> Iterator[int]:
    return (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())


def find(home: Path) -> list[Process]:
    """Services of the installation whose user home is `home`, in no particular order."""
    found = []
    for pid in _pids():
        argv = _read(Path(f"/proc/{pid}/cmdline")).decode(errors="replace").rstrip("\0").split("\0")
        service = _service_of(argv)
        uid = _owner(pid)
        if service is None or uid is None or _contained(pid):
            continue
        environment = _environment(pid)
        if _home_of(uid, environment) == home.resolve():
            found.append(Process(pid, service, environment, uid))
    return found


def overrides(environment: Iterable[str]) -> list[str]:
    """Those of the variables that beat one of SETTINGS, sorted; Pensieve takes them in upper and in lower case."""
    return sorted(name for name in environment if name.lower() in {f"memos_{setting}" for setting in SETTINGS})


def unit_of(pid: int) -> Unit | None:
    """The systemd service in whose control group a process is; None for one of a login, or without systemd."""
    return unit_in(_read(Path(f"/proc/{pid}/cgroup")).decode(errors="replace"))


def unit_in(cgroup: str) -> Unit | None:
    """The same from the text of /proc/<pid>/cgroup. Source: cgroups(7), systemd's CGROUP_DELEGATION."""
    groups = cgroup.splitlines()
    # systemd's own hierarchy, where there are several; else the one and only.
    group = next((line for line in groups if ":name=systemd:" in line), groups[-1] if groups else "")
    parts = [part for part in group.rpartition(":")[2].split("/") if part.endswith(".service")]
    managers = [part for part in parts if re.fullmatch(r"user@\d+\.service", part)]
    if not parts or parts[-1] in managers:
        return None
    return Unit(parts[-1], "user" if managers else "system")


def show(unit: Unit, *properties: str) -> dict[str, str]:
    """Properties of a unit by `systemctl show`; none where no systemd answers.

    Source: org.freedesktop.systemd1(5).
    """
    command = ["systemctl", f"--{unit.scope}", "show", unit.name, *(f"--property={name}" for name in properties)]
    environment = {"XDG_RUNTIME_DIR": f"/run/user/{os.geteuid()}", **os.environ}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line) if done.returncode == 0 else {}


def units(processes: list[Process]) -> dict[Unit, list[str]]:
    """The systemd services that keep these processes, and which of SERVICES each keeps.

    A unit counts when its main process is one of them, or when its command is Pensieve's. One in which they merely run,
    like that of cron or of a supervisor of many programs, does not: nobody wants it stopped.
    """
    groups: dict[Unit, list[Process]] = {}
    for process in processes:
        if unit := unit_of(process.pid):
            groups.setdefault(unit, []).append(process)
    kept = {}
    for unit, members in groups.items():
        told = show(unit, "MainPID", "ExecStart")
        words = told.get("ExecStart", "").split()
        ours = any(Path(word).name in RUNNERS or "/.memos/" in word for word in words)
        if ours or told.get("MainPID") in {str(process.pid) for process in members}:
            kept[unit] = sorted({process.service for process in members}, key=SERVICES.index)
    return kept


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and inode of a file; None when it is gone or not this user's to look at."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def holders(database: Path) -> list[int]:
    """Process ids that have the SQLite file, its -wal or its -shm open by whatever path, as this user may see."""
    files = {_identity(Path(f"{database.resolve()}{suffix}")) for suffix in ("", "-wal", "-shm")} - {None}
    found = []
    for pid in _pids():
        if pid == os.getpid():
            continue
        try:
            opened = {_identity(Path(entry.path)) for entry in os.scandir(f"/proc/{pid}/fd")}
        except OSError:
            continue
        if opened & files:
            found.append(pid)
    return found


def answers(endpoint: str, path: str, timeout: float = 5.0) -> int | None:
    """HTTP status of one GET, or None when nothing answers.

    Args:
        endpoint: like ``http://127.0.0.1:8839``.
        path: like ``/api/libraries``.
        timeout: seconds.
    """
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(endpoint + path, timeout=timeout) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


def healthy(endpoint: str) -> bool:
    """True when the server answers and its database does: /api/health alone stays 200 with a broken database."""
    return answers(endpoint, "/api/health") == 200 and answers(endpoint, "/api/libraries", timeout=30.0) == 200
