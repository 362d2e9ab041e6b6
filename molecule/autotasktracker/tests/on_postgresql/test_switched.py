"""After migrate.yml: the consumer reads and writes PostgreSQL, and a page shows what stands there only."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

testinfra_hosts = ["ansible://pensieve"]
HOME = "/srv/pensieve/home"
CHECKOUT = "/srv/pensieve/autotasktracker"
URI = "postgresql://autotasktracker@127.0.0.1:31210/autotasktracker"


@pytest.mark.parametrize("way", ["", "--dashboard"])
def test_what_is_written_is_in_postgresql_only(way: str, consumer: Callable[[str], Any], host: Host) -> None:
    added = consumer(f"add {way} --entity 2 --task 'Only in PostgreSQL, 100%{way}'")
    assert added["type"] == "postgresql"
    assert added["database"] == URI
    assert consumer(f"tasks {way} --limit 50")["tasks"]
    code = (
        "import sqlite3; print(sqlite3.connect('file:%s/.memos/database.db?mode=ro', uri=True)"
        ".execute(\\\"SELECT count(*) FROM metadata_entries WHERE value LIKE 'Only in%%'\\\").fetchone()[0])"
    )
    assert host.check_output(f'python3 -c "{code % HOME}"') == "0"


def test_the_settings_hold_no_password_and_keep_other_values(host: Host) -> None:
    environment = host.file(f"{CHECKOUT}/autotasktracker.env")
    assert environment.mode == 0o644
    assert environment.content_string.startswith("# by hand\nAUTOTASK_DEBUG=false")
    assert f"AUTOTASK_DATABASE_URL={URI}\n" in environment.content_string
    own = host.file(f"{HOME}/.memos/config_autotasktracker.yaml")
    assert own.content_string == f"# mine\ndatabase_path: {URI}  # SQLite\nport: 1\n"
    assert own.mode == 0o640


def test_answers_of_sqlite_are_set_aside(host: Host) -> None:
    assert host.file(f"{HOME}/.memos/autotask_cache.sqlite/1.cache").content_string == "old"
    assert not host.file(f"{HOME}/.memos/autotask_cache/1.cache").exists


def test_its_indexes_are_there(host: Host) -> None:
    code = (
        f"import psycopg2; c = psycopg2.connect('{URI}').cursor(); c.execute('SELECT indexname FROM pg_indexes');"
        " print(*[row[0] for row in c.fetchall()])"
    )
    found = host.check_output(f'HOME={HOME} {CHECKOUT}/venv/bin/python -c "{code}"').split()
    assert {"idx_metadata_entity_key", "idx_entities_created_at", "idx_metadata_created_at"} <= set(found)


def test_its_pages_show_rows_of_postgresql(host: Host) -> None:
    """One asks for a day, and has nothing to show until it is given one on which screenshots were taken."""
    script = Path(__file__).parents[4] / "roles" / "autotasktracker" / "files" / "dashboards.py"
    # It runs itself once more for each page, so it must be a file there.
    host.check_output("echo %s | base64 -d > /tmp/dashboards.py", base64.b64encode(script.read_bytes()).decode())
    done = host.run(
        f"HOME={HOME} PYTHONDONTWRITEBYTECODE=1 {CHECKOUT}/venv/bin/python /tmp/dashboards.py"
        f" --checkout {CHECKOUT} --database {URI}"
    )
    assert done.rc == 0, done.stderr
    pages = {Path(page["page"]).stem: page for page in json.loads(done.stdout.splitlines()[-1])["dashboards"]}
    assert set(pages) == {"day_board", "task_board"}
    for page in pages.values():
        assert page["result"] == "pass", page["evidence"]
        assert page["rows_read"] > 0
