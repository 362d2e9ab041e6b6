"""Pensieve's environment is found where people's installers put it, and variables that would mislead it are seen."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from ansible.module_utils.pensieve_process import Process, Unit, overrides, unit_in
from pensieve_facts import find_venv, judge_environments, judge_setting, judge_user, libpq_variables

PLACES = (
    ".memos/venv",
    ".local/share/pipx/venvs/memos",
    ".local/pipx/venvs/memos",
    ".local/share/uv/tools/memos",
    ".venv",
)


def make(venv: Path, module: str = "memos") -> Path:
    """What tells a virtual environment with a module from another."""
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").touch(0o755)
    (venv / "lib" / "python3.12" / "site-packages" / module).mkdir(parents=True)
    return venv


@pytest.fixture(autouse=True)
def _without_memos_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))


@pytest.mark.parametrize("place", PLACES)
def test_usual_places(place: str, tmp_path: Path) -> None:
    for other in PLACES:
        make(tmp_path / other, "others")
    assert find_venv(tmp_path, []) is None
    (tmp_path / place / "lib" / "python3.12" / "site-packages" / "memos").mkdir()
    assert find_venv(tmp_path, []) == tmp_path / place


def test_the_path_comes_first(tmp_path: Path) -> None:
    make(tmp_path / ".venv")
    made = make(tmp_path / "elsewhere")
    (made / "bin" / "memos").touch(0o755)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "memos").symlink_to(made / "bin" / "memos")
    assert find_venv(tmp_path, []) == made


def test_variables_that_lead_libpq_astray(tmp_path: Path) -> None:
    environment = {"PGHOST": "db.example.org"}  # every URI here names its host
    environment["PGPASSFILE"] = str(tmp_path / "link" / ".." / ".pgpass")
    (tmp_path / "link").mkdir()
    assert libpq_variables(tmp_path, environment) == []
    environment.update(PGPASSFILE="/etc/another", PGPASSWORD="wrong", PGSSLMODE="")
    assert libpq_variables(tmp_path, environment) == ["PGPASSWORD", "PGPASSFILE"]


def test_another_user_is_refused(tmp_path: Path) -> None:
    assert judge_user(tmp_path, os.geteuid()) == []
    (told,) = judge_user(tmp_path, 4_000_000_000)
    assert told["code"] == "other_user"
    assert "4000000000" in told["found"]


def test_whose_variables_lead_astray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A rollback goes by those of its own process only; a migration by those of the services, too.
    monkeypatch.delenv("PGPASSFILE", raising=False)
    service = Process(1, "serve", {"PGTZ": "Asia/Tokyo"}, ["memos", "serve"])
    assert judge_environments(tmp_path, []) == []
    assert [told["code"] for told in judge_environments(tmp_path, [service])] == ["libpq_service"]
    monkeypatch.setenv("PGPASSWORD", "wrong")
    assert [told["code"] for told in judge_environments(tmp_path, [])] == ["libpq_environment"]


def test_variables_that_beat_the_settings() -> None:
    environment = ("MEMOS_BASE_DIR", "memos_Server_Port", "MEMOS_RECORD_INTERVAL", "MEMOS_DB_PATH", "BASE_DIR")
    assert overrides(environment) == ["MEMOS_BASE_DIR", "memos_Server_Port"]


@pytest.mark.parametrize(
    ("cgroup", "unit"),
    [
        (
            "0::/user.slice/user-1000.slice/user@1000.service/app.slice/memos.service",
            Unit("memos.service", "user"),
        ),
        ("0::/system.slice/memos.service", Unit("memos.service", "system")),
        ("0::/system.slice/system-memos.slice/memos@ada.service/inner", Unit("memos@ada.service", "system")),
        # Several hierarchies; systemd's own tells, also below a container's.
        (
            "9:name=systemd:/docker/1f/user.slice/user-0.slice/user@0.service/app.slice/a.service\n4:memory:/docker/1f\n0::/",
            Unit("a.service", "user"),
        ),
        ("0::/user.slice/user-1000.slice/session-3.scope", None),
        ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/app-gnome-terminal-7.scope", None),
        ("0::/user.slice/user-1000.slice/user@1000.service/init.scope", None),
        ("9:name=systemd:/docker/1f\n0::/docker/1f", None),
        ("", None),
    ],
)
def test_unit_of_a_control_group(cgroup: str, unit: Unit | None) -> None:
    assert unit_in(cgroup) == unit


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("postgres://me:hunter2@db/x", "(not shown)"),
        ("postgresql+psycopg2://me:hunter2@db/x", "postgresql+psycopg2://(not shown)"),
        (" postgresql://me:hunter2@db/x", "(not shown)"),
        ("//me:hunter2@db/x", "(not shown)"),
        ("host=db user=me password=hunter2", "(not shown)"),
        ("sqlite+pysqlcipher://:hunter2@/x.db", "sqlite+pysqlcipher://(not shown)"),
        ("database.db", None),
        ("~/.memos/data base.db", None),
        ("/home/ada@example.org/a=1/database.db", None),
        ("sqlite:////home/ada/database.db", None),
    ],
)
def test_a_server_that_pensieve_takes_for_a_file(setting: str, told: str | None) -> None:
    """Pensieve would make a file of that name; a password in it is told by nobody."""
    found = judge_setting({"database_setting": setting, "is_sqlite": True, "config": "/home/ada/.memos/config.yaml"})
    assert [problem["code"] for problem in found] == (["database_setting"] if told else [])
    assert not found or found[0]["found"].startswith(f"database_path {told} in /home/ada")
    assert "hunter2" not in str(found)
