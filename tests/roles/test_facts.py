"""Pensieve's environment is found where people's installers put it, and variables that would mislead it are seen."""

from __future__ import annotations

from pathlib import Path

import pytest
from pensieve_facts import find_venv, libpq_variables

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


def test_variables_that_lead_libpq_astray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PGPASSWORD", "PGSSLMODE", "PGHOSTADDR", "PGPASSFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PGHOST", "db.example.org")  # every URI here names its host
    monkeypatch.setenv("PGPASSFILE", str(tmp_path / "link" / ".." / ".pgpass"))
    (tmp_path / "link").mkdir()
    assert libpq_variables(tmp_path) == []
    monkeypatch.setenv("PGPASSFILE", "/etc/another")
    monkeypatch.setenv("PGPASSWORD", "wrong")
    monkeypatch.setenv("PGSSLMODE", "")
    assert libpq_variables(tmp_path) == ["PGPASSWORD", "PGPASSFILE"]
