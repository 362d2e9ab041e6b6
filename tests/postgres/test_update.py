"""An installation that an earlier version made: image, container, extension and vector indexes come over, rows stay."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from postgres.test_role import Role, docker, make, remove

pytestmark = [pytest.mark.docker, pytest.mark.slow]

# pgvector as it was built before, from the same archive.
OLD: dict[str, Any] = {
    "postgres_pgvector_version": "0.8.0",
    "postgres_pgvector_sha256": "867a2c328d4928a5a9d6f052cd3bc78c7d60228a9b914ad32aa3db88e9de27b0",
}
ROWS = """SELECT count(*), md5(string_agg(id::text || text || embedding::text, '' ORDER BY id)) FROM items"""
INDEXES = "SELECT indexrelid::regclass::text, pg_relation_filenode(indexrelid), indisvalid FROM pg_index"
INDEXES += " WHERE indrelid = 'items'::regclass ORDER BY 1"
VECTOR = "SELECT extversion FROM pg_extension WHERE extname = 'vector'"
MOST_SECONDS = 30


class Downtime:
    """Asks for rows as an application does, again and again; `seconds` is the longest time without an answer."""

    def __init__(self, role: Role) -> None:
        self.role, self.seconds, self._ended = role, 0.0, threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)

    def _ask(self) -> None:
        answered = time.monotonic()
        while not self._ended.wait(0.1):
            try:
                self.role.query("SELECT 1 FROM items LIMIT 1")
            except psycopg2.OperationalError:
                continue
            self.seconds, answered = max(self.seconds, time.monotonic() - answered), time.monotonic()

    def __enter__(self) -> Downtime:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Role]:
    """A server as an earlier version of this project made it: as root, on Docker's own network, open to all."""
    role = make(tmp_path_factory.mktemp("update"))
    tag = f"{role.name}:15"
    role.variables = {"postgres_image_source": "debian", "postgres_image_debian": tag}
    try:
        made = role.run(**OLD)
        assert made.code == 0, made.output
        role.query("CREATE TABLE items AS SELECT g AS id, md5(g::text) AS text,"
                   " array_agg(sin(g * d))::real[]::vector(64) AS embedding"
                   " FROM generate_series(1, 3000) g, generate_series(1, 64) d GROUP BY g")  # fmt: skip
        role.query("CREATE INDEX graph ON items USING hnsw (embedding vector_cosine_ops)")
        role.query("CREATE INDEX lists ON items USING ivfflat (embedding vector_l2_ops) WITH (lists = 10)")
        role.query("GRANT CONNECT ON DATABASE autotasktracker TO PUBLIC", "postgres", "postgres")
        docker("exec", role.name, "sh", "-c", "echo 'host all all all scram-sha-256' >> $PGDATA/pg_hba.conf")
        docker("rm", "--force", role.name)
        docker("run", "--detach", f"--name={role.name}", f"--label=pensieve-postgres.home={role.home}",
               f"--publish=127.0.0.1:{role.port}:5432", f"--volume={role.name}-data:/var/lib/postgresql/data",
               tag, "postgres")  # fmt: skip
        for _ in range(120):
            try:
                role.query("SELECT 1")
                break
            except psycopg2.OperationalError:
                time.sleep(0.5)
        yield role
    finally:
        remove(role)
        subprocess.run(["docker", "image", "rm", tag], capture_output=True, check=False)


def test_everything_comes_over_and_rows_stay(old: Role) -> None:
    rows, indexes = old.query(ROWS), old.query(INDEXES)
    assert old.query(VECTOR) == [("0.8.0",)]
    # What a rebuild that was cut leaves.
    old.query("CREATE INDEX graph_ccnew ON items USING hnsw (embedding vector_cosine_ops)")
    invalid = "UPDATE pg_catalog.pg_index SET indisvalid = false WHERE indexrelid = 'public.graph_ccnew'::regclass"
    old.query(invalid, "postgres")

    with Downtime(old) as downtime:
        done = old.run()
    assert done.code == 0, done.output
    assert "vector 0.8.0 has built this database" in done.output
    assert 0 < downtime.seconds < MOST_SECONDS
    assert old.query(ROWS) == rows
    now = old.query(INDEXES)
    assert [name for name, _, _ in now] == ["graph", "lists"]
    assert all(valid for _, _, valid in now)
    assert not {node for _, node, _ in now} & {node for _, node, _ in indexes}, "an index was not built again"
    ((version,),) = old.query(VECTOR)
    assert tuple(map(int, version.split("."))) >= (0, 8, 4)
    nearest = "SELECT id FROM items ORDER BY embedding <=> (SELECT embedding FROM items WHERE id = 7) LIMIT 1"
    assert old.query(nearest) == [(7,)]
    host = old.inspect()["HostConfig"]
    assert (host["NetworkMode"], host["ReadonlyRootfs"]) == (old.name, True)
    again = old.run()
    assert (again.code, again.changed) == (0, 0), again.output


def test_a_newer_postgresql_of_the_archive_is_told_and_taken(old: Role, tmp_path: Path) -> None:
    """The image is labelled as of an older one, as it is when a security update comes out."""
    tag = old.variables["postgres_image_debian"]
    (tmp_path / "Dockerfile").write_text(f"FROM {tag}\nLABEL pensieve-postgres.postgresql=15.1-0+deb12u1\n")
    docker("build", f"--tag={tag}", str(tmp_path))
    kept = old.run()
    assert "15.1-0+deb12u1" not in kept.output, "a run that was not asked to looks for updates"
    rows = old.query(ROWS)
    taken = old.run(postgres_image_refresh=True)
    assert taken.code == 0, taken.output
    assert f"{tag} has postgresql 15.1-0+deb12u1;" in taken.output
    assert "archive has 15." in taken.output
    labels = docker("image", "inspect", "--format={{json .Config.Labels}}", tag)
    assert "15.1-0+deb12u1" not in labels
    assert old.query(ROWS) == rows
    again = old.run(postgres_image_refresh=True)
    assert (again.code, again.changed) == (0, 0), again.output


def test_an_archive_that_has_moved_on(old: Role) -> None:
    """The source that is wanted is not there any more; what is newer is taken, and told."""
    tag = f"{old.name}:moved"
    wanted: dict[str, Any] = {"postgres_pgvector_version": "0.7.9", "postgres_pgvector_source_release": "trixie"}
    try:
        done = old.run("image", postgres_image_debian=tag, postgres_pgvector_sha256="0" * 64, **wanted)
        assert done.code == 0, done.output
        assert "archive has moved on from pgvector 0.7.9: 0.8.0 of trixie is taken." in done.output
        control = docker("run", "--rm", tag, "cat", "/usr/share/postgresql/15/extension/vector.control")
        assert "default_version = '0.8.0'" in control
    finally:
        subprocess.run(["docker", "image", "rm", tag], capture_output=True, check=False)


def test_an_archive_that_does_not_answer_changes_nothing(old: Role) -> None:
    mirror: dict[str, Any] = {"postgres_debian_mirror": "http://127.0.0.1:1/debian"}
    done = old.run("image", postgres_image_refresh=True, **mirror)
    assert (done.code, done.changed) == (0, 0), done.output
    assert "is not known" in done.output
