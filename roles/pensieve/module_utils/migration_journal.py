"""The journal of an installation: what is about to be done to it, what was done, and which database is the one.

One line of JSON for each record, appended and flushed to the disk before the act that it names. A last line that was
torn by a crash is left out. What the records say together is their fold, a `Standing`.

The claim, a file beside it, says which operation is under way, and by which process it lives: one at a time.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ansible.module_utils import processes, whole_file

NAME, CLAIM = "journal.jsonl", "operation.json"

FACTS = {"phase": str, "left_behind": int, "rolled_back": str, "completed": str, "database_restored": bool}
"""What records say of a migration, named by its stamp, and its type. The newest is right, whatever a manifest says."""

MARK = "PENSIEVE_POSTGRES_STATE"
"""Variable that the modules of an operation have in their environment: its state directory."""

LEASE = 120.0
"""Seconds for which an operation counts as living that no process of this machine can be named for."""


@dataclass(frozen=True)
class Standing:
    """What the records say together.

    Attributes:
        backend: database that Pensieve runs on, or is to be started on: ``sqlite``, ``postgresql``; empty: not known.
        owes_start: Pensieve was stopped, and was not seen healthy since.
        operation: playbook that wrote the last record, empty when there is none; ``step`` and ``at`` are its.
        facts: FACTS of each migration, by stamp.
    """

    backend: str = ""
    owes_start: bool = False
    operation: str = ""
    step: str = ""
    at: str = ""
    facts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Holder:
    """An operation under way.

    Attributes:
        operation: like ``migrate``.
        who: person and machine that began it.
        since: when, in UTC.
        pid: process by which it lives; 0 when none of this machine could be named.
        started: start of that process, in clock ticks since that of the machine.
        boot: the machine's boot in which these numbers hold.
    """

    operation: str
    who: str
    since: str
    pid: int
    started: int
    boot: str


class HeldError(Exception):
    """Another operation is under way."""

    def __init__(self, holder: Holder) -> None:
        super().__init__(holder.operation)
        self.holder = holder


def now() -> str:
    """This moment, in UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())


def records(state_dir: Path, uid: int | None = None) -> list[dict[str, Any]]:
    """All records, the oldest first. A line that is no record, like one torn by a crash, is left out.

    Args:
        state_dir: the state directory.
        uid: whose it is, by default this process' user's.
    """
    try:
        lines = whole_file.read(state_dir / NAME, uid).split(b"\n")
    except (FileNotFoundError, NotADirectoryError):
        return []
    found = []
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict):
            found.append(record)
    return found


def fold(found: list[dict[str, Any]]) -> Standing:
    """What records say together."""
    backend, owes_start, facts = "", False, dict[str, dict[str, Any]]()
    for record in found:
        backend = str(record.get("backend", backend))
        owes_start = bool(record.get("owes_start", owes_start))
        if stamp := record.get("stamp"):
            facts.setdefault(str(stamp), {}).update(
                {name: record[name] for name, kind in FACTS.items() if isinstance(record.get(name), kind)}
            )
    last: dict[str, Any] = found[-1] if found else {}
    operation, step, at = (str(last.get(name, "")) for name in ("operation", "step", "at"))
    return Standing(backend, owes_start, operation, step, at, facts)


def read(state_dir: Path, uid: int | None = None) -> Standing:
    """What the journal of a state directory says; `uid` as above."""
    return fold(records(state_dir, uid))


def append(state_dir: Path, record: Mapping[str, Any]) -> None:
    """Add a record; it is on the disk when this returns. Raises OSError, and then the record counts for nothing."""
    file = state_dir / NAME
    held = holder(state_dir)
    line = json.dumps({"at": now(), "operation": held.operation if held else "", **record}, ensure_ascii=False)
    whole_file.make_folder(state_dir)
    with whole_file.appending(file) as (folder, descriptor):
        size = os.fstat(descriptor).st_size
        # What a crash has torn ends here, so that it does not tear this one too.
        torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        content = (b"\n" if torn else b"") + line.encode() + b"\n"
        try:
            if os.write(descriptor, content) != len(content):
                raise OSError(f"no room for a record in {file}")
            os.fsync(descriptor)
            if not size:
                whole_file.flush(folder)
        except OSError:
            os.ftruncate(descriptor, size)  # or it would be read, and might not be there after a power cut
            raise


# One operation at a time


def boot() -> str:
    """The machine's boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _is_playbook(pid: int) -> bool:
    return any(Path(word).name == "ansible-playbook" for word in processes.command(pid)[:4])


def _is_login(pid: int) -> bool:
    return processes.name(pid) in ("sshd", "sshd-session")


def lives_by() -> int:
    """The process by which this operation lives: `ansible-playbook` itself, where it runs on this machine, else the
    login over SSH, which ends with the connection. 0 when there is neither, as in a container.
    """
    pid = os.getppid()
    while pid > 1:
        parent = processes.parent(pid)
        if _is_playbook(pid):
            return parent if _is_playbook(parent) else pid  # a fork of its own, and itself
        if _is_login(pid):
            return pid
        pid = parent
    return 0


def _lineage() -> set[int]:
    """This process and those that it descends from."""
    found, pid = set(), os.getpid()
    while pid > 0:
        found.add(pid)
        pid = processes.parent(pid)
    return found


def left_over(state_dir: Path, snapshot: bool = False) -> list[int]:
    """Processes of modules that still work for an operation on this directory, whose playbook may be gone.

    The one that holds a snapshot of the source, which the next migration goes on with, only where it is asked for.
    """
    spared = _lineage()
    if not snapshot:
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):  # there is none
            spared.add(int(json.loads(whole_file.read(state_dir / "snapshot" / "snapshot.json"))["pid"]))
    return [
        pid
        for pid in processes.of(os.geteuid())
        if pid not in spared and processes.environment(pid).get(MARK) == str(state_dir) and processes.started(pid)
    ]


def end_left_over(state_dir: Path, snapshot: bool = False, seconds: float = 10.0) -> list[int]:
    """End what a dead operation has left working; give what does not end. Each of our steps may be cut anywhere.

    A package manager is waited for, not ended: it would leave half a package.
    """
    for number in (signal.SIGTERM, signal.SIGKILL):
        end = time.monotonic() + seconds
        while found := left_over(state_dir, snapshot):
            for pid in found:
                with contextlib.suppress(OSError):
                    if processes.name(pid).startswith("python"):
                        os.kill(pid, number)
            if time.monotonic() > end:
                break
            time.sleep(0.1)
    return left_over(state_dir, snapshot)


def holder(state_dir: Path, uid: int | None = None) -> Holder | None:
    """The operation whose claim is there, living or not; `uid` as above."""
    try:
        found = Holder(**json.loads(whole_file.read(state_dir / CLAIM, uid)))
    except (OSError, ValueError, TypeError):
        return None
    words, numbers = (found.operation, found.who, found.since, found.boot), (found.pid, found.started)
    typed = all(isinstance(word, str) for word in words) and all(isinstance(number, int) for number in numbers)
    return found if typed else None


def lives(state_dir: Path, held: Holder) -> bool:
    """Whether an operation is still under way."""
    if held.pid:
        return held.boot == boot() and processes.started(held.pid) == held.started
    signs = [state_dir / name for name in (CLAIM, NAME, "progress.jsonl")]
    latest = max((sign.stat().st_mtime for sign in signs if sign.exists()), default=0.0)
    return time.time() - latest < LEASE


def is_own(held: Holder) -> bool:
    """Whether an operation is the one that this process works for."""
    pid = lives_by()
    return bool(pid) and (held.pid, held.started, held.boot) == (pid, processes.started(pid), boot())


@contextlib.contextmanager
def _alone(state_dir: Path) -> Iterator[None]:
    """While one process looks at the claim and changes it, no other does."""
    with whole_file.folder_of(state_dir / CLAIM) as (folder, _name):
        descriptor = os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=folder)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def claim(state_dir: Path, operation: str, who: str) -> Holder | None:
    """Begin an operation; give the one before that came to no end, if there is one.

    Raises:
        HeldError: another one is under way.
        OSError: the directory cannot be written to.
    """
    whole_file.make_folder(state_dir)
    with _alone(state_dir):
        held = holder(state_dir)
        if held and not is_own(held) and lives(state_dir, held):
            raise HeldError(held)
        pid = lives_by()
        mine = Holder(operation, who, now(), pid, processes.started(pid) if pid else 0, boot())
        whole_file.write(state_dir / CLAIM, (json.dumps(asdict(mine)) + "\n").encode(), 0o600)
    return None if held is None or is_own(held) else held


def release(state_dir: Path) -> None:
    """End the operation of this process; a directory that holds nothing goes, too."""
    if not state_dir.is_dir():
        return
    with _alone(state_dir):
        held = holder(state_dir)
        if held and (is_own(held) or not held.pid):
            whole_file.remove(state_dir / CLAIM)
        if not any(state_dir.iterdir()):
            state_dir.rmdir()
