"""A PostgreSQL server, Pensieve's schema on it, and source databases made by Pensieve's own code."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlite_to_postgresql.fts import Tokenizer
from sqlite_to_postgresql.verify import catalog

from engine import server as servers
from engine.pensieve import Pensieve, venv

Catalog = dict[str, dict[str, str]]
TEMPLATE = "pensieve_template"


@pytest.fixture(scope="session")
def pensieve(tmp_path_factory: pytest.TempPathFactory) -> Pensieve:
    """Pensieve's commands, with a home of their own."""
    folder = venv()
    if folder is None:
        pytest.fail("PENSIEVE_VENV does not name a virtual environment with Pensieve; scripts/test makes one")
    return Pensieve(folder, tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
    """A server of its own for the whole run."""
    reason = servers.missing_reason()
    if reason:
        pytest.fail(f"no PostgreSQL server: {reason}; scripts/test builds the image")
    with servers.Server(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(scope="session")
def template(server: servers.Server, pensieve: Pensieve) -> Catalog:
    """The catalog of Pensieve's schema. Makes the template of all target databases, by Pensieve's own code."""
    dsn = server.create_database(TEMPLATE)
    pensieve.init(dsn)
    return catalog(dsn)


@pytest.fixture(scope="session")
def make_target(server: servers.Server, template: Catalog) -> Callable[[], str]:
    """Makes one more database with Pensieve's schema and default rows; gives its DSN."""
    assert template
    numbers = itertools.count()

    def make() -> str:
        return server.create_database(f"target_{os.getpid()}_{next(numbers)}", TEMPLATE)

    return make


@pytest.fixture(scope="session")
def filled(pensieve: Pensieve, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source with 300 screenshots. Not to be changed."""
    return pensieve.make_source(tmp_path_factory.mktemp("filled") / "database.db", 300)


@pytest.fixture(scope="session")
def medium(pensieve: Pensieve, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source with 40 screenshots. Not to be changed: `source` gives a copy."""
    return pensieve.make_source(tmp_path_factory.mktemp("medium") / "database.db", 40)


@pytest.fixture(scope="session")
def small(pensieve: Pensieve, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source with 16 screenshots. Not to be changed: copy it."""
    return pensieve.make_source(tmp_path_factory.mktemp("small") / "database.db", 16)


@pytest.fixture(scope="session")
def empty(pensieve: Pensieve, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source just as Pensieve makes it. Not to be changed: copy it."""
    database = tmp_path_factory.mktemp("empty") / "database.db"
    pensieve.init(str(database))
    return database


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """One with its dictionary loaded."""
    return Tokenizer().load()


@pytest.fixture
def source(medium: Path, tmp_path: Path) -> Path:
    """A copy of `medium` that a test may change."""
    return Path(shutil.copy(medium, tmp_path / "database.db"))


def note(node: pytest.Item, line: str) -> None:
    """Show a line at the end of the run, also when a worker of xdist runs the test."""
    node.user_properties.append(("note", line))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Scores."""
    for report in [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]:
        for name, line in report.user_properties:
            if name == "note" and report.when == "call":
                terminalreporter.write_line(str(line))
