"""Catching up: while Pensieve still runs, bring the target from its snapshot to a later one, and again.

A bulk copy takes minutes, and what Pensieve records meanwhile would have to be copied while it is stopped. So a later
snapshot follows the first, the target is brought up to it as ``difference`` does, every row of that is compared, and
the later snapshot takes the place of the first. What is left for the stop is what was written since the last one: its
size is given by how fast Pensieve records, and no longer by how long the bulk took.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from . import snapshot
from .census import Watcher
from .changes import written_pages
from .difference import Difference, difference
from .fts import Tokenizer
from .model import Policy
from .verify import VerifyResult, verify

#: Pages that are left to the stop: about a megabyte, applied in a second or two.
FEW_PAGES = 256


@dataclass
class Round:
    """What one later snapshot has brought, and what the comparison of it found."""

    difference: Difference
    verified: VerifyResult


def catch_up(
    source: Path,
    folder: Path,
    target_dsn: str,
    policy: Mapping[str, str] | str | Policy | None = None,
    progress: Watcher | None = None,
    jobs: int | None = None,
    tokenizer: Tokenizer | None = None,
    rounds: int = 3,
    seconds: float = 86400,
    few_pages: int = FEW_PAGES,
) -> list[Round]:
    """Bring the target up to later snapshots until few pages are left, or ``rounds`` were made.

    ``folder`` is that of the snapshot which the target shows; afterwards it is that of the last one. ``seconds``: how
    long that is held at most. A round whose comparison found differences is the last. A database without a write-ahead
    log is left alone. Raises FindingsError and EngineError, as ``difference`` does; the snapshot that was there is then
    still the present one.
    """
    done: list[Round] = []
    words = tokenizer or Tokenizer()
    while len(done) < rounds:
        found = snapshot.read(folder)
        if found is None or not found.mark or not found.mapped:
            break
        pages = written_pages(found, source)
        if pages is not None and len(pages.changed) <= few_pages:
            break
        later = snapshot.later(Path(snapshot.hold_next(found, folder, seconds).database))
        made = difference(source, folder, target_dsn, policy, progress, jobs, words, later)
        proven = verify(later, target_dsn, progress=progress, jobs=jobs, tokenizer=words, only=made.only)
        snapshot.advance(folder)
        done.append(Round(made, proven))
        if not proven.equal:
            break
    return done
