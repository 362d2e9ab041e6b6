"""Find the processes of one Pensieve installation, and nobody else's.

Pensieve's own `memos stop` and `memos ps` match command lines on the whole machine, whoever's home they belong to.
Here a process belongs to an installation when the owner of its home runs `memos.commands <service>` with that HOME.
"""

from __future__ import annotations

import getopt
import os
import pwd
import re
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ansible.module_utils import processes, whole_file
from ansible.module_utils.ownership import name_of, owner_of

SERVICES = ("serve", "record", "watch")
"""Services of Pensieve in the order in which they start; they stop in the opposite order."""

RUNNERS = ("memos.commands", "memos", "pen")
"""What a command line calls Pensieve by: the module, or one of its console scripts."""

_LOGIN = (
    "group= supp-group= whitelist-environment= shell= command= session-command= "
    "login fast preserve-environment pty no-pty"
)
SWITCHES = {
    "runuser": ("u:g:G:w:c:s:lmpfPTVh", f"user= {_LOGIN}"),
    "su": ("g:G:w:c:s:lmpfPTVh", _LOGIN),
    "sudo": (
        "u:g:C:D:R:T:U:h:p:r:t:AbEeHiKklnPSsVvB",
        "user= group= chdir= chroot= command-timeout= prompt= host= login shell set-home non-interactive "
        "preserve-groups stdin background reset-timestamp remove-timestamp",
    ),
    "setpriv": (
        "dhV",
        "reuid= euid= ruid= regid= egid= rgid= groups= inh-caps= ambient-caps= bounding-set= securebits= pdeathsig= "
        "selinux-label= apparmor-profile= clear-groups init-groups keep-groups no-new-privs nnp reset-env",
    ),
}
"""Programs that run another as a user, with their short and long options as getopt knows them.

Source: runuser(1), su(1), sudo(8), setpriv(1).
"""

SCRIPT = 1 << 16
"""Bytes of a unit's program that are looked at for Pensieve's name."""

SETTINGS = ("base_dir", "database_path", "screenshots_dir", "server_host", "server_port", "embedding")
"""Settings of config.yaml that a migration goes by, and that a variable MEMOS_<name> in any case beats."""


@dataclass(frozen=True)
class Process:
    """One running service.

    Attributes:
        pid: process id.
        service: one of SERVICES.
        environment: its variables; none where this user may not read them.
        command: its command line.
    """

    pid: int
    service: str
    environment: dict[str, str]
    command: list[str]


@dataclass(frozen=True)
class Unit:
    """A systemd service.

    Attributes:
        name: like `pensieve.service`.
        scope: whose manager it is of, `user` or `system`.
    """

    name: str
    scope: str


def _service_of(argv: list[str]) -> str | None:
    """The service that a command line runs, else None."""
    for position, word in enumerate(argv[:-1]):
        if Path(word).name in RUNNERS and argv[position + 1] in SERVICES:
            return argv[position + 1]
    return None


def _home_of(uid: int, environment: dict[str, str]) -> Path | None:
    home = environment.get("HOME")
    if not home:
        try:
            home = pwd.getpwuid(uid).pw_dir
        except KeyError:
            return None
    return Path(home).resolve()


def find(home: Path) -> list[Process]:
    """Services of the installation whose user home is `home`, in no particular order."""
    try:
        owner = owner_of(home)
    except OSError:  # there is no such home, or nobody can tell whose it is
        return []
    found = []
    for pid in processes.of(owner):
        command = processes.command(pid)
        service = _service_of(command)
        if service is None or processes.contained(pid):
            continue
        environment = processes.environment(pid)
        if _home_of(owner, environment) == home.resolve():
            found.append(Process(pid, service, environment, command))
    return found


def overrides(environment: Iterable[str]) -> list[str]:
    """Those of the variables that beat one of SETTINGS, sorted; Pensieve takes them in upper and in lower case."""
    return sorted(name for name in environment if name.lower() in {f"memos_{setting}" for setting in SETTINGS})


def unit_of(pid: int) -> Unit | None:
    """The systemd service in whose control group a process is; None for one of a login, or without systemd."""
    return unit_in(processes.control_group(pid))


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
    command = ["systemctl", f"--{unit.scope}", "show", *(f"--property={name}" for name in properties), "--", unit.name]
    environment = {"XDG_RUNTIME_DIR": f"/run/user/{os.geteuid()}", **os.environ}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    found: dict[str, str] = {}
    for line in done.stdout.splitlines() if done.returncode == 0 else ():
        name, equals, value = line.partition("=")
        if equals:  # a unit may have several commands
            found[name] = f"{found[name]}\n{value}" if name in found else value
    return found


class Command(NamedTuple):
    """What a unit runs: the user to whom its command switches, if it does, and the words of what runs then."""

    user: str | None
    words: list[str]


def commands(exec_start: str) -> list[Command]:
    """Commands of a unit. Source: systemd.service(5), ExecStart; org.freedesktop.systemd1(5)."""
    return [_switched(found.split()) for found in re.findall(r"argv\[\]=([^;]*)", exec_start)]


def _switched(words: list[str]) -> Command:
    """A command like ``runuser -u ada -- memos serve`` in its parts; as it is, where nobody can tell the user."""
    program = Path(words[0]).name if words else ""
    if program not in SWITCHES:
        return Command(None, words)
    short, long = SWITCHES[program]
    try:
        found, rest = getopt.getopt(words[1:], short, long.split())
    except getopt.GetoptError:
        return Command(None, words)
    # The words of such a command stand without their quotes, so that nobody can tell where it ends.
    if any(name in ("-c", "--command", "--session-command") for name, _ in found):
        return Command(None, words)
    if program == "setpriv":
        given = dict(found)
        users = [value for name, value in found if name in ("--reuid", "--euid", "--ruid")]
        whole = "--reuid" in given or {"--euid", "--ruid"} <= given.keys()
        return Command(users[0], rest) if whole and len(set(users)) == 1 else Command(None, words)
    users = [value.lstrip("#") for name, value in found if name in ("-u", "--user")]
    if users:
        return Command(users[0], rest) if len(users) == 1 else Command(None, words)
    if program == "sudo":
        return Command(None, words)
    rest = rest[1:] if rest[:1] == ["-"] else rest
    return Command(rest[0], rest[1:]) if rest else Command(None, words)


def _names_pensieve(words: list[str]) -> bool:
    """Whether a command is Pensieve's: by its program or module, or a script beside its data."""
    return any(Path(word).name in RUNNERS for word in words) or any("/.memos/" in word for word in words[:2])


def is_of_pensieve(unit: Unit, owner: int) -> bool:
    """Whether systemd knows a unit, running or not, as one of this user's whose command, or script, starts Pensieve."""
    told = show(unit, "User", "ExecStart")
    found, names = commands(told.get("ExecStart", "")), {name_of(owner), str(owner)}
    if unit.scope == "system" and not names.issuperset(told.get("User") or one.user or "root" for one in found):
        return False
    programs = [Path(one.words[0]) for one in found if one.words and one.words[0].startswith("/")]
    try:
        return any(_names_pensieve(one.words) for one in found) or any(
            b"memos" in whole_file.head(program, SCRIPT) for program in programs
        )
    except OSError:
        return False


def units(running: list[Process]) -> dict[Unit, list[str]]:
    """The systemd services that keep these processes, and which of SERVICES each keeps.

    A unit counts when its main process is one of them, or when its command is Pensieve's. One in which they merely run,
    like that of cron or of a supervisor of many programs, does not: nobody wants it stopped.
    """
    groups: dict[Unit, list[Process]] = {}
    for process in running:
        if unit := unit_of(process.pid):
            groups.setdefault(unit, []).append(process)
    kept = {}
    for unit, members in groups.items():
        told = show(unit, "MainPID", "ExecStart")
        pids = {str(process.pid) for process in members}
        if told.get("MainPID") in pids or any(
            _names_pensieve(one.words) for one in commands(told.get("ExecStart", ""))
        ):
            kept[unit] = sorted({process.service for process in members}, key=SERVICES.index)
    return kept


def holders(database: Path) -> list[int]:
    """Process ids that have the SQLite file, its -wal or its -shm open by whatever path, as this user may see."""
    files = {processes.identity(Path(f"{database.resolve()}{suffix}")) for suffix in ("", "-wal", "-shm")} - {None}
    return [pid for pid in processes.everybodys() if pid != os.getpid() and processes.opened(pid) & files]


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
