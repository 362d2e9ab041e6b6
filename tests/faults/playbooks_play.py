"""One run of a playbook: what it says and when, and what it says in the end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from .playbooks_place import ROOT, Place, environment, wait

TASK = re.compile(r"TASK \[(.*)\] \*+$")
STATUS = re.compile(r"(ok|changed|included|fatal|failed|skipping): \[?")
LIMIT = 1800.0  # seconds after which a run that has not ended is one that never ends

Task = tuple[str, int]  # its name, and how many of that name came before


class Play:
    """A run of ``ansible-playbook`` in a session of its own. ``on_task`` is called when a task begins."""

    def __init__(
        self, place: Place, book: str, variables: dict[str, str], on_task: Callable[[Task], None] = lambda task: None
    ) -> None:
        self.place, self.book, self.began = place, book, time.time()
        self.lines: list[tuple[float, str]] = []
        self._on_task, self._seen = on_task, Counter[str]()
        options = [f"--extra-vars={name}={value}" for name, value in variables.items()]
        self.process = subprocess.Popen(
            [str(Path(sys.executable).parent / "ansible-playbook"), book, *options],
            cwd=ROOT,
            env=environment(place),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.ended = 0.0
        self._closed = float("inf")

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.lines.append((time.time(), line.rstrip("\n")))
            if named := TASK.match(line.rstrip("\n")):
                title = named.group(1)
                self._on_task((title, self._seen[title]))
                self._seen[title] += 1
        self._closed = time.time()

    def running(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    def wait(self, seconds: float = LIMIT) -> int | None:
        """Exit code; None when it does not end, and was killed."""
        if not wait(lambda: not self.running(), seconds, 0.1):
            self.kill()
            return None
        seen = time.time()
        self._reader.join(2)  # A process that has outlived it may keep the pipe open.
        self.ended = min(seen, self._closed)  # One that ran beside another is asked late.
        return self.process.returncode

    def kill(self) -> None:
        """SIGKILL the whole tree; not the holder of the snapshot, which is meant to outlive everybody."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.place.kill(spared=self.place.holder())
        self.process.wait()
        self.ended = time.time()
        self._reader.join(2)

    @property
    def said(self) -> str:
        """All that it has said."""
        return "\n".join(line for _, line in list(self.lines))

    def tasks(self) -> list[Task]:
        """Tasks that did something, or looked: not those that were skipped."""
        found: list[tuple[Task, set[str]]] = []
        seen = Counter[str]()
        for _, line in list(self.lines):
            if named := TASK.match(line):
                title = named.group(1)
                found.append(((title, seen[title]), set()))
                seen[title] += 1
            elif found and (status := STATUS.match(line)):
                found[-1][1].add(status.group(1))
        return [task for task, states in found if states != {"skipping"}]

    def message(self) -> str:
        """What the last failed task said; nothing when none has failed."""
        blocks = re.split(r"(?m)^fatal: \[", self.said)
        if len(blocks) == 1:
            return ""
        last = re.split(r"(?m)^(?:TASK \[|PLAY RECAP)", blocks[-1])[0]
        named = re.search(r"(?ms)^ {4}msg: (?:[|>][-+]?\n)?(.*?)(?=^ {4}\w+:|\Z)", last)
        return textwrap.dedent(named.group(1)).strip() if named else last.strip()

    def longest_silence(self, counts: Callable[[float], bool]) -> float:
        """Seconds between two lines, the longer part of which ``counts``."""
        moments = [self.began, *(moment for moment, _ in list(self.lines)), self.ended or time.time()]
        longest = 0.0
        for one, other in zip(moments, moments[1:]):
            steps = max(1, int(other - one))
            longest = max(longest, sum(counts(one + step) for step in range(steps)) if other - one > 1 else 0.0)
        return longest
