"""Make, start, stop and remove a sample installation; see `--help`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .environment import Refusal, make_consumer, make_venv
from .installation import Installation, Settings


def main() -> int:
    """Run one command; 1 with the reason when it refuses."""
    parser = argparse.ArgumentParser(
        prog="python -m sample_installation", description="A real Pensieve with sample records."
    )
    commands = parser.add_subparsers(dest="command", required=True)

    venv = commands.add_parser("venv", help="make a virtual environment with Pensieve")
    venv.add_argument("path", type=Path)
    venv.add_argument("--pensieve-version", default="0.30.1")
    venv.add_argument("--python", type=Path, help="interpreter to use (found if not given)")
    venv.add_argument("--postgresql", action="store_true", help="with what Pensieve needs for PostgreSQL")

    make = commands.add_parser("make", help="make an installation, fill it and leave it running")
    make.add_argument("root", type=Path)
    make.add_argument("--pensieve-version", default="0.30.1")
    make.add_argument("--python", type=Path)
    make.add_argument("--venv", type=Path, help="of Pensieve (made below root if not given)")
    make.add_argument("--port", type=int, default=18839, help="of Pensieve; the next one serves embeddings")
    make.add_argument("--count", type=int, default=300, help="sample screenshots")

    for name, text in (
        ("start", "start its services where they do not run"),
        ("stop", "stop its services"),
        ("remove", "stop its services and delete it"),
    ):
        commands.add_parser(name, help=text).add_argument("root", type=Path)

    arguments = parser.parse_args()
    try:
        if arguments.command == "venv":
            make_venv(arguments.path, arguments.pensieve_version, arguments.postgresql, arguments.python)
        elif arguments.command == "make":
            settings = Settings(
                root=arguments.root.absolute(),
                version=arguments.pensieve_version,
                venv=(arguments.venv or arguments.root / "pensieve-venv").absolute(),
                port=arguments.port,
                count=arguments.count,
            )
            make_venv(settings.venv, settings.version, False, arguments.python)
            make_consumer(settings.root / "autotasktracker", arguments.python)
            Installation(settings).make()
        else:
            getattr(Installation.load(arguments.root.absolute()), arguments.command)()
    except Refusal as refusal:
        print(refusal, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
