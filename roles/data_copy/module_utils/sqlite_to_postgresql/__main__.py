"""The engine from the command line: ``python -m sqlite_to_postgresql ACTION --source … --target …``.

``changes`` begins a change log and tells what it holds; ``carry-back`` needs Pensieve's own interpreter; ``settle``
ends what it has begun, once Pensieve is on SQLite for good."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from . import carry_mark, change_log
from .carry_back import carry_back, pensieve_package
from .census import census
from .copier import copy
from .model import EngineError, FindingsError, Policy, Progress
from .options import full_dsn, plain_census, plain_copy
from .progress import told
from .target import connect


def _show(progress: Progress) -> None:
    print(told(progress), file=sys.stderr)


def _policy(text: str) -> Policy:
    if text in ("default", "strict"):
        return Policy.of(text)
    return Policy.of(dict(part.split("=", 1) for part in text.split(",")))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m sqlite_to_postgresql", description=__doc__)
    parser.add_argument("action", choices=("census", "copy", "verify", "changes", "carry-back", "settle"))
    parser.add_argument("--source", type=Path, required=True, help="the SQLite database")
    parser.add_argument("--target", help="connection string of PostgreSQL, without a password")
    parser.add_argument("--passfile", help="libpq password file")
    parser.add_argument(
        "--policy", type=_policy, default="default", help="default, strict, or kind=action,kind=action,…"
    )
    parser.add_argument("--jobs", type=int, help="worker processes (default: one per core)")
    parser.add_argument("--base", type=Path, help="carry-back: SQLite as it was at the cutover")
    parser.add_argument(
        "--whole",
        action="store_true",
        help="carry-back: compare all rows, since SQLite was restored from an older copy",
    )
    parser.add_argument(
        "--only-upgraded", action="store_true", help="carry-back: only an upgrade has written to SQLite since"
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    arguments = parser.parse_args()
    if arguments.action != "census" and not arguments.target:
        parser.error(f"{arguments.action} needs --target")
    return arguments


def main() -> int:
    """Run one action; print its result as JSON. Exit code 1: findings, differences or refusal."""
    arguments = _arguments()
    show = None if arguments.quiet else _show
    dsn = full_dsn(arguments.target, arguments.passfile) if arguments.target else None
    told_result: dict[str, Any]
    try:
        if arguments.action == "census":
            found = census(
                arguments.source, target_dsn=dsn, policy=arguments.policy, progress=show, jobs=arguments.jobs
            )
            told_result, good = plain_census(found, 20), found.acceptable()
        elif arguments.action == "copy":
            told_result = plain_copy(copy(arguments.source, str(dsn), arguments.policy, show, arguments.jobs), 20)
            good = True
        elif arguments.action == "changes":
            told_result, good = _changes(arguments.source, str(dsn)), True
        elif arguments.action == "carry-back":
            how = {name: getattr(arguments, name) for name in ("base", "whole", "only_upgraded")}
            done = carry_back(arguments.source, str(dsn), pensieve_package(), progress=show, **how)
            told_result, good = done.as_dict(), not done.conflicts
        elif arguments.action == "settle":
            settled = carry_mark.settle(arguments.source, str(dsn))
            told_result, good = asdict(settled), settled.settled
        else:
            return _verify(arguments, str(dsn))
    except FindingsError as error:
        told_result, good = {"findings": error.findings.as_list(20)}, False
        print(error, file=sys.stderr)
    except EngineError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(told_result, indent=2, ensure_ascii=False))
    return 0 if good else 1


def _changes(source: Path, dsn: str) -> dict[str, Any]:
    connection = connect(dsn)
    try:
        begun = change_log.install(connection, source)
        log = change_log.read(connection)
    finally:
        connection.close()
    return {"begun": begun, **(asdict(log) if log else {})}


def _verify(arguments: argparse.Namespace, dsn: str) -> int:
    # Only here, since the verifier shares nothing with the rest.
    from .verify import verify

    result = verify(arguments.source, dsn, progress=None if arguments.quiet else _show, jobs=arguments.jobs)
    print(json.dumps(result.as_dict(), indent=2, ensure_ascii=False))
    return 0 if result.equal else 1


if __name__ == "__main__":
    sys.exit(main())
