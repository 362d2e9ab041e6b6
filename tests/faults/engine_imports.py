"""Lets modules of roles be imported as Ansible does; the engine that they call is the one of the tests, once."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from pathlib import Path

import ansible.module_utils
import sqlite_to_postgresql

ROOT = Path(__file__).parents[2]


def provide() -> None:
    """Do it for this process."""
    sys.path[:0] = [str(folder) for folder in (ROOT / "roles").glob("*/library")]
    ansible.module_utils.__path__ += [str(folder) for folder in (ROOT / "roles").glob("*/module_utils")]
    sys.modules["ansible.module_utils.sqlite_to_postgresql"] = sqlite_to_postgresql
    for found in pkgutil.iter_modules(sqlite_to_postgresql.__path__):
        if found.name != "__main__":
            engine = importlib.import_module(f"sqlite_to_postgresql.{found.name}")
            sys.modules[f"ansible.module_utils.sqlite_to_postgresql.{found.name}"] = engine
