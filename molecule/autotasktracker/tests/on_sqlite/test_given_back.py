"""After rollback.yml: every byte is as before, and the consumer reads SQLite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from testinfra.host import Host

testinfra_hosts = ["ansible://pensieve"]
HOME = "/srv/pensieve/home"
CHECKOUT = "/srv/pensieve/autotasktracker"
BEFORE = "/srv/pensieve/before"


def test_the_source_is_what_it_was(host: Host) -> None:
    same = host.run(
        f"diff --recursive --brief --exclude=__pycache__ {BEFORE}/autotasktracker {CHECKOUT}/autotasktracker"
    )
    assert same.stdout == ""
    assert same.rc == 0
    listing = "find . -name __pycache__ -prune -o -printf '%p %m %u %g\\n' | sort"
    before = host.check_output(f"cd {BEFORE}/autotasktracker && {listing}")
    assert len(before.splitlines()) > 8
    assert host.check_output(f"cd {CHECKOUT}/autotasktracker && {listing}") == before


def test_the_settings_and_answers_are_what_they_were(host: Host) -> None:
    for before, now in (
        (f"{BEFORE}/autotasktracker.env", f"{CHECKOUT}/autotasktracker.env"),
        (f"{BEFORE}/config_autotasktracker.yaml", f"{HOME}/.memos/config_autotasktracker.yaml"),
        (f"{BEFORE}/autotask_cache/1.cache", f"{HOME}/.memos/autotask_cache/1.cache"),
    ):
        assert host.file(now).content == host.file(before).content
        assert host.file(now).mode == host.file(before).mode
    assert not host.file(f"{HOME}/.memos/autotask_cache.sqlite").exists


def test_the_consumer_reads_sqlite_again(consumer: Callable[[str], Any]) -> None:
    found = consumer("tasks")
    assert found["type"] == "sqlite"
    assert len(found["tasks"]) == 5
