"""The words of the engine: findings and the policy that meets them, progress, results, errors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Union

#: Everything that a cell of SQLite can be, as Python's sqlite3 gives it.
SqliteValue = Union[int, float, str, bytes, None]

#: Our only table in SQLite: what a carry-back has written there, until both sides are settled. It is no data.
CARRIED = "data_copy_carried"

FAIL, QUARANTINE, COERCE = "fail", "quarantine", "coerce"

#: Every kind of finding, and what is done about it unless the operator says otherwise.
DEFAULT_POLICY: dict[str, str] = {
    "nul_character": COERCE,
    "invalid_utf8": FAIL,
    "not_an_integer": FAIL,
    "integer_out_of_range": FAIL,
    "unknown_enum_label": COERCE,
    "orphaned_foreign_key": QUARANTINE,
    "duplicate_key": FAIL,
    "null_in_not_null": FAIL,
    "unreadable_timestamp": FAIL,
    "lossy_timestamp": FAIL,
    "vector_length": FAIL,
    "vector_not_finite": FAIL,
    "too_long": FAIL,
    "blob_in_text": FAIL,
    "rowid_without_row": QUARANTINE,
    "index_row_too_large": FAIL,
    "dependent_row": QUARANTINE,
}


class EngineError(Exception):
    """The engine cannot go on. The text says what was found, expected, untouched, and what to do next."""

    def __init__(self, found: str, expected: str, untouched: str, next_step: str) -> None:
        super().__init__(f"Found: {found}\nExpected: {expected}\nUntouched: {untouched}\nNext: {next_step}")
        self.found = found


class FindingsError(EngineError):
    """Findings that the policy says must stop the run. ``findings`` holds them all, the harmless too."""

    def __init__(self, findings: FindingLog) -> None:
        self.findings = findings
        groups = "; ".join(
            f"{g.count} × {g.kind} in {g.table}.{g.column or '(whole row)'}, e.g. {g.examples[0].told()}"
            for g in findings.groups()
            if g.action == FAIL
        )
        super().__init__(
            found=f"cells that PostgreSQL cannot hold exactly: {groups}",
            expected="a value for each, or a policy (quarantine or coerce) that says what to do with its kind",
            untouched="the source was only read; the tables of the target are as they were",
            next_step="look at the findings (data_census lists them all), correct them in Pensieve, or set their "
            "kinds in data_copy_findings to 'quarantine' or 'coerce', and run again",
        )


@dataclass(frozen=True)
class Policy:
    """What is done about each kind of finding."""

    actions: Mapping[str, str] = field(default_factory=lambda: dict(DEFAULT_POLICY))

    @classmethod
    def of(cls, choice: Mapping[str, str] | str | None) -> Policy:
        """Read the operator's choice: 'strict', or kinds that differ from the defaults."""
        if choice == "strict":
            return cls(dict.fromkeys(DEFAULT_POLICY, FAIL))
        if choice is None or choice == "default":
            return cls()
        if isinstance(choice, str):
            raise ValueError(f"policy {choice!r}: expected 'default', 'strict' or a mapping of kind to action")
        unknown = sorted(set(choice) - set(DEFAULT_POLICY))
        if unknown:
            raise ValueError(f"policy: unknown kinds {unknown}; known are {sorted(DEFAULT_POLICY)}")
        wrong = {kind: action for kind, action in choice.items() if action not in (FAIL, QUARANTINE, COERCE)}
        if wrong:
            raise ValueError(f"policy: {wrong}; an action is one of fail, quarantine, coerce")
        return cls({**DEFAULT_POLICY, **choice})

    def action(self, kind: str, *, coercible: bool) -> str:
        """Give the action for a finding; what has no defensible conversion is not converted: it fails."""
        action = self.actions[kind]
        return FAIL if action == COERCE and not coercible else action


@dataclass(frozen=True)
class Finding:
    """One cell (or row, when ``column`` is None) that cannot go over as it is."""

    table: str
    key: Mapping[str, Any]
    column: str | None
    kind: str
    reason: str
    storage_class: str
    excerpt: str
    action: str

    def told(self) -> str:
        """Tell the finding in half a sentence."""
        key = ", ".join(f"{name}={value}" for name, value in self.key.items())
        return f"{key}: {self.reason} ({self.excerpt})" if self.excerpt else f"{key}: {self.reason}"


@dataclass
class FindingGroup:
    """All findings of one kind in one column that meet the same action."""

    table: str
    column: str | None
    kind: str
    action: str
    count: int = 0
    examples: list[Finding] = field(default_factory=list)


class FindingLog:
    """Counts every finding, and keeps the first ``keep`` of each group (quarantine holds them all)."""

    def __init__(self, keep: int = 1000) -> None:
        self._keep = keep
        self._groups: dict[tuple[str, str | None, str, str], FindingGroup] = {}

    def add(self, finding: Finding) -> None:
        """Count one finding."""
        group = self._group(finding.table, finding.column, finding.kind, finding.action)
        group.count += 1
        if len(group.examples) < self._keep:
            group.examples.append(finding)

    def merge(self, groups: Iterable[FindingGroup]) -> None:
        """Take over what another log has counted."""
        for other in groups:
            group = self._group(other.table, other.column, other.kind, other.action)
            group.count += other.count
            group.examples.extend(other.examples[: self._keep - len(group.examples)])

    def _group(self, table: str, column: str | None, kind: str, action: str) -> FindingGroup:
        key = (table, column, kind, action)
        return self._groups.setdefault(key, FindingGroup(table, column, kind, action))

    def groups(self) -> list[FindingGroup]:
        """All groups, ordered by table, column and kind."""
        return sorted(self._groups.values(), key=lambda g: (g.table, g.column or "", g.kind, g.action))

    def failing(self) -> bool:
        """Tell whether any finding must stop the run."""
        return any(group.action == FAIL for group in self._groups.values())

    def count(self) -> int:
        """All findings."""
        return sum(group.count for group in self._groups.values())

    def as_list(self, examples: int = 20) -> list[dict[str, Any]]:
        """Plain data for JSON: one entry per group, with at most ``examples`` of its findings."""
        return [
            {**asdict(group), "examples": [asdict(f) for f in group.examples[:examples]]} for group in self.groups()
        ]


@dataclass(frozen=True)
class QuarantineRecord:
    """What goes to ``data_copy.quarantine``: enough to give the original back exactly."""

    table: str
    key: Mapping[str, Any]
    column: str | None
    kind: str
    reason: str
    storage_class: str
    original: bytes
    action: str


@dataclass
class TableCount:
    """Rows of one table. ``source == target + quarantined`` always; ``bytes`` are those of binary COPY."""

    source: int = 0
    target: int = 0
    quarantined: int = 0
    seconds: float = 0.0
    bytes: int = 0


@dataclass(frozen=True)
class Progress:
    """Where a run stands. ``done`` and ``total`` count ``unit``; ``fraction`` (0..1) is of the estimated work."""

    phase: str
    item: str
    done: int
    total: int
    megabytes: float
    fraction: float
    elapsed: float
    eta: float | None
    unit: str = "rows"


@dataclass
class Census:
    """What the source holds and what of it PostgreSQL refuses or would silently change."""

    tables: dict[str, TableCount]
    findings: FindingLog
    refused: list[str]
    notes: list[str]
    seconds: float

    def acceptable(self) -> bool:
        """Tell whether a copy with this policy would go through."""
        return not self.refused and not self.findings.failing()


@dataclass
class CopyResult:
    """What a copy did. ``changed`` is False when the target already held this very source."""

    changed: bool
    tables: dict[str, TableCount]
    findings: FindingLog
    notes: list[str]
    run_id: str
    seconds: float
    phases: dict[str, float] = field(default_factory=dict)
    before: dict[str, int] = field(default_factory=dict)  # rows of the target's tables before


@dataclass
class Prediction:
    """What a copy would do: whether it would change the target, whose tables now hold ``before`` rows."""

    changed: bool
    census: Census
    before: dict[str, int]
