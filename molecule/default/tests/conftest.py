"""What the tests of both states look at: the instance, its Pensieve, and the variables of the run."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from testinfra.host import Host

Run = Callable[[str], Any]

testinfra_hosts = ["ansible://pensieve"]

REQUEST = """
import json, sys, urllib.error, urllib.request
method, url, body = sys.argv[1:]
request = urllib.request.Request(url, method=method, data=body.encode() or None,
                                 headers={"Content-Type": "application/json"})
try:
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as response:
        print(json.dumps([response.status, response.read().decode()]))
except urllib.error.HTTPError as error:
    print(json.dumps([error.code, error.read().decode()]))
"""


@pytest.fixture(scope="module")
def variables(host: Host) -> dict[str, Any]:
    """Variables of the inventory."""
    names = (
        "pensieve_user_home",
        "pensieve_venv",
        "autotasktracker_dir",
        "autotasktracker_venv",
        "postgres_port",
        "postgres_container_name",
        "sample_port",
        "sample_count",
    )
    known = host.ansible.get_variables()
    return {name: known[name] for name in names}


@pytest.fixture(scope="module")
def inside(host: Host, variables: dict[str, Any]) -> Callable[..., Any]:
    """Runs Python code with Pensieve's interpreter on the instance; what it prints as JSON comes back."""

    def run(code: str, *arguments: str) -> Any:
        quoted = " ".join("%s" for _ in arguments)
        command = f"HOME=%s %s/bin/python -c %s {quoted}"
        done = host.run(command, variables["pensieve_user_home"], variables["pensieve_venv"], code, *arguments)
        assert done.rc == 0, done.stderr
        return json.loads(done.stdout)

    return run


@pytest.fixture(scope="module")
def api(inside: Callable[..., Any], variables: dict[str, Any]) -> Callable[..., Any]:
    """Calls Pensieve's REST API on the instance; asserts 2xx, and gives back the JSON."""

    def call(method: str, path: str, body: Any = None) -> Any:
        url = f"http://127.0.0.1:{variables['sample_port']}/api{quote(path, safe='/?=&')}"
        status, content = inside(REQUEST, method, url, "" if body is None else json.dumps(body))
        assert 200 <= status < 300, f"{method} {path}: {status} {content[:500]}"
        return json.loads(content) if content else None

    return call


@pytest.fixture(scope="module")
def write_record(api: Callable[..., Any]) -> Callable[[], int]:
    """Records a screenshot as Pensieve's `watch` does, and finds it by a word of it; its id comes back."""

    def write() -> int:
        (library,) = [found for found in api("GET", "/libraries") if found["name"] == "screenshots"]
        folder = library["folders"][0]
        entry = {
            "key": "active_window",
            "value": "quokka sanctuary",
            "source": "system_generated",
            "data_type": "text",
        }
        made = api(
            "POST",
            f"/libraries/{library['id']}/entities?update_index=true",
            {
                "filename": "after.webp",
                "filepath": f"{folder['path']}/after.webp",
                "size": 1,
                "file_created_at": "2025-07-03T08:00:00",
                "file_last_modified_at": "2025-07-03T08:00:00",
                "file_type": "webp",
                "file_type_group": "image",
                "folder_id": folder["id"],
                "tags": ["after"],
                "metadata_entries": [entry],
            },
        )
        hits = api("GET", "/search?q=quokka&limit=1")["hits"]
        assert [int(hit["document"]["id"]) for hit in hits] == [made["id"]]
        return int(made["id"])

    return write


@pytest.fixture(scope="module")
def consumer(host: Host, variables: dict[str, Any]) -> Callable[[str], Any]:
    """Asks the AutoTaskTracker-like consumer; what it prints as JSON comes back."""

    def ask(arguments: str) -> Any:
        done = host.run(
            f"HOME=%s %s/bin/python %s/tasktracker.py {arguments}",
            variables["pensieve_user_home"],
            variables["autotasktracker_venv"],
            variables["autotasktracker_dir"],
        )
        assert done.rc == 0, done.stderr
        return json.loads(done.stdout)

    return ask


@pytest.fixture(scope="module")
def unit(host: Host) -> dict[str, str]:
    """State, main process and restarts of the unit that keeps Pensieve, and the servers that run: `servers`."""
    scope = host.ansible.get_variables()["sample_unit_scope"]
    names = ("ActiveState", "MainPID", "NRestarts")
    shown = host.check_output(
        f"XDG_RUNTIME_DIR=/run/user/$(id -u) systemctl --{scope} show pensieve.service --property={','.join(names)}"
    )
    servers = host.check_output("pgrep -f '[m]emos.* serve'")
    return {**dict(line.split("=") for line in shown.splitlines()), "servers": servers}


@pytest.fixture(scope="session")
def ansible_output() -> str:
    """Everything that Ansible has said in this scenario."""
    log = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "ansible.log"
    output = log.read_text(encoding="utf-8", errors="replace")
    assert "PLAY RECAP" in output, f"{log} holds no output of Ansible"
    return output
