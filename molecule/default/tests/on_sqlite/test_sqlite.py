"""After rollback.yml: Pensieve runs on SQLite as if nothing had been, with its settings byte for byte."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from testinfra.host import Host

testinfra_hosts = ["ansible://pensieve"]

STATE = """
import json, os, sqlite3
path = os.path.expanduser("~/.memos/database.db")
connection = sqlite3.connect("file:%s?mode=ro" % path, uri=True)
def one(statement): return connection.execute(statement).fetchone()[0]
# Table by table: a newer SQLite opens full-text tables in a check of everything, and has no tokenizer for them.
tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND sql NOT LIKE 'CREATE VIRTUAL%'")
print(json.dumps({
    "integrity": sorted({one("PRAGMA integrity_check('%s')" % name) for (name,) in tables.fetchall()}),
    "entities": one("SELECT count(*) FROM entities"),
    "labels": one("SELECT count(*) FROM metadata_entries WHERE source_type = 'vlm_processor'"),
    "nul": one("SELECT count(*) FROM metadata_entries WHERE instr(CAST(value AS BLOB), x'00') > 0"),
    "written_on_postgresql": one("SELECT count(*) FROM entities WHERE filename = 'after.webp'"),
}))
"""


@pytest.mark.parametrize(
    ("name", "mode"),
    [("home/.memos/config.yaml", 0o640), ("autotasktracker/autotasktracker.env", 0o644)],
)
def test_settings_are_back_byte_for_byte(name: str, mode: int, host: Host) -> None:
    before = host.file(f"/srv/pensieve/before/{name.rsplit('/', 1)[-1]}")
    after = host.file(f"/srv/pensieve/{name}")
    assert after.content == before.content
    assert after.mode == mode
    assert (after.user, after.group) == ("pensieve", "pensieve")


def test_pensieve_runs_on_sqlite(api: Callable[..., Any]) -> None:
    assert api("GET", "/config")["database_path"] == "database.db"
    assert {library["name"] for library in api("GET", "/libraries")} >= {"screenshots", "Projects 项目"}


def test_its_unit_keeps_it_running(unit: dict[str, str]) -> None:
    # One that was ended behind its back would have been restarted.
    assert (unit["ActiveState"], unit["NRestarts"]) == ("active", "0")
    assert unit["servers"] == unit["MainPID"]


def test_its_server_has_the_sqlite_file_open(host: Host, variables: dict[str, Any]) -> None:
    # A search makes it open its database, which it does at the first query.
    home = variables["pensieve_user_home"]
    opened = host.check_output("for p in $(pgrep -f '[m]emos.* serve'); do readlink /proc/$p/fd/* || true; done")
    assert host.check_output(f"readlink -f {home}/.memos/database.db") in opened.splitlines()


def test_the_database_is_as_it_was(inside: Callable[..., Any], variables: dict[str, Any]) -> None:
    found = inside(STATE)
    assert found["integrity"] == ["ok"]
    # One of the sample's screenshots was deleted when it was made.
    assert found["entities"] == variables["sample_count"] - 1
    assert found["labels"] > 0
    assert found["nul"] == 1
    assert found["written_on_postgresql"] == 0


def test_the_consumer_reads_sqlite_again(consumer: Callable[[str], Any], variables: dict[str, Any]) -> None:
    status = consumer("status")
    assert status["type"] == "sqlite"
    assert status["entities"] == variables["sample_count"] - 1
    assert len(consumer("tasks")["tasks"]) == 5


def test_other_passwords_are_still_there(host: Host, variables: dict[str, Any]) -> None:
    file = host.file(f"{variables['pensieve_user_home']}/.pgpass")
    assert file.mode == 0o600
    assert "db.example.org:5432:*:ada:kept" in file.content_string.splitlines()


def test_new_records_are_written_and_found(write_record: Callable[[], int], variables: dict[str, Any]) -> None:
    # The last test: it writes.
    assert write_record() > variables["sample_count"] - 1
