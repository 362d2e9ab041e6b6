"""One world for all tests of this folder."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from rollback.runs import world
from rollback.world import Run, World


def free_port() -> int:
    """A port of the loopback interface that is free, with the next one."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port: int = first.getsockname()[1]
            try:
                second.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A sample installation, a server, and embeddings."""
    venv = os.environ.get("PENSIEVE_VENV")
    if not venv:
        pytest.fail("PENSIEVE_VENV is not set; run scripts/test, which makes that environment")
    with world(tmp_path_factory.mktemp("world"), Path(venv), free_port()) as made:
        yield made


@pytest.fixture
def run(shared: World, tmp_path: Path) -> Iterator[Run]:
    """A fresh migration, its change log begun."""
    made = shared.migrate(tmp_path)
    yield made
    shared.server.drop_database(made.dsn.rpartition("/")[2])
