"""Where one worker of the campaign works: three small disks, a Pensieve, a server, and the processes in between."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import conftest
import psycopg2
from online.writer import OLD, Api
from pensieve_process import find, holders
from sample_installation.environment import version_of
from sample_installation.installation import Installation, Settings

ROOT = conftest.ROOT
MARKER = "PENSIEVE_FAULTS"  # variable that everything that a playbook starts inherits
MEGABYTES = {"home": 300, "state": 400, "server": 700}
KEPT, FIRST = "kept", "first"  # servers: one that lives on from cell to cell, one that a first migration makes
EXTERNAL = [] if os.geteuid() == 0 else ["sudo", "--non-interactive"]


def run(*command: str | Path, check: bool = True) -> str:
    """What a command prints. RuntimeError with what it says when it fails."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.stdout}{done.stderr}")
    return done.stdout.strip()


def as_root(*command: str | Path, check: bool = True) -> str:
    """The same as root: disks, and files of the server."""
    return run(*EXTERNAL, *command, check=check)


def wait(done: Callable[[], object], seconds: float, pause: float = 0.05) -> bool:
    """Look until a call says yes; False when it does not within these seconds."""
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
    return True


class Place:
    """Names and paths that follow from a folder and a port, and what can be done with them.

    Pensieve listens on ``port``, its embedding service on the next one, the two servers on those after.
    """

    def __init__(self, folder: Path, port: int, venv: Path) -> None:
        self.folder, self.port = folder / str(port), port
        self.disks = {name: self.folder / name for name in MEGABYTES}
        self.state = self.disks["state"]
        self.saved, self.logs = self.folder / "saved", self.folder / "logs"
        self.engine = self.folder / "engine"
        self.tracker = self.disks["home"] / "tracker"
        self.installation = Installation(Settings(self.disks["home"], version_of(venv), venv, port, 20))
        self.home, self.base = self.installation.settings.home, self.installation.base
        self.config, self.database = self.base / "config.yaml", self.base / "database.db"
        self.server = KEPT
        self.readable: set[int] = set()

    # ---- names of the server that is in use

    @property
    def container(self) -> str:
        """Of the server; its volume has the same name."""
        return self._container(self.server)

    def _container(self, server: str) -> str:
        return f"faults-{self.port}-{server}"

    @property
    def server_port(self) -> int:
        """On which it is published."""
        return self.port + (2 if self.server == KEPT else 3)

    @property
    def dsn(self) -> str:
        """As the applications log in."""
        return f"postgresql://autotasktracker@127.0.0.1:{self.server_port}/autotasktracker"

    @property
    def passfile(self) -> str:
        """Of libpq."""
        return str(self.home / ".pgpass")

    def variables(self, **others: str) -> dict[str, str]:
        """What a person would give the playbooks with -e."""
        return {
            "pensieve_user_home": str(self.home),
            "pensieve_venv": str(self.installation.settings.venv),
            "pensieve_state_dir": str(self.state),
            "data_copy_venv": str(self.engine),
            "autotasktracker_dir": str(self.tracker),
            # Any environment that has what it needs.
            "autotasktracker_venv": str(self.installation.settings.venv),
            "autotasktracker_change_source": "false",
            "postgres_container_name": self.container,
            "postgres_volume_name": self.container,
            "postgres_port": str(self.server_port),
            "pensieve_start_timeout": "45",
            "preflight_reserve_bytes": "0",
            "report_directory": "",
            **others,
        }

    # ---- made, saved, restored, removed

    def make(self) -> None:
        """Disks and a Pensieve on SQLite; kept as the state ``sqlite``."""
        self.remove()
        for name, disk in self.disks.items():
            disk.mkdir(parents=True)
            options = f"size={MEGABYTES[name]}m,mode=700,uid={os.geteuid()},gid={os.getegid()}"
            as_root("mount", "-t", "tmpfs", "-o", options, "tmpfs", disk)
        self.saved.mkdir()
        self.logs.mkdir()
        for server in (KEPT, FIRST):
            as_root("mkdir", self.disks["server"] / server)
        self.installation.make()
        self.config.chmod(0o640)
        self.tracker.mkdir()
        (self.tracker / "autotasktracker.env").write_text("# Ada's own\nAUTOTASK_THEME=dark\n")
        self._volume(KEPT)
        # Pensieve itself cannot read all of them on SQLite, where AutoTaskTracker has written its labels.
        api = Api(self.installation.endpoint)
        self.readable = {key for key in range(1, OLD + 1) if api.ask("GET", f"/entities/{key}")[0] == 200}
        self.save("sqlite")

    def _volume(self, server: str) -> None:
        """A volume on the small disk, labelled as that of this home, as a playbook would make it."""
        place = ["--opt=type=none", "--opt=o=bind", f"--opt=device={self.disks['server'] / server}"]
        label = f"--label=pensieve-postgres.home={self.home}"
        run("docker", "volume", "create", label, *place, self._container(server))

    def save(self, name: str) -> None:
        """Keep the present state of everything under a name; all is stopped afterwards."""
        self.stop()
        run("docker", "stop", self._container(KEPT), check=False)
        part = self.saved / f"{name}.part"
        for disk in (self.disks["home"], self.state, self.disks["server"] / KEPT):
            (part / disk.name).mkdir(parents=True)
            as_root("cp", "-a", f"{disk}/.", part / disk.name)
        part.rename(self.saved / name)

    def restore(self, name: str, server: str) -> None:
        """Bring a state back, with the kept server alive, or with nothing that a first migration has not made."""
        self.stop()
        for each in (KEPT, FIRST):
            run("docker", "unpause", self._container(each), check=False)
            run("docker", "kill", self._container(each), check=False)
        run("docker", "rm", "--force", "--volumes", self._container(FIRST), check=False)
        run("docker", "volume", "rm", "--force", self._container(FIRST), check=False)
        run("docker", "network", "rm", self._container(FIRST), check=False)
        for disk in self.disks.values():
            as_root("mount", "-o", "remount,rw", disk)
            # The folders of both servers stay: volumes are bound to them.
            depth = "2" if disk == self.disks["server"] else "1"
            as_root("find", disk, "-mindepth", depth, "-maxdepth", depth, "-exec", "rm", "-rf", "{}", "+")
        for kept, disk in (("home", self.disks["home"]), ("state", self.state), (KEPT, self.disks["server"] / KEPT)):
            as_root("cp", "-a", f"{self.saved / name / kept}/.", disk)
        self.server = server
        if server == FIRST:
            self._volume(FIRST)
        elif any((self.saved / name / KEPT).iterdir()):
            self.start_server()

    def start_server(self) -> None:
        """Start the container, as a person does, and wait until it answers."""
        run("docker", "unpause", self.container, check=False)
        run("docker", "start", self.container)
        if not wait(self.alive, 60):
            raise RuntimeError(run("docker", "logs", "--tail=20", self.container))

    def alive(self) -> bool:
        """Whether the server answers."""
        try:
            psycopg2.connect(self.dsn, passfile=self.passfile, connect_timeout=3).close()
        except psycopg2.Error:
            return False
        return True

    def stop(self) -> None:
        """End every process of this place, Pensieve's too."""
        self.kill()
        self.installation.stop()

    def remove(self) -> None:
        """Leave nothing behind. Can be called at any time, also for what another process has made here."""
        self.stop()
        for server in (KEPT, FIRST):
            run("docker", "rm", "--force", "--volumes", self._container(server), check=False)
            run("docker", "volume", "rm", "--force", self._container(server), check=False)
            run("docker", "network", "rm", self._container(server), check=False)
        for disk in self.disks.values():
            while os.path.ismount(disk):
                as_root("umount", "--lazy", disk)
        if self.folder.exists():
            as_root("rm", "-rf", self.folder)

    # ---- processes

    def ours(self) -> dict[int, str]:
        """Processes that a playbook has started here, with their commands; Pensieve's services are not among them."""
        services = {process.pid for process in find(self.home)}
        wanted = f"{MARKER}={self.folder}".encode()
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) in services | {os.getpid()}:
                continue
            with contextlib.suppress(OSError):
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                    if command:  # one that has ended, and that nobody has waited for, has none
                        found[int(entry.name)] = command
        return found

    def holder(self) -> set[int]:
        """Processes that hold a snapshot."""
        named = set()
        for file in self.state.glob("snapshot*/snapshot.json"):
            with contextlib.suppress(OSError, ValueError, KeyError):
                named.add(int(json.loads(file.read_text())["pid"]))
        return named

    def kill(self, spared: set[int] | None = None) -> list[str]:
        """SIGKILL all that a playbook has started here, but those that are spared; their commands."""
        killed = []
        while left := {pid: command for pid, command in self.ours().items() if pid not in (spared or set())}:
            for pid, command in left.items():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                killed.append(command)
            time.sleep(0.02)
        return killed

    def serving(self) -> list[int]:
        """Process ids of Pensieve's server."""
        return sorted(process.pid for process in find(self.home) if process.service == "serve")

    def has_database_open(self) -> set[int]:
        """Processes that have the SQLite file open."""
        return set(holders(self.database))

    # ---- disks

    def fill(self, disk: str, left: int) -> None:
        """Leave so many bytes on one of the disks, or fewer where somebody writes there meanwhile."""
        folder = self.disks[disk]
        for attempt in range(5):
            free = shutil.disk_usage(folder).free - left - (attempt << 20)
            try:
                if free > 0:
                    as_root("fallocate", "-l", str(free), folder / "filler")
                return
            except RuntimeError:
                as_root("rm", "-f", folder / "filler")
        raise RuntimeError(f"{folder} could not be filled")

    def empty(self, disk: str) -> None:
        """Give them back."""
        as_root("rm", "-f", self.disks[disk] / "filler")

    def make_read_only(self) -> bool:
        """The state directory's disk, at the first moment at which nobody writes there; False when there was none."""

        def remounted() -> bool:
            command = [*EXTERNAL, "mount", "-o", "remount,ro", str(self.state)]
            return subprocess.run(command, capture_output=True, check=False).returncode == 0

        return wait(remounted, 20, 0.02)

    def make_writable(self) -> None:
        """Take that back."""
        as_root("mount", "-o", "remount,rw", self.state)


def environment(place: Place) -> dict[str, str]:
    """That of a person who runs a playbook; what it starts can be told by the marker."""
    dropped = ("PGPASSFILE", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return {
        **kept,
        MARKER: str(place.folder),
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_FORCE_COLOR": "0",
        "ANSIBLE_NOCOLOR": "1",
        "PYTHONUNBUFFERED": "1",
        # Else the name of a task comes when the task has ended.
        "ANSIBLE_DISPLAY_SKIPPED_HOSTS": "true",
    }
