#!/usr/bin/python
"""Ansible module: make or upgrade Pensieve's tables with Pensieve's own code."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: pensieve_schema
short_description: Make or upgrade Pensieve's tables with Pensieve's own code
description:
  - Runs with Pensieve's interpreter, and calls its C(init_database) and its alembic revisions, one by one. A revision
    whose object C(init_database) has made already (C(duplicate column name) in 0.33 to 0.37) is stamped, the others
    are run.
  - With O(source), compares the revision reached with the one of that SQLite database, and fails when they differ.
options:
  database:
    description: As Pensieve's C(database_path) takes it; the URI of a PostgreSQL database without a password (libpq
      finds it in the password file), or the absolute path of a SQLite file.
    type: str
    required: true
  source:
    description: The SQLite database whose revision must be the same.
    type: path
attributes:
  check_mode:
    support: full
    description: Says whether the tables are missing.
  diff_mode:
    support: none
    description: The schema is Pensieve's own.
author:
  - Pensieve migration maintainers (@pensieve-migration)
"""

EXAMPLES = r"""
- name: Make the tables
  pensieve_schema:
    database: postgresql://autotasktracker@127.0.0.1:5433/autotasktracker
    source: /home/ada/.memos/database.db
  environment:
    HOME: /home/ada

- name: Upgrade the old database, since Pensieve was upgraded
  pensieve_schema:
    database: /home/ada/.memos/database.db
  environment:
    HOME: /home/ada
"""

RETURN = r"""
revision:
  description: Alembic revision reached.
  returned: success
  type: str
  sample: edb8a15d51b1
stamped:
  description: Revisions that were stamped because their object was there already.
  returned: success
  type: list
  elements: str
"""

import contextlib
import io
import os
import sqlite3
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

THERE_ALREADY = {"42701", "42710", "42P07"}
"""SQLSTATEs duplicate_column, duplicate_object (constraint), duplicate_table."""


def source_revision(database: str) -> str | None:
    """Alembic revision of a SQLite database, None when it has none."""
    with contextlib.closing(sqlite3.connect(f"{Path(database).absolute().as_uri()}?mode=ro", uri=True)) as connection:
        try:
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        except sqlite3.OperationalError:
            return None
    return None if row is None else str(row[0])


def make(check_only: bool) -> dict[str, Any]:
    """Bring the database of MEMOS_DATABASE_PATH to Pensieve's newest revision.

    Returns:
        changed, revision (reached, or to be reached) and stamped.
    """
    import memos
    from alembic import command
    from alembic.config import Config
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory
    from memos.config import settings
    from memos.databases.initializers import init_database
    from sqlalchemy import create_engine
    from sqlalchemy.exc import DBAPIError

    migrations = Path(memos.__file__).parent / "migrations"
    config = Config(str(migrations / "alembic.ini"))
    config.set_main_option("script_location", str(migrations / "alembic"))
    config.set_main_option("sqlalchemy.url", settings.database_url)
    config.attributes["configure_logger"] = False
    scripts = ScriptDirectory.from_config(config)
    head = scripts.get_current_head()
    engine = create_engine(settings.database_url)

    def current() -> str | None:
        with engine.connect() as connection:
            revision: str | None = MigrationContext.configure(connection).get_current_revision()
            return revision

    if current() == head or check_only:
        return {"changed": current() != head, "revision": head, "stamped": []}
    if not init_database(settings):
        raise RuntimeError("init_database of Pensieve reports a failure")
    stamped = []
    for script in reversed(list(scripts.iterate_revisions(head, current() or "base"))):
        try:
            command.upgrade(config, script.revision)
        except DBAPIError as error:
            if getattr(error.orig, "pgcode", None) not in THERE_ALREADY:
                raise
            command.stamp(config, script.revision)
            stamped.append(script.revision)
    return {"changed": True, "revision": current(), "stamped": stamped}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={"database": {"type": "str", "required": True}, "source": {"type": "path"}},
        supports_check_mode=True,
    )
    database, source = module.params["database"], module.params["source"]
    os.environ["MEMOS_DATABASE_PATH"] = database
    output = io.StringIO()
    try:
        from ansible.module_utils.watched_engines import watched_engines

        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output), watched_engines():
            result = make(module.check_mode)
    except Exception as error:
        module.fail_json(
            msg=f"Found: Pensieve's own code cannot make its tables in {database}: "
            f"{type(error).__name__}: {str(error).splitlines()[0]}. "
            "Expected: the schema of the installed version. Untouched: every other database and every setting. "
            "Next: read `output` below; then run the playbook again.",
            output=output.getvalue()[-3000:],
        )
    if source is not None and (revision := source_revision(source)) != result["revision"]:
        module.fail_json(
            msg=f"Found: {source} is at revision {revision}, Pensieve's code makes {result['revision']}. "
            "Expected: the same revision on both sides. Untouched: the SQLite database and every setting. "
            "Next: start Pensieve once (`memos start`), which upgrades SQLite, then run the playbook again."
        )
    module.exit_json(**result)


if __name__ == "__main__":
    main()
