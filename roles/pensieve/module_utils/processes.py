"""The processes of this machine, as /proc tells of them. Linux only.

A process is whose its real user id says. What it calls itself, its command line and its variables are its own words:
of another user's process they are worth nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def _read(pid: int, name: str) -> str:
    """Content of a file of /proc/<pid>; nothing when the process is gone, or not this user's to read."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def everybodys() -> Iterator[int]:
    """Ids of all processes."""
    return (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())


def of(uid: int) -> Iterator[int]:
    """Ids of a user's processes."""
    return (pid for pid in everybodys() if user(pid) == uid)


def user(pid: int) -> int | None:
    """Real user id of a process; None when it is gone. Source: proc_pid_status(5)."""
    for line in _read(pid, "status").splitlines():
        if line.startswith("Uid:"):
            return int(line.split()[1])
    return None


def _stat(pid: int) -> list[str]:
    """Fields of /proc/<pid>/stat after the name: state, parent, …; none when there is no such process."""
    return _read(pid, "stat").rpartition(")")[2].split()


def started(pid: int) -> int:
    """When a process started, in clock ticks since the machine did; 0 when there is none, or it has ended."""
    fields = _stat(pid)
    return 0 if not fields or fields[0] in "ZX" else int(fields[19])


def parent(pid: int) -> int:
    """Id of the process that a process descends from; 0 when there is none."""
    return int((_stat(pid) or ["", "0"])[1])


def name(pid: int) -> str:
    """What a process calls itself, at most 15 characters."""
    return _read(pid, "comm").strip()


def command(pid: int) -> list[str]:
    """Command line of a process."""
    return _read(pid, "cmdline").rstrip("\0").split("\0")


def environment(pid: int) -> dict[str, str]:
    """Variables with which a process was started; none where this user may not read them."""
    pairs = (item.partition("=") for item in _read(pid, "environ").split("\0"))
    return {key: value for key, separator, value in pairs if separator}


def control_group(pid: int) -> str:
    """The text of /proc/<pid>/cgroup."""
    return _read(pid, "cgroup")


def contained(pid: int) -> bool:
    """Whether a process has other files than this one, as in a container, where the same paths mean others."""
    try:
        return not Path(f"/proc/{pid}/root").samefile("/")
    except OSError:  # not this user's to look at
        return False


def opened(pid: int) -> set[tuple[int, int]]:
    """Device and inode of each file that a process has open, as this user may see."""
    found = set()
    try:
        for entry in os.scandir(f"/proc/{pid}/fd"):
            if there := identity(Path(entry.path)):
                found.add(there)
    except OSError:
        return set()
    return found


def identity(path: Path) -> tuple[int, int] | None:
    """Device and inode of a file; None when it is gone or not this user's to look at."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
