#!/usr/bin/python
"""Ansible module: look whether Pensieve runs, and on which database."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: pensieve_state
short_description: Look whether Pensieve runs, and on which database
description:
  - Looks at processes, at what they have open, at the port and at C(/api/libraries), and reads database_path in
    C(config.yaml). Nothing is remembered and nothing changed.
  - Runs with Pensieve's interpreter, which has PyYAML.
options:
  user_home:
    description: Home of the user who runs Pensieve.
    type: path
    required: true
  endpoint:
    description: Address of the server, like C(http://127.0.0.1:8839).
    type: str
    required: true
  database:
    description: The SQLite database. A server that has it open runs on SQLite.
    type: path
    required: true
  uri:
    description: database_path of a Pensieve that was moved to PostgreSQL.
    type: str
    required: true
attributes:
  check_mode:
    support: full
    description: Only looks.
  diff_mode:
    support: none
    description: There is no text to compare.
author:
  - Pensieve migration maintainers (@pensieve-migration)
"""

EXAMPLES = r"""
- name: Look where Pensieve runs
  pensieve_state:
    user_home: /home/ada
    endpoint: http://127.0.0.1:8839
    database: /home/ada/.memos/database.db
    uri: postgresql://autotasktracker@127.0.0.1:5433/autotasktracker
"""

RETURN = r"""
up:
  description: Whether a server of this installation runs, and its database answers.
  returned: always
  type: bool
running:
  description: Whether a server of this installation runs, be its database there or not.
  returned: always
  type: bool
backend:
  description: V(sqlite) or V(postgresql), where a server runs; else empty.
  returned: always
  type: str
setting:
  description: V(sqlite), V(postgresql) (that of O(uri)), V(other), or empty when it is unreadable.
  returned: always
  type: str
names:
  description: The same in words.
  returned: always
  type: str
  sample: SQLite
text:
  description: Whether it runs, and on what, in one sentence.
  returned: always
  type: str
  sample: Pensieve answers on SQLite (/home/ada/.memos/database.db)
"""

from pathlib import Path

from ansible.module_utils import whole_file
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.pensieve_process import find, healthy, holders
from ansible.module_utils.settings_error import LIMIT
from ansible.module_utils.yaml_setting import parsed

NAMES = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}


def setting_of(config: Path, uri: str) -> str:
    """Which database the settings name."""
    try:
        settings = parsed(whole_file.head(config, LIMIT + 1))
        value = str((settings or {}).get("database_path", ""))
    except (OSError, ValueError, AttributeError):
        return ""
    if value == uri:
        return "postgresql"
    return "sqlite" if "://" not in value or value.startswith("sqlite:") else "other"


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "user_home": {"type": "path", "required": True},
            "endpoint": {"type": "str", "required": True},
            "database": {"type": "path", "required": True},
            "uri": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    home, endpoint, database = (
        Path(module.params["user_home"]),
        module.params["endpoint"],
        Path(module.params["database"]),
    )
    setting = setting_of(home / ".memos" / "config.yaml", module.params["uri"])
    serving = {process.pid for process in find(home) if process.service == "serve"}
    answers = bool(serving) and healthy(endpoint)
    # A server opens its database at the first query, which `healthy` has made.
    backend = "" if not serving else "sqlite" if serving & set(holders(database)) else "postgresql"
    process = ", ".join(map(str, sorted(serving)))
    if answers:
        text = f"Pensieve answers on {NAMES[backend]}" + (f" ({database})" if backend == "sqlite" else "")
    elif serving:
        text = f"Pensieve's server runs (process {process}), but {endpoint}/api/libraries is not 200"
    else:
        text = "Pensieve does not run"
    names = NAMES.get(setting, "no database of this migration")
    module.exit_json(
        changed=False,
        up=answers,
        running=bool(serving),
        backend=backend if answers else "",
        setting=setting,
        names=names,
        text=text,
    )


if __name__ == "__main__":
    main()
