"""The snapshot: one moment of a live SQLite database, held by a process of its own while the bulk is copied.

The holder opens the database read-only, begins a read transaction, and copies that moment page by page into a file
that stands still. While it holds the transaction, all that is written later stays in the write-ahead log (see
``wal``), so the log grows: the holder watches it, and lets go at a bound. What comes after (``difference``) then
compares whole files.

A database without a write-ahead log is copied and not held, since there a reader would keep everybody from writing.

A long bulk leaves a long difference. So a later snapshot can follow the first (``hold_next``), and take its place once
the target has been brought up to it (``advance``): the folder and the copy of the later one are then renamed, which its
process, working in that folder by its inode, does not mind.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import sqlite3
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from urllib.parse import quote

import numpy as np

from .model import EngineError
from .pages import DamagedError, PageMap
from .wal import Mark, log_bytes

_PAGES_PER_STEP = 4096
_LOOK = 1.0  # seconds between two looks at the log
_POLL = 0.05  # seconds between two looks at what a holder says
_SHARE_OF_FREE = 4  # the log may take a quarter of what is free

#: Shadow tables that hold no row that anybody reads.
_UNREAD = ("_fts_data", "_fts_idx", "_fts_docsize", "_fts_config")

_HERE = Path()  # the holder's working directory, whatever its name is by now


@dataclass(frozen=True)
class Snapshot:
    """What is known of a snapshot. ``state``: copying, held, released (it was let go, ``reason`` says why), failed."""

    source: str
    database: str
    state: str = "copying"
    reason: str = ""
    pid: int = 0
    started: int = 0  # of the process, in clock ticks since the machine's start: tells it from a later one of that pid
    mark: dict[str, str | int] = field(default_factory=dict)
    mapped: bool = False
    bytes: int = 0
    wal_bytes: int = 0
    wal_limit: int = 0
    hold_seconds: float = 0.0  # at most
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def held(self) -> bool:
        """Whether the moment is held now."""
        return self.state == "held" and _started(self.pid) == self.started != 0


def read(folder: Path) -> Snapshot | None:
    """Read what the holder has written into its folder; None if there is nothing.

    A damaged file, as a power cut may leave it, tells of a snapshot that has failed.
    """
    file = folder / "snapshot.json"
    if not file.exists():
        return None
    try:
        return Snapshot(**json.loads(file.read_text()))
    except (ValueError, TypeError) as error:
        return Snapshot("", "", state="failed", reason=f"{file} is damaged ({error})")


def _write(folder: Path, snapshot: Snapshot) -> None:
    part = folder / "snapshot.json.part"
    part.write_text(json.dumps(asdict(snapshot)))
    part.replace(folder / "snapshot.json")


def hold(source: Path, database: Path, folder: Path, wal_limit: int, seconds: float) -> tuple[bool, Snapshot]:
    """Begin a snapshot and return when its copy ``database`` is there; the map of its pages is made in the background.

    A snapshot of this source that is held already is kept as it is. Gives whether a new one was made, and the snapshot.
    ``wal_limit``: bytes of the log; ``seconds``: how long it is held at most. This process must not have the source
    open: the holder is forked, and SQLite does not bear that.
    """
    found = read(folder)
    if found and found.held and found.source == str(source) and Path(found.database).exists():
        return False, found
    end(folder)
    wanted = Snapshot(str(source), str(database), wal_limit=wal_limit, hold_seconds=seconds)
    return True, _begin(wanted, database, folder)


def later(path: Path) -> Path:
    """Where the folder, or the copy, of the snapshot that follows is until it takes the place of ``path``."""
    return path.with_name(f"{path.name}.next")


def hold_next(found: Snapshot, folder: Path) -> Snapshot:
    """Begin a snapshot of the source as it is now, beside the one that was ``found`` in a folder; it is mapped then.

    Its bounds are those of the first. Its copy is ``later(database)``, and its folder ``later(folder)``, until
    ``advance``. Raises EngineError.
    """
    beside = later(folder)
    end(beside)
    wanted = Snapshot(found.source, found.database, wal_limit=found.wal_limit, hold_seconds=found.hold_seconds)
    _begin(wanted, later(Path(found.database)), beside)
    while True:
        made = read(beside)
        assert made is not None
        if made.mapped:
            return made
        if made.reason or _started(made.pid) != made.started:
            raise _failed(made)
        time.sleep(_POLL)


def advance(folder: Path) -> Snapshot:
    """Put the snapshot that follows in the place of the present one, whose process ends."""
    made = read(later(folder))
    assert made is not None
    _end(folder)
    later(Path(made.database)).replace(made.database)
    later(folder).rename(folder)
    return made


def _begin(wanted: Snapshot, copy: Path, folder: Path) -> Snapshot:
    """Fork a holder. ``copy`` is where its copy is made, which will be at ``wanted.database``."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _write(folder, wanted)
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ours)
        _detach(lambda: _Holder(wanted, copy, folder).run(theirs))
    os.close(theirs)
    os.waitpid(child, 0)
    with os.fdopen(ours) as stream:
        stream.read()
    made = read(folder)
    assert made is not None
    if made.state in ("copying", "failed"):
        raise _failed(made)
    return made


def _failed(made: Snapshot) -> EngineError:
    return EngineError(
        f"no snapshot of {made.source}: {made.reason or 'its process ended'}",
        "a copy of the database at one moment",
        "the database, which was only read",
        "mend that (room, permissions), then run again; or go without later snapshots (-e data_copy_catch_up_rounds=0),"
        " or without any: -e migrate_online=false",
    )


def end(folder: Path) -> bool:
    """End the holder, and the one that follows, and remove what they knew. Tells whether anything was there."""
    following = read(later(folder))
    followed = _end(later(folder))
    if following is not None and following.database:  # A damaged file does not say where the copy is.
        later(Path(following.database)).unlink(missing_ok=True)
    return _end(folder) or followed


def _end(folder: Path) -> bool:
    found = read(folder)
    if found is None:
        # Who was killed here may have left the folder, and in it the part of a file.
        with contextlib.suppress(OSError):
            (folder / "snapshot.json.part").unlink(missing_ok=True)
            folder.rmdir()
            return True
        return False
    if found.pid and _started(found.pid) == found.started:
        handle = os.pidfd_open(found.pid) if hasattr(os, "pidfd_open") else -1
        os.kill(found.pid, signal.SIGTERM)
        _wait_for_end(found, handle)
    shutil.rmtree(folder)
    return True


def _wait_for_end(found: Snapshot, handle: int, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while _started(found.pid) == found.started and time.monotonic() < deadline:
        if handle >= 0:
            select.select([handle], [], [], deadline - time.monotonic())
    if handle >= 0:
        os.close(handle)
    if _started(found.pid) == found.started:
        os.kill(found.pid, signal.SIGKILL)


def _started(pid: int) -> int:
    """When a process of this user's began, in clock ticks; 0 if there is none, or only what is left of one.

    Of this user's, since what a file names is ended: by its real user id, see proc_pid_status(5).
    """
    try:
        status, text = (Path(f"/proc/{pid}/{name}").read_text(errors="replace") for name in ("status", "stat"))
    except OSError:
        return 0
    if f"\nUid:\t{os.geteuid()}\t" not in status:
        return 0
    fields = text[text.rindex(")") + 2 :].split()
    return 0 if fields[0] in "ZX" else int(fields[19])


def _detach(work: Callable[[], None]) -> None:
    """Run work in a process of its own session that outlives us; never returns."""
    try:
        os.setsid()
        if os.fork():
            os._exit(0)
        null = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(null, stream)
        os.chdir("/")
        work()
    finally:
        os._exit(0)


class _Holder:
    def __init__(self, wanted: Snapshot, copy: Path, folder: Path) -> None:
        self._source, self._database = Path(wanted.source).absolute(), Path(wanted.database).absolute()
        self._made, self._folder = copy.absolute(), folder.absolute()
        self._deadline = time.monotonic() + wanted.hold_seconds
        self._snapshot = replace(wanted, pid=os.getpid(), started=_started(os.getpid()))
        self._first_bytes = 0

    def run(self, ready: int) -> None:
        """Copy, tell that the copy is there by closing ``ready``, map, and hold until told or bound."""
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        for descriptor in range(3, 1024):
            if descriptor != ready:
                _close(descriptor)
        os.chdir(self._folder)
        try:
            self._tell(state="copying")
            connection = self._begin()
            self._copy(connection)
            self._tell(state="held" if self._snapshot.mark else "released")
            if not self._snapshot.mark:
                connection.close()
            os.close(ready)
            self._map()
            if self._snapshot.mark:
                self._watch(connection)
        except Exception as error:
            if self._wanted():
                self._tell(state="failed", reason=f"{error or type(error).__name__}")
                Path("error.txt").write_text(traceback.format_exc())

    @staticmethod
    def _wanted() -> bool:
        """Whether the folder is still there, under whatever name."""
        return _HERE.stat().st_nlink > 0

    def _tell(self, **changes: object) -> None:
        self._snapshot = replace(self._snapshot, **changes)  # type: ignore[arg-type]
        _write(_HERE, self._snapshot)

    def _begin(self) -> sqlite3.Connection:
        uri = f"file:{quote(str(self._source.resolve()))}?mode=ro"
        connection = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=60)
        mode = connection.execute("PRAGMA journal_mode").fetchone()[0]
        look = "SELECT count(*) FROM sqlite_master"
        connection.execute(look).fetchone()
        if mode == "wal":
            self._tell(mark=_mark(self._source))
        else:
            self._tell(reason=f"journal_mode is {mode}: a reader would keep Pensieve from writing")
        connection.execute("BEGIN")
        connection.execute(look).fetchone()
        self._first_bytes = log_bytes(self._source)
        return connection

    def _copy(self, connection: sqlite3.Connection) -> None:
        began = time.monotonic()
        part = self._made.with_name(self._made.name + ".part")
        part.unlink(missing_ok=True)
        written = os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        copy = sqlite3.connect(part, isolation_level=None)

        def step(*_: int) -> None:
            self._check()
            os.fdatasync(written)  # or a commit of Pensieve waits until gigabytes are on the disk

        try:
            connection.backup(copy, pages=_PAGES_PER_STEP, progress=step)
            copy.execute("PRAGMA journal_mode = DELETE")
        except BaseException:
            part.unlink()  # or a disk that it has filled stays full, and nobody is told why
            raise
        finally:
            copy.close()
            os.close(written)  # not before: it drops the locks that this process has on the file
        part.replace(self._made)
        size = self._made.stat().st_size
        self._tell(bytes=size, seconds={"copy": round(time.monotonic() - began, 3)})

    def _check(self) -> None:
        if self._too_much():
            raise OSError(f"the write-ahead log grew beyond {self._bound()} bytes while the database was copied")

    def _map(self) -> None:
        """Map the pages of the copy, and which entries of the full-text index each entity has."""
        began = time.monotonic()
        copy = sqlite3.connect(f"file:{quote(str(self._made))}?mode=ro", uri=True)
        copy.text_factory = bytes
        try:
            found = copy.execute(
                "SELECT name, rootpage FROM sqlite_master WHERE type = 'table' AND rootpage > 1"
                " AND upper(coalesce(sql, '')) NOT LIKE '%WITHOUT ROWID%'"
            ).fetchall()
            tables = {name.decode(): root for name, root in found if not name.decode().endswith(_UNREAD)}
            PageMap.build(self._made, tables).save(_HERE / "map", self._database)
            if "entities_fts_content" in tables:
                entries = np.fromiter(
                    copy.execute("SELECT c0, id FROM entities_fts_content WHERE typeof(c0) = 'integer'"),
                    np.dtype((np.int64, 2)),
                )
                np.save(_HERE / "map" / "entries.npy", entries[np.lexsort((entries[:, 1], entries[:, 0]))])
        except (DamagedError, UnicodeDecodeError) as error:
            self._tell(reason=f"its pages cannot be mapped: {error}")
            return
        finally:
            copy.close()
        took = round(time.monotonic() - began, 3)
        self._tell(mapped=True, seconds={**self._snapshot.seconds, "map": took})

    def _bound(self) -> int:
        """Bytes that the log may have: what it had, and the limit, or a quarter of what is free if that is less."""
        grown = max(0, log_bytes(self._source) - self._first_bytes)
        free = shutil.disk_usage(self._source.parent).free + grown
        return self._first_bytes + min(self._snapshot.wal_limit, free // _SHARE_OF_FREE)

    def _too_much(self) -> bool:
        return log_bytes(self._source) > self._bound()

    def _watch(self, connection: sqlite3.Connection) -> None:
        reason = ""
        while not reason:
            if signal.sigtimedwait({signal.SIGTERM}, _LOOK):
                reason = "it was told to"
            elif self._too_much():
                reason = f"the write-ahead log grew beyond {self._bound()} bytes"
            elif time.monotonic() > self._deadline:
                reason = "it was held as long as it may be"
            elif not self._wanted():
                reason = "its folder is gone"
            if self._wanted() and (reason or self._snapshot.wal_bytes != log_bytes(self._source)):
                self._tell(wal_bytes=log_bytes(self._source))
        connection.close()
        if self._wanted():
            self._tell(state="released", reason=reason)


def _close(descriptor: int) -> None:
    try:
        os.close(descriptor)
    except OSError:
        return


def _mark(source: Path) -> dict[str, str | int]:
    """Read the mark in a child: to close a file drops every lock that this process has on it, and with it SQLite's."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(theirs, json.dumps(asdict(Mark.read(source))).encode())
        finally:
            os._exit(0)
    os.close(theirs)
    with os.fdopen(ours, "rb") as stream:
        told = stream.read()
    os.waitpid(child, 0)
    if not told:
        raise DamagedError(f"the index of the write-ahead log of {source} cannot be read")
    found: dict[str, str | int] = json.loads(told)
    return found
