"""Catching up: while Pensieve still runs, bring the target from its snapshot to a later one, and again.

A bulk copy takes minutes, and what Pensieve records meanwhile would have to be copied while it is stopped. So a later
snapshot follows the first, the target is brought up to it as ``difference`` does, every row of that is compared, and
the later snapshot takes the place of the first. What is left for the stop is what was written since the last one: its
size is given by how fast Pensieve records, and no longer by how long the bulk took.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import snapshot
from .census import Watcher
from .changes import written_pages
from .difference import Difference
from .model import Progress
from .verify import VerifyResult

#: Pages that are left to the stop: about a megabyte, applied in a second or two.
FEW_PAGES = 256


@dataclass
class Proven:
    """A difference that was brought over, and what the comparison of it found."""

    difference: Difference
    verified: VerifyResult


def catch_up(
    source: Path,
    folder: Path,
    bring: Callable[[Path], Proven],
    rounds: int = 3,
    few_pages: int = FEW_PAGES,
    progress: Watcher | None = None,
) -> list[Proven]:
    """Bring the target up to later snapshots until few pages are left, or ``rounds`` were made.

    ``folder`` is that of the snapshot which the target shows; afterwards it is that of the last one. ``bring`` takes
    the target to the later snapshot whose copy it is given (``difference``), and compares (``verify``). A round whose
    comparison found differences is the last. A database without a write-ahead log is left alone. Raises EngineError,
    and what ``bring`` raises; the snapshot that was there is then still the present one.
    """
    began = time.monotonic()
    done: list[Proven] = []
    while len(done) < rounds and (not done or done[-1].verified.equal):
        found = snapshot.read(folder)
        if found is None or not found.mark or not found.mapped:
            break
        pages = written_pages(found, source)
        if pages is not None and len(pages.changed) <= few_pages:
            break
        if progress is not None:
            shown = f"round {len(done) + 1}, a later snapshot"
            elapsed = time.monotonic() - began
            progress(Progress("catch up", shown, 0, 0, found.bytes / 1e6, len(done) / rounds, elapsed, None))
        snapshot.hold_next(found, folder)
        done.append(bring(snapshot.later(Path(found.database))))
        snapshot.advance(folder)
    return done
