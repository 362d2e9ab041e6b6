"""A throw-away PostgreSQL server in a container, for the tests of the engine and for the benchmark."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import psycopg2

DEFAULT_IMAGE = "autotask-postgres:15-debian"
OWNER = "autotasktracker"
START_SECONDS = 60.0
DATA = "/var/lib/postgresql/test-data"
# Files of the cluster stay in the container; nothing of it is worth a flush to disk.
START = """
set -eu
PATH=/usr/lib/postgresql/15/bin:$PATH
umask 077
printf %s "$SUPERUSER_PASSWORD" > /tmp/password
initdb --pgdata="$DATA" --username=postgres --encoding=UTF8 --locale=C.UTF-8 --auth=scram-sha-256 \
  --pwfile=/tmp/password --no-sync
echo 'host all all all scram-sha-256' >> "$DATA/pg_hba.conf"
exec postgres -D "$DATA" -c listen_addresses='*' "$@"
"""


def missing_reason() -> str | None:
    """Why no server can be started here, or None."""
    if shutil.which("docker") is None:
        return "no docker command in the PATH"
    image = os.environ.get("TEST_POSTGRES_IMAGE", DEFAULT_IMAGE)
    found = subprocess.run(["docker", "image", "inspect", image], capture_output=True, check=False)
    if found.returncode:
        return f"no image {image} (TEST_POSTGRES_IMAGE names another one)"
    return None


def run(dsn: str, *statements: str) -> list[tuple[Any, ...]]:
    """Run statements, each on its own; rows of the last one, if it gives any."""
    connection = psycopg2.connect(dsn, connect_timeout=5)
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()


class Server:
    """Context manager. `dsn(database)` has no password in it: `passfile` holds it, and libpq finds that by
    PGPASSFILE, which is set while the server runs.
    """

    def __init__(self, folder: Path, settings: dict[str, str] | None = None) -> None:
        self.image = os.environ.get("TEST_POSTGRES_IMAGE", DEFAULT_IMAGE)
        self.passfile = folder / "pgpass"
        self.settings = {
            "fsync": "off",
            "max_connections": "60",
            "shared_buffers": "128MB",
            **(settings or {}),
        }
        self.port = 0
        self.container = ""
        self._before = os.environ.get("PGPASSFILE")
        self._passwords = {"postgres": secrets.token_urlsafe(16), OWNER: secrets.token_urlsafe(16)}

    def __enter__(self) -> Server:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        options = [part for name, value in self.settings.items() for part in ("-c", f"{name}={value}")]
        self.passfile.touch(0o600)
        self.passfile.write_text(
            "".join(f"127.0.0.1:{self.port}:*:{user}:{word}\n" for user, word in self._passwords.items())
        )
        os.environ["PGPASSFILE"] = str(self.passfile)
        command = ["docker", "run", "--detach", "--user=postgres", "--shm-size=4g", "--entrypoint=/bin/sh"]
        command += [f"--publish=127.0.0.1:{self.port}:5432", "--env=SUPERUSER_PASSWORD", f"--env=DATA={DATA}"]
        command += [self.image, "-c", START, "sh", *options]
        environment = {**os.environ, "SUPERUSER_PASSWORD": self._passwords["postgres"]}
        started = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        self.container = started.stdout.strip()
        try:
            self._wait()
            self.run(f"CREATE ROLE {OWNER} LOGIN PASSWORD '{self._passwords[OWNER]}'")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        subprocess.run(["docker", "rm", "--force", "--volumes", self.container], capture_output=True, check=True)
        if self._before is None:
            os.environ.pop("PGPASSFILE", None)
        else:
            os.environ["PGPASSFILE"] = self._before

    def _wait(self) -> None:
        """Until the server answers over TCP; raises RuntimeError with its log when it does not come up."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self.run("SELECT 1")
                return
            except psycopg2.OperationalError as error:
                state = ["docker", "inspect", "--format={{.State.Running}}", self.container]
                running = subprocess.run(state, capture_output=True, text=True, check=True).stdout.strip()
                if running != "true" or time.monotonic() > deadline:
                    logs = subprocess.run(
                        ["docker", "logs", self.container], capture_output=True, text=True, check=True
                    )
                    raise RuntimeError(f"no server in {self.image}: {error}\n{logs.stdout}{logs.stderr}") from error
                # Wait for something to happen on the port rather than for a number of seconds.
                with socket.socket() as probe:
                    probe.settimeout(0.2)
                    if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                        try:
                            probe.recv(1)
                        except OSError:
                            continue

    def dsn(self, database: str, user: str = OWNER) -> str:
        """URI without password."""
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    def run(self, *statements: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Run statements as superuser, each on its own; rows of the last one, if it gives any."""
        return run(self.dsn(database, "postgres"), *statements)

    def create_database(self, name: str, template: str = "template0") -> str:
        """A database for Pensieve: owner without special rights, extensions, UTC. Returns its DSN."""
        self.run(
            f'CREATE DATABASE "{name}" OWNER {OWNER} TEMPLATE "{template}" STRATEGY file_copy',
            f"ALTER DATABASE \"{name}\" SET timezone = 'UTC'",
        )
        self.run(
            "CREATE EXTENSION IF NOT EXISTS pg_trgm SCHEMA public",
            "CREATE EXTENSION IF NOT EXISTS vector SCHEMA public",
            f"GRANT ALL ON SCHEMA public TO {OWNER}",
            database=name,
        )
        return self.dsn(name)

    def drop_database(self, name: str) -> None:
        """Also when somebody is still connected."""
        self.run(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
