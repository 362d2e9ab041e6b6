"""Load every Streamlit page of a checkout of AutoTaskTracker without a browser, and tell what each one shows.

Runs with AutoTaskTracker's own interpreter. Each page runs in a process of its own, under Streamlit's AppTest, with a
time limit. A page passes when it raises nothing, shows no error box, shows values that stand in the database, and opens
no SQLite database of Pensieve. A page that asks for a period or a day is given others while it shows nothing: longer
ones, and those on which most screenshots were taken.

Prints JSON: {"dashboards": [{"page", "result", "evidence", "shown", "rows_read", "seconds"}]}. The exit
code is 0 also when pages fail, since telling is its task; 2 when it cannot tell.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import json
import os
import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

VALUES = (
    "SELECT DISTINCT value FROM metadata_entries WHERE key IN"
    " ('active_window', 'tasks', 'category', 'minicpm_v_result', 'vlm_description')"
    " UNION SELECT filepath FROM entities UNION SELECT filename FROM entities"
)
DAYS = "SELECT substr(CAST(created_at AS text), 1, 10), count(*) FROM entities GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 3"
PERIODS = ("Last 30 Days", "This Month", "Last 7 Days", "This Week", "Last 24 Hours", "All Time", "All time")
"""Names that the pages give to periods. All time is the last resort: some pages ask for each day of it by itself."""

TELLING = re.compile(r"error|exception|database|cannot|failed", re.IGNORECASE)
"""What error boxes say that tell of a page that could not load; others say that Ollama or Pensieve does not run."""


def is_page(path: Path) -> bool:
    """Whether a file is a Streamlit page: imports streamlit, and does something when it is run."""
    try:
        body = ast.parse(path.read_text(encoding="utf-8")).body
    except SyntaxError:
        return False
    imports = [name.name for node in body if isinstance(node, ast.Import) for name in node.names]
    imports += [str(node.module) for node in body if isinstance(node, ast.ImportFrom)]
    drawn = "streamlit" in imports
    guarded = any(isinstance(node, ast.If) and "__main__" in ast.dump(node.test) for node in body)
    calls = [node.value for node in body if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)]
    direct = any(isinstance(call.func, ast.Attribute) and ast.dump(call.func.value).find("'st'") > 0 for call in calls)
    return drawn and (guarded or direct)


def pages(checkout: Path) -> list[Path]:
    """Every page of the checkout, by its path."""
    folders = [checkout, *checkout.glob("autotasktracker/**/dashboards")]
    return sorted(path for folder in folders for path in folder.glob("*.py") if is_page(path))


@contextlib.contextmanager
def database(uri: str) -> Iterator[Any]:
    """A cursor on PostgreSQL (URI) or on a SQLite file (path), for reading."""
    connection: Any
    if "://" in uri:
        import psycopg2

        connection = psycopg2.connect(uri, connect_timeout=10)
        connection.set_session(readonly=True)
    else:
        connection = sqlite3.connect(f"{Path(uri).absolute().as_uri()}?mode=ro", uri=True)
    with contextlib.closing(connection):
        yield connection.cursor()


def known_values(uri: str) -> set[str]:
    """Values that a page may show, at least six characters long, so that none stands there by chance."""
    with database(uri) as cursor:
        cursor.execute(VALUES)
        return {str(row[0]) for row in cursor.fetchall() if row[0] is not None and len(str(row[0])) >= 6}


def busy_days(uri: str) -> list[str]:
    """Days on which most screenshots were taken, as 2025-01-31."""
    with database(uri) as cursor:
        cursor.execute(DAYS)
        return [row[0] for row in cursor.fetchall() if row[0] is not None]


def texts(block: Any) -> list[str]:
    """All that a part of a page shows, as text: also the cells of tables and the data of charts."""
    shown = []
    for element in block:
        value: Any = None
        with contextlib.suppress(KeyError):
            # A widget without a key has no value before it is touched.
            value = getattr(element, "value", None)
        if hasattr(value, "to_csv"):
            shown.append(value.to_csv())
        elif value is not None:
            shown.append(str(value))
        for name in ("label", "proto", "options"):
            shown.append(str(getattr(element, name, "")))
    return shown


def count_shown(shown: list[str], values: set[str]) -> int:
    """How many values of the database stand in what a page shows.

    Charts and lists are shown as text of a protocol buffer or of JSON, where other letters are escaped.
    """
    everything = "\n".join(shown)
    return sum(any(form in everything for form in (value, json.dumps(value)[1:-1])) for value in values)


def others(run: Any, days: list[str]) -> Iterator[Any]:
    """The page for each other period that it offers, then for each of these days that it takes, if it asks for one."""
    for period in PERIODS:
        box = next((box for box in run.selectbox if period in box.options), None)
        if box is not None:
            run = box.set_value(period).run()
            yield run
    for day in map(date.fromisoformat, days):
        box = next(iter(run.date_input), None)
        if box is not None and box.min <= day <= box.max:
            run = box.set_value((day, day) if isinstance(box.value, (tuple, list)) else day).run()
            yield run


def show(page: Path, values: set[str], days: list[str]) -> dict[str, Any]:
    """Run one page in this process, and tell what it shows. The audit hook sees each SQLite database that is opened."""
    opened: list[str] = []

    def listen(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "sqlite3.connect":
            opened.append(str(arguments[0]))

    sys.addaudithook(listen)
    from streamlit.testing.v1 import AppTest

    run = AppTest.from_file(str(page), default_timeout=100)
    if "session_state.auto_refresh" in page.read_text(encoding="utf-8"):
        # Such a page runs again and again, as long as it is looked at.
        run.session_state["auto_refresh"] = False
    run.run()
    shown = texts(run)
    choices = others(run, days)
    while not run.exception and not count_shown(shown, values):
        following = next(choices, None)
        if following is None:
            break
        run = following
        shown += texts(run)
    read = sys.modules.get("autotasktracker.postgresql_first")
    return {
        "exceptions": [str(element.message or element.value) for element in run.exception],
        "errors": [str(element.value) for element in run.main.error],
        "shown": count_shown(shown, values),
        "sqlite": sorted({name for name in opened if "database.db" in name}),
        "rows_read": read.rows_read() if read else None,
        "statements": read.statements() if read else None,
    }


def measure(page: Path, checkout: Path, values: set[str], days: list[str], seconds: float) -> dict[str, Any]:
    """Run one page in a process of its own, and judge it."""
    name = str(page.relative_to(checkout))
    begun = time.monotonic()
    command = [sys.executable, str(Path(__file__).absolute()), "--show", str(page)]
    environment = {**os.environ, "PYTHONPATH": str(checkout), "STREAMLIT_BROWSER_GATHER_USAGE_STATS": "false"}
    try:
        done = subprocess.run(
            command,
            input=json.dumps({"values": sorted(values), "days": days}),
            cwd=checkout,
            env=environment,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return judged(name, f"no answer within {seconds:.0f} s", begun)
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        return judged(name, (done.stderr.strip().splitlines() or ["no output"])[-1], begun)
    found = json.loads(lines[-1])
    shown = found["shown"]
    errors = [error for error in found["errors"] if TELLING.search(error)]
    if found["exceptions"]:
        reason = f"raises: {found['exceptions'][0]}"
    elif errors:
        reason = f"shows an error: {errors[0]}"
    elif found["sqlite"]:
        reason = f"opens {found['sqlite'][0]}"
    elif found["statements"] == 0:
        return judged(name, "asks the database for nothing", begun, result="not applicable")
    elif not shown:
        reason = "shows nothing that stands in the database"
    else:
        reason = ""
    return judged(name, reason, begun, shown, found["rows_read"])


def judged(
    page: str, reason: str, begun: float, shown: int = 0, rows_read: int | None = None, result: str = ""
) -> dict[str, Any]:
    """One line of the result."""
    read = "" if rows_read is None else f", {rows_read} rows read from PostgreSQL"
    return {
        "page": page,
        "result": result or ("fail" if reason else "pass"),
        "evidence": reason or f"no exception; shows {shown} values of the database{read}",
        "shown": shown,
        "rows_read": rows_read,
        "seconds": round(time.monotonic() - begun, 1),
    }


def main() -> int:
    """Measure all pages, or one (`--show`, for the process that runs it)."""
    parser = argparse.ArgumentParser(description="Load every dashboard of AutoTaskTracker, and tell what it shows.")
    parser.add_argument(
        "--show", type=Path, help="run this one page in this process; values and days as JSON on standard input"
    )
    parser.add_argument("--checkout", type=Path, help="AutoTaskTracker's checkout")
    parser.add_argument("--database", help="URI without a password, or path of a SQLite file: what pages should show")
    parser.add_argument("--seconds", type=float, default=120.0, help="time limit of one page")
    arguments = parser.parse_args()
    if arguments.show:
        given = json.load(sys.stdin)
        result: dict[str, Any] = show(arguments.show, set(given["values"]), given["days"])
    else:
        checkout = arguments.checkout.absolute()
        values, days = known_values(arguments.database), busy_days(arguments.database)
        found = pages(checkout)
        if not found or not values:
            print(f"{len(found)} pages, {len(values)} values to look for", file=sys.stderr)
            return 2
        result = {"dashboards": [measure(page, checkout, values, days, arguments.seconds) for page in found]}
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    # A page may have left threads behind that never end.
    code = main()
    sys.stdout.flush()
    os._exit(code)
