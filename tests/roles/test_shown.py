"""A person is shown what changes in a settings file, and nothing of what stands around it: it may be a password."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.settings_error import lines_that_change, shown

from .test_backup import URI, Site

TESTS = Path(__file__).parents[1]
SECRET = "hunter2"
AROUND = [
    f"token: {SECRET}",
    f"auth_password: |\n  {SECRET}\n  more",
    f"vlm: {{model: m, token:\n  {SECRET}}}",
    f"vlm: [token, \n  {SECRET}]",
    f'token: "a\n  {SECRET}"',
    f"token: 'a\n\n{SECRET}'",
    f"? token\n: {SECRET}",
    f"? token\n:\n- {SECRET}",
    f"base: &token {SECRET}\nvlm: *token",
    f"headers:\n  Authorization: Bearer {SECRET}",
    f"private_key: |-\n  {SECRET}",
    f"pwd: {SECRET}",
    f"endpoint: http://me:{SECRET}@p@host/",
    f"endpoint: http://me:a {SECRET}@host/",
    f"endpoint: http://host/?key={SECRET}",
    f"# once it was {SECRET}",
]
"""Shapes in which a person may write a secret."""


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """Files of before the migration, which no test here needs but config.yaml."""
    here = Site(tmp_path)
    here.source.write_bytes(b"")
    return here


def run(name: str, **arguments: Any) -> str:
    """What a module says with --check --diff, as JSON."""
    code = f"import conftest, {name}; {name}.main()"
    options = {"_ansible_check_mode": True, "_ansible_diff": True, "_ansible_verbosity": 3}
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps({"ANSIBLE_MODULE_ARGS": {**arguments, **options}}),
        cwd=TESTS,
        capture_output=True,
        text=True,
        check=False,
    )
    said = json.loads(done.stdout)
    del said["invocation"]  # the arguments, which are ours
    return json.dumps(said)


@pytest.mark.parametrize("around", AROUND)
def test_what_stands_around_a_setting_is_not_shown(site: Site, around: str) -> None:
    """At the switch, at the rollback with and without later edits, and where an edit is refused."""
    text = f"{around}\ndatabase_path: mine.db\n"
    assert yaml.safe_load(text)["database_path"] == "mine.db"
    site.config.write_text(text)
    site.save()
    said = [run("pensieve_setting", path=str(site.config), key="database_path", value=URI)]
    assert "mine.db" in said[0]
    assert URI in said[0]
    site.switch()
    switched = site.config.read_text()
    said.append(run("backup_files", state="restored", entries=site.entries))
    site.config.write_text(f"{switched}other: 1\n")
    said.append(run("backup_files", state="restored", entries=site.entries))
    for one in said[1:]:
        assert f"-database_path: {URI}" in one
        assert "+database_path: mine.db" in one
    site.config.write_text(f"{switched.replace(URI, 'other.db')}other: 2\n")
    said.append(run("backup_files", state="restored", entries=site.entries))
    assert "was edited since the switch" in said[-1]
    for one in said:
        assert SECRET not in one


def test_a_refused_edit_tells_which_lines_and_how_to_see_them(site: Site) -> None:
    site.config.write_text(f"a: {SECRET}\ndatabase_path: mine.db\nb: 1\n")
    site.save()
    site.switch()
    site.config.write_text(site.config.read_text().replace(URI, "other.db").replace("b: 1", f"b: {SECRET}"))
    said = json.loads(run("backup_files", state="restored", entries=site.entries))["msg"]
    assert "-database_path: other.db\n+database_path: mine.db\nlines 2 to 3 of " in said
    command = said.partition("(")[2].partition(" shows it)")[0].split()
    assert subprocess.run(command, capture_output=True, text=True, check=False).stdout.startswith("2,3c2,3\n")


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("~/.memos/database.db", "~/.memos/database.db"),
        ("/home/a?b@c d/e.db", "/home/a?b@c d/e.db"),
        ("/data/key/database.db", "/data/key/database.db"),
        ("sqlite:////home/ada/database.db", "sqlite:////home/ada/database.db"),
        ("postgresql://me@host:5433/db", "postgresql://me@host:5433/db"),
        ("postgresql://me:hunter2@host/db", "postgresql://(not shown)"),
        ("postgresql://me:p@hunter2@host/db", "postgresql://(not shown)"),
        ("postgresql://me:a hunter2@host/db", "postgresql://(not shown)"),
        ("postgresql://me:hunter/2@host/db", "postgresql://(not shown)"),
        ("postgresql://host/db?user=me&password=hunter2", "postgresql://(not shown)"),
        ("postgresql://host/db?password=p@hunter2", "postgresql://(not shown)"),
        ("postgresql://me%3Ahunter2@host/db", "postgresql://(not shown)"),
        ("postgresql://me:hunter2", "postgresql://(not shown)"),
        ("postgresql+psycopg2://me:hunter2@host/db", "postgresql+psycopg2://(not shown)"),
        ("postgresql:me:hunter2@host/db", "postgresql:(not shown)"),
        ("postgres://me:hunter2@host/db", "(not shown)"),
        (" postgresql://me:hunter2@host/db", "(not shown)"),
        ("//me:hunter2@host/db", "(not shown)"),
        ("me:hunter2@host/db", "(not shown)"),
        ("sqlite+pysqlcipher://:hunter2@/x.db", "sqlite+pysqlcipher://(not shown)"),
        ("host=db user=me password=hunter2", "(not shown)"),
        ("host=db password hunter2", "(not shown)"),
        ("file:database.db?key=hunter2", "(not shown)"),
    ],
)
def test_a_uri_that_may_hold_a_password(value: str, told: str) -> None:
    assert shown(value) == told


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("a\nb\nc\n", "a\nX\nc\n", "line 2"),
        ("a\nb\nc\nd\n", "a\nX\nd\n", "lines 2 to 3"),
        ("a\nb\n", "a\n", "line 2"),
        ("a\nb\n", "a\nX\nb\n", "what follows line 1"),
        ("a\na\n", "a\n", "line 2"),
        ("a\n", "a", "line 2"),
        ("a", "a\n", "what follows line 1"),
        ("a\nb\n", "a\r\nb\r\n", "lines 1 to 2"),
        ("", "a\n", "what follows line 0"),
    ],
)
def test_which_lines_change(before: str, after: str, told: str) -> None:
    assert lines_that_change(before, after) == told
