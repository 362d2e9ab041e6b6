"""After the incident: both screenshots are in SQLite and are found, with the old settings byte for byte."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from testinfra.host import Host

testinfra_hosts = ["ansible://pensieve"]


@pytest.mark.parametrize("name", ["home/.memos/config.yaml", "autotasktracker/autotasktracker.env"])
def test_settings_are_back_byte_for_byte(name: str, host: Host) -> None:
    before, after = host.file(f"/srv/pensieve/before/{name.rsplit('/', 1)[-1]}"), host.file(f"/srv/pensieve/{name}")
    assert after.content == before.content
    assert (after.mode, after.user) == (before.mode, before.user)


def test_what_both_databases_recorded_is_found(api: Callable[..., Any]) -> None:
    found = {}
    for word in ("quokka", "wombat"):
        hits = api("GET", f"/search?q={word}&limit=1")["hits"]
        found[word] = hits[0]["document"]
    assert found["quokka"]["filename"] == "on-postgresql.webp"
    assert found["wombat"]["filename"] == "on-sqlite.webp"
    assert int(found["quokka"]["id"]) == int(found["wombat"]["id"]) + 1
    assert found["quokka"]["tags"] == ["on-postgresql"]


def test_nothing_is_left_behind(host: Host, variables: dict[str, Any]) -> None:
    state = f"{variables['pensieve_user_home']}/.local/state/pensieve-postgres"
    assert '"left_behind": 0' in host.file(f"{state}/manifest.json").content_string
    (told,) = [name for name in host.file(state).listdir() if name.startswith("carried-back-")]
    assert host.file(f"{state}/{told}").mode == 0o600
