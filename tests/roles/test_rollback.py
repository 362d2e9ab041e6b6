"""Rollback: everything comes back, and an incident is met; whole playbooks, a real Pensieve, a real container."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from rollback.world import Writer, request, screenshot
from sample_installation.environment import install_version, make_venv, version_of
from sample_installation.installation import Installation, Settings
from sqlite_to_postgresql.verify import verify

from .conftest import ROOT, Playbook, fill, free_ports, own_server, person, small_disk

pytestmark = [pytest.mark.pensieve, pytest.mark.docker, pytest.mark.incident]

NAME = "autotask-postgres-rollback-test"
OLDER, NEWER = "0.30.1", "0.37.0"


def docker(*arguments: str) -> str:
    """Run docker."""
    return subprocess.run(["docker", *arguments], check=True, capture_output=True, text=True).stdout.strip()


class Site:
    """The sample installation, its playbooks and its server."""

    def __init__(self, sample: Installation, playbook: Playbook, venv: Path, port: str, container: str = NAME) -> None:
        self.sample, self._playbook, self.container = sample, playbook, container
        self.config, self.database = sample.base / "config.yaml", sample.base / "database.db"
        self.state = sample.settings.home / ".local" / "state" / "pensieve-postgres"
        self.variables = {
            "pensieve_user_home": str(sample.settings.home),
            "pensieve_venv": str(venv),
            "report_directory": "",
            "postgres_port": port,
            "postgres_container_name": container,
            "postgres_volume_name": container,
        }
        self.dsn = f"postgresql://autotasktracker@127.0.0.1:{port}/autotasktracker"

    def play(self, name: str, code: int, check: bool = False, **variables: str) -> str:
        """Run a playbook; its output in one line."""
        done = self._playbook(name, *(["--check"] if check else []), **self.variables, **variables)
        said = re.sub(r"\s+", " ", done.stdout + done.stderr)
        assert done.returncode == code, said[-6000:]
        return said

    def send(self, method: str, path: str, body: Any = None) -> Any:
        """Ask Pensieve; it must answer well."""
        answer = request(self.sample.endpoint, method, path, body)
        assert answer.status < 400, answer
        return answer.body

    def write(self, seed: int) -> None:
        """Write at random."""
        Writer(lambda *asked: request(self.sample.endpoint, *asked), seed).write(25)

    def add(self, name: str) -> dict[str, Any]:
        """Add an entity, indexed."""
        library = self.send("GET", "/libraries")[0]
        body = screenshot(random.Random(name), name, library["folders"][0]["id"])
        path = f"/libraries/{library['id']}/entities?trigger_webhooks_flag=false&update_index=true"
        added: dict[str, Any] = self.send("POST", path, body)
        return added

    def manifest(self) -> dict[str, Any]:
        """The manifest."""
        found: dict[str, Any] = json.loads((self.state / "manifest.json").read_text())
        return found

    def require_equal(self) -> None:
        """Stop Pensieve for a moment, and compare every cell but full text that lags behind its rows."""
        self.sample.stop()
        passfile = str(self.sample.settings.home / ".pgpass")
        result = verify(self.database, self.dsn, passfile=passfile, jobs=1)
        wrong = [found for found in result.differences if "differ" not in found.what or found.table != "entities_fts"]
        assert not wrong, wrong[:5]
        self.sample.start()


@pytest.fixture(scope="module")
def port() -> Iterator[str]:
    """Of the server that this file makes; it is removed afterwards with its data."""
    yield str(free_ports(1)[0])
    subprocess.run(["docker", "rm", "--force", NAME], check=True, capture_output=True)
    subprocess.run(["docker", "volume", "rm", "--force", NAME], check=True, capture_output=True)
    subprocess.run(["docker", "network", "rm", NAME], check=False, capture_output=True)


@pytest.fixture
def site(sample: Installation, playbook: Playbook, pensieve_venv: Path, port: str) -> Site:
    """The sample on PostgreSQL, with its old settings remembered."""
    here = Site(sample, playbook, pensieve_venv, port)
    here.config.chmod(0o640)
    here.play("migrate.yml", 0)
    assert here.manifest()["phase"] == "complete"
    return here


@pytest.fixture
def before(sample: Installation) -> tuple[bytes, int]:
    """The settings before the migration."""
    config = sample.base / "config.yaml"
    config.chmod(0o640)
    return config.read_bytes(), config.stat().st_mode


def settings_of(site: Site) -> tuple[bytes, int]:
    """Bytes and mode of the settings now."""
    return site.config.read_bytes(), site.config.stat().st_mode


def test_everything_comes_back(before: tuple[bytes, int], site: Site) -> None:
    site.write(11)
    # The system was upgraded: the engine's environment points at a Python that is gone.
    python = site.state / "runtime" / "bin" / "python"
    python.unlink()
    python.symlink_to("/usr/bin/python-of-the-last-system")
    said = site.play("rollback.yml", 0)
    assert re.search(r"Carries back into \S+ what was written since .*? rows touched \(entities \d+", said), said
    assert re.search(r"Carried back: [1-9]\d* rows in ", said), said
    assert re.search(r"Compared on both sides: [1-9]\d* cells, all equal", said), said
    assert settings_of(site) == before
    site.require_equal()
    assert site.manifest()["left_behind"] == 0
    again = site.play("rollback.yml", 0)
    assert "Nothing to roll back" in again
    assert "changed=0" in again
    # A manifest of another migration than the one that stands says nothing about it.
    site.config.write_text(site.config.read_text().replace("'database.db'", f"'{site.dsn}'"))
    assert "a manifest in" in site.play("rollback.yml", 2)
    assert "Pensieve on PostgreSQL" in site.play("carry-back.yml", 2)
    site.config.write_bytes(before[0])


def test_a_migration_that_was_killed_after_the_start(
    before: tuple[bytes, int], sample: Installation, playbook: Playbook, pensieve_venv: Path, port: str
) -> None:
    """A person has edited the settings before the stop, and after the kill: these edits stay."""
    site = Site(sample, playbook, pensieve_venv, port)

    def edit() -> None:
        site.config.write_bytes(b"facet_by_hand: true\n" + site.config.read_bytes())

    kill_at(site, "migrate.yml", "note | Note in the manifest", ("data_copy : copy | Look for the engine", edit))
    assert site.manifest()["phase"] == "prepared"
    site.write(14)
    site.config.write_bytes(site.config.read_bytes() + b"\n# by hand\n")
    said = site.play("rollback.yml", 0)
    assert re.search(r"Carried back: [1-9]\d* rows in ", said), said
    assert f"{site.config}: database_path put back, later edits kept." in said, said
    assert settings_of(site) == (b"facet_by_hand: true\n" + before[0] + b"\n# by hand\n", before[1])
    site.require_equal()
    site.config.write_bytes(before[0])


def test_autotasktracker_was_edited_after_a_migration_that_was_killed(
    sample: Installation, playbook: Playbook, pensieve_venv: Path, port: str, tmp_path: Path
) -> None:
    """Its files are as they were, but for what a person has edited since."""
    checkout, own = tmp_path / "AutoTaskTracker", sample.base / "config_autotasktracker.yaml"
    shutil.copytree(ROOT / "support" / "consumer", checkout, ignore=shutil.ignore_patterns("__pycache__"))
    own.write_bytes(b"port: 1")
    environment, source = checkout / "autotasktracker.env", checkout / "autotasktracker" / "config.py"
    wanted = {file: file.read_bytes() for file in (own, *checkout.rglob("*.py"))}
    site = Site(sample, playbook, pensieve_venv, port)
    site.variables |= {"autotasktracker_dir": str(checkout), "autotasktracker_venv": str(pensieve_venv)}
    kill_at(site, "migrate.yml", "prove | Ask AutoTaskTracker itself")
    assert site.dsn.encode() in own.read_bytes()
    assert source.read_bytes() != wanted[source]
    assert environment.stat().st_mode & 0o7777 == 0o600
    for file in (own, environment, source):
        file.write_bytes(b"# mine\n" + file.read_bytes())
        wanted[file] = b"# mine\n" + wanted.get(file, b"")
    said = site.play("rollback.yml", 0)
    for file, done in (
        (own, "database_path put back, later edits kept"),
        (environment, "the lines of the migration taken out, later edits kept"),
        (source, "the lines that the migration changed put back, later edits kept"),
        (source.with_name("postgresql_first.py"), "removed, since it was not there before"),
    ):
        assert f"{file}: {done}" in said, said
    assert {file: file.read_bytes() for file in (own, environment, *checkout.rglob("*.py"))} == wanted
    own.unlink()


def test_server_dead(before: tuple[bytes, int], site: Site) -> None:
    container = docker("inspect", "--format={{.Id}}", NAME)
    theirs = site.add("postgresql")
    docker("kill", NAME)
    said = site.play("rollback.yml", 2)
    assert "Found: Pensieve is on SQLite again, healthy, but what was written to PostgreSQL" in said, said
    assert "ansible-playbook carry-back.yml" in said, said
    assert settings_of(site) == before
    ours = site.add("sqlite")
    assert ours["id"] == theirs["id"], "both sides have given the same id"
    refused = site.play("carry-back.yml", 2)
    assert "Untouched: everything; Pensieve runs on SQLite as before." in refused, refused
    docker("start", NAME)
    wait_for_server(site)
    carried = site.play("carry-back.yml", 0)
    entities = {site.send("GET", f"/entities/{number}")["filepath"]: number for number in (ours["id"], ours["id"] + 1)}
    assert entities == {ours["filepath"]: ours["id"], theirs["filepath"]: ours["id"] + 1}, carried
    assert f"entities {theirs['id']} of PostgreSQL is {ours['id'] + 1} in SQLite" in carried
    back = site.send("GET", f"/entities/{ours['id'] + 1}")
    for part in ("metadata_entries", "tags"):
        assert sorted(e.get("key", e.get("name")) for e in back[part]) == sorted(
            e.get("key", e.get("name")) for e in theirs[part]
        )
    with closing(sqlite3.connect(f"{site.database.as_uri()}?mode=ro", uri=True)) as database:
        for table, column in (("entities_fts_content", "c0"), ("entities_vec_v2_rowids", "rowid")):
            ids = f"SELECT {column} FROM {table} WHERE {column} >= ? ORDER BY 1"
            assert database.execute(ids, (ours["id"],)).fetchall() == [(ours["id"],), (ours["id"] + 1,)], table
    told = json.loads(next(site.state.glob("carried-back-*.json")).read_text())
    assert {"table": "entities", "postgresql": theirs["id"], "sqlite": ours["id"] + 1, "joined": False} in told[
        "renumbered"
    ]
    assert site.manifest()["left_behind"] == 0
    assert "Nothing to carry back" in site.play("carry-back.yml", 0)
    site.play("migrate.yml", 0)
    assert docker("inspect", "--format={{.Id}}", NAME) == container
    site.play("rollback.yml", 0)


def wait_for_server(site: Site) -> None:
    """Until the container is healthy."""
    deadline = time.monotonic() + 60
    while docker("inspect", "--format={{.State.Health.Status}}", site.container) != "healthy":
        assert time.monotonic() < deadline, docker("logs", site.container)
        time.sleep(0.2)


def begin(site: Site, name: str) -> subprocess.Popen[str]:
    """Start a playbook in a session of its own; what it says can be read line by line."""
    command = [str(Path(sys.executable).parent / "ansible-playbook"), name]
    for variable, value in site.variables.items():
        command += ["-e", f"{variable}={value}"]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=person(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def kill_at(site: Site, name: str, task: str, earlier: tuple[str, Callable[[], None]] | None = None) -> None:
    """Start a playbook, and kill it without mercy, its modules too, as soon as a task begins.

    Args:
        site: the installation.
        name: of the playbook.
        task: where it is killed.
        earlier: a task before, and what happens as soon as that begins.
    """
    process = begin(site, name)
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if task in line:
            break
        if earlier is not None and earlier[0] in line:
            earlier[1]()
            earlier = None
    else:
        raise AssertionError(f"{name} ended before {task}:\n{''.join(said[-60:])}")
    assert earlier is None, f"{name} came to {task} without {earlier}"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_damaged_database_edited_settings_and_a_killed_rollback(before: tuple[bytes, int], site: Site) -> None:
    site.write(12)
    edited = site.config.read_bytes() + b"\nfacet_by_hand: true\n"
    # The value itself: refused by name, before anything stops.
    site.config.write_bytes(edited.replace(site.dsn.encode(), b"postgresql://me:hunter2@127.0.0.1:1/other"))
    said = site.play("rollback.yml", 2)
    assert f"Found: {site.config} was edited since the switch: database_path: postgresql://(not shown), " in said, said
    assert "rollback_overwrite_config=true" in said, said
    assert "hunter2" not in said, said
    assert site.send("GET", "/libraries")
    site.config.write_bytes(edited)
    with site.database.open("r+b") as file:
        file.truncate(site.database.stat().st_size // 2)
    kill_at(site, "rollback.yml", "carry_back | Write what PostgreSQL holds into SQLite")
    said = site.play("rollback.yml", 0)
    assert list(site.database.parent.glob("database.db.damaged-*")), "the damaged file is kept"
    assert f"{site.config}: database_path put back, later edits kept." in said, said
    assert settings_of(site) == (before[0] + b"\nfacet_by_hand: true\n", before[1])
    site.require_equal()
    site.config.write_bytes(before[0])


def test_volume_gone(before: tuple[bytes, int], site: Site) -> None:
    site.write(13)
    docker("rm", "--force", NAME)
    docker("volume", "rm", NAME)
    said = site.play("rollback.yml", 2)
    assert "Left behind in PostgreSQL" in said
    assert ": unknown." in said
    assert settings_of(site) == before
    assert site.send("GET", "/libraries")
    site.play("carry-back.yml", 2)
    site.play("migrate.yml", 0)
    refused = site.play("carry-back.yml", 2)
    assert "ansible-playbook rollback.yml carries back by itself" in refused
    site.play("rollback.yml", 0)


def test_a_damaged_manifest(before: tuple[bytes, int], site: Site) -> None:
    site.write(16)
    file = site.state / "manifest.json"
    whole = file.read_bytes()
    file.write_bytes(whole[:200])
    (site.state / "environment.json").write_bytes(b"")
    said = site.play("status.yml", 0)
    assert "Migration: damaged, so nothing is known of it." in said, said
    assert f"Problem: {file} is damaged" in said, said
    for name in ("migrate.yml", "rollback.yml", "verify.yml", "carry-back.yml"):
        said = site.play(name, 2)
        assert re.search(rf"Found: {file} is damaged: .*? Expected: .*? Untouched: everything; nothing was", said), said
        assert "changed=0" in said
    told = re.search(r"Next: (cp \S+ \S+) \(its copy\), then run the playbook again\.", said)
    assert told, said
    subprocess.run(told.group(1).split(), check=True)
    assert file.read_bytes() == whole
    said = site.play("rollback.yml", 0)
    assert re.search(r"Carried back: [1-9]\d* rows in ", said), said
    assert re.search(r"WARNING\]: \S+/environment.json, with the variables that services had, is damaged", said), said
    assert settings_of(site) == before
    site.require_equal()


def test_state_directory_gone(before: tuple[bytes, int], site: Site) -> None:
    site.write(17)
    shutil.rmtree(site.state)
    assert "Migration: on PostgreSQL, with no manifest that says from where" in site.play("status.yml", 0)
    for name, found in (
        ("migrate.yml", ".*? already on PostgreSQL, with no manifest .*? rollback.yml, which tells the way back"),
        ("rollback.yml", "no manifest in .*?; Pensieve on PostgreSQL.* If that directory is lost"),
        ("carry-back.yml", "phase none in .*?, Pensieve on PostgreSQL"),
    ):
        said = site.play(name, 2)
        assert re.search(f"Found: {found}", said), said
        assert "changed=0" in said
    # As the rollback has said, but another database than the one that was moved.
    other = site.database.with_name("other.db")
    shutil.copy(site.database, other)
    site.config.write_text(site.config.read_text().replace(site.dsn, str(other)))
    assert f"Next: set it in {site.config}, do not restart Pensieve" in site.play("carry-back.yml", 2)
    site.config.write_bytes(before[0])
    said = site.play("carry-back.yml", 0)
    assert re.search(r"Carried back: [1-9]\d* rows in ", said), said
    assert re.search(r"Compared on both sides: [1-9]\d* cells, all equal", said), said
    assert site.send("GET", "/libraries")
    site.require_equal()
    assert "Nothing to carry back" in site.play("carry-back.yml", 0)
    assert "Nothing to roll back" in site.play("rollback.yml", 0)
    site.play("migrate.yml", 0)
    site.play("rollback.yml", 0)


@pytest.mark.parametrize("damage", ["no YAML", "no setting of Pensieve", "gone"])
def test_settings_that_cannot_be_read(before: tuple[bytes, int], site: Site, damage: str) -> None:
    site.add(damage)
    if damage == "gone":
        site.config.unlink()
        said = site.play("rollback.yml", 0)
    else:
        broken = (
            site.config.read_bytes()
            + {"no YAML": b"\nfacets: [\n", "no setting of Pensieve": b"\nserver_port: [1]\n"}[damage]
        )
        site.config.write_bytes(broken)
        assert f"Problem: {site.config}: " in site.play("status.yml", 0)
        said = site.play("rollback.yml", 2)
        assert re.search(
            rf"Found: {site.config}: .*? Expected: .*? Untouched: everything; nothing was changed", said
        ), said
        assert "Next: mend " in said, said
        assert "rollback.yml -e rollback_overwrite_config=true, which restores the one of before" in said, said
        assert "Next: mend " in site.play("migrate.yml", 2)
        assert site.config.read_bytes() == broken
        said = site.play("rollback.yml", 0, rollback_overwrite_config="true")
    assert re.search(r"Carried back: [1-9]\d* rows in ", said), said
    assert settings_of(site) == before
    site.require_equal()
    assert site.manifest()["left_behind"] == 0


@pytest.fixture
def upgradable(tmp_path: Path, playbook: Playbook) -> Iterator[Site]:
    """A sample on PostgreSQL with an environment of its own, in which Pensieve may be upgraded."""
    venv = tmp_path / "pensieve"
    make_venv(venv, OLDER, postgresql=True)
    (root := tmp_path / "sample").mkdir()
    installation = Installation(Settings(root, OLDER, venv, free_ports(2)[0], 20))
    installation.make()
    site = Site(installation, playbook, venv, str(free_ports(1)[0]), f"{NAME}-own")
    site.play("migrate.yml", 0)
    yield site
    installation.remove()
    docker("rm", "--force", site.container)
    docker("volume", "rm", "--force", site.container)
    docker("network", "rm", site.container)


@pytest.fixture
def small(
    tmp_path: Path, sample: Installation, playbook: Playbook, pensieve_venv: Path
) -> Iterator[tuple[Site, Path, bytes]]:
    """A sample on PostgreSQL whose home is on a disk of its own, that disk, and the settings of before."""
    with small_disk(tmp_path / "disk", 400) as disk:
        (root := disk / "sample").mkdir()
        installation = Installation(Settings(root, version_of(pensieve_venv), pensieve_venv, free_ports(2)[0], 20))
        try:
            installation.make()
            before = (installation.base / "config.yaml").read_bytes()
            with own_server(f"{NAME}-small") as variables:
                port, container = variables["postgres_port"], variables["postgres_container_name"]
                site = Site(installation, playbook, pensieve_venv, port, container)
                # The engine's environment takes too much room for that disk.
                site.variables["data_copy_venv"] = str(sample.settings.home / ".local/state/pensieve-postgres/runtime")
                site.variables["preflight_reserve_bytes"] = "0"
                site.play("migrate.yml", 0)
                yield site, disk, before
        finally:
            installation.remove()


@pytest.mark.parametrize(
    ("alive", "when", "runs"),
    [
        (True, "carry | Count what was not carried", "Pensieve answers on PostgreSQL; database_path names PostgreSQL"),
        (False, "stop | Stop Pensieve, and prove it", "Pensieve does not run; database_path names PostgreSQL"),
    ],
    ids=["server alive", "server dead"],
)
def test_a_full_disk_when_the_settings_are_restored(
    small: tuple[Site, Path, bytes], alive: bool, when: str, runs: str
) -> None:
    site, disk, before = small
    migrated = site.config.read_bytes()
    site.write(18)
    if not alive:
        docker("kill", site.container)
    running = begin(site, "rollback.yml")
    assert running.stdout is not None
    lines = []
    for line in running.stdout:
        lines.append(line)
        if line.startswith("TASK") and when in line:
            filler = fill(disk, 0)
    said = re.sub(r"\s+", " ", "".join(lines))
    assert running.wait() == 2, said
    told = re.search(
        r"Found: the settings cannot be restored: (.*?) Expected: .*? Untouched: every settings file", said
    )
    assert told, said[-6000:]
    assert "No space left on device" in told.group(1)
    assert f"{runs}. Next: what the first lines say, then ansible-playbook rollback.yml" in said, said
    assert site.config.read_bytes() == migrated
    assert not list(site.config.parent.glob(".config.yaml.*")), "what was not restored takes no room"
    filler.unlink()
    if alive:
        assert site.send("GET", "/libraries")
        site.write(19)
        said = site.play("rollback.yml", 0)
        assert re.search(r"Carried back: [1-9]\d* rows in ", said), said
        assert site.manifest()["left_behind"] == 0
        site.require_equal()
    else:
        said = site.play("rollback.yml", 2)
        assert "Found: Pensieve is on SQLite again, healthy, but what was written to PostgreSQL" in said, said
        assert site.send("GET", "/libraries")
    assert site.config.read_bytes() == before


def revision(site: Site) -> str:
    """Revision of the schema of SQLite."""
    with closing(sqlite3.connect(f"{site.database.as_uri()}?mode=ro", uri=True)) as database:
        return str(database.execute("SELECT version_num FROM alembic_version").fetchone()[0])


def upgrade(site: Site) -> None:
    """Upgrade Pensieve, as people do; its next start upgrades the database that it runs on."""
    site.sample.stop()
    install_version(site.sample.settings.venv, NEWER)
    site.sample.start()


def test_pensieve_was_upgraded_since(upgradable: Site) -> None:
    site = upgradable
    older = revision(site)
    upgrade(site)
    assert revision(site) == older, "the upgrade is PostgreSQL's alone"
    site.write(15)
    assert "changed=0" in site.play("migrate.yml", 0)
    said = site.play("rollback.yml", 0)
    assert "brings SQLite to the same revision of the schema first" in said, said
    assert re.search(r"Carried back: [1-9]\d* rows in ", said), said
    assert re.search(r"Compared on both sides: [1-9]\d* cells, all equal", said), said
    assert revision(site) != older
    site.require_equal()
    assert site.manifest()["left_behind"] == 0


def test_pensieve_was_upgraded_while_the_server_was_dead(upgradable: Site) -> None:
    site = upgradable
    theirs = site.add("postgresql")
    docker("kill", site.container)
    site.play("rollback.yml", 2)
    ours = site.add("sqlite")
    assert ours["id"] == theirs["id"], "both sides have given the same id"
    older = revision(site)
    upgrade(site)
    assert revision(site) != older, "the upgrade is SQLite's alone"
    docker("start", site.container)
    wait_for_server(site)
    site.play("carry-back.yml", 0)
    for there, number in ((ours, ours["id"]), (theirs, ours["id"] + 1)):
        assert site.send("GET", f"/entities/{number}")["filepath"] == there["filepath"]
    assert site.manifest()["left_behind"] == 0
