"""Progress as lines of JSON in a file, which the action plugin (or a person, with tail -f) reads meanwhile."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from .model import Progress

_EVERY = 0.5  # seconds between lines of one item


class ProgressFile:
    """Appends what is told to a file, mode 0600; a context manager that says at the end that it is the end.

    Where it cannot be written (full, read-only), nothing is told: no work fails for that.
    """

    def __init__(self, path: Path | None) -> None:
        self._path, self._last, self._item = path, 0.0, ("", "")

    def __enter__(self) -> ProgressFile:
        if self._path is not None:
            try:
                self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._path.unlink(missing_ok=True)
                os.close(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            except OSError:
                self._path = None
            self._write({"state": "started", "pid": os.getpid()})
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._write({"state": "failed" if kind else "ended"})

    def __call__(self, progress: Progress) -> None:
        """Write one line, unless one of the same item was written a moment ago."""
        now = time.monotonic()
        item = (progress.phase, progress.item)
        if item == self._item and now - self._last < _EVERY:
            return
        self._last, self._item = now, item
        self._write({"state": "running", **asdict(progress), "text": told(progress)})

    def _write(self, line: dict[str, object]) -> None:
        if self._path is not None:
            with suppress(OSError), self._path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line) + "\n")


class RowCount:
    """Tells how many rows of a step are done. ``total`` may become known on the way."""

    def __init__(self, watcher: Callable[[Progress], None] | None, phase: str) -> None:
        self._watcher, self._phase, self._started = watcher, phase, time.monotonic()
        self.total = self.done = 0

    def __call__(self, item: str, rows: int = 0) -> None:
        """Say what is at hand, and how many rows were done before."""
        self.done += rows
        if self._watcher is not None:
            elapsed, fraction = time.monotonic() - self._started, self.done / max(1, self.total)
            self._watcher(Progress(self._phase, item, self.done, self.total, 0.0, fraction, elapsed, None))


class Meter:
    """Adds up the parts of a run, each weighed by the seconds of work that it takes about."""

    def __init__(self, watcher: Callable[[Progress], None] | None, started: float) -> None:
        self._watcher, self._started = watcher, started
        self._weights: dict[tuple[str, str], float] = {}
        self._shares: dict[tuple[str, str], float] = {}
        self._part = ("", "")
        self._rows = self._bytes = 0

    def expect(self, part: tuple[str, str], seconds: float) -> None:
        """Announce a part."""
        self._weights[part] = seconds
        self._shares[part] = 0.0

    def advance(self, part: tuple[str, str], rows: int, size: int, expected: float) -> None:
        """Count rows and bytes of a part of about ``expected`` bytes."""
        self.set(part, min(0.99, self._shares.get(part, 0.0) + size / max(expected, 1.0)), rows, size)

    def set(self, part: tuple[str, str], share: float, rows: int = 0, size: int = 0) -> None:
        """Say how far (0..1) a part is."""
        self._shares[part], self._part = share, part
        self._rows += rows
        self._bytes += size

    def finish(self, part: tuple[str, str]) -> None:
        """Say that a part is done."""
        self._shares[part] = 1.0

    def tell(self, phase: str, item: str = "") -> None:
        """Tell the watcher where the run stands."""
        if self._watcher is None:
            return
        elapsed = time.monotonic() - self._started
        total = sum(self._weights.values())
        done = sum(weight * self._shares[part] for part, weight in self._weights.items())
        fraction = done / total if total else 0.0
        eta = elapsed / fraction - elapsed if fraction > 0.02 else None
        shown = item or ", ".join(sorted({name for (kind, name), share in self._shares.items() if 0 < share < 1}))
        self._watcher(Progress(phase, shown or self._part[1], self._rows, 0, self._bytes / 1e6, fraction, elapsed, eta))


def told(progress: Progress) -> str:
    """Tell progress in one line of numbers."""
    parts = [f"{progress.phase}: {progress.item}"]
    if progress.total:
        parts.append(f"{progress.done:,} of {progress.total:,} {progress.unit}")
    elif progress.done:
        parts.append(f"{progress.done:,} {progress.unit}")
    if progress.megabytes:
        parts.append(f"{progress.megabytes:,.0f} MB")
    if progress.fraction:
        parts.append(f"{progress.fraction:.0%}")
    parts.append(f"{progress.elapsed:.0f} s")
    if progress.eta is not None:
        parts.append(f"about {progress.eta:.0f} s to go")
    return ", ".join(parts)
