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

NAME, CLAIM = "journal.jsonl", "operation.json"

FACTS = ("phase", "left_behind", "rolled_back", "completed", "database_restored")
"""What records say of a migration, named by its stamp. The newest record is right, whatever the manifest says."""

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


def records(state_dir: Path) -> list[dict[str, Any]]:
    """All records, the oldest first. A line that is no record, like one torn by a crash, is left out."""
    try:
        lines = (state_dir / NAME).read_bytes().split(b"\n")
    except (FileNotFoundError, NotADirectoryError):
        return []
    found = []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
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
            facts.setdefault(str(stamp), {}).update({name: record[name] for name in FACTS if name in record})
    last: dict[str, Any] = found[-1] if found else {}
    operation, step, at = (str(last.get(name, "")) for name in ("operation", "step", "at"))
    return Standing(backend, owes_start, operation, step, at, facts)


def read(state_dir: Path) -> Standing:
    """What the journal of a state directory says."""
    return fold(records(state_dir))


def append(state_dir: Path, record: Mapping[str, Any]) -> None:
    """Add a record; it is on the disk when this returns. Raises OSError, and then the record counts for nothing."""
    file = state_dir / NAME
    held = holder(state_dir)
    line = json.dumps({"at": now(), "operation": held.operation if held else "", **record}, ensure_ascii=False)
    fresh = not file.exists()
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        size = os.fstat(descriptor).st_size
        # What a crash has torn ends here, so that it does not tear this one too.
        torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        content = (b"\n" if torn else b"") + line.encode() + b"\n"
        try:
            if os.write(descriptor, content) != len(content):
                raise OSError(f"no room for a record in {file}")
            os.fsync(descriptor)
            if fresh:
                flush_folder(state_dir)
        except OSError:
            os.ftruncate(descriptor, size)  # or it would be read, and might not be there after a power cut
            raise
    finally:
        os.close(descriptor)


def flush_folder(folder: Path) -> None:
    """Have the names of a folder's files on the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# One operation at a time


def boot() -> str:
    """The machine's boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _stat(pid: int) -> list[str]:
    """Fields of /proc/<pid>/stat after the name: state, parent, …; none when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return text.rpartition(")")[2].split()


def started(pid: int) -> int:
    """When a process started, in clock ticks since the machine did; 0 when there is none, or it has ended."""
    fields = _stat(pid)
    return 0 if not fields or fields[0] in "ZX" else int(fields[19])


def _is_playbook(pid: int) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return any(word.rpartition(b"/")[2] == b"ansible-playbook" for word in words[:4])


def _is_login(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip() in ("sshd", "sshd-session")
    except OSError:
        return False


def lives_by() -> int:
    """The process by which this operation lives: `ansible-playbook` itself, where it runs on this machine, else the
    login over SSH, which ends with the connection. 0 when there is neither, as in a container.
    """
    pid = os.getppid()
    while pid > 1:
        parent = int((_stat(pid) or ["", "0"])[1])
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
        pid = int((_stat(pid) or ["", "0"])[1])
    return found


def left_over(state_dir: Path, snapshot: bool = False) -> list[int]:
    """Processes of modules that still work for an operation on this directory, whose playbook may be gone.

    The one that holds a snapshot of the source, which the next migration goes on with, only where it is asked for.
    """
    wanted, spared = f"{MARK}={state_dir}".encode(), _lineage()
    if not snapshot:
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):  # there is none
            spared.add(int(json.loads((state_dir / "snapshot" / "snapshot.json").read_bytes())["pid"]))
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) in spared:
            continue
        try:
            if wanted in (folder / "environ").read_bytes().split(b"\0") and started(int(folder.name)):
                found.append(int(folder.name))
        except OSError:  # gone, or another user's
            continue
    return found


def end_left_over(state_dir: Path, snapshot: bool = False, seconds: float = 10.0) -> list[int]:
    """End what a dead operation has left working; give what does not end. Each of our steps may be cut anywhere.

    A package manager is waited for, not ended: it would leave half a package.
    """
    for number in (signal.SIGTERM, signal.SIGKILL):
        end = time.monotonic() + seconds
        while found := left_over(state_dir, snapshot):
            for pid in found:
                with contextlib.suppress(OSError):
                    if Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").startswith("python"):
                        os.kill(pid, number)
            if time.monotonic() > end:
                break
            time.sleep(0.1)
    return left_over(state_dir, snapshot)


def holder(state_dir: Path) -> Holder | None:
    """The operation whose claim is there, living or not."""
    try:
        found = json.loads((state_dir / CLAIM).read_bytes())
        return Holder(**found)
    except (OSError, ValueError, TypeError):
        return None


def lives(state_dir: Path, held: Holder) -> bool:
    """Whether an operation is still under way."""
    if held.pid:
        return held.boot == boot() and started(held.pid) == held.started
    signs = [state_dir / name for name in (CLAIM, NAME, "progress.jsonl")]
    latest = max((sign.stat().st_mtime for sign in signs if sign.exists()), default=0.0)
    return time.time() - latest < LEASE


def is_own(held: Holder) -> bool:
    """Whether an operation is the one that this process works for."""
    pid = lives_by()
    return bool(pid) and (held.pid, held.started, held.boot) == (pid, started(pid), boot())


@contextlib.contextmanager
def _alone(state_dir: Path) -> Iterator[None]:
    """While one process looks at the claim and changes it, no other does."""
    descriptor = os.open(state_dir, os.O_RDONLY | os.O_DIRECTORY)
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
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _alone(state_dir):
        held = holder(state_dir)
        if held and not is_own(held) and lives(state_dir, held):
            raise HeldError(held)
        pid = lives_by()
        mine = Holder(operation, who, now(), pid, started(pid) if pid else 0, boot())
        part = state_dir / f".{CLAIM}"
        part.write_text(json.dumps(asdict(mine)) + "\n", encoding="utf-8")
        part.replace(state_dir / CLAIM)
    return None if held is None or is_own(held) else held


def release(state_dir: Path) -> None:
    """End the operation of this process; a directory that holds nothing goes, too."""
    if not state_dir.is_dir():
        return
    with _alone(state_dir):
        held = holder(state_dir)
        if held and (is_own(held) or not held.pid):
            (state_dir / CLAIM).unlink()
        if not any(state_dir.iterdir()):
            state_dir.rmdir()
