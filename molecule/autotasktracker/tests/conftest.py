"""Asks the consumer on the instance."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from testinfra.host import Host

testinfra_hosts = ["ansible://pensieve"]
HOME = "/srv/pensieve/home"
CHECKOUT = "/srv/pensieve/autotasktracker"


@pytest.fixture(scope="module")
def consumer(host: Host) -> Callable[[str], Any]:
    """What the consumer prints as JSON."""

    def run(arguments: str) -> Any:
        done = host.run(
            f"cd {CHECKOUT} && HOME={HOME} PYTHONDONTWRITEBYTECODE=1 venv/bin/python tasktracker.py {arguments}"
        )
        assert done.rc == 0, done.stderr
        return json.loads(done.stdout)

    return run
