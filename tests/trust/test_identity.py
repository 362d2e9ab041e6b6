"""Who owns a home is asked before anything in it is believed, and what lies there runs as its owner alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .conftest import Machine, interpreter, ran_as

pytestmark = pytest.mark.docker

STATE = ".local/state/pensieve-postgres"


def test_root_asks_for_the_state_of_a_home_and_nothing_there_runs_as_root(machine: Machine, home: Path) -> None:
    said = machine.play("root", "status.yml", pensieve_user_home=str(home))
    assert "failed=0" in said, said
    assert ran_as(machine) == {machine.sh("id -u owner").strip()}, said
    assert "this runs as root, and /home/owner belongs to owner" in said, said


@pytest.mark.parametrize("book", ["migrate.yml", "rollback.yml", "carry-back.yml", "verify.yml"])
def test_root_works_on_no_home_of_another_user(machine: Machine, home: Path, book: str) -> None:
    """Not even where the journal in that home says that Pensieve was stopped and is owed a start."""
    machine.sh(f"mkdir -p {home}/{STATE}", "owner")
    machine.sh(f"echo '{json.dumps({'step': 'stop', 'owes_start': True})}' >{home}/{STATE}/journal.jsonl", "owner")
    machine.sh("rm -rf /root/.ansible; : >/tmp/before")
    said = machine.play("root", book, pensieve_user_home=str(home))
    assert "failed=1" in said, said
    for part in ("this runs as root, and /home/owner belongs to owner", "Expected: ", "Untouched: ", "Next: "):
        assert part in said, said
    assert "0" not in ran_as(machine), said
    assert machine.sh(f"find {home} -newer /tmp/before ! -user owner").strip() == ""


def test_a_stranger_runs_nothing_of_another_home(machine: Machine, home: Path) -> None:
    said = machine.play("stranger", "status.yml", pensieve_user_home=str(home))
    assert "this runs as stranger, and /home/owner belongs to owner" in said, said
    assert ran_as(machine) == set(), said


def test_a_link_of_a_user_makes_no_home_of_another_one(machine: Machine, home: Path) -> None:
    """Root's home by a link that the owner has made, with a Pensieve of root's whose environment is the owner's."""
    machine.sh(f"ln -s /root {home}/root", "owner")
    machine.sh("mkdir /root/.memos; touch /root/.memos/config.yaml")
    said = machine.play("root", "status.yml", pensieve_user_home=f"{home}/root", pensieve_venv=f"{home}/.memos/venv")
    assert "0" not in ran_as(machine), said


@pytest.mark.parametrize(
    "opened",
    [
        *("chmod 777 .memos/venv/bin/python", "chmod 777 .memos/venv/bin", "chmod 777 .memos", "chmod 777 ."),
        *("chmod 666 .memos/venv/pyvenv.cfg", "chmod -R 777 .memos/venv/lib/python3.11/site-packages/memos"),
        "mv .memos/venv /tmp/venv && ln -s /tmp/venv .memos/venv && chmod 777 /tmp/venv",
    ],
)
def test_an_interpreter_that_others_may_write_does_not_run(machine: Machine, home: Path, opened: str) -> None:
    machine.sh(f"cd {home}; {opened}", "owner")
    told = machine.module("owner", "pensieve_facts", user_home=str(home), venv="")
    assert ran_as(machine) == set(), told
    (problem,) = [one for one in told["problems"] if one["code"] == "place_foreign"]
    assert "others" in problem["found"], problem
    assert problem["expected"], problem
    assert problem["next"], problem


def test_an_interpreter_of_somebody_else_does_not_run(machine: Machine, home: Path) -> None:
    interpreter(machine, "/home/stranger/venv", "stranger")
    told = machine.module("owner", "pensieve_facts", user_home=str(home), venv="/home/stranger/venv")
    assert ran_as(machine) == set(), told
    assert "belongs to stranger" in told["problems"][0]["found"], told


def test_settings_of_somebody_else_behind_a_link_are_none(machine: Machine, home: Path) -> None:
    machine.sh("echo 'database_path: theirs.db' >/home/stranger/config.yaml", "stranger")
    machine.sh(f"cd {home}/.memos; ln -sf /home/stranger/config.yaml config.yaml", "owner")
    told = machine.module("owner", "pensieve_facts", user_home=str(home), venv="")
    assert ran_as(machine) == set(), told
    assert "belongs to stranger" in told["problems"][0]["found"], told


def test_links_that_the_owner_has_made_and_a_group_of_nobody_else_keep_working(machine: Machine, home: Path) -> None:
    machine.sh("install -d -o owner /srv/disk")
    machine.sh(f"mv {home}/.memos /srv/disk/memos; ln -s /srv/disk/memos {home}/.memos", "owner")
    machine.sh("cd /srv/disk/memos; mv config.yaml ..; ln -s ../config.yaml .; chmod -R g+w /srv/disk", "owner")
    told = machine.module("owner", "pensieve_facts", user_home=str(home), venv="")
    assert ran_as(machine) == {machine.sh("id -u owner").strip()}, told
    assert told["problems"] == [], told
    machine.sh("usermod --append --groups owner stranger")
    told = machine.module("owner", "pensieve_facts", user_home=str(home), venv="")
    machine.sh("gpasswd --delete stranger owner")
    assert told["problems"][0]["code"] == "place_foreign", told


def test_an_interpreter_tells_no_more_than_it_is_asked(machine: Machine, home: Path) -> None:
    """Which units root stops, and where the environment is, is found, not told by what lies in the home."""
    found = machine.module("owner", "pensieve_facts", user_home=str(home), venv="")["installation"]
    assert (found["units"], found["services"], found["venv"]) == ([], [], f"{home}/.memos/venv")


def test_a_strangers_process_is_no_pensieve_of_root(machine: Machine, home: Path) -> None:
    """It has root's home among its variables, and a command line like Pensieve's that leads to its own interpreter."""
    interpreter(machine, "/home/stranger/venv", "stranger")
    machine.sh("mkdir /root/.memos; touch /root/.memos/config.yaml")
    looks_like = "exec -a /home/stranger/venv/bin/python tail -F memos.commands serve"
    machine.leave(f"cd /tmp; HOME=/root exec bash -c '{looks_like}'", "stranger")
    machine.sh("until pgrep -u stranger -f memos.commands; do sleep 0.1; done")
    told = machine.module("root", "pensieve_facts", user_home="/root", venv="")
    assert told["installation"]["services"] == [], told
    assert ran_as(machine) == set(), told
    check = "sys.path.append('/project/scripts')\nimport pensieve_health_check as check\n"
    found = machine.python("root", f"{check}print(check.processes(Path('/root')))")
    assert found == "{'serve': [], 'record': [], 'watch': []}\n"


def test_a_server_that_pensieve_takes_for_a_file_keeps_its_password(machine: Machine, home: Path) -> None:
    setting = "postgres://me:hunter2@db/x"
    interpreter(
        machine, home / ".memos/venv", database_setting=setting, database=f"{home}/.memos/postgres:/me:hunter2@db/x"
    )
    told = machine.module("owner", "pensieve_facts", user_home=str(home), venv="")
    assert [problem["code"] for problem in told["problems"]] == ["database_setting"], told
    assert (told["installation"]["database"], told["installation"]["database_setting"]) == (None, "(not shown)")
    assert "hunter2" not in str(told)
