"""A run that is cut goes on where the journal says, whoever did what meanwhile; whole playbooks, a real Pensieve."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sample_installation.installation import Installation

from .conftest import Playbook, own_server, small_disk
from .test_rollback import Site, begin, kill_at

pytestmark = [pytest.mark.pensieve, pytest.mark.docker, pytest.mark.incident]

NAME = "autotask-postgres-interrupted-test"
DIFFERENCE = "difference | Copy what has changed"


@pytest.fixture(scope="module")
def server() -> Iterator[dict[str, str]]:
    """Names of a server that these tests make."""
    with own_server(NAME) as variables:
        yield variables


@pytest.fixture
def site(sample: Installation, playbook: Playbook, pensieve_venv: Path, server: dict[str, str]) -> Site:
    """The sample on SQLite."""
    return Site(sample, playbook, pensieve_venv, server["postgres_port"], NAME)


def runs(site: Site) -> bool:
    """Whether Pensieve answers."""
    try:
        return bool(site.send("GET", "/libraries"))
    except OSError:
        return False


def strange_label(database: Path) -> Callable[[], None]:
    """Let the next census find something that stops it; give what mends that."""

    def write(label: str) -> None:
        with closing(sqlite3.connect(database, timeout=30)) as connection, connection:
            connection.execute("UPDATE metadata_entries SET data_type = ? WHERE id = ?", (label, row))

    with closing(sqlite3.connect(database, timeout=30)) as connection:
        row, old = connection.execute("SELECT min(id), data_type FROM metadata_entries").fetchone()
    write("strange")
    return lambda: write(old)


def test_killed_while_stopped_and_the_next_run_fails_before_its_own_stop(site: Site) -> None:
    kill_at(site, "migrate.yml", DIFFERENCE)
    assert not runs(site)
    said = site.play("status.yml", 0)
    assert "Problem: migrate.yml, begun by " in said, said
    assert "and is down. Next: ansible-playbook migrate.yml" in said, said
    mend = strange_label(site.database)
    said = site.play("migrate.yml", 2)
    assert "unknown_enum_label" in said, said
    assert runs(site), "Pensieve is up after every run"
    assert "No problem found." in site.play("status.yml", 0)
    mend()
    site.play("migrate.yml", 0)
    assert site.manifest()["phase"] == "complete"
    site.play("rollback.yml", 0)


def test_killed_after_the_switch_before_the_start(site: Site) -> None:
    before = site.config.read_bytes()
    kill_at(site, "migrate.yml", "start | Start Pensieve, and wait")
    # What the journal says counts, not the settings, which name PostgreSQL already.
    assert site.config.read_bytes() != before
    site.play("rollback.yml", 0)
    assert site.config.read_bytes() == before
    assert runs(site)


def test_a_rollback_killed_after_its_start_revives_nothing(site: Site) -> None:
    site.play("migrate.yml", 0)
    added = site.add("revived")
    kill_at(site, "rollback.yml", "pensieve : manifest | Write it")
    library = site.send("GET", "/libraries")[0]["id"]
    site.send("DELETE", f"/libraries/{library}/entities/{added['id']}")
    said = site.play("rollback.yml", 0)
    assert "Nothing to roll back" in said, said
    with closing(sqlite3.connect(f"{site.database.as_uri()}?mode=ro", uri=True)) as database:
        assert not database.execute("SELECT 1 FROM entities WHERE id = ?", (added["id"],)).fetchall()
    assert site.manifest()["phase"] == "rolled_back"
    assert runs(site)


def test_a_second_operation_is_refused_at_once_and_names_the_first(site: Site) -> None:
    first = begin(site, "migrate.yml")
    assert first.stdout is not None
    assert any("TASK [preflight" in line for line in first.stdout)
    for name in ("migrate.yml", "rollback.yml", "carry-back.yml"):
        said = site.play(name, 2)
        assert said.count("TASK [") == 2, "the environment, and the claim"
        assert re.search(rf"Found: migrate.yml is under way here, begun by \S+ at .*? \(process {first.pid}\)", said), (
            said
        )
        assert "Untouched: everything; this run has changed nothing." in said, said
        assert "changed=0" in said
    assert re.search(r"migrate.yml, begun by \S+ at .*?, is under way", site.play("status.yml", 0))
    first.communicate()
    assert first.returncode == 0
    site.play("rollback.yml", 0)


def test_the_state_directory_becomes_read_only_at_the_stop(site: Site, tmp_path: Path) -> None:
    root = [] if os.geteuid() == 0 else ["sudo", "--non-interactive"]
    before = site.config.read_bytes()
    with small_disk(tmp_path / "state", 400) as disk:
        runtime = site.state / "runtime"
        if not runtime.exists():
            site.play("migrate.yml", 0)
            site.play("rollback.yml", 0)
        site.variables["data_copy_venv"] = str(runtime)
        site.variables["pensieve_state_dir"] = str(disk)
        site.variables["preflight_reserve_bytes"] = "0"
        # The server that is there has its password in the other state directory.
        shutil.copytree(site.state / "secrets", disk / "secrets")
        running = begin(site, "migrate.yml")
        assert running.stdout is not None
        lines = []
        for line in running.stdout:
            lines.append(line)
            if line.startswith("TASK") and DIFFERENCE in line:
                subprocess.run([*root, "mount", "-o", "remount,ro", str(disk)], check=True)
        said = re.sub(r"\s+", " ", "".join(lines))
        assert running.wait() == 2, said[-6000:]
        told = said[said.rindex("Found: the step") :]
        assert "Read-only file system" in told.partition("Then:")[0], told
        assert re.search(r"Untouched: .*? Pensieve answers on SQLite", told), told
        assert runs(site)
        assert site.config.read_bytes() == before
        subprocess.run([*root, "mount", "-o", "remount,rw", str(disk)], check=True)
        site.play("migrate.yml", 0)
        site.play("rollback.yml", 0)
