"""A server that stands still while Pensieve is stopped: the playbook goes on without it, and tells why it waits."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg2
import pytest
from engine.pensieve import Pensieve
from engine.server import Server
from engine.silence import SAID, SOON, seconds_until_it_ends
from sample_installation.installation import Installation

from .conftest import ROOT, Playbook, own_server, person
from .test_rollback import Site, begin, docker, wait_for_server

pytestmark = [pytest.mark.pensieve, pytest.mark.docker, pytest.mark.incident]

NAME = "autotask-postgres-silence-test"
GAP = 12.0  # seconds between two lines, a busy machine allowed for


@pytest.fixture(scope="module")
def site(sample: Installation, pensieve_venv: Path) -> Iterator[Site]:
    """The sample on PostgreSQL."""
    made: list[Site] = []

    def play(name: str, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).parent / "ansible-playbook"), name, *options]
        for variable, value in variables.items():
            command += ["-e", f"{variable}={value}"]
        return subprocess.run(command, cwd=ROOT, env=person(), capture_output=True, text=True, check=False)

    with own_server(NAME) as variables:
        made.append(Site(sample, play, pensieve_venv, variables["postgres_port"], NAME))
        made[0].play("migrate.yml", 0)
        yield made[0]


@contextmanager
def writer(site: Site) -> Iterator[Callable[[], None]]:
    """Somebody whose transaction a carry-back has to wait for; gives what waits until it does."""
    dsn = f"{site.dsn}?passfile={site.sample.settings.home / '.pgpass'}"
    with closing(psycopg2.connect(dsn)) as holder, closing(psycopg2.connect(dsn)) as other:
        with holder.cursor() as cursor:
            cursor.execute("LOCK TABLE data_copy.change IN ROW EXCLUSIVE MODE")
        other.autocommit = True

        def until_waited_for() -> None:
            deadline = time.monotonic() + 120
            with other.cursor() as cursor:
                while True:
                    cursor.execute("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
                    if cursor.fetchall():
                        return
                    assert time.monotonic() < deadline, "no carry-back waits"
                    time.sleep(0.05)

        yield until_waited_for


def rest(process: subprocess.Popen[str]) -> list[tuple[float, str]]:
    """What a playbook says to its end, each line with the seconds since the one before."""
    assert process.stdout is not None
    lines, last = [], time.monotonic()
    for line in process.stdout:
        now = time.monotonic()
        lines.append((now - last, line))
        last = now
    process.wait()
    return lines


def one_line(lines: list[tuple[float, str]]) -> str:
    """As people read it."""
    return re.sub(r"\s+", " ", "".join(line for _, line in lines))


def test_a_rollback_goes_on_and_what_it_left_is_carried_later(site: Site) -> None:
    theirs = site.add("postgresql")
    with writer(site) as until_waited_for:
        process = begin(site, "rollback.yml")
        until_waited_for()
        docker("pause", NAME)
        try:
            lines = rest(process)
        finally:
            docker("unpause", NAME)
    said = one_line(lines)
    assert max(seconds for seconds, _ in lines) < GAP, lines
    given_up = next(number for number, (_, line) in enumerate(lines) if "carry | Keep the reason" in line)
    assert sum(seconds for seconds, _ in lines[: given_up + 1]) < SOON, lines
    assert "waiting: for PostgreSQL at 127.0.0.1:" in said, said
    assert "Found: Pensieve is on SQLite again, healthy, but what was written to PostgreSQL" in said, said
    assert process.returncode == 2
    wait_for_server(site)
    with writer(site) as until_waited_for:
        process = begin(site, "carry-back.yml")
        until_waited_for()
        time.sleep(12)
    lines = rest(process)
    said = one_line(lines)
    assert process.returncode == 0, said
    assert max(seconds for seconds, _ in lines) < GAP, lines
    assert "carry back: waiting for whoever writes to PostgreSQL to end" in said, said
    assert site.send("GET", f"/entities/{theirs['id']}")["filepath"] == theirs["filepath"]
    site.require_equal()


def test_pensieves_own_code_is_given_up(pensieve_venv: Path, tmp_path: Path, playbook: Playbook) -> None:
    """And gets its tables later."""
    with Server(tmp_path) as server:
        dsn = server.create_database("silent")
        Pensieve(pensieve_venv, tmp_path / "home").init(dsn)
        command = [shutil.which("ansible") or str(Path(sys.executable).parent / "ansible"), "localhost"]
        command += ["--module-name=pensieve_schema", f"--args=database={dsn}"]
        command += ["--extra-vars", json.dumps({"ansible_python_interpreter": str(pensieve_venv / "bin" / "python")})]
        environment = {**person(), "PGPASSFILE": str(server.passfile), "HOME": str(tmp_path / "home")}

        def work() -> str:
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
            return re.sub(r"\s+", " ", done.stdout + done.stderr)

        _, said = seconds_until_it_ends(server, dsn, "public.alembic_version", work)
        assert SAID in str(said), said
        assert "Pensieve's own code is at the tables of postgresql://" in str(said), said
        assert "CHANGED" in work() or "SUCCESS" in work()
