#!/usr/bin/env python3
"""Export Pensieve's SQLite database to portable files, and bring such an export into PostgreSQL.

    scripts/export_sqlite_data.py                               # ~/.memos/database.db → pensieve-export-…/
    scripts/export_sqlite_data.py export DATABASE FOLDER
    scripts/export_sqlite_data.py check FOLDER                  # complete, unchanged? (or: sha256sum -c SHA256SUMS)
    scripts/export_sqlite_data.py rebuild FOLDER DATABASE       # the same SQLite database again
    scripts/export_sqlite_data.py import FOLDER --target URI    # into Pensieve's tables on PostgreSQL, then verified

The database is only read, what lies in its write-ahead log included, and no SQLite extension is needed. docs/checks.md
describes the files. Exit status: 0 done, 1 refused, with the reason.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import math
import os
import re
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any

ENGINE = Path(__file__).resolve().parents[1] / "roles" / "data_copy" / "module_utils"
sys.path.insert(0, str(ENGINE))

try:
    from sqlite_to_postgresql.convert import InvalidText
    from sqlite_to_postgresql.model import CARRIED, EngineError, FindingsError
    from sqlite_to_postgresql.source import Source, quoted
    from sqlite_to_postgresql.vec0 import VecOddity, VecReader
except ImportError as missing:
    sys.exit(
        f"Found: {sys.executable} without a package that the engine needs ({missing.name}).\n"
        "Expected: the project's own interpreter.\nUntouched: everything.\n"
        "Next: scripts/bootstrap once, then .venv/bin/python scripts/export_sqlite_data.py"
    )

FORMAT, VERSION = "pensieve-sqlite-export", 1
SUMS, MANIFEST = "SHA256SUMS", "manifest.json"
KEY = "_rowid_"
PRAGMAS = ("application_id", "encoding", "page_size", "user_version")
ROWS = 500


def encode(cell: Any) -> Any:
    """One cell as JSON that keeps its storage class: null, integer, real, text, or an object for what JSON cannot hold.

    Reals have a point or an exponent, integers have none. `{"real": "inf"}`, `{"blob": base64}`, and `{"text": base64}`
    for text that is not UTF-8.
    """
    if isinstance(cell, InvalidText):
        return {"text": base64.b64encode(bytes(cell)).decode()}
    if isinstance(cell, bytes):
        return {"blob": base64.b64encode(cell).decode()}
    if isinstance(cell, float) and not math.isfinite(cell):
        return {"real": repr(cell)}
    return cell


def decode(cell: Any) -> Any:
    """The opposite of `encode`."""
    if not isinstance(cell, dict):
        return cell
    ((kind, value),) = cell.items()
    if kind == "real":
        return float(value)
    stored = base64.b64decode(value, validate=True)
    return InvalidText(stored) if kind == "text" else stored


class Writer:
    """Writes files below a folder, with rows and checksum of each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sums: dict[str, str] = {}

    def write(self, name: str, rows: Iterator[Any]) -> dict[str, Any]:
        """One JSON value for each line."""
        digest, count, size = hashlib.sha256(), 0, 0
        with (self.folder / name).open("wb") as stream:
            for row in rows:
                line = json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
                stream.write(line)
                digest.update(line)
                count += 1
                size += len(line)
        self.sums[name] = digest.hexdigest()
        return {"file": name, "rows": count, "bytes": size, "sha256": self.sums[name]}


def cells(source: Source, name: str) -> tuple[list[str], Iterator[list[Any]]]:
    """Columns and rows of an ordinary table, a hidden rowid first, in the order of their key."""
    described = [row for row in source.rows(f"PRAGMA table_xinfo({quoted(name)})") if row[6] == 0]
    columns = [row[1] for row in described]
    keys = [row[1] for row in sorted(described, key=lambda row: row[5]) if row[5]]
    alias = len(keys) == 1 and next(row[2] for row in described if row[5]).upper() == "INTEGER"
    try:
        source.rows(f"SELECT {KEY} FROM {quoted(name)} LIMIT 0")
        order, hidden = KEY, not alias
    except sqlite3.OperationalError:  # WITHOUT ROWID
        order, hidden = ", ".join(map(quoted, keys)), False
    wanted = [KEY] * hidden + [quoted(column) for column in columns]
    found = source.execute(f"SELECT {', '.join(wanted)} FROM {quoted(name)} ORDER BY {order}")
    return [KEY] * hidden + columns, ([encode(cell) for cell in row] for row in found)


def vectors(reader: VecReader) -> Iterator[dict[str, Any]]:
    """Rows of a vector table for other programs: the vector as base64 of its float32, little-endian."""
    oddities: list[VecOddity] = []
    for batch in reader.batches(oddities):
        for at, rowid in enumerate(batch.rowids.tolist()):
            row: dict[str, Any] = {"rowid": rowid}
            for column, values in zip(reader.columns, batch.columns):
                cell = values[at]
                if column.role == "vector":
                    row[column.name] = {"float32": base64.b64encode(bytes(cell)).decode()}
                else:
                    row[column.name] = encode(cell.item() if hasattr(cell, "item") else cell)
            yield row


def export(database: Path, folder: Path) -> dict[str, Any]:
    """Write all of a database below `folder`, which appears when it is complete. Gives the manifest."""
    if folder.exists():
        raise EngineError(f"{folder} exists", "a name that is free", "it, and the database", "choose another folder")
    source = Source(database)
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))  # readable by its owner only
    try:
        writer = Writer(unfinished)
        # What a carry-back has noted in the database for itself is no data.
        entries = source.rows(
            "SELECT type, name, tbl_name, rootpage, sql FROM sqlite_master WHERE tbl_name <> ? ORDER BY rowid",
            (CARRIED,),
        )
        manifest: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "created": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC"),
            "source": str(database.resolve()),
            "sqlite": sqlite3.sqlite_version,
            "pragmas": {name: source.rows(f"PRAGMA {name}")[0][0] for name in PRAGMAS},
            "schema": [
                {"type": kind, "name": name, "table": table, "virtual": not root and kind == "table", "sql": sql}
                for kind, name, table, root, sql in entries
                if sql is not None and not name.startswith("sqlite_")
            ],
            "tables": {},
            "vectors": {},
        }
        tables = [name for kind, name, _table, root, _sql in entries if kind == "table" and root]
        for number, name in enumerate(table for table in tables if not table.startswith("sqlite_stat")):
            columns, rows = cells(source, name)
            file = f"{number:02}-{re.sub('[^A-Za-z0-9_]', '_', name)}.jsonl"
            manifest["tables"][name] = {"columns": columns, **writer.write(file, rows)}
        for name, virtual in source.schema().virtual.items():
            if virtual.module == "vec0":
                file = f"vectors-{re.sub('[^A-Za-z0-9_]', '_', name)}.jsonl"
                manifest["vectors"][name] = writer.write(file, vectors(VecReader(source, virtual)))
        text = json.dumps(manifest, ensure_ascii=False, indent=1) + "\n"
        (unfinished / MANIFEST).write_text(text, encoding="utf-8")
        writer.sums[MANIFEST] = hashlib.sha256(text.encode()).hexdigest()
        (unfinished / SUMS).write_text("".join(f"{digest}  {name}\n" for name, digest in writer.sums.items()))
        unfinished.rename(folder)
    except BaseException:
        shutil.rmtree(unfinished)
        raise
    finally:
        source.close()
    return manifest


def damaged(folder: Path, what: str, expected: str) -> EngineError:
    """Why an export is not taken."""
    return EngineError(
        f"the export {folder} {what}",
        expected,
        "everything",
        "copy the export again from where it was made, or export again",
    )


def check(folder: Path) -> dict[str, Any]:
    """Read an export's manifest. Raises EngineError unless every file is there, whole, and as it was written."""
    sums = folder / SUMS
    if not sums.is_file():
        raise damaged(folder, f"has no {SUMS}", "a folder that `export` has made")
    lines = [line.partition("  ") for line in sums.read_text(encoding="utf-8").splitlines()]
    listed = {name: digest for digest, _, name in lines}
    if MANIFEST not in listed:
        raise damaged(folder, f"has no checksum of {MANIFEST}", "one for each file")
    for name, digest in listed.items():
        file = folder / name
        if not file.is_file():
            raise damaged(folder, f"lacks {name}", f"all {len(listed)} files that {SUMS} names")
        with file.open("rb") as stream:
            found = _digest(stream)
        if found != digest:
            raise damaged(folder, f"has another {name} than was written (SHA-256 {found[:12]}…)", f"SHA-256 {digest}")
    manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    if (manifest.get("format"), manifest.get("version")) != (FORMAT, VERSION):
        raise damaged(
            folder, f"is of the kind {manifest.get('format')} {manifest.get('version')}", f"{FORMAT} {VERSION}"
        )
    for part in [*manifest["tables"].values(), *manifest["vectors"].values()]:
        if listed.get(part["file"]) != part["sha256"]:
            raise damaged(folder, f"has a manifest and {SUMS} that disagree about {part['file']}", "the same checksum")
    return manifest


def _digest(stream: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while block := stream.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def rebuild(folder: Path, database: Path) -> dict[str, Any]:
    """Make the SQLite database of an export again: same tables, same rows, same rowids. Gives the manifest."""
    manifest = check(folder)
    if database.exists():
        raise EngineError(f"{database} exists", "a name that is free", "it, and the export", "choose another name")
    database.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{database.name}-", dir=database.parent)  # readable by its owner only
    os.close(handle)
    unfinished = Path(name)
    try:
        with closing(sqlite3.connect(unfinished, isolation_level=None)) as connection:
            _fill(connection, folder, manifest)
        unfinished.rename(database)
    except BaseException:
        unfinished.unlink()
        raise
    return manifest


def _fill(connection: sqlite3.Connection, folder: Path, manifest: dict[str, Any]) -> None:
    for name in PRAGMAS:
        connection.execute(f"PRAGMA {name} = '{manifest['pragmas'][name]}'")
    connection.execute("PRAGMA journal_mode = OFF")
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute("BEGIN")
    later = []
    for entry in manifest["schema"]:
        if entry["virtual"]:
            # Without its extension the statement cannot run; its entry in the schema is all that it would leave beside
            # the shadow tables, which are tables like any other.
            connection.execute("PRAGMA writable_schema = ON")
            connection.execute(
                "INSERT INTO sqlite_master(type, name, tbl_name, rootpage, sql) VALUES ('table', ?, ?, 0, ?)",
                (entry["name"], entry["table"], entry["sql"]),
            )
            connection.execute("PRAGMA writable_schema = OFF")
        elif entry["type"] == "table":
            connection.execute(entry["sql"])
        else:
            later.append(entry["sql"])
    for name, part in manifest["tables"].items():
        columns = ", ".join(KEY if column == KEY else quoted(column) for column in part["columns"])
        if name == "sqlite_sequence":
            connection.execute("DELETE FROM sqlite_sequence")
        with (folder / part["file"]).open(encoding="utf-8", newline="\n") as stream:
            for line in stream:
                row = [decode(cell) for cell in json.loads(line)]
                marks = ", ".join("CAST(? AS TEXT)" if isinstance(cell, InvalidText) else "?" for cell in row)
                connection.execute(f"INSERT INTO {quoted(name)}({columns}) VALUES ({marks})", row)
    for statement in later:
        connection.execute(statement)
    connection.execute("COMMIT")


def bring(folder: Path, target: str, passfile: str | None, policy: str) -> dict[str, Any]:
    """Copy an export into PostgreSQL, where Pensieve's own code has made the tables, and verify every cell."""
    from sqlite_to_postgresql.copier import copy
    from sqlite_to_postgresql.model import Policy
    from sqlite_to_postgresql.options import full_dsn
    from sqlite_to_postgresql.verify import verify

    dsn = full_dsn(target, passfile)
    with tempfile.TemporaryDirectory(prefix="pensieve-import-") as scratch:
        database = Path(scratch) / "database.db"
        rebuild(folder, database)
        copied = copy(database, dsn, Policy.of(policy))
        verified = verify(database, dsn)
    if not verified.equal:
        raise EngineError(
            f"{verified.differing_rows} rows of {target} differ from the export",
            "every cell equal",
            "the export",
            "look at the table data_copy.quarantine, empty the database, then run this again",
        )
    return {"rows": sum(count.target for count in copied.tables.values()), "seconds": round(copied.seconds, 1)}


def arguments(words: list[str]) -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    stamp = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    command = commands.add_parser("export", help="database to files")
    command.add_argument("database", type=Path, nargs="?", default=Path("~/.memos/database.db").expanduser())
    command.add_argument("folder", type=Path, nargs="?", default=Path(f"pensieve-export-{stamp}"))
    command = commands.add_parser("check", help="complete and unchanged?")
    command.add_argument("folder", type=Path)
    command = commands.add_parser("rebuild", help="files to a SQLite database")
    command.add_argument("folder", type=Path)
    command.add_argument("database", type=Path)
    command = commands.add_parser("import", help="files to PostgreSQL")
    command.add_argument("folder", type=Path)
    command.add_argument("--target", required=True, help="URI of PostgreSQL without a password")
    command.add_argument("--passfile", help="libpq password file (PGPASSFILE, else ~/.pgpass)")
    command.add_argument("--policy", choices=("default", "strict"), default="default", help="for findings")
    return parser.parse_args(words or ["export"])


def main() -> int:
    """Run one command; 1 with the reason when it refuses."""
    options = arguments(sys.argv[1:])
    try:
        if options.command == "import":
            done = bring(options.folder, options.target, options.passfile, options.policy)
            print(f"{done['rows']} rows in PostgreSQL after {done['seconds']} s, every cell equal to the export.")
            return 0
        if options.command == "export":
            manifest = export(options.database, options.folder)
        elif options.command == "check":
            manifest = check(options.folder)
        else:
            manifest = rebuild(options.folder, options.database)
    except (EngineError, FindingsError) as error:
        print(error, file=sys.stderr)
        return 1
    rows = sum(part["rows"] for part in manifest["tables"].values())
    count = sum(part["rows"] for part in manifest["vectors"].values())
    where = options.database if options.command == "rebuild" else options.folder
    print(f"{where}: {rows} rows in {len(manifest['tables'])} tables, {count} vectors among them.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
