"""The audit names each place that only SQLite understands, with its line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "audit_sqlite.py"
SOURCE = '''"""Documentation may say SELECT ? FROM sqlite_master; sqlite3 too."""
import sqlite3
PATH = "~/.memos/database.db"
QUERY = """
SELECT strftime('%H', created_at), '?' FROM entities
WHERE key = "tasks" AND id > ?
"""
connection = sqlite3.connect(PATH)
connection.execute("PRAGMA journal_mode=WAL")
connection.execute("INSERT OR REPLACE INTO t VALUES (1)")
text = "Is it a date(x) or not?"
'''


def run(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), str(checkout), *arguments], capture_output=True, text=True, check=False
    )


def test_places_are_named_with_file_and_line(tmp_path: Path) -> None:
    for folder in ("autotasktracker", "tests"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.py").write_text(SOURCE)
    (tmp_path / "broken.py").write_text("def (:\n")
    found = json.loads(run(tmp_path, "--json").stdout)
    assert [(place["path"], place["line"], place["kind"]) for place in found["places"] if place["path"][0] == "a"] == [
        ("autotasktracker/x.py", 2, "import"),
        ("autotasktracker/x.py", 3, "file"),
        ("autotasktracker/x.py", 5, "function"),
        ("autotasktracker/x.py", 6, "placeholder"),
        ("autotasktracker/x.py", 6, "text"),
        ("autotasktracker/x.py", 9, "pragma"),
        ("autotasktracker/x.py", 10, "replace"),
    ]
    verdicts = {(place["path"].split("/")[0], place["verdict"]) for place in found["places"]}
    assert verdicts == {("autotasktracker", "needed by a rollback"), ("tests", "may go")}
    assert len(found["unreadable"]) == 1
    assert "tests/x.py:9: pragma: may go" in run(tmp_path).stdout


def test_a_folder_without_source_is_refused(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert done.returncode == 2
    assert "Found: no Python file" in done.stderr
