"""A Pensieve that really serves a database on PostgreSQL, and the scripts run as a person runs them."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from engine.conftest import empty, filled, make_target, medium, pensieve, server, template
from engine.pensieve import Pensieve
from engine.server import Server

__all__ = ["empty", "filled", "make_target", "medium", "pensieve", "server", "template"]

ROOT = Path(__file__).parents[2]
SECONDS_TO_START = 90
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass
class Served:
    """Home and URL of a served Pensieve."""

    home: Path
    endpoint: str

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """JSON of an answer; raises HTTPError for what is no success."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.endpoint}/api{path}", data, method=method)
        request.add_header("Content-Type", "application/json")
        with OPENER.open(request, timeout=60) as answer:
            return json.loads(answer.read() or b"null")


def free_port() -> int:
    """A port on the loopback interface that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def make_home(home: Path, database: str, port: int, passfile: Path, dimensions: int = 768) -> Path:
    """Settings of a Pensieve that serves `database`."""
    (home / ".memos").mkdir(parents=True)
    (home / ".memos" / "config.yaml").write_text(
        f"base_dir: {home}/.memos\ndatabase_path: {database}  # moved\nserver_port: {port}\n"
        "default_plugins: [builtin_ocr]\nocr: {enabled: false, use_local: false, concurrency: 1}\n"
        f"vlm:\n  enabled: false\nembedding:\n  use_local: false\n  num_dim: {dimensions}\n"
        f"  endpoint: http://127.0.0.1:9/v1/embeddings\n"
    )
    shutil.copy(passfile, home / ".pgpass")
    (home / ".pgpass").chmod(0o600)
    return home


@pytest.fixture
def serve(pensieve: Pensieve, tmp_path: Path) -> Iterator[Callable[[str, Path], Served]]:
    """Starts Pensieve's server on a database; ended afterwards."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(database: str, passfile: Path) -> Served:
        port = free_port()
        home = make_home(tmp_path / f"home{len(processes)}", database, port, passfile)
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("MEMOS_", "PG", "PYTHON"))
        }
        environment.update(HOME=str(home), LOGFIRE_SEND_TO_LOGFIRE="false")
        log = (home / "serve.log").open("wb")
        command = [str(pensieve.folder / "bin" / "python"), "-m", "memos.commands", "serve"]
        process = subprocess.Popen(command, env=environment, cwd=home, stdout=log, stderr=log)
        processes.append(process)
        served = Served(home, f"http://127.0.0.1:{port}")
        deadline = time.monotonic() + SECONDS_TO_START
        while True:
            assert process.poll() is None, (home / "serve.log").read_text()
            assert time.monotonic() < deadline, (home / "serve.log").read_text()
            try:
                served.ask("GET", "/libraries")
                return served
            except urllib.error.URLError:
                with socket.socket() as probe:
                    probe.settimeout(0.2)
                    probe.connect_ex(("127.0.0.1", port))

    yield start
    for process in processes:
        process.terminate()
        process.wait(timeout=30)


@pytest.fixture
def health(server: Server) -> Callable[..., tuple[int, dict[str, dict[str, str]]]]:
    """Runs the health check for a home; gives its exit status and the checks by name."""

    def run(home: Path, *options: str, isolated: bool = False) -> tuple[int, dict[str, dict[str, str]]]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("MEMOS_", "PG"))}
        interpreter = [sys.executable, *(["-S", "-E"] if isolated else [])]
        script = str(ROOT / "scripts" / "pensieve_health_check.py")
        done = subprocess.run(
            [*interpreter, script, "--json", "--home", str(home), *options],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout, done.stderr
        return done.returncode, {check["name"]: check for check in json.loads(done.stdout)["checks"]}

    return run
