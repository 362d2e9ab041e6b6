#!/usr/bin/env python3
"""Tell whether Pensieve is healthy: its server, its processes, and the database that it really uses.

On the machine where Pensieve runs: scripts/pensieve_health_check.py
From the controller: ansible pensieve -m ansible.builtin.script -a "scripts/pensieve_health_check.py executable=python3"

It only reads. Needs nothing but Python; to look into PostgreSQL it needs psycopg2, and where that is missing it runs
itself with the interpreter of the migration's own environment, or says which checks it could not make.
Exit status: 0 healthy, 1 a check failed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

PASS, FAIL, SKIP = "pass", "fail", "not applicable"
SECONDS = 10  # for the server and for the database to answer
RUNTIME = ".local/state/pensieve-postgres/runtime/bin/python"
MARK = "PENSIEVE_HEALTH_CHECK_SECOND_INTERPRETER"
UNTOUCHED = "everything; this script only reads"
SEQUENCES = """
SELECT s.relname, t.relname, a.attname FROM pg_class s JOIN pg_depend o ON o.objid = s.oid AND o.deptype IN ('a', 'i')
JOIN pg_class t ON t.oid = o.refobjid JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = o.refobjsubid
WHERE s.relkind = 'S' AND s.relnamespace = 'public'::regnamespace ORDER BY 1
"""
HNSW = """
SELECT c.relname, i.indisvalid AND i.indisready, (SELECT atttypmod FROM pg_attribute
  WHERE attrelid = i.indrelid AND attname = 'embedding')
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am m ON m.oid = c.relam
WHERE m.amname = 'hnsw' AND i.indrelid = to_regclass('public.entities_vec_v2')
"""
SERVICES = ("serve", "record", "watch")
RUNNERS = ("memos.commands", "memos", "pen")
COUNTS = ("libraries", "entities", "metadata_entries", "entities_fts", "entities_vec_v2")


@dataclass
class Check:
    """One check. `found` is the evidence, also of a pass."""

    name: str
    result: str
    found: str
    expected: str = ""
    next: str = ""

    def told(self) -> str:
        """In one line, or for a failure in four parts."""
        if self.result != FAIL:
            return f"{self.result:>14}  {self.name}: {self.found}"
        return (
            f"{self.result:>14}  {self.name}\n"
            f"  Found: {self.found}\n  Expected: {self.expected}\n  Untouched: {UNTOUCHED}.\n  Next: {self.next}"
        )


@dataclass
class Report:
    """All checks, in the order in which they were made."""

    checks: list[Check] = field(default_factory=list)

    def add(self, name: str, good: bool, found: str, expected: str, next_step: str) -> bool:
        """Note a check, and give its outcome."""
        self.checks.append(Check(name, PASS if good else FAIL, found, expected, next_step))
        return good

    def skip(self, name: str, reason: str) -> None:
        """Note that a check does not apply, and why."""
        self.checks.append(Check(name, SKIP, reason))

    @property
    def healthy(self) -> bool:
        """No check failed, and some passed."""
        results = [check.result for check in self.checks]
        return FAIL not in results and PASS in results


class Config:
    """What Pensieve's config.yaml says, as far as it is needed here; read without a YAML library."""

    def __init__(self, home: Path) -> None:
        self.path = home / ".memos" / "config.yaml"
        text = self.path.read_text(encoding="utf-8") if self.path.is_file() else ""
        self.exists = bool(text)
        self.values = {
            key: self._plain(value) for key, value in re.findall(r"^(\w+):[ \t]+(\S.*)$", text, re.MULTILINE)
        }
        embedding = re.search(
            r"^embedding:[^\n]*\n(?:(?:[ \t][^\n]*|)\n)*?[ \t]+num_dim:[ \t]*(\d+)", text, re.MULTILINE
        )
        self.dimensions = int(embedding.group(1)) if embedding else 768
        self.base = Path(re.sub(r"^~", str(home), self.values.get("base_dir", "~/.memos")))
        override = os.environ.get("MEMOS_DATABASE_PATH", "")
        self.database = override or self.values.get("database_path", "database.db")

    @staticmethod
    def _plain(value: str) -> str:
        quoted = re.match(r"""(["'])(.*?)\1""", value)
        return quoted.group(2) if quoted else re.split(r"\s#", value, maxsplit=1)[0].strip()

    @property
    def endpoint(self) -> str:
        """URL of the server."""
        host = self.values.get("server_host", "127.0.0.1")
        return f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{self.values.get('server_port', '8839')}"


def is_postgresql(database: str) -> bool:
    """Whether Pensieve takes this setting for PostgreSQL."""
    return database.startswith("postgresql://")


def without_password(database: str) -> str:
    """The same URI, without what should not be in it."""
    scheme, mark, rest = database.partition("://")
    return f"{scheme}{mark}(not shown)" if ":" in rest.rpartition("@")[0] or "?" in rest else database


def get(url: str) -> tuple[int, Any]:
    """Status and JSON of an answer, past any proxy; status 0 with the reason when there is none."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=SECONDS) as answer:
            return answer.status, json.loads(answer.read() or b"null")
    except urllib.error.HTTPError as error:
        return error.code, error.reason
    except (OSError, ValueError) as error:
        return 0, str(getattr(error, "reason", error))


def check_server(report: Report, endpoint: str) -> int | None:
    """The server, and whether its database answers. Gives how many libraries it lists; None when it does not."""
    start = "start Pensieve (memos start, or its systemd unit), then look into ~/.memos/logs/serve.log"
    status, said = get(f"{endpoint}/api/health")
    if not report.add("server", status == 200, f"{endpoint}/api/health: {status or said}", "status 200", start):
        report.skip("database through the server", "the server does not answer")
        return None
    # The server says that it is healthy with a broken database, too; so it is asked for something that is in there.
    status, libraries = get(f"{endpoint}/api/libraries")
    good = status == 200 and isinstance(libraries, list) and bool(libraries)
    count = len(libraries) if isinstance(libraries, list) else 0
    report.add(
        "database through the server",
        good,
        f"{endpoint}/api/libraries: status {status}, {count} libraries"
        if status
        else f"{endpoint}/api/libraries: {libraries}",
        "status 200 and at least one library",
        "ask whether the database answers (below, or `ansible-playbook status.yml`), then restart Pensieve",
    )
    return count if good else None


def processes(home: Path) -> dict[str, list[int]]:
    """Ids of Pensieve's processes of this home, by service; of any home where the system does not tell it.

    Another user's count for nothing, whatever they say of themselves, where the system tells whose they are.
    """
    found: dict[str, list[int]] = {service: [] for service in SERVICES}
    for number, words in _commands():
        service = next(
            (after for word, after in zip(words, words[1:]) if Path(word).name in RUNNERS and after in SERVICES), None
        )
        if service is None:
            continue
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{number}/status").read_text(errors="replace")
            if f"\nUid:\t{home.stat().st_uid}\t" not in status:  # the real user id
                continue
            environment = Path(f"/proc/{number}/environ").read_bytes().split(b"\0")
            homes = [Path(os.fsdecode(part[5:])) for part in environment if part.startswith(b"HOME=")]
            if homes and homes[0].resolve() != home.resolve():
                continue
        found[service].append(number)
    return found


def _commands() -> Iterator[tuple[int, list[str]]]:
    """Process ids with their command lines: from /proc on Linux, else from ps."""
    if Path("/proc/self/cmdline").exists():
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                yield int(folder.name), (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
        return
    listed = subprocess.run(["ps", "-axo", "pid=,args="], capture_output=True, text=True, check=True).stdout
    for line in listed.splitlines():
        number, *words = line.split()
        yield int(number), words


def check_processes(report: Report, home: Path) -> list[int]:
    """`serve` must run; `record` and `watch` are told. Gives the ids of `serve`."""
    found = processes(home)
    told = ", ".join(f"{name} {'runs' if ids else 'does not run'}" for name, ids in found.items())
    report.add("processes", bool(found["serve"]), told, "serve runs", "memos start, or start its systemd unit")
    return found["serve"]


def check_setting(report: Report, config: Config, expected: str) -> None:
    """The setting is what is expected."""
    kind = "postgresql" if is_postgresql(config.database) else "sqlite"
    report.add(
        "database setting",
        expected in (kind, config.database),
        f"database_path {without_password(config.database)}" + ("" if config.exists else f" (no {config.path})"),
        without_password(expected)
        if expected not in ("postgresql", "sqlite")
        else f"a database of the kind {expected}",
        "ansible-playbook status.yml tells where the migration stands; migrate.yml or rollback.yml moves it on",
    )


def postgresql_rows(connection: Any, sql: str) -> list[Any]:
    """Rows of a query."""
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return list(cursor.fetchall())


def check_postgresql(report: Report, config: Config, home: Path, endpoint: str, libraries: int | None) -> None:
    """Connection, whether it is the server's database, extensions, rows, vector index, sequences."""
    names = ("connection", "database of the running server", "extensions", "rows", "vector index", "sequences")
    try:
        import psycopg2
    except ImportError:
        for name in names:
            report.skip(
                name,
                f"{sys.executable} has no psycopg2; run this script with an interpreter that has it ({home / RUNTIME})",
            )
        return
    passfile = home / ".pgpass"
    if passfile.is_file():
        os.environ.setdefault("PGPASSFILE", str(passfile))
    try:
        connection = psycopg2.connect(config.database, connect_timeout=SECONDS)
    except psycopg2.Error as error:
        port = urlsplit(config.database).port or 5432
        report.add(
            "connection",
            False,
            " ".join(str(error).split()),
            f"a PostgreSQL that answers on port {port}",
            "docker start autotask-postgres (or its name), then this script again; "
            "if it stays away: ansible-playbook rollback.yml",
        )
        for name in names[1:]:
            report.skip(name, "there is no connection")
        return
    try:
        connection.set_session(readonly=True, autocommit=True)
        server, role, superuser, recovery = postgresql_rows(
            connection,
            "SELECT current_setting('server_version'), current_user,"
            " (SELECT rolsuper FROM pg_roles WHERE rolname = current_user), pg_is_in_recovery()",
        )[0]
        report.add(
            "connection",
            not recovery,
            f"PostgreSQL {server} as {role}, {'a superuser' if superuser else 'no superuser'}",
            "a server that takes writes",
            "wait until it has recovered, or connect to the primary server",
        )
        steps: tuple[tuple[str, Callable[[], None]], ...] = (
            (names[1], lambda: check_used(report, connection, endpoint, libraries)),
            ("extensions", lambda: check_extensions(report, connection)),
            ("rows", lambda: check_rows(report, connection, libraries)),
            ("vector index", lambda: check_vectors(report, connection, config.dimensions)),
            ("sequences", lambda: check_sequences(report, connection)),
        )
        for name, step in steps:
            try:
                step()
            except psycopg2.Error as error:
                report.add(
                    name,
                    False,
                    " ".join(str(error).split()),
                    "Pensieve's tables in schema public",
                    "look whether this is the right database (above); ansible-playbook migrate.yml makes it",
                )
    finally:
        connection.close()


def check_used(report: Report, connection: Any, endpoint: str, libraries: int | None) -> None:
    """A question to Pensieve's server shows up as activity in this very database."""
    name = "database of the running server"
    if libraries is None:
        report.skip(name, "the server gives nothing out of its database")
        return
    before = postgresql_rows(connection, "SELECT clock_timestamp()::text")[0][0]
    get(f"{endpoint}/api/libraries")
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            " AND state_change >= %s::timestamptz",
            (before,),
        )
        sessions = cursor.fetchone()[0]
    report.add(
        name,
        sessions > 0,
        f"a question to the server reaches {sessions} sessions of this database",
        "the server asks this database",
        "restart Pensieve, so that it reads its settings; unset MEMOS_DATABASE_PATH where it is started",
    )


def check_extensions(report: Report, connection: Any) -> None:
    """`vector` and `pg_trgm`, where Pensieve looks for them."""
    found = {
        name: (version, schema)
        for name, version, schema in postgresql_rows(
            connection,
            "SELECT extname, extversion, nspname FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace"
            " WHERE extname IN ('vector', 'pg_trgm')",
        )
    }
    report.add(
        "extensions",
        set(found) == {"vector", "pg_trgm"} and all(schema == "public" for _version, schema in found.values()),
        ", ".join(f"{name} {version} in {schema}" for name, (version, schema) in sorted(found.items())) or "none",
        "vector and pg_trgm in schema public",
        "ansible-playbook migrate.yml --tags postgres",
    )


def check_rows(report: Report, connection: Any, libraries: int | None) -> None:
    """Counts that fit together, and to what the server lists."""
    counts = {name: postgresql_rows(connection, f"SELECT count(*) FROM public.{name}")[0][0] for name in COUNTS}
    wrong = []
    if libraries is not None and libraries != counts["libraries"]:
        wrong.append(f"the server lists {libraries} libraries: it uses another database")
    if not counts["libraries"]:
        wrong.append("no library")
    if counts["entities"] and not counts["metadata_entries"]:
        wrong.append("screenshots without any metadata")
    # An entity is indexed some seconds after it was recorded, and some may never be: less than half is strange.
    for name in ("entities_fts", "entities_vec_v2"):
        if counts["entities"] >= 100 and 2 * counts[name] < counts["entities"]:
            wrong.append(f"{name} holds less than half of the entities")
        lost = postgresql_rows(
            connection,
            f"SELECT count(*) FROM public.{name} i WHERE NOT EXISTS (SELECT FROM public.entities e"
            f" WHERE e.id = i.{'id' if name == 'entities_fts' else 'rowid'})",
        )[0][0]
        if lost > counts["entities"] // 2 + 100:
            wrong.append(f"{lost} rows of {name} belong to no entity")
    report.add(
        "rows",
        not wrong,
        ", ".join(f"{name} {count}" for name, count in counts.items()) + "".join(f"; {what}" for what in wrong),
        "counts that fit together and to what the server lists",
        "ansible-playbook verify.yml compares every row with the SQLite database",
    )


def check_vectors(report: Report, connection: Any, dimensions: int) -> None:
    """The index for vector search is there and valid, and takes what Pensieve's model makes."""
    found = postgresql_rows(connection, HNSW)
    report.add(
        "vector index",
        len(found) == 1 and found[0][1] and found[0][2] == dimensions,
        ", ".join(f"{name} {'valid' if valid else 'NOT VALID'}, {size} dimensions" for name, valid, size in found)
        or "no HNSW index on entities_vec_v2",
        f"one valid HNSW index on entities_vec_v2 with {dimensions} dimensions, as in Pensieve's settings",
        "REINDEX INDEX idx_entities_vec_v2_embedding where it is not valid; `memos reindex` where dimensions are wrong",
    )


def check_sequences(report: Report, connection: Any) -> None:
    """The next number of each is beyond the ids that are there."""
    behind, seen = [], 0
    for sequence, table, column in postgresql_rows(connection, SEQUENCES):
        coming, largest = postgresql_rows(
            connection,
            "SELECT CASE WHEN is_called THEN last_value + 1 ELSE last_value END,"
            f' (SELECT max("{column}") FROM public."{table}") FROM public."{sequence}"',
        )[0]
        seen += 1
        if largest is not None and coming <= largest:
            behind.append(f"{sequence} gives {coming}, {table}.{column} goes to {largest}")
    report.add(
        "sequences",
        seen > 0 and not behind,
        "; ".join(behind) or f"{seen} sequences, each beyond its ids",
        "each sequence gives ids that are not taken",
        "SELECT setval(pg_get_serial_sequence('TABLE', 'id'), (SELECT max(id) FROM TABLE)) for each one named",
    )


def check_sqlite(report: Report, config: Config, serving: list[int]) -> None:
    """A file that can be read, with Pensieve's tables, and that the server has open."""
    file = config.base / config.database.removeprefix("sqlite:///")
    try:
        with contextlib.closing(sqlite3.connect(f"file:{quote(str(file))}?mode=ro", uri=True)) as connection:
            counts = {
                name: connection.execute(f"SELECT count(*) FROM {name}").fetchone()[0]
                for name in ("libraries", "entities", "metadata_entries")
            }
    except sqlite3.Error as error:
        report.add(
            "connection",
            False,
            f"{file}: {error}",
            "Pensieve's SQLite database",
            "name the home with --home, or restore the backup",
        )
        return
    report.add("connection", True, str(file), "", "")
    opened = set()
    for number in serving:
        with contextlib.suppress(OSError):
            opened |= {link.resolve() for link in Path(f"/proc/{number}/fd").iterdir()}
    if opened:
        report.add(
            "database of the running server",
            file.resolve() in opened,
            f"the server has {'this file' if file.resolve() in opened else 'another database'} open",
            f"{file} open",
            "restart Pensieve, so that it reads its settings; unset MEMOS_DATABASE_PATH where it is started",
        )
    else:
        report.skip("database of the running server", "the system does not tell which files the server has open")
    report.add(
        "rows",
        counts["libraries"] > 0,
        ", ".join(f"{name} {count}" for name, count in counts.items()),
        "at least one library",
        "look whether this is the right database; `memos init` makes an empty one",
    )
    for name in ("extensions", "vector index", "sequences"):
        report.skip(name, "Pensieve is set to SQLite")


def other_interpreter(home: Path) -> str | None:
    """The migration's own interpreter, when this one has no psycopg2 and that one is there."""
    try:
        import psycopg2  # only to see whether it is there
    except ImportError:
        python = home / RUNTIME
        return str(python) if MARK not in os.environ and os.access(python, os.X_OK) else None
    return None if psycopg2 else None


def arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, default=Path.home(), help="home of the user who runs Pensieve (yours)")
    parser.add_argument("--endpoint", help="URL of Pensieve's server (from config.yaml)")
    parser.add_argument("--database", help="database to look into (from config.yaml), a URI without a password")
    parser.add_argument(
        "--expect",
        default="postgresql",
        help="postgresql, sqlite, or the very database_path that is right (postgresql)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args()


def examine(options: argparse.Namespace) -> Report:
    """Make all checks."""
    report = Report()
    config = Config(options.home)
    if options.database:
        config.database = options.database
    endpoint = options.endpoint or config.endpoint
    libraries = check_server(report, endpoint)
    serving = check_processes(report, options.home)
    check_setting(report, config, options.expect)
    if is_postgresql(config.database):
        check_postgresql(report, config, options.home, endpoint, libraries)
    else:
        check_sqlite(report, config, serving)
    return report


def main() -> int:
    """0 when healthy, else 1."""
    options = arguments()
    other = other_interpreter(options.home)
    if other and Path(sys.argv[0]).is_file():
        return subprocess.run([other, *sys.argv], env={**os.environ, MARK: "1"}, check=False).returncode
    report = examine(options)
    if options.json:
        print(json.dumps({"healthy": report.healthy, "checks": [asdict(check) for check in report.checks]}, indent=2))
    else:
        for check in report.checks:
            print(check.told())
        results = [check.result for check in report.checks]
        failed, skipped = results.count(FAIL), results.count(SKIP)
        verdict = "Pensieve is healthy" if report.healthy else f"Pensieve is not healthy: {failed} checks failed"
        print(f"{verdict}; {results.count(PASS)} of {len(results)} checks passed, {skipped} could not be made.")
    return 0 if report.healthy else 1


if __name__ == "__main__":
    sys.exit(main())
