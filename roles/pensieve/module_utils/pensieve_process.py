"""Find the processes of one Pensieve installation, and nobody else's.

Pensieve's own `memos stop` and `memos ps` match command lines on the whole machine, whoever's home they belong to.
Here a process belongs to an installation when it runs `memos.commands <service>` with that installation's HOME.

Linux only: everything is read from /proc.
"""

from __future__ import annotations

import os
import pwd
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SERVICES = ("serve", "record", "watch")
"""Services of Pensieve in the order in which they start; they stop in the opposite order."""

RUNNERS = ("memos.commands", "memos", "pen")
"""What a command line calls Pensieve by: the module, or one of its console scripts."""


@dataclass(frozen=True)
class Process:
    """One running service.

    Attributes:
        pid: process id.
        service: one of SERVICES.
        overrides: its MEMOS_* environment variables, which beat config.yaml.
    """

    pid: int
    service: str
    overrides: dict[str, str]


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


def _home_of(pid: int, environment: dict[str, str]) -> Path | None:
    home = environment.get("HOME")
    if not home:
        try:
            home = pwd.getpwuid(Path(f"/proc/{pid}").stat().st_uid).pw_dir
        except (OSError, KeyError):
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
        if service is None:
            continue
        environment = _environment(pid)
        if _home_of(pid, environment) == home.resolve():
            overrides = {name: value for name, value in environment.items() if name.startswith("MEMOS_")}
            found.append(Process(pid, service, overrides))
    return found


def holders(database: Path) -> list[int]:
    """Process ids that have the SQLite file, its -wal or its -shm open (as far as this user may see)."""
    names = {f"{database.resolve()}{suffix}" for suffix in ("", "-wal", "-shm")}
    found = []
    for pid in _pids():
        if pid == os.getpid():
            continue
        try:
            targets = {str(Path(entry.path).readlink()) for entry in os.scandir(f"/proc/{pid}/fd")}
        except OSError:
            continue
        if targets & names:
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
