"""Databases of other versions of Pensieve, made by their own code: copied, verified, full text as theirs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psycopg2
import pytest
from sample_installation.environment import add_version
from sqlite_to_postgresql.copier import copy
from sqlite_to_postgresql.fts import Tokenizer
from sqlite_to_postgresql.verify import verify

from engine.pensieve import OLD_VECTORS, Pensieve
from engine.server import Server

pytestmark = [pytest.mark.docker, pytest.mark.pensieve]

# 0.25.0 was the first with PostgreSQL; fresh tables of 0.32.0 cannot be made by its own code.
VERSIONS = ("0.25.0", "0.27.4", "0.29.1", "0.31.0", "0.33.0", "0.35.1", "0.37.0")
NEWEST = VERSIONS[-1]
OLDEST = "0.23.2"  # knows SQLite only
SCREENSHOTS = 40


@pytest.fixture(scope="module")
def pensieve_of(pensieve: Pensieve, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pensieve]:
    """Pensieve of a version, on the packages of the environment that is there."""

    def make(version: str) -> Pensieve:
        folder = tmp_path_factory.mktemp(f"pensieve-{version}")
        add_version(pensieve.folder, version, folder / "package")
        return Pensieve(pensieve.folder, folder / "home", package=folder / "package")

    return make


def copied(source: Path, newest: Pensieve, server: Server, tokenizer: Tokenizer, name: str) -> None:
    """Copy into a database that the same version has made; every cell is equal, and full text as that version's."""
    dsn = server.create_database(name)
    newest.init(dsn)
    result = copy(source, dsn)
    assert result.tables["entities"].target == SCREENSHOTS
    verdict = verify(source, dsn, tokenizer=tokenizer)
    assert verdict.equal, verdict.differences[:5]
    expected = {int(entity): tuple(texts) for entity, texts in newest.words(dsn, "entities").items()}
    connection = psycopg2.connect(dsn)
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT id, filepath, tags, metadata FROM entities_fts")
            assert {row[0]: row[1:] for row in cursor.fetchall()} == expected
    finally:
        connection.close()


@pytest.mark.parametrize("version", VERSIONS)
def test_database_of_a_version(
    version: str, pensieve_of: Callable[[str], Pensieve], server: Server, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    pensieve = pensieve_of(version)
    source = pensieve.make_source(tmp_path / "database.db", SCREENSHOTS)
    copied(source, pensieve, server, tokenizer, f"version_{version.replace('.', '_')}")


def test_database_of_2024(
    pensieve_of: Callable[[str], Pensieve], pensieve: Pensieve, server: Server, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Begun with a version that had its vectors elsewhere and no revisions, filled with a later one, then upgraded.

    Columns that a later version has added stand at another place, and with another type, than in a fresh database.
    """
    database = tmp_path / "database.db"
    pensieve_of(OLDEST).run("python", "-m", "memos.commands", "init", database=str(database))
    pensieve.init(str(database))
    pensieve.fill(database, SCREENSHOTS)
    pensieve.run("python", str(OLD_VECTORS), *map(str, range(1, SCREENSHOTS)), database=str(database))
    newest = pensieve_of(NEWEST)
    newest.init(str(database))
    copied(database, newest, server, tokenizer, "version_upgraded")
