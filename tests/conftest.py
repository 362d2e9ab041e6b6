"""Lets tests import the roles' modules as Ansible does."""

from __future__ import annotations

import sys
from pathlib import Path

import ansible.module_utils

ROOT = Path(__file__).parents[1]

sys.path[:0] = [str(path) for path in (ROOT / "roles").glob("*/library")]
ansible.module_utils.__path__ += [str(path) for path in (ROOT / "roles").glob("*/module_utils")]
