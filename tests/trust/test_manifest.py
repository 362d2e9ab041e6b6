"""What manifest and journal of a home name is stopped, removed or ended only where it is this user's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from .conftest import Machine

pytestmark = pytest.mark.docker

STAMP = "20251125T110555Z"


def manifest(home: Path) -> dict[str, Any]:
    """One as migrate.yml writes it."""
    backup, config = home / "state" / "backups" / STAMP, home / ".memos" / "config.yaml"
    return {
        **{"phase": "complete", "stamp": STAMP, "setting": "database.db", "home": str(home), "services": ["serve"]},
        **{"uri": "postgresql://autotasktracker@127.0.0.1:5433/autotasktracker", "units": []},
        "source": {"database": f"{home}/.memos/database.db", "revision": "edb8a15d51b1"},
        "backup": {"database": f"{backup}/database.db", "sha256": "", "bytes": 0, "moment": "snapshot"},
        "files": [
            {
                **{"path": str(config), "key": "database_path", "copy": f"{backup}/0-config.yaml", "absent": False},
                **{"record": f"{backup}/0-config.yaml.record", "sha256": "0" * 64, "mode": "0600"},
            }
        ],
    }


def read(machine: Machine, home: Path, content: dict[str, Any], *settings: str) -> dict[str, Any]:
    """What the module says of a manifest."""
    machine.sh(f"mkdir -p {home}/state; cat >{home}/state/manifest.json <<'END'\n{json.dumps(content)}\nEND", "owner")
    return machine.module(
        "owner", "pensieve_manifest", state_dir=f"{home}/state", user_home=str(home), settings=list(settings)
    )


def test_one_as_it_is_written_is_read(machine: Machine, home: Path) -> None:
    """Also where everything lies on another disk, behind links that the owner has made, and for another checkout."""
    machine.sh("install -d -o owner /srv/disk")
    machine.sh(f"mv {home}/.memos /srv/disk/memos; ln -s /srv/disk/memos {home}/.memos", "owner")
    machine.sh("cd /srv/disk/memos; mv database.db ..; ln -s ../database.db .", "owner")
    content = manifest(home)
    content["source"]["database"] = "/srv/disk/database.db"
    content["files"][0].update(path="/srv/disk/memos/config.yaml", uid=int(machine.sh("id -u owner")))
    content["files"].append(
        {"path": "/srv/disk/checkout/a.py", "absent": True, "record": content["files"][0]["record"]}
    )
    told = read(machine, home, content, "/srv/disk/checkout")
    assert (told["problems"], told["manifest"]) == ([], content), told


# Where the change stands, and what it says there.
FOREIGN: list[tuple[tuple[str | int, ...], Any]] = [
    (("files", 0, "path"), "/etc/passwd"),
    (("files", 0, "path"), "/home/owner/../stranger/file"),
    (("files", 0, "path"), "/home/owner/link/file"),
    (("files", 0, "uid"), 0),
    (("files", 0, "copy"), "/etc/shadow"),
    (("files", 0, "record"), "/home/owner/.ssh/id"),
    (("backup", "database"), "/home/owner"),
    (("backup", "database"), "/home/owner/state/backups"),
    (("backup", "database"), f"/home/owner/state/backups/{STAMP}"),
    (("backup", "database"), f"/home/owner/state/backups/{STAMP}/../../../.memos/database.db"),
    (("backup", "database"), "/home/owner/loop/database.db"),
    (("files", 0, "path"), "/home/owner/loop/config.yaml"),
    (("source", "database"), "/home/stranger/database.db"),
    (("source", "database"), "/etc/passwd"),
    (("source", "database"), "/etc/new.db"),
    (("source", "database"), "/home/owner/.memos"),
]


MALFORMED: list[tuple[tuple[str | int, ...], Any]] = [
    (("stamp",), "../../.."),
    (("phase",), ["complete"]),
    (("left_behind",), "0"),
    (("services",), [{}]),
    (("source",), {}),
    (("source", "database"), 1),
    (("backup", "database"), ["/"]),
    (("files",), ["/etc/passwd"]),
    (("files", 0, "uid"), "0"),
    (("files", 0, "absent"), "no"),
    (("files", 0), {"path": "/home/owner/.memos/config.yaml"}),
    (("units",), [{"name": "--force", "scope": "system", "services": []}]),
    (("units",), [{"name": "a.service", "scope": "global", "services": []}]),
    (("units",), ["sshd.service"]),
]


def changed(content: dict[str, Any], place: tuple[str | int, ...], value: Any) -> dict[str, Any]:
    """A manifest with one value changed."""
    inner: Any = content
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = value
    return content


READ = """
import json, os
from ansible.module_utils.migration_manifest import Bounds, read
home = Path("/home/owner")
state = home / "state"
state.mkdir()
for content in json.loads(CONTENTS):
    (state / "manifest.json").write_text(json.dumps(content))
    try:
        read(state / "manifest.json", Bounds(os.getuid(), state, [home, home / ".memos"]))
        print("fine")
    except ValueError as error:
        print(type(error).__name__, error)
"""


@pytest.mark.parametrize(("changes", "kind"), [(FOREIGN, "OutsideError"), (MALFORMED, "ValueError")])
def test_what_is_none_of_this_installation_is_refused(
    machine: Machine, home: Path, changes: list[tuple[tuple[str | int, ...], Any]], kind: str
) -> None:
    machine.sh(f"ln -s /home/stranger {home}/link; ln -s loop {home}/loop", "owner")
    machine.sh("touch /home/stranger/database.db", "stranger")
    contents = [manifest(home), *(changed(manifest(home), place, value) for place, value in changes)]
    said = machine.python("owner", f"CONTENTS = {json.dumps(contents)!r}\n{READ}").splitlines()
    assert said[0] == "fine"
    for told, change in zip(said[1:], changes):
        assert told.startswith(f"{kind} "), (told, change)
    assert len(said) == len(contents)


def test_root_reads_no_file_of_its_own_for_another_user(machine: Machine, home: Path) -> None:
    machine.sh("echo hush >/root/secret; chmod 755 /root; chmod 600 /root/secret")
    machine.sh(f"mkdir {home}/state; ln -s /root/secret {home}/state/manifest.json", "owner")
    told = machine.module("root", "pensieve_manifest", state_dir=f"{home}/state", user_home=str(home))
    assert "belongs to root" in told["problems"][0]["found"], told
    assert "hush" not in str(told)


def test_a_unit_that_is_not_pensieves_is_left_alone(machine: Machine, home: Path) -> None:
    content = manifest(home)
    content["units"] = [{"name": "of-root.service", "scope": "system", "services": ["serve"]}]
    assert read(machine, home, content)["manifest"]["units"] == []


def test_what_is_refused_is_told_with_what_helps_and_no_copy_of_it_is_offered(machine: Machine, home: Path) -> None:
    machine.sh(f"mkdir -p {home}/state/backups/{STAMP}", "owner")
    content = changed(manifest(home), ("source", "database"), "/etc/passwd")
    machine.sh(f"cat >{home}/state/backups/{STAMP}/manifest.json <<'END'\n{json.dumps(content)}\nEND", "owner")
    told = read(machine, home, content)
    (problem,) = told["problems"]
    assert (told["manifest"], problem["code"]) == ({"phase": "damaged"}, "manifest_foreign")
    assert "/etc/passwd as the database: it belongs to root, not to owner" in problem["found"]
    told = read(machine, home, changed(content, ("files",), 1))
    assert "it has no copy" in told["problems"][0]["next"], told


ENDS = """
import os
from ansible.module_utils.migration_journal import end_left_over, left_over
print(left_over(Path("/root/state")), end_left_over(Path("/root/state")))
"""


def test_root_ends_no_process_of_another_user(machine: Machine, home: Path) -> None:
    """One that calls itself a module of root's operation, and that a file names as the holder of a snapshot."""
    wait = "exec /usr/bin/python3 -c 'import time; time.sleep(600)'"
    machine.leave(f"PENSIEVE_POSTGRES_STATE=/root/state {wait}", "stranger")
    pid = machine.sh("until pgrep -u stranger python3; do sleep 0.1; done").split()[0]
    machine.sh("mkdir -p /root/state/snapshot")
    assert machine.python("root", ENDS) == "[] []\n"
    started = machine.sh(f"cut -d' ' -f22 /proc/{pid}/stat").strip()
    machine.sh(f"echo '{json.dumps({'pid': int(pid), 'started': int(started)})}' >/root/state/snapshot/snapshot.json")
    named = "from pensieve_service import named_reader\nprint(named_reader(Path('/root/state/snapshot/snapshot.json')))"
    assert machine.python("root", named) == "set()\n"
    assert machine.sh(f"ps -o user= -p {pid}").strip() == "stranger"
    machine.sh(f"kill {pid}")
