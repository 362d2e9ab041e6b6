"""A process that commits small changes to a SQLite database as Pensieve does, and notes how long each took.

    python -m online.committer DATABASE LOG

A line of the log is when a commit began, in seconds since 1970, and how many seconds it took. SIGTERM ends it.
"""

from __future__ import annotations

import contextlib
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PAUSE = 0.1  # seconds


class Commits:
    """What the log of a committer tells."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process, self._log = process, log

    def longest(self, began: float, ended: float) -> float:
        """Seconds of the longest commit that was under way between two moments; 0.0 when none was.

        Waits for one that is still under way. Raises RuntimeError when the committer has ended.
        """
        taken = self._wait(lambda taken: taken[-1][0] >= ended)
        return max((seconds for moment, seconds in taken if moment < ended and moment + seconds > began), default=0.0)

    def see(self, count: int) -> None:
        """Wait until so many commits were told since the beginning. Raises RuntimeError as above."""
        self._wait(lambda taken: len(taken) >= count)

    def _wait(self, enough: Callable[[list[tuple[float, float]]], bool]) -> list[tuple[float, float]]:
        while not (taken := self._read()) or not enough(taken):
            if self._process.poll() is not None:
                raise RuntimeError(f"the committer ended with {self._process.returncode}")
            time.sleep(PAUSE)
        return taken

    def _read(self) -> list[tuple[float, float]]:
        told = self._log.read_text().splitlines(keepends=True) if self._log.exists() else []
        lines = (line.split() for line in told if line.endswith("\n"))
        return [(float(moment), float(seconds)) for moment, seconds in lines]


@contextlib.contextmanager
def committing(database: Path, log: Path) -> Iterator[Commits]:
    """Have a committer run; the last line of the log is there when this ends."""
    process = subprocess.Popen([sys.executable, "-m", "online.committer", str(database), str(log)])
    try:
        commits = Commits(process, log)
        commits.see(1)
        yield commits
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    """Commit until told to end."""
    ended: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: ended.append(number))
    chosen = random.Random(0)
    connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=60)
    most = connection.execute("SELECT max(id) FROM entities").fetchone()[0]
    with Path(sys.argv[2]).open("w", buffering=1) as log:
        while not ended:
            began, clock = time.time(), time.monotonic()
            connection.execute("UPDATE entities SET size = size + 1 WHERE id = ?", [chosen.randint(1, most)])
            log.write(f"{began} {time.monotonic() - clock}\n")
            time.sleep(PAUSE)
    connection.close()


if __name__ == "__main__":
    main()
