"""What modules and command line have in common: connection strings and results as plain data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from psycopg2.extensions import make_dsn

from .difference import Difference
from .model import Census, CopyResult, TableCount


def full_dsn(dsn: str, passfile: str | None) -> str:
    """Add the password file to a connection string; a password is never part of either."""
    return str(make_dsn(dsn, passfile=str(Path(passfile).expanduser()))) if passfile else str(make_dsn(dsn))


def plain_tables(tables: dict[str, TableCount]) -> dict[str, dict[str, Any]]:
    """Give counts as plain data."""
    return {
        name: {
            "source": count.source,
            "target": count.target,
            "quarantined": count.quarantined,
            "seconds": round(count.seconds, 3),
            "bytes": count.bytes,
        }
        for name, count in tables.items()
    }


def plain_census(result: Census, examples: int) -> dict[str, Any]:
    """Give a census as plain data."""
    return {
        "tables": plain_tables(result.tables),
        "findings": result.findings.as_list(examples),
        "findings_count": result.findings.count(),
        "refused": result.refused,
        "notes": result.notes,
        "acceptable": result.acceptable(),
        "seconds": round(result.seconds, 3),
    }


def plain_copy(result: CopyResult, examples: int) -> dict[str, Any]:
    """Give the result of a copy as plain data."""
    return {
        "changed": result.changed,
        "tables": plain_tables(result.tables),
        "findings": result.findings.as_list(examples),
        "findings_count": result.findings.count(),
        "notes": result.notes,
        "run_id": result.run_id,
        "seconds": round(result.seconds, 3),
        "phases": {name: round(seconds, 3) for name, seconds in result.phases.items()},
    }


def plain_difference(result: Difference, examples: int) -> dict[str, Any]:
    """Give the result of a difference as plain data."""
    return {
        "changed": result.changed,
        "way": result.way,
        "reason": result.reason,
        "rows": result.rows,
        "tables": {name: vars(change) for name, change in result.tables.items()},
        "findings": result.findings.as_list(examples),
        "run_id": result.run_id,
        "pages": result.pages,
        "wal_bytes": result.wal_bytes,
        "phases": {name: round(seconds, 3) for name, seconds in result.phases.items()},
    }
