"""Files in a home are reached through no link of somebody else's, and nobody's file is written or given away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from .conftest import Machine

pytestmark = pytest.mark.docker

ENTRY = {"port": 5433, "database": "autotasktracker", "user": "autotasktracker"}


def looks(machine: Machine, path: Path | str) -> str:
    """Owner, mode and content of a file."""
    return machine.sh(f"stat --format='%U %a' '{path}'; cat '{path}'")


def refused(told: dict[str, Any], *words: str) -> None:
    """Require that a module has failed with the four parts and these words."""
    assert told.get("failed"), told
    for part in ("Found: ", "Expected: ", "Untouched: ", "Next: ", *words):
        assert part in told["msg"], told


def test_root_writes_no_password_through_a_link_of_the_owner(machine: Machine, home: Path) -> None:
    machine.sh("echo kept >/srv/of-root; chmod 644 /srv/of-root")
    machine.sh(f"ln -s /srv/of-root {home}/.pgpass; ln -s /srv {home}/secrets", "owner")
    before, uid = looks(machine, "/srv/of-root"), int(machine.sh("id -u owner"))
    refused(machine.module("root", "passfile_entry", path=f"{home}/.pgpass", owner=uid, **ENTRY), "belongs to root")
    # Nor where a link leads to a folder of root's, in which there is none yet.
    refused(machine.module("root", "passfile_entry", path=f"{home}/secrets/new", owner=uid, **ENTRY))
    assert looks(machine, "/srv/of-root") == before
    assert machine.sh("ls /srv").split() == ["of-root"]


def test_no_password_goes_into_a_file_of_somebody_else(machine: Machine, home: Path) -> None:
    """By a link, or by a hard link, of whoever may write the folder."""
    machine.sh("install -m 666 /dev/null /srv/theirs; chown stranger /srv/theirs; chmod 777 /home/owner /srv")
    machine.sh(f"ln -s /srv/theirs {home}/.pgpass", "stranger")
    refused(machine.module("owner", "passfile_entry", path=f"{home}/.pgpass", **ENTRY), "belongs to stranger")
    machine.sh(f"rm {home}/.pgpass; ln /srv/theirs {home}/.pgpass")
    refused(machine.module("owner", "passfile_entry", path=f"{home}/.pgpass", **ENTRY), "belongs to stranger")
    machine.sh("chmod 755 /srv")
    assert looks(machine, "/srv/theirs") == "stranger 666\n"


def test_a_password_file_of_root_itself_is_not_given_away(machine: Machine, home: Path) -> None:
    machine.sh(f"echo kept >{home}/.pgpass; chmod 600 {home}/.pgpass")
    told = machine.module(
        "root", "passfile_entry", path=f"{home}/.pgpass", owner=int(machine.sh("id -u owner")), **ENTRY
    )
    refused(told)
    assert looks(machine, f"{home}/.pgpass") == "root 600\nkept\n"


def test_root_writes_the_owners_password_file_as_the_owner(machine: Machine, home: Path) -> None:
    """A link that the owner has made to a file on another disk stays."""
    machine.sh("install -d -o owner /srv/disk")
    machine.sh(f"echo '# mine' >/srv/disk/pgpass; ln -s /srv/disk/pgpass {home}/.pgpass", "owner")
    uid = int(machine.sh("id -u owner"))
    for name in (".pgpass", "state/secrets/superuser"):
        told = machine.module("root", "passfile_entry", path=f"{home}/{name}", owner=uid, **ENTRY)
        assert told["changed"], told
        again = machine.module("root", "passfile_entry", path=f"{home}/{name}", owner=uid, **ENTRY)
        assert not again["changed"], again
    assert looks(machine, "/srv/disk/pgpass").startswith("owner 600\n127.0.0.1:5433:autotasktracker:autotasktracker:")
    assert machine.sh("cat /srv/disk/pgpass").endswith("# mine\n")
    assert machine.sh(f"stat --format='%U %a %F' {home}/.pgpass {home}/state/secrets").splitlines() == [
        "owner 777 symbolic link",
        "owner 700 directory",
    ]


# Each writes one file, or reads one, as the user of the home. What is at that place is somebody else's.
WRITERS: dict[str, tuple[str, str]] = {
    "pensieve_setting": (
        "config.yaml",
        """
from pensieve_setting import replace
replace(path, "database_path", "new.db", [], False)
""",
    ),
    "backup_files": (
        "config.yaml",
        """
from backup_files import save
save({"path": str(path)}, path.with_name("copy"), False)
""",
    ),
    "file_record": (
        "config.yaml.record",
        """
from ansible.module_utils.file_record import keep
keep(path, path.with_name("database.db"), None, b"after")
""",
    ),
    "sqlite_restore": (
        "database.db",
        """
from sqlite_restore import restore
backup = Path("/tmp/backup.db")
backup.write_bytes(b"backup")
restore(path, backup, "20250701T000000Z")
""",
    ),
    "the backup that sqlite_restore takes": (
        "backup.db",
        """
from sqlite_restore import restore
restore(path.with_name("database.db"), path, "20250701T000000Z")
""",
    ),
    "journal": (
        "journal.jsonl",
        """
from ansible.module_utils.migration_journal import append
append(path.parent, {"step": "stop"})
""",
    ),
    "claim": (
        "operation.json",
        """
from ansible.module_utils.migration_journal import claim
claim(path.parent, "migrate.yml", "ada")
""",
    ),
    "autotasktracker_source": (
        "database.py",
        """
from autotasktracker_source import write
write(path, "new")
""",
    ),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("way", ["link", "hard link", "folder"])
def test_root_writes_and_reads_nothing_of_a_stranger(machine: Machine, home: Path, writer: str, way: str) -> None:
    """In its own home, where a link leads there: of a file, of the folder, or a hard one."""
    name, work = WRITERS[writer]
    folder, theirs = Path("/root/.memos"), Path("/srv/theirs")
    machine.sh(
        f"mkdir {folder}; echo 'database_path: mine' >{folder}/config.yaml; touch {folder}/database.db\n"
        f"install -d -o stranger {theirs}; cp {folder}/* {theirs}; echo 'database_path: theirs' >{theirs}/{name}\n"
        f"chown stranger {theirs}/*"
    )
    if way == "folder":
        machine.sh(f"mv {folder} {folder}-away; ln -s {theirs} {folder}")
    else:
        machine.sh(f"ln -f {'' if way == 'hard link' else '-s'} {theirs}/{name} {folder}/{name}")
    before = machine.sh(f"cd {theirs}; ls -lR . ; cat *; stat --format=%i *")
    said = machine.python("root", f"path = Path('{folder / name}')\n{work}")
    assert machine.sh(f"cd {theirs}; ls -lR . ; cat *; stat --format=%i *") == before
    assert "ForeignError" in said, said
    assert "belongs to stranger" in said, said


@pytest.mark.parametrize("writer", WRITERS)
def test_every_writer_follows_links_that_the_owner_has_made(machine: Machine, home: Path, writer: str) -> None:
    name, work = WRITERS[writer]
    machine.sh("install -d -o owner /srv/disk")
    machine.sh(
        f"mv {home}/.memos /srv/disk/memos; ln -s /srv/disk/memos {home}/.memos; cd /srv/disk/memos\n"
        f"[ -e {name} ] || : >{name}; mv {name} ../real; ln -s ../real {name}",
        "owner",
    )
    if writer == "claim":
        machine.sh("echo '{}' >/srv/disk/real", "owner")
    said = machine.python("owner", f"path = Path('{home}/.memos/{name}')\n{work}")
    assert said == "", said
    assert machine.sh(f"stat --format=%F {home}/.memos /srv/disk/memos/{name}").splitlines() == ["symbolic link"] * 2


def test_a_place_that_a_fifo_holds_makes_nobody_wait(machine: Machine, home: Path) -> None:
    machine.sh(f"cd {home}/.memos; rm config.yaml; mkfifo config.yaml", "owner")
    told = machine.module("owner", "pensieve_facts", user_home=str(home), venv="")
    assert [one["code"] for one in told["problems"]] == ["config_foreign"], told
