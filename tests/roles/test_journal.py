"""The journal says where an operation stands, whatever cut it; the claim lets one operation begin at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ansible.module_utils import migration_journal as journal
from ansible.module_utils import processes


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state directory that is not there yet."""
    return tmp_path / "state"


def test_records_say_together_where_it_stands(state: Path) -> None:
    assert journal.read(state) == journal.Standing()
    journal.append(state, {"step": "manifest", "stamp": "A", "phase": "prepared", "backend": "sqlite"})
    journal.append(state, {"step": "stop", "owes_start": True})
    told = journal.read(state)
    assert (told.backend, told.owes_start, told.step) == ("sqlite", True, "stop")
    journal.append(state, {"step": "start", "stamp": "A", "phase": "switched", "backend": "postgresql"})
    journal.append(state, {"step": "started", "owes_start": False})
    told = journal.read(state)
    assert (told.backend, told.owes_start, told.facts["A"]["phase"]) == ("postgresql", False, "switched")
    journal.append(state, {"step": "manifest", "stamp": "B", "phase": "prepared"})
    assert journal.read(state).facts["A"] == {"phase": "switched"}, "another migration's are kept apart"
    assert (state / journal.NAME).stat().st_mode & 0o777 == 0o600


def test_a_record_that_was_torn_anywhere_counts_for_nothing_and_tears_no_other(state: Path) -> None:
    journal.append(state, {"step": "stop", "owes_start": True})
    whole = (state / journal.NAME).read_bytes()
    journal.append(state, {"step": "started", "owes_start": False})
    both = (state / journal.NAME).read_bytes()
    for length in range(len(whole), len(both) - 1):
        (state / journal.NAME).write_bytes(both[:length])
        assert journal.read(state).owes_start, length
        journal.append(state, {"step": "start", "backend": "sqlite"})
        told = journal.read(state)
        assert (told.backend, told.owes_start) == ("sqlite", True), length


def test_a_living_operation_refuses_and_a_dead_one_does_not(state: Path) -> None:
    sleeper = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    held = journal.Holder(
        "rollback.yml", "ada@laptop", "then", sleeper.pid, processes.started(sleeper.pid), journal.boot()
    )
    state.mkdir()
    (state / journal.CLAIM).write_text(json.dumps(vars(held)))
    with pytest.raises(journal.HeldError) as refused:
        journal.claim(state, "migrate.yml", "bob@desk")
    assert refused.value.holder == held
    journal.release(state)
    assert journal.holder(state) == held, "nobody lets go of another one's"
    for other in ({"started": held.started + 1}, {"boot": "of another day"}):
        (state / journal.CLAIM).write_text(json.dumps({**vars(held), **other}))
        assert journal.claim(state, "migrate.yml", "bob@desk") is not None, other
    (state / journal.CLAIM).write_text(json.dumps(vars(held)))
    sleeper.communicate()
    assert journal.claim(state, "migrate.yml", "bob@desk") == held


def test_an_operation_of_no_known_process_lives_by_its_signs(state: Path) -> None:
    held = journal.Holder("migrate.yml", "ada@laptop", "then", 0, 0, journal.boot())
    state.mkdir()
    file = state / journal.CLAIM
    file.write_text(json.dumps(vars(held)))
    with pytest.raises(journal.HeldError):
        journal.claim(state, "rollback.yml", "bob@desk")
    old = file.stat().st_mtime - journal.LEASE - 1
    os.utime(file, (old, old))
    assert journal.claim(state, "rollback.yml", "bob@desk") == held


def test_a_damaged_claim_keeps_nobody_out(state: Path) -> None:
    state.mkdir()
    for content in (b"", b"{", b"[]", b'{"pid": 1}', b"\xff"):
        (state / journal.CLAIM).write_bytes(content)
        assert journal.claim(state, "migrate.yml", "bob@desk") is None, content


def test_a_directory_that_holds_nothing_goes_with_the_claim(state: Path) -> None:
    journal.claim(state, "migrate.yml", "bob@desk")
    assert (state / journal.CLAIM).exists()
    journal.release(state)
    assert not state.exists()
    journal.claim(state, "migrate.yml", "bob@desk")
    journal.append(state, {"step": "stop"})
    journal.release(state)
    assert [file.name for file in state.iterdir()] == [journal.NAME]


def test_what_a_dead_operation_left_working_is_ended(state: Path) -> None:
    marked = {**os.environ, journal.MARK: str(state)}
    other = {**os.environ, journal.MARK: str(state) + "-of-another"}
    command = [sys.executable, "-c", "print(flush=True); input()"]
    ours, theirs, holder = (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)
        for env in (marked, other, marked)
    )
    for process in (ours, theirs, holder):
        assert process.stdout is not None
        process.stdout.readline()
    (state / "snapshot").mkdir(parents=True)
    (state / "snapshot" / "snapshot.json").write_text(json.dumps({"pid": holder.pid}))
    assert journal.left_over(state) == [ours.pid]
    assert journal.end_left_over(state) == []
    assert ours.wait() != 0
    assert theirs.poll() is None, "another installation's"
    assert holder.poll() is None, "it holds the snapshot, with which a migration goes on"
    assert journal.end_left_over(state, snapshot=True) == []
    assert holder.wait() != 0
    theirs.communicate()


def test_a_line_nested_without_end_is_no_record(state: Path) -> None:
    journal.append(state, {"step": "begin"})
    with (state / journal.NAME).open("ab") as file:
        file.write(b"[" * 200_000 + b"\n")
    journal.append(state, {"step": "stop"})
    assert [record["step"] for record in journal.records(state)] == ["begin", "stop"]
