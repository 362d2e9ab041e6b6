"""The watch: a server that does not answer any more is as good as dead, and this is found out beside the work.

A paused container, or a machine that stands still, keeps its sessions open: the kernel acknowledges what is sent, so
keepalives notice nothing; statement_timeout stands still with the server; libpq waits as long as it takes. So a thread
asks the server every two seconds whether it still speaks, and when it has not for ``PATIENCE`` seconds, shuts the
sockets of our sessions down, so that whoever waits for an answer gets an error. A server that is slow, or that holds a
statement up for a lock, still speaks, and is waited for.

The question is the first message of a new connection, which any PostgreSQL answers by one byte before it asks who is
there: no login, no session, and an answer also where all sessions are taken. The thread itself never waits for the
network, and uses no library that has locks, so that the process may fork beside it.

A single process of a server can stand still while the server speaks. That looks like work, and is only bounded.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import psycopg2
import psycopg2.extensions

from .model import Progress

Connection = psycopg2.extensions.connection

#: Seconds for which a server may be silent.
PATIENCE = 15
#: Seconds for which nothing may come or go for a statement, in a server that speaks: most, and what builds an index.
LONG, LONGEST = 3600, 24 * 3600
_TELL = 5  # seconds of silence from one line to the next
_TICK = 1.0

#: What a session of ours is opened with. Keepalives notice a machine that is gone where nobody watches.
#: No tcp_user_timeout: it would end a COPY to a server that does not read for so long, as one does on a slow disk.
OPTIONS: dict[str, Any] = {
    "connect_timeout": 10,
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
}

_SSL_REQUEST = struct.pack(">ii", 8, 80877103)


@dataclass(frozen=True)
class _Session:
    """``socket``: a second handle of it, which is ours to shut down whatever libpq does with its own."""

    socket: socket.socket
    peer: Any
    longest: int

    @property
    def place(self) -> str:
        return f"{self.peer[0]}:{self.peer[1]}" if isinstance(self.peer, tuple) else str(self.peer)

    def quiet(self) -> float:
        """For how many seconds nothing has come or gone."""
        try:
            known = self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 56)
        except OSError:
            return 0.0  # a socket of the file system, of which nobody knows
        sent, received = struct.unpack_from("=I4xI", known, 44)
        return float(min(sent, received)) / 1000


_sessions: weakref.WeakKeyDictionary[Connection, _Session] = weakref.WeakKeyDictionary()
_lock = threading.Lock()
_present: _Watch | None = None


def add(connection: Connection, longest: int = LONG) -> None:
    """Have a session of this process watched until it is closed."""
    own = socket.socket(fileno=os.dup(connection.fileno()))
    weakref.finalize(connection, own.close)
    with _lock:
        _sessions[connection] = _Session(own, own.getpeername(), longest)


def lost() -> str:
    """Why the server was given up; empty if it was not."""
    return _present.lost if _present is not None else ""


@contextmanager
def watched(tell: Callable[[Progress], None] | None = None) -> Iterator[None]:
    """Watch this process's sessions meanwhile. An error of one that was given up becomes an OperationalError that says
    why. ``tell`` is told now and then while the server is silent. Within another watch, that one goes on.
    """
    global _present
    outer = _present
    watch = _present = outer or _Watch(tell)
    try:
        yield
    except psycopg2.Error as error:
        if watch.lost:
            raise psycopg2.OperationalError(watch.lost) from error
        raise
    finally:
        if outer is None:
            watch.end()
            _present = None


def _forget() -> None:
    """A forked process has sessions of its own; those that it inherits are its parent's to watch."""
    global _present, _lock, _sessions
    _present, _lock, _sessions = None, threading.Lock(), weakref.WeakKeyDictionary()


os.register_at_fork(after_in_child=_forget)


def _open_sessions() -> list[tuple[Connection, _Session]]:
    with _lock:
        return [(connection, session) for connection, session in _sessions.items() if not connection.closed]


class _Watch:
    """The thread."""

    def __init__(self, tell: Callable[[Progress], None] | None) -> None:
        self.lost = ""
        self._tell = tell
        self._ended = threading.Event()
        self._question: _Question | None = None
        self._silent = 0.0  # counted, not measured: who was stopped himself has not waited
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self.lost and not self._ended.wait(_TICK):
            sessions = _open_sessions()
            if sessions:
                self._ask(sessions[0][1])
                self._judge(sessions)
            else:
                self._silent = 0.0
        if self._question is not None:
            self._question.close()

    def _ask(self, session: _Session) -> None:
        self._silent += _TICK
        if self._question is None:
            self._question = _Question(session)
            return
        answered = self._question.answered()
        if answered is not None:
            self._question.close()
            self._question = None
        if answered:
            self._silent = 0.0

    def _judge(self, sessions: list[tuple[Connection, _Session]]) -> None:
        place = sessions[0][1].place
        if self._silent >= PATIENCE:
            self._give_up(f"PostgreSQL at {place} has not answered for {PATIENCE} s (paused? overloaded?)")
        elif self._silent and self._silent % _TELL == 0 and self._tell is not None:
            told = f"for PostgreSQL at {place}, which has not answered"
            self._tell(Progress("waiting", told, 0, 0, 0.0, 0.0, self._silent, None))
        for connection, session in sessions:
            if session.quiet() > session.longest and _at_work(connection):
                self._give_up(
                    f"PostgreSQL at {place} has worked for {session.longest} s for one statement, or stands still"
                )

    def _give_up(self, reason: str) -> None:
        self.lost = reason
        for _, session in _open_sessions():
            with suppress(OSError):
                session.socket.shutdown(socket.SHUT_RDWR)


def _at_work(connection: Connection) -> bool:
    return bool(connection.info.transaction_status == psycopg2.extensions.TRANSACTION_STATUS_ACTIVE)


class _Question:
    """A connection beside a session, to the same server, whose first message is to be answered."""

    def __init__(self, session: _Session) -> None:
        self._socket = socket.socket(session.socket.family, socket.SOCK_STREAM)
        self._socket.setblocking(False)
        self._socket.connect_ex(session.peer)
        self._sent = False

    def close(self) -> None:
        self._socket.close()

    def answered(self) -> bool | None:
        """Whether it was; None: not yet."""
        try:
            if not self._sent:
                self._socket.send(_SSL_REQUEST)
                self._sent = True
            return bool(self._socket.recv(1))
        except BlockingIOError:
            return None
        except OSError:
            return False
