#!/usr/bin/env python3
"""List the code of a checkout that only SQLite understands: what may go, and what a rollback needs.

Usage: scripts/audit_sqlite.py CHECKOUT [--json]. Reads Python files; changes nothing. Exit code 0, or 2 when there is
nothing to read.

Kinds: import (of sqlite3), pragma, file (a path that ends in .db), placeholder (`?` in a statement), function (date
functions of SQLite), text (`"…"` as text in a statement), master (sqlite_master), replace (INSERT OR …).
Needed by a rollback is what runs on SQLite again afterwards: the package itself, as it is before the migration
changes it. What stands in tests, in copies of files and in scripts that open the database by themselves may go.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

STATEMENT = re.compile(r"\s*(SELECT|INSERT|UPDATE|DELETE|CREATE|WITH|REPLACE)\s", re.IGNORECASE)
CONDITION = re.compile(r"\s*(AND|OR|WHERE|ORDER BY|LIMIT|GROUP BY|LEFT JOIN|JOIN)\s.*\?", re.IGNORECASE | re.DOTALL)
IN_STATEMENTS = {
    "placeholder": re.compile(r"\?"),
    "function": re.compile(r"\b(datetime|strftime|julianday|unixepoch|date|time)\s*\(", re.IGNORECASE),
    "text": re.compile(r'(=|\bIN\s*\(|,|VALUES\s*\()\s*"\w+"', re.IGNORECASE),
    "master": re.compile(r"\bsqlite_master\b", re.IGNORECASE),
    "replace": re.compile(r"\bINSERT\s+OR\s+(REPLACE|IGNORE)\b", re.IGNORECASE),
}
LITERAL = re.compile(r"'(?:[^']|'')*'|--[^\n]*")
SKIPPED = {".git", "venv", ".venv", "node_modules", "__pycache__"}
COPY = re.compile(r"(^|/)(tests?|backups?|examples|docs)/|backup_\d")
GOES = "may go"
NEEDED = "needed by a rollback"


class Place(NamedTuple):
    """Something that only SQLite understands. `line` from 1."""

    path: str
    line: int
    kind: str
    code: str
    verdict: str


def verdict(path: str, kind: str) -> str:
    """Whether a rollback needs the place."""
    own = path.startswith("autotasktracker/") and not COPY.search(path)
    return NEEDED if own or (kind != "import" and path.startswith("scripts/") and not COPY.search(path)) else GOES


def places(path: str, text: str) -> Iterator[Place]:
    """All places in one file; the lines of a statement are counted within its text.

    Raises:
        SyntaxError: Python cannot read the file.
    """
    tree = ast.parse(text)
    lines = text.splitlines()

    def found(line: int, kind: str, code: str = "") -> Place:
        return Place(path, line, kind, (code or lines[line - 1]).strip()[:100], verdict(path, kind))

    documentation = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [name.name for name in node.names]
        else:
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if any(name.split(".")[0] == "sqlite3" for name in modules):
            yield found(getattr(node, "lineno", 1), "import")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            value = node.value
            if re.match(r"\s*PRAGMA\s", value, re.IGNORECASE):
                yield found(node.lineno, "pragma")
            elif STATEMENT.match(value) or CONDITION.match(value):
                for number, line in enumerate(value.split("\n")):
                    for kind, pattern in IN_STATEMENTS.items():
                        bare = line if kind == "text" else LITERAL.sub("''", line)
                        if pattern.search(bare):
                            yield found(node.lineno + number, kind, line)
            elif re.search(r"[\w~/]\.(db|sqlite3?)$", value) and " " not in value:
                yield found(node.lineno, "file")


def audit(checkout: Path) -> tuple[list[Place], list[str]]:
    """All places of a checkout, and the files that Python cannot read."""
    result: list[Place] = []
    unread = []
    for file in sorted(checkout.rglob("*.py")):
        path = str(file.relative_to(checkout))
        if SKIPPED.intersection(file.relative_to(checkout).parts) or file.name == "postgresql_first.py":
            continue
        try:
            result += places(path, file.read_text(encoding="utf-8", errors="replace"))
        except SyntaxError as error:
            unread.append(f"{path}:{error.lineno}: {error.msg}")
    return sorted(set(result)), unread


def main() -> int:
    """Print what was found."""
    parser = argparse.ArgumentParser(description="List the code of a checkout that only SQLite understands.")
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if not any(arguments.checkout.rglob("*.py")):
        print(
            f"Found: no Python file in {arguments.checkout}. Expected: a checkout of AutoTaskTracker. "
            "Untouched: everything. Next: name its folder.",
            file=sys.stderr,
        )
        return 2
    found, unread = audit(arguments.checkout)
    if arguments.json:
        print(json.dumps({"places": [place._asdict() for place in found], "unreadable": unread}, indent=2))
        return 0
    for place in found:
        print(f"{place.path}:{place.line}: {place.kind}: {place.verdict}: {place.code}")
    for line in unread:
        print(f"{line} (not read)")
    kinds = {place.kind for place in found}
    for kind in sorted(kinds):
        same = [place for place in found if place.kind == kind]
        needed = sum(place.verdict == NEEDED for place in same)
        print(f"{kind}: {len(same)} places, {needed} needed by a rollback, {len(same) - needed} may go")
    return 0


if __name__ == "__main__":
    sys.exit(main())
