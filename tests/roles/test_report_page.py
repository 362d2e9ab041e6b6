"""What a managed host says comes to the controller as text: nobody else reads it, and no browser runs it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from .conftest import ROOT, person

SCRIPT = "<script>alert('a \"word\"')</script>{{ 7 * 6 }}"


def hostile() -> dict[str, Any]:
    """What was found, with a script in each text."""
    query: dict[str, Any] = {"name": SCRIPT, "origin": SCRIPT, "calls": [5], "missed": SCRIPT, "times_faster": SCRIPT}
    query |= {"sqlite_ms": 2.0, "sqlite_p95_ms": 3.0, "postgresql_ms": 1.0, "postgresql_p95_ms": 1.5}
    tables = {SCRIPT: {"source": 1, "target": 1, "quarantined": 0, "compared_cells": 2}}
    return {
        "stamp": "20260101T000000Z",
        "written": SCRIPT,
        "host": SCRIPT,
        "pensieve": {"version": SCRIPT, "home": SCRIPT},
        "source": {"database": SCRIPT, "backup": {"database": SCRIPT, "bytes": 1, "sha256": SCRIPT}},
        "target": {"uri": SCRIPT, "container": SCRIPT, "bytes": 1},
        "tables": tables,
        "rows": 1,
        "cells": 2,
        "equal": False,
        "differing_rows": SCRIPT,
        "quarantined": 0,
        "findings": [{"table": SCRIPT, "column": SCRIPT, "kind": SCRIPT, "action": SCRIPT, "count": SCRIPT}],
        "searches": SCRIPT,
        "difference": {
            "rows": 1,
            "way": SCRIPT,
            "reason": SCRIPT,
            "seconds": 1.0,
            "tables": {SCRIPT: {"changed": 1, "upserted": 1, "deleted": 0}},
        },
        "caught_up": [{"rows": 1, "seconds": 1.0}],
        "seconds": {"predicted": SCRIPT, "copy": 1.0, "verify": 1.0, "downtime": SCRIPT},
        "queries": [query],
        "checks": [{"point": SCRIPT, "what": SCRIPT, "result": f'"{SCRIPT}', "evidence": SCRIPT}],
        "next": [SCRIPT],
    }


def test_a_hostile_host(tmp_path: Path) -> None:
    (variables := tmp_path / "vars.json").write_text(
        json.dumps({"report_directory": str(tmp_path / "here"), "report_state_directory": str(tmp_path / "there")})
    )
    (facts := tmp_path / "facts.json").write_text(json.dumps(hostile()))
    (play := tmp_path / "play.yml").write_text(
        "- hosts: localhost\n  gather_facts: false\n  tasks:\n"
        f"    - set_fact:\n        report_found: \"{{{{ lookup('file', '{facts}') | from_json }}}}\"\n"
        "    - include_role: {name: report, tasks_from: write}\n"
    )
    ansible = Path(sys.executable).with_name("ansible-playbook")
    done = subprocess.run(
        [
            str(ansible) if ansible.exists() else shutil.which("ansible-playbook") or "",
            str(play),
            "-e",
            f"@{variables}",
        ],
        cwd=ROOT,
        env={**person(), "ANSIBLE_ROLES_PATH": str(ROOT / "roles")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    folders = [tmp_path / "here" / "localhost", tmp_path / "there" / "20260101T000000Z"]
    for folder in folders:
        assert folder.stat().st_mode & 0o777 == 0o700
        assert {file.name for file in folder.iterdir()} == {"report.html", "report.json"}
        assert all(file.stat().st_mode & 0o777 == 0o600 for file in folder.iterdir())
        page = (folder / "report.html").read_text()
        assert "<script" not in page
        assert page.count("&lt;script&gt;") >= 30
        assert "{{ 7 * 6 }}" in page
        assert '"word"\'' not in page
        assert json.loads((folder / "report.json").read_text()) == hostile()


def test_every_value_is_escaped() -> None:
    for name in ("report.html.j2", "plot.svg.j2"):
        values = re.findall(r"{{(.*?)}}", (ROOT / "roles" / "report" / "templates" / name).read_text())
        assert len(values) > 10
        assert [value for value in values if not value.endswith(" | e ")] == []
