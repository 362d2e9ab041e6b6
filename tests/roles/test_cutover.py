"""A failure at any step between the stop and the healthy start brings Pensieve back on SQLite, its settings as before.

Each step fails for a real cause, which a trigger brings about when Ansible says that it is there.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sample_installation.installation import Installation

from .conftest import ROOT, Playbook, fill, own_server, person, small_disk

pytestmark = [pytest.mark.pensieve, pytest.mark.docker, pytest.mark.incident]

NAME = "autotask-postgres-cutover-test"

HELD = "data_copy : copy | Look for the engine"
STOP = "pensieve : stop | Stop Pensieve"
DIFFERENCE = "data_copy : difference | Copy what has changed"
SWITCH = "pensieve : switch | Point database_path"
START = "pensieve : start | Start Pensieve"
FAILED = "cutover | Keep the reason"
BACK = (
    r"Untouched: the SQLite database, .*? Pensieve answers on SQLite \(\S+\); database_path names SQLite\. Next: mend"
)


@dataclass
class Scene:
    """What a cause can lay hands on, and how to undo it."""

    sample: Installation
    database: Path
    expected: bytes = b""
    """What the settings must be in the end."""
    undo: list[Callable[[], object]] = field(default_factory=list)


def kill_server(scene: Scene) -> None:
    subprocess.run(["docker", "kill", NAME], check=True, capture_output=True)


def take_password_away(scene: Scene) -> None:
    file = scene.sample.settings.home / ".pgpass"
    file.rename(file.with_name(".pgpass.away"))
    scene.undo.append(lambda: file.with_name(".pgpass.away").rename(file))


def write_strange_label(scene: Scene) -> None:
    with sqlite3.connect(scene.database, timeout=30) as connection:
        row, old = connection.execute("SELECT min(id), data_type FROM metadata_entries").fetchone()
        connection.execute("UPDATE metadata_entries SET data_type = 'strange' WHERE id = ?", (row,))
    connection.close()

    def mend() -> None:
        with sqlite3.connect(scene.database, timeout=30) as connection:
            connection.execute("UPDATE metadata_entries SET data_type = ? WHERE id = ?", (old, row))
        connection.close()

    scene.undo.append(mend)


def hold_database(scene: Scene) -> None:
    """Another program has the database open, and keeps it open."""
    code = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('SELECT 1 FROM tags'); input()"
    other = subprocess.Popen([sys.executable, "-c", code, str(scene.database)], stdin=subprocess.PIPE)
    scene.undo.append(other.communicate)


def break_settings(scene: Scene) -> None:
    """The value is written so that it cannot be replaced in place. It stays so: the migration has not written it."""
    config = scene.sample.base / "config.yaml"
    text = re.sub(r"(?m)^database_path:.*$", "database_path: |-\n  database.db", config.read_text())
    config.write_text(text)
    scene.expected = text.encode()


def edit_and_kill_server(scene: Scene) -> None:
    """A person edits the settings, whose other edits stay whatever stands there; then the cutover fails."""
    config = scene.sample.base / "config.yaml"
    config.write_bytes(b"facet_by_hand: true\n" + config.read_bytes())
    scene.expected = b"facet_by_hand: true\n" + scene.expected
    kill_server(scene)


def take_port(scene: Scene) -> None:
    """Another program takes Pensieve's port while that is free; it lets go when the step has failed."""
    taken = socket.socket()
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    taken.bind(("127.0.0.1", scene.sample.settings.port))
    taken.listen(0)
    scene.undo.append(taken.close)


def start_it(scene: Scene) -> None:
    """Something else, a supervisor for example, starts Pensieve, which reads the settings of before."""
    scene.sample.start()


Cause = Callable[[Scene], None]
STEPS: dict[str, tuple[str, Cause, str, str, bool]] = {
    # step: when, what, the step that must be named, what must be said of it, whether the cause ends by itself
    "stop": (HELD, hold_database, "stop | Stop Pensieve, and prove it", "does not stay stopped", False),
    "server dies": (STOP, kill_server, "difference | Copy what has changed", "no connection to the target", False),
    "password": (STOP, take_password_away, "difference | Copy what has changed", "no connection to the target", False),
    "finding": (HELD, write_strange_label, "difference | Copy what has changed", "unknown_enum_label", False),
    "settings": (DIFFERENCE, break_settings, "switch | Point database_path", "is a block of several lines", False),
    "started": (DIFFERENCE, start_it, "start | Start Pensieve", "something else has started Pensieve", False),
    "port": (SWITCH, take_port, "start | Start Pensieve", "Pensieve's server", True),
    "edited before": (
        STOP,
        edit_and_kill_server,
        "difference | Copy what has changed",
        "no connection to the target",
        False,
    ),
    "edited after": (START, edit_and_kill_server, "start | Start Pensieve", "Pensieve's server", False),
    "server dies late": (SWITCH, kill_server, "start | Start Pensieve", "Pensieve's server", False),
}


@pytest.fixture(scope="module")
def target() -> Iterator[dict[str, str]]:
    """Names of a server that these tests make."""
    with own_server(NAME) as variables:
        yield variables


def migrate(scene: Scene, variables: dict[str, str], when: str, cause: Cause, short: bool) -> tuple[int, str]:
    """Run the playbook; the cause comes when a task is named, and ends, if ``short``, when its step has failed."""
    command = [str(Path(sys.executable).parent / "ansible-playbook"), "migrate.yml"]
    for name, value in variables.items():
        command += ["-e", f"{name}={value}"]
    environment = {**person(), "PYTHONUNBUFFERED": "1"}
    said = []
    brought = False
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as running:
        assert running.stdout
        try:
            for line in running.stdout:
                said.append(line)
                if not brought and line.startswith("TASK") and when in line:
                    cause(scene)
                    brought = True
                if short and FAILED in line:
                    scene.undo.pop()()
        except BaseException:
            running.kill()
            raise
    assert brought, "".join(said)
    return running.returncode, re.sub(r"\s+", " ", "".join(said))


@pytest.mark.parametrize("step", STEPS)
def test_a_failure_goes_back(
    step: str, sample: Installation, pensieve_venv: Path, target: dict[str, str], tmp_path: Path
) -> None:
    when, cause, named, reason, short = STEPS[step]
    config = sample.base / "config.yaml"
    config.chmod(0o640)
    before, mode = config.read_bytes(), config.stat().st_mode
    scene = Scene(sample, sample.base / "database.db", before)
    state = sample.settings.home / ".local/state/pensieve-postgres"
    variables = {
        "pensieve_user_home": str(sample.settings.home),
        "pensieve_venv": str(pensieve_venv),
        "autotasktracker_dir": str(tmp_path),
        "autotasktracker_change_source": "false",
        "report_directory": "",
        "pensieve_start_timeout": "25",
        **target,
    }
    try:
        status, said = migrate(scene, variables, when, cause, short)
    finally:
        ended = config.read_bytes()
        config.write_bytes(before)
        for undo in scene.undo:
            undo()
    assert status == 2, said
    found = re.search('Found: the step "([^"]*)" failed: (.*?) Expected: Pensieve healthy on PostgreSQL', said)
    assert found, said[-4000:]
    assert named in found.group(1)
    assert reason in found.group(2)
    assert re.search(BACK, said), said
    assert ended == scene.expected
    assert config.stat().st_mode == mode
    with urllib.request.urlopen(f"{sample.endpoint}/api/libraries", timeout=30) as answer:
        assert answer.status == 200
    assert not (state / "snapshot").exists(), "the snapshot was let go"


def test_a_failure_before_the_stop_stops_nothing(
    sample: Installation, pensieve_venv: Path, target: dict[str, str]
) -> None:
    scene = Scene(sample, sample.base / "database.db")
    variables = {
        "pensieve_user_home": str(sample.settings.home),
        "pensieve_venv": str(pensieve_venv),
        "report_directory": "",
        **target,
    }
    serving = sample._processes("memos.commands")
    status, said = migrate(scene, variables, HELD, kill_server, False)
    assert status == 2, said
    assert re.search(BACK, said), said
    assert sample._processes("memos.commands") == serving
    assert not (sample.settings.home / ".local/state/pensieve-postgres/snapshot").exists()


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[dict[str, Path]]:
    """Where the state directory, and where the server's volume is."""
    with small_disk(tmp_path / "state", 400) as state, small_disk(tmp_path / "server", 400) as server:
        yield {"state": state, "server": server}


@pytest.fixture
def small_target(sample: Installation, disks: dict[str, Path]) -> Iterator[dict[str, str]]:
    """Names of a server whose volume is a disk that can be full."""
    label = f"pensieve-postgres.home={sample.settings.home}"
    place = ["--opt=type=none", "--opt=o=bind", f"--opt=device={disks['server']}"]
    with own_server(f"{NAME}-small") as variables:
        name = variables["postgres_volume_name"]
        subprocess.run(
            ["docker", "volume", "create", f"--label={label}", *place, name], check=True, capture_output=True
        )
        yield variables


BEGIN = "backup : begin | Make its directory"
FULL = {
    # disk: when nearly all of it is taken, how much is left, the step that must be named, what must be said of it
    "state": (BEGIN, 8 << 20, "snapshot | Hold this moment", "no snapshot of .* disk is full"),
    "server": (HELD, 0, "copy | Copy every row", "No space left on device"),
}


@pytest.mark.parametrize("disk", FULL)
def test_a_full_disk_is_told_and_the_next_run_goes_on(
    disk: str,
    sample: Installation,
    playbook: Playbook,
    pensieve_venv: Path,
    disks: dict[str, Path],
    small_target: dict[str, str],
) -> None:
    when, left, named, reason = FULL[disk]
    scene = Scene(sample, sample.base / "database.db")
    variables = {
        "pensieve_user_home": str(sample.settings.home),
        "pensieve_venv": str(pensieve_venv),
        "pensieve_state_dir": str(disks["state"]),
        "data_copy_venv": str(sample.settings.home / ".local/state/pensieve-postgres/runtime"),
        "preflight_reserve_bytes": "0",
        "report_directory": "",
        **small_target,
    }
    serving = sample._processes("memos.commands")
    status, said = migrate(scene, variables, when, lambda _: scene.undo.append(fill(disks[disk], left).unlink), False)
    assert status == 2, said
    found = re.search('Found: the step "([^"]*)" failed: (.*?) Expected: Pensieve healthy on PostgreSQL', said)
    assert found, said[-4000:]
    assert named in found.group(1)
    assert re.search(reason, found.group(2)), found.group(2)
    assert re.search(BACK, said), said
    assert sample._processes("memos.commands") == serving
    assert not list(disks["state"].rglob("*.part")), "what was not copied wholly takes no room"
    for undo in scene.undo:
        undo()
    done = playbook("migrate.yml", **variables)
    assert done.returncode == 0, done.stdout[-4000:]
    assert [file.name for file in disks["state"].rglob("*.db")] == ["cutover.db"], "no copy of the failed run is left"
    done = playbook("rollback.yml", **variables)
    assert done.returncode == 0, done.stdout[-4000:]


def test_killed_after_the_difference_the_next_run_goes_on(
    sample: Installation, playbook: Playbook, pensieve_venv: Path, target: dict[str, str]
) -> None:
    """Pensieve has changed rows while the bulk was copied: the difference writes them, and they are the migration's."""
    scene = Scene(sample, sample.base / "database.db")
    variables = {
        "pensieve_user_home": str(sample.settings.home),
        "pensieve_venv": str(pensieve_venv),
        "report_directory": "",
        **target,
    }
    command = [str(Path(sys.executable).parent / "ansible-playbook"), "migrate.yml"]
    command += [f"-e{name}={value}" for name, value in variables.items()]
    changed = 0
    with subprocess.Popen(
        command, cwd=ROOT, env={**person(), "PYTHONUNBUFFERED": "1"}, stdout=subprocess.PIPE, text=True,
        start_new_session=True,
    ) as running:  # fmt: skip
        assert running.stdout
        for line in running.stdout:
            if line.startswith("TASK") and HELD in line:
                with sqlite3.connect(scene.database, timeout=30) as connection:
                    changed = connection.execute("UPDATE metadata_entries SET value = value || ' more'").rowcount
                connection.close()
            if line.startswith("TASK [Switch Pensieve]"):
                os.killpg(running.pid, signal.SIGKILL)
    assert changed
    assert running.returncode == -signal.SIGKILL
    done = playbook("migrate.yml", **variables)
    assert done.returncode == 0, done.stdout[-4000:]
    done = playbook("rollback.yml", **variables)
    assert done.returncode == 0, done.stdout[-4000:]
