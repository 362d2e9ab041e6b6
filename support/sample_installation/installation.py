"""One sample installation: a home with Pensieve's settings, screenshots and database, and two processes.

    root/
      home/.memos/config.yaml, database.db, screenshots/, projects/, logs/
      pensieve-venv/          Pensieve (elsewhere when given)
      autotasktracker/        the AutoTaskTracker-like consumer and its environment
      installation.json       what it is made of, and whether the making is complete

Only processes whose HOME is this home are ever stopped.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from .environment import SUPPORT, Refusal, step

SECONDS_TO_START = 60
SECONDS_TO_STOP = 15

CONFIG = """\
# Pensieve, settings of Ada's laptop.  Hand-edited: do not reformat!
#   截图与检索的设置

server_port: {port}   # 8839 is taken on this machine
server_host:   "127.0.0.1"

embedding:
    # a small server of our own
    use_local: false
    endpoint: 'http://127.0.0.1:{services_port}/v1/embeddings'
    model: sample-bag-of-words
    num_dim: 768


ocr: {{enabled: false, use_local: false, concurrency: 1}}
vlm:
  enabled: false
default_plugins: []

base_dir: ~/.memos
# database_path: postgresql://someone@example.org/old-idea
database_path:   'database.db'  # SQLite, for now
screenshots_dir: screenshots
default_library: screenshots

x_note: |
  database_path: this line is text, no setting
record_interval: 4{blanks}
facet: false"""
"""Comments, order, quotes, trailing blanks, an unknown key and the missing line end are there to be kept."""


@dataclass(frozen=True)
class Settings:
    """What one installation is made of.

    Attributes:
        root: folder that holds it.
        version: of Pensieve.
        venv: virtual environment of Pensieve.
        port: of Pensieve's server; the next one is that of the embedding server.
        count: sample screenshots.
    """

    root: Path
    version: str
    venv: Path
    port: int
    count: int

    @property
    def home(self) -> Path:
        """The user's home."""
        return self.root / "home"


class Installation:
    """Make, start, stop and remove what `Settings` say."""

    def __init__(self, settings: Settings) -> None:
        """`settings` of an installation that may or may not be there."""
        self.settings = settings
        self.base = settings.home / ".memos"
        self.endpoint = f"http://127.0.0.1:{settings.port}"
        self.services_endpoint = f"http://127.0.0.1:{settings.port + 1}"
        self.record = settings.root / "installation.json"

    @classmethod
    def load(cls, root: Path) -> Installation:
        """The one below `root`; Refusal when there is none."""
        try:
            known = json.loads((root / "installation.json").read_text())
        except FileNotFoundError:
            raise Refusal(
                f"Found: no sample installation in {root}.\nExpected: one that `make` made.\n"
                f"Untouched: everything.\nNext: python3 -m sample_installation make {root}"
            ) from None
        known.pop("complete")
        return cls(Settings(**{**known, "root": root, "venv": Path(known["venv"])}))

    def make(self) -> None:
        """Fill a fresh Pensieve unless that was done before, and leave it running."""
        known = {**json.loads(json.dumps(asdict(self.settings), default=str)), "complete": True}
        found = json.loads(self.record.read_text()) if self.record.exists() else {}
        if found.get("complete"):
            if found != known:
                raise Refusal(
                    f"Found: {self.settings.root} holds a sample installation made with other settings.\n"
                    f"Expected: {json.dumps(known)}.\nUntouched: it, and everything else.\n"
                    f"Next: python3 -m sample_installation remove {self.settings.root}"
                )
            self.start()
            return
        self.record.write_text(json.dumps({**known, "complete": False}))
        self._stop_processes()
        shutil.rmtree(self.settings.home, ignore_errors=True)
        (self.base / "screenshots").mkdir(parents=True)
        config = CONFIG.format(port=self.settings.port, services_port=self.settings.port + 1, blanks="  ")
        (self.base / "config.yaml").write_text(config, encoding="utf-8")
        with step(f"Recording {self.settings.count} sample screenshots in Pensieve (about 30 s)"):
            self._python("schema", "-m", "sample_installation.schema")
            self.start()
            self._python(
                "records",
                *("-m", "sample_installation.records", "--endpoint", self.endpoint),
                *("--hook", f"{self.services_endpoint}/ocr", "--count", str(self.settings.count)),
                *("--database", str(self.base / "database.db")),
                *("--screenshots", str(self.base / "screenshots")),
            )
        self.record.write_text(json.dumps(known))

    def start(self) -> None:
        """Start what does not run: the embedding server, then Pensieve; both answer when this returns."""
        (self.base / "logs").mkdir(exist_ok=True)
        port = str(self.settings.port + 1)
        self._serve(
            "services",
            ["-m", "sample_installation.services", "--port", port],
            self.settings.port + 1,
            lambda: _answers(f"{self.services_endpoint}/"),
        )
        # Health alone answers with a broken database too.
        self._serve(
            "serve",
            ["-m", "memos.commands", "serve"],
            self.settings.port,
            lambda: _answers(f"{self.endpoint}/api/health") and _answers(f"{self.endpoint}/api/libraries"),
        )

    def stop(self) -> None:
        """Stop every process of this home."""
        self._stop_processes()

    def remove(self) -> None:
        """Stop, and delete everything below the root."""
        self._stop_processes()
        shutil.rmtree(self.settings.root)

    def _environment(self) -> dict[str, str]:
        """The variables of a login of this user, without what would redirect Pensieve or libpq."""
        prefixes = ("MEMOS_", "AUTOTASK_", "PG", "VIRTUAL_ENV", "PYTHON")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}
        local = "127.0.0.1,localhost"
        path = f"{self.settings.venv / 'bin'}{os.pathsep}{kept.get('PATH', os.defpath)}"
        return {**kept, "HOME": str(self.settings.home), "PATH": path, "NO_PROXY": local, "no_proxy": local}

    def _python(self, name: str, *arguments: str) -> None:
        """Run Pensieve's interpreter to the end; Refusal with its last lines when it fails."""
        log = self.base / f"sample-{name}.log"
        with log.open("w", encoding="utf-8") as errors:
            done = subprocess.run(
                [str(self.settings.venv / "bin" / "python"), *arguments],
                env={**self._environment(), "PYTHONPATH": str(SUPPORT), "PYTHONDONTWRITEBYTECODE": "1"},
                stderr=errors,
                check=False,
            )
        if done.returncode:
            raise self._refusal(f"{name} ended with {done.returncode}", log)
        log.unlink()

    def _serve(self, name: str, arguments: list[str], port: int, ready: Callable[[], bool]) -> None:
        """Start a service in the background unless it runs, and wait until it answers."""
        if self._processes(arguments[1]):
            if not _wait(ready, SECONDS_TO_START):
                raise self._refusal(f"{name} does not answer", self.base / "logs" / f"{name}.log")
            return
        if _open(port):
            raise Refusal(
                f"Found: something else listens on port {port}.\n"
                f"Expected: {self.settings.port} and {self.settings.port + 1} free for the sample.\n"
                f"Untouched: it, and everything outside {self.settings.root}.\n"
                "Next: stop it, or choose another port (`scripts/migrate --demo`: DEMO_PORT=…)."
            )
        log = self.base / "logs" / f"{name}.log"
        environment = self._environment()
        if name == "services":
            environment["PYTHONPATH"] = str(SUPPORT)
        with log.open("a", encoding="utf-8") as output:
            process = subprocess.Popen(
                [str(self.settings.venv / "bin" / "python"), *arguments],
                env=environment,
                cwd=self.settings.home,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        _wait(lambda: ready() or process.poll() is not None, SECONDS_TO_START)
        if process.poll() is not None or not ready():
            raise self._refusal(f"{name} does not answer", log)

    def _refusal(self, what: str, log: Path) -> Refusal:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        return Refusal(
            f"Found: {what}:\n{tail}\nExpected: a running sample Pensieve on port {self.settings.port}.\n"
            f"Untouched: everything outside {self.settings.root}.\n"
            f"Next: read {log}; is the port free? Then run it again."
        )

    def _stop_processes(self) -> None:
        """SIGTERM, then SIGKILL, to the services of this home."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in self._processes():
                _signal(pid, number)
            if _wait(lambda: not self._processes(), SECONDS_TO_STOP):
                return
        raise Refusal(
            f"Found: processes {self._processes()} of {self.settings.home} do not end.\nExpected: none.\n"
            "Untouched: the files.\nNext: look at them with `ps`."
        )

    def _processes(self, *modules: str) -> list[int]:
        """Ids of processes that run one of `modules` with this HOME; by default Pensieve and its services."""
        wanted = [module.encode() for module in modules or ("memos.commands", "sample_installation.services")]
        mine = f"HOME={self.settings.home}".encode()
        found = []
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit():
                continue
            try:
                command = (folder / "cmdline").read_bytes()
                environment = (folder / "environ").read_bytes().split(b"\0")
            except OSError:  # gone meanwhile, or another user's
                continue
            if mine in environment and any(module in command for module in wanted):
                found.append(int(folder.name))
        return found


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _open(port: int) -> bool:
    """Whether something listens on the loopback port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _answers(url: str) -> bool:
    """Whether a GET is answered with 200, past any proxy."""
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=5) as response:
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def _wait(condition: Callable[[], bool], seconds: float) -> bool:
    """Look ten times a second until `condition` holds; False when it does not within `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True
