"""What cannot work is refused before anything has changed, with found, expected, untouched and the next command."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from sample_installation.environment import add_version
from sample_installation.installation import Installation
from sqlite_to_postgresql.snapshot import Snapshot

from .conftest import Playbook, free_ports

pytestmark = pytest.mark.pensieve


def tree(folder: Path) -> dict[str, str]:
    """Digest of every file of a folder; what a running server writes by itself is left out."""
    moving = {"logs", "pids", "database.db-wal", "database.db-shm"}
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not moving & set(path.relative_to(folder).parts)
    }


@pytest.fixture
def home(tmp_path: Path, sample: Installation) -> Path:
    """A copy of the sample's settings and database in another home, where a test may break them; nothing runs there."""
    config = tmp_path / "home" / ".memos" / "config.yaml"
    config.parent.mkdir(parents=True)
    settings = (sample.base / "config.yaml").read_text()
    own = settings.replace(f"server_port: {sample.settings.port} ", f"server_port: {free_ports(1)[0]} ")
    assert own != settings
    config.write_text(own)
    shutil.copy(sample.base / "database.db", config.parent / "database.db")
    return tmp_path / "home"


def refused(playbook: Playbook, home: Path, found: str, next_step: str, **variables: str) -> str:
    """Run the preflight alone; require the refusal's text, which it gives, and that nothing in the home has changed."""
    before = tree(home)
    done = playbook("migrate.yml", "--tags", "preflight", pensieve_user_home=str(home), **variables)
    said = re.sub(r"\s+", " ", done.stdout + done.stderr)
    assert done.returncode == 2, said
    assert re.search(rf"Found: [^:]*?{found}", said) or re.search(rf"Found: .*?{found}.*?Expected:", said), said
    for part in ("Expected: ", "Untouched: everything"):
        assert part in said, said
    assert re.search(rf"Next: .*?{next_step}", said), said
    assert "changed=0" in said, said
    assert tree(home) == before
    return said


def test_no_sqlite_database(playbook: Playbook, home: Path, pensieve_venv: Path) -> None:
    (home / ".memos" / "database.db").unlink()
    refused(playbook, home, "no SQLite database at", "pensieve_user_home", pensieve_venv=str(pensieve_venv))


def test_environment_that_leads_libpq_astray(
    playbook: Playbook, home: Path, pensieve_venv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPASSWORD", "another")
    monkeypatch.setenv("PGSSLMODE", "require")
    step = "env --unset=PGPASSWORD --unset=PGSSLMODE ansible-playbook"
    refused(playbook, home, "PGPASSWORD, PGSSLMODE in the environment", step, pensieve_venv=str(pensieve_venv))


def test_no_pensieve_at_all(playbook: Playbook, tmp_path: Path) -> None:
    refused(playbook, tmp_path, r"no .*/\.memos/config\.yaml", "-e pensieve_user_home=/home/NAME")


def test_corrupt_database(playbook: Playbook, home: Path, pensieve_venv: Path) -> None:
    database = home / ".memos" / "database.db"
    with database.open("r+b") as file:
        for page in range(2, 40):
            file.seek(page * 4096)
            file.write(os.urandom(2048))
    refused(playbook, home, "is damaged|cannot be read", r"\.recover", pensieve_venv=str(pensieve_venv))


def test_config_that_is_no_yaml(playbook: Playbook, home: Path, pensieve_venv: Path) -> None:
    (home / ".memos" / "config.yaml").write_text("vlm:\n  token: hush: never closed\ndatabase_path: x\n")
    said = refused(
        playbook, home, r"config\.yaml: line 2, column \d+", "mend .*config.yaml", pensieve_venv=str(pensieve_venv)
    )
    assert "hush" not in said


def test_already_on_postgresql(playbook: Playbook, home: Path, pensieve_venv: Path) -> None:
    config = home / ".memos" / "config.yaml"
    config.write_text(f"{config.read_text()}\n".replace("'database.db'", "postgresql://me:hush@db.example.org/memos"))
    refused(playbook, home, "already on PostgreSQL", "nothing to do", pensieve_venv=str(pensieve_venv))
    done = playbook(
        "migrate.yml", "--tags", "preflight", pensieve_user_home=str(home), pensieve_venv=str(pensieve_venv)
    )
    assert "hush" not in done.stdout + done.stderr


def test_pensieve_that_does_not_run(playbook: Playbook, home: Path, pensieve_venv: Path) -> None:
    refused(playbook, home, "does not answer", "memos start", pensieve_venv=str(pensieve_venv))


@pytest.mark.parametrize("host", ["{{ 7 * 7 }}", "{{ lookup('pipe', 'id') }}", "{% raw %}", "a b", "127.0.0.1:1:2"])
def test_host_that_is_no_address(playbook: Playbook, home: Path, pensieve_venv: Path, host: str) -> None:
    config = home / ".memos" / "config.yaml"
    config.write_text(re.sub(r"server_host:.*", f'server_host: "{host}"', config.read_text()))
    refused(playbook, home, "which is none", "mend server_host", pensieve_venv=str(pensieve_venv))


def test_port_on_which_another_pensieve_answers(
    playbook: Playbook, home: Path, sample: Installation, pensieve_venv: Path
) -> None:
    shutil.copy(sample.base / "config.yaml", home / ".memos" / "config.yaml")
    refused(
        playbook,
        home,
        f"answers, but no process `memos serve` with HOME={home} runs",
        "another server_port",
        pensieve_venv=str(pensieve_venv),
    )


def test_blank_in_the_path_of_the_engine(playbook: Playbook, sample: Installation, pensieve_venv: Path) -> None:
    refused(
        playbook,
        sample.settings.home,
        "/another disk/state/runtime for the engine",
        "data_copy_venv=",
        pensieve_venv=str(pensieve_venv),
        pensieve_state_dir="'/another disk/state'",
    )


def test_not_enough_disk(playbook: Playbook, sample: Installation, pensieve_venv: Path) -> None:
    refused(
        playbook,
        sample.settings.home,
        "free for",
        "pensieve_state_dir=",
        pensieve_venv=str(pensieve_venv),
        preflight_reserve_bytes=str(10**18),
    )


@pytest.mark.parametrize(
    ("held", "found", "next_step"),
    [(True, "where Docker keeps its data", "docker system df"), (False, "free for", "pensieve_state_dir=")],
)
def test_the_copy_that_an_interrupted_run_still_holds_needs_no_room(
    playbook: Playbook,
    sample: Installation,
    pensieve_venv: Path,
    tmp_path: Path,
    held: bool,
    found: str,
    next_step: str,
) -> None:
    holder = subprocess.Popen(["sleep", "600"])
    began = int(Path(f"/proc/{holder.pid}/stat").read_text().rpartition(")")[2].split()[19])
    found_before = Snapshot("", "", state="held", pid=holder.pid, started=began, bytes=10**18)
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "snapshot.json").write_text(json.dumps(asdict(found_before)))
    (tmp_path / "runtime").symlink_to(sys.prefix)
    try:
        if not held:
            holder.kill()
            holder.wait()
        refused(
            playbook,
            sample.settings.home,
            found,
            next_step,
            pensieve_venv=str(pensieve_venv),
            pensieve_state_dir=str(tmp_path),
            preflight_reserve_bytes=str(10**18),
        )
    finally:
        holder.kill()
        holder.wait()


def test_port_taken_by_something_else(playbook: Playbook, sample: Installation, pensieve_venv: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        refused(
            playbook,
            sample.settings.home,
            f"{port}",
            "postgres_port=",
            pensieve_venv=str(pensieve_venv),
            postgres_port=str(port),
        )


def test_no_docker_and_not_allowed_to_install_it(
    playbook: Playbook, sample: Installation, pensieve_venv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")
    refused(
        playbook,
        sample.settings.home,
        "no Docker engine answers",
        "postgres_install_docker=true",
        pensieve_venv=str(pensieve_venv),
        postgres_install_docker="false",
    )


def interpreter_without_extension_loading(folder: Path) -> Path:
    """A virtual environment whose sqlite3 cannot load extensions: a real one where this machine has one."""
    check = "import sqlite3, sys; sys.exit(hasattr(sqlite3.Connection, 'enable_load_extension'))"
    for python in (
        sys.executable,
        shutil.which("python3") or "",
        *map(str, Path.home().glob(".pyenv/versions/3*/bin/python3")),
    ):
        if python and subprocess.run([python, "-c", check], capture_output=True, check=False).returncode == 0:
            subprocess.run([python, "-m", "venv", "--without-pip", str(folder)], check=True)
            return folder
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    site_packages = next(folder.glob("lib/python3*/site-packages"))
    (site_packages / "sitecustomize.py").write_text("import sqlite3\nsqlite3.Connection = type('Connection', (), {})\n")
    return folder


def test_pensieve_without_postgresql(playbook: Playbook, home: Path, pensieve_venv: Path, tmp_path: Path) -> None:
    """The last version that knows SQLite only, on the packages of the environment that is there."""
    venv = tmp_path / "venv"
    subprocess.run([pensieve_venv / "bin" / "python", "-m", "venv", "--without-pip", venv], check=True)
    packages = next(venv.glob("lib/python3*/site-packages"))
    shared = next(pensieve_venv.glob("lib/python3*/site-packages"))
    (packages / "shared.pth").write_text(f"{shared}\n")
    add_version(pensieve_venv, "0.24.0", packages)
    refused(playbook, home, "memos 0.24.0 in .*, which knows SQLite only", "memos>=0.25", pensieve_venv=str(venv))


def test_python_without_extension_loading(playbook: Playbook, home: Path, tmp_path: Path) -> None:
    venv = interpreter_without_extension_loading(tmp_path / "venv")
    refused(playbook, home, "cannot load extensions", "/usr/bin/python3 -m venv", pensieve_venv=str(venv))
