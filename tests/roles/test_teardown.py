"""teardown.yml removes what the migration keeps, and nothing else; and not while anything of it is needed."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible.module_utils.migration_journal import Holder, boot
from ansible.module_utils.processes import started
from sample_installation.installation import Installation

from .conftest import Playbook, own_server
from .test_rollback import Site

pytestmark = [pytest.mark.pensieve, pytest.mark.docker, pytest.mark.incident]

NAME = "autotask-postgres-teardown-test"


def objects(kind: str) -> str:
    """Names of containers or volumes of ours."""
    asked = ["docker", kind, "ls", "--filter", f"name={NAME}", "--quiet"]
    return subprocess.check_output([*asked, "--all"] if kind == "container" else asked, text=True)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder that does not change by itself."""
    files = sorted(folder.rglob("*")) if folder.exists() else []
    return {
        str(file): file.read_bytes()
        for file in files
        if file.is_file() and "log" not in file.name and "runtime" not in file.parts
    }


@pytest.fixture
def site(sample: Installation, playbook: Playbook, pensieve_venv: Path, tmp_path: Path) -> Iterator[Site]:
    """The sample, with a server of its own, which is gone at the end."""
    with own_server(NAME) as variables:
        here = Site(sample, playbook, pensieve_venv, variables["postgres_port"], NAME)
        here.variables["report_directory"] = str(tmp_path / "reports")
        yield here


def refused(site: Site, found: str, **variables: str) -> None:
    """It ends before it has changed anything."""
    before = contents(site.state)
    said = site.play("teardown.yml", 2, False, **{"teardown_confirmed": NAME, **variables})
    assert f"Found: {found}" in said, said[-3000:]
    assert "Untouched: everything;" in said
    assert "changed=0" in said
    assert contents(site.state) == before


def test_teardown(site: Site, tmp_path: Path) -> None:
    home = site.sample.settings.home
    passfile = home / ".pgpass"
    passfile.write_text("other.example:5432:db:me:secret\n")
    passfile.chmod(0o600)
    config = site.config.read_bytes()
    site.play("migrate.yml", 0)
    assert NAME not in passfile.read_text()
    assert len(passfile.read_text().splitlines()) == 2
    refused(site, f"database_path is {site.dsn}")
    site.play("rollback.yml", 0)

    page = tmp_path / "reports" / "localhost" / "report.html"
    assert page.stat().st_mode & 0o777 == 0o600
    assert page.parent.stat().st_mode & 0o777 == 0o700
    (mine := site.state / "mine.txt").write_text("a person's\n")

    before = contents(site.state)
    said = site.play("teardown.yml", 0, check=True)
    for name in (
        f"volume {NAME}",
        str(passfile),
        *(str(site.state / name) for name in ("backups", "secrets", "runtime")),
    ):
        assert name in said.partition("Removed for good:")[2].partition("Never touched:")[0], said
    for own in (site.database, site.config, site.sample.base):
        assert str(own) in said.partition("Never touched:")[2], said
    assert contents(site.state) == before
    assert objects("container")
    assert objects("volume")

    refused(site, "the name ''", teardown_confirmed="")
    refused(site, "the name 'other'", teardown_confirmed="other")
    held = Holder("migrate.yml", "ada@laptop", "now", os.getpid(), started(os.getpid()), boot())
    (site.state / "operation.json").write_text(json.dumps(held.__dict__))
    refused(site, "migrate.yml is under way here, begun by ada@laptop")
    (site.state / "operation.json").unlink()
    manifest = (site.state / "manifest.json").read_bytes()
    (site.state / "manifest.json").unlink()
    refused(site, "no manifest that says whether all rows")
    (site.state / "manifest.json").write_bytes(manifest)

    site.play("teardown.yml", 0, teardown_confirmed=NAME, teardown_what="backups")
    assert not (site.state / "backups").exists()
    assert (site.state / "secrets").exists()
    assert objects("container")

    site.play("teardown.yml", 0, teardown_confirmed=NAME)
    assert not objects("container")
    assert not objects("volume")
    assert [file.name for file in site.state.iterdir()] == ["mine.txt"]
    assert mine.read_text() == "a person's\n"
    assert passfile.read_text() == "other.example:5432:db:me:secret\n"
    assert passfile.stat().st_mode & 0o777 == 0o600
    assert not page.exists()
    assert site.config.read_bytes() == config
    assert site.send("GET", "/libraries")

    mine.unlink()
    said = site.play("teardown.yml", 0, teardown_confirmed=NAME)
    assert "changed=0" in said
    assert not site.state.exists()
