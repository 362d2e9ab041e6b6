"""The source changes: what they find, refuse, and leave alone."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path
from types import ModuleType

import autotasktracker_codemod as codemod
import postgresql_first
import pytest
from ansible.module_utils.file_record import kept, undone

ROOT = Path(__file__).parents[2]
MODULE = (ROOT / "roles" / "autotasktracker" / "module_utils" / "postgresql_first.py").read_text(encoding="utf-8")
CONSUMER = ROOT / "support" / "consumer"
ASK = """
from autotasktracker.config import get_config
from autotasktracker.core.database import DatabaseManager
from autotasktracker.dashboards.base import BaseDashboard
import json
managers = DatabaseManager(), DatabaseManager(use_pensieve_api=False), BaseDashboard().db_manager
print(json.dumps([manager.db_path for manager in managers] + [get_config().get_db_path()]))
"""
CONSTRUCTS = {
    "autotasktracker/config.py": ("class Config", "class Settings"),
    "autotasktracker/core/database.py": ("ThreadedConnectionPool(", "SomePool("),
    "autotasktracker/pensieve/config_reader.py": ("os.path.isabs(db_path)", "db_path.startswith('/')"),
    "autotasktracker/dashboards/base.py": ("DatabaseManager(db_path", "open_database(db_path"),
}
"""In each file that is changed, a construct without which it is not recognised, and what else could stand there."""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The consumer, as a clean checkout of git."""
    folder = tmp_path / "checkout"
    subprocess.run(["git", "init", "--quiet", str(folder)], check=True)
    for file in sorted(CONSUMER.rglob("*.py")):
        target = folder / file.relative_to(CONSUMER)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    name = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", "-C", str(folder), "add", "--all"], check=True)
    subprocess.run(["git", *name, "-C", str(folder), "commit", "--quiet", "-m", "all"], check=True)
    return folder


@pytest.fixture(scope="module")
def module() -> ModuleType:
    """The Ansible module, as Python."""
    path = ROOT / "roles" / "autotasktracker" / "library" / "autotasktracker_source.py"
    sys.modules["ansible.module_utils.autotasktracker_codemod"] = codemod
    spec = importlib.util.spec_from_file_location("autotasktracker_source", path)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def apply(checkout: Path) -> list[str]:
    """Make the changes; which files."""
    found = codemod.changes(checkout, MODULE)
    for change in found:
        (checkout / change.path).write_text(change.after)
    return [change.path for change in found]


def ask(checkout: Path, home: Path, **variables: str) -> list[str]:
    """Where the consumer's parts find their database, in processes of their own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AUTOTASK", "MEMOS"))}
    done = subprocess.run(
        [sys.executable, "-c", ASK],
        cwd=checkout,
        env={**environment, "HOME": str(home), "PYTHONPATH": str(checkout), **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: list[str] = json.loads(done.stdout)
    return found


def test_all_is_changed_once(checkout: Path) -> None:
    assert apply(checkout) == [
        "autotasktracker/config.py",
        "autotasktracker/core/database.py",
        "autotasktracker/dashboards/base.py",
        "autotasktracker/dashboards/day_board.py",
        "autotasktracker/dashboards/task_board.py",
        "autotasktracker/pensieve/config_reader.py",
        "autotasktracker/postgresql_first.py",
    ]
    assert apply(checkout) == []


def test_what_is_not_changed_keeps_its_bytes(checkout: Path) -> None:
    file = checkout / "autotasktracker" / "config.py"
    strange = file.read_bytes().replace(b"\n", b"\r\n") + b"# \xff\r\n"
    file.write_bytes(strange.replace(b"# \xff", b"# \xc3\xbf"))
    change = next(change for change in codemod.changes(checkout, MODULE) if change.path.endswith("config.py"))
    lines = set(str(change.before).split("\r\n"))
    assert [line for line in change.after.split("\r\n") if line not in lines] == [
        "from autotasktracker import postgresql_first",
        '    DB_PATH: str = field(default_factory=lambda: postgresql_first.uri_or(os.getenv("AUTOTASK_DATABASE_URL",'
        " BUILT_IN)))",
        "    PENSIEVE_CONFIG_SYNC: bool = False",
        "    @postgresql_first.uri_first",
    ]


@pytest.mark.parametrize("path", CONSTRUCTS)
def test_a_construct_that_is_missing_is_named(path: str, checkout: Path) -> None:
    old, new = CONSTRUCTS[path]
    file = checkout / path
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(codemod.Unrecognised) as refusal:
        codemod.changes(checkout, MODULE)
    assert all(missing.startswith(f"{path}: ") for missing in refusal.value.missing)


@pytest.mark.parametrize("path", CONSTRUCTS)
def test_a_file_that_is_missing_is_named(path: str, checkout: Path) -> None:
    (checkout / path).unlink()
    with pytest.raises(codemod.Unrecognised, match=f"{path}: the file"):
        codemod.changes(checkout, MODULE)


def test_a_difference_shows_code_and_no_password(checkout: Path, module: ModuleType) -> None:
    file = checkout / "autotasktracker" / "core" / "reports.py"
    file.write_text(
        "import psycopg2\n"
        "PASSWORD = 'hunter2'\n"
        "URI = 'postgresql://me:hunter2@localhost:5433/autotasktracker'  # hunter2\n"
        "NEXT = f'hunter2 {PASSWORD}'\n\n\n"
        "def ask() -> None:\n"
        "    psycopg2.connect(f'postgresql://me:hunter2@{PASSWORD}/' 'hunter2')  # hunter2\n"
    )
    change = next(change for change in codemod.changes(checkout, MODULE) if change.path.endswith("reports.py"))
    assert "hunter2" in change.after
    said = str(module.difference(change))
    assert "hunter2" not in said
    assert "PASSWORD = " not in said
    assert "-URI = '...'" in said
    assert "+URI = postgresql_first.uri_or('...')" in said


def test_no_place_is_hard_coded_any_more(checkout: Path) -> None:
    script = checkout / "quick_dashboard.py"
    script.write_text(
        "import psycopg2\nfrom psycopg2.extras import RealDictCursor\n"
        "URL = 'postgresql://postgres:secret@localhost:5433/autotasktracker'\nDIR = '/Users/ada/Tracker.memos/x'\n"
        "connection = psycopg2.connect(URL)\nother = psycopg2.connect(host='elsewhere')\n"
    )
    apply(checkout)
    assert [line for line in script.read_text().splitlines() if line] == [
        "import psycopg2",
        "from autotasktracker.postgresql_first import RealDictCursor",
        "from autotasktracker import postgresql_first",
        "URL = postgresql_first.uri_or('postgresql://postgres:secret@localhost:5433/autotasktracker')",
        "DIR = postgresql_first.memos_path('/Users/ada/Tracker.memos/x')",
        "connection = postgresql_first.connect(URL)",
        "other = psycopg2.connect(host='elsewhere')",
    ]
    assert apply(checkout) == []


def test_edits_of_a_person_are_found_and_ours_are_not(checkout: Path, module: ModuleType) -> None:
    assert module.edited(checkout) == []
    apply(checkout)
    assert module.edited(checkout) == []
    base = checkout / "autotasktracker" / "dashboards" / "base.py"
    base.write_text(base.read_text() + "# by hand\n")
    assert module.edited(checkout) == ["autotasktracker/dashboards/base.py"]


def test_what_is_recorded_gives_each_file_back(checkout: Path, module: ModuleType, tmp_path: Path) -> None:
    """Also one that was edited after a run that was cut, and changed once more by the next one."""
    before = {file: file.read_bytes() for file in sorted(checkout.rglob("*.py"))}
    paths = [*before, checkout / "autotasktracker" / "postgresql_first.py"]
    entries = [{"path": str(path), "record": str(tmp_path / f"{number}.record")} for number, path in enumerate(paths)]
    script = checkout / "autotasktracker" / "core" / "database.py"

    def change() -> None:
        for change in codemod.changes(checkout, MODULE):
            module.record(checkout / change.path, change, entries)
            module.write(checkout / change.path, change.after)

    change()
    edit = b"\n\ndef mine(uri):\n    return psycopg2.connect(uri)\n"
    script.write_bytes(script.read_bytes() + edit)
    change()
    assert b"return postgresql_first.connect(uri)" in script.read_bytes()
    for path, entry in zip(paths, entries):
        record = kept(Path(entry["record"]))
        if record is None:
            assert path.read_bytes() == before[path]
        elif record.before is None:
            assert path not in before
        else:
            wanted = before[path] + (edit if path == script else b"")
            assert undone(record, path.read_bytes()) == wanted
            assert undone(record, b"# mine\n" + path.read_bytes()) == b"# mine\n" + wanted


def test_a_file_that_no_entry_names_is_not_changed(checkout: Path, module: ModuleType, tmp_path: Path) -> None:
    change = codemod.changes(checkout, MODULE)[0]
    entries = [{"path": str(tmp_path / "config.yaml"), "record": str(tmp_path / "record")}]
    with pytest.raises(ValueError, match=f"the manifest does not name .*{change.path}, so nothing could give it back"):
        module.record(checkout / change.path, change, entries)


def test_sqlite_stays_what_it_was_without_a_uri(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / ".memos").mkdir()
    (tmp_path / ".memos" / "config.yaml").write_text("database_path: database.db\n")
    apply(checkout)
    assert ask(checkout, tmp_path, AUTOTASK_DATABASE_URL="/srv/a.db") == [
        f"{tmp_path}/.memos/database.db",
        "/srv/a.db",
        f"{tmp_path}/.memos/database.db",
        "/srv/a.db",
    ]


def test_settings_that_cannot_be_read_are_not_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMOS_BASE_DIR", str(tmp_path))
    (tmp_path / "config.yaml").write_text("vlm:\n  token: hush: x\n")
    with pytest.raises(ValueError, match=r"config\.yaml, line 2, column 14: no YAML mapping \(ScannerError\)") as told:
        postgresql_first.database_uri()
    assert "hush" not in "".join(traceback.format_exception(told.value))


def test_the_emergency_file_beats_everything_else(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / ".memos").mkdir()
    (tmp_path / ".memos" / "config.yaml").write_text("database_path: postgresql://a@127.0.0.1:1/a\n")
    apply(checkout)
    (checkout / "autotasktracker.env").write_text("AUTOTASK_EMERGENCY_SQLITE=/srv/old.db\n")
    assert ask(checkout, tmp_path) == ["/srv/old.db"] * 4
