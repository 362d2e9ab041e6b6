"""Make the tables of a fresh SQLite database with Pensieve's own code, also where its `init` cannot.

`memos init` of 0.33 to 0.37 fails on a fresh database: `create_all` makes a column that a later revision adds
again. Here the revisions run one by one, and one whose column is there already is marked as done. Runs with
Pensieve's interpreter.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import memos
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from memos.config import settings
from memos.databases.initializers import init_database
from sqlalchemy.exc import OperationalError


def main() -> None:
    """Bring the database of Pensieve's settings to its newest revision."""
    if not init_database(settings):
        raise SystemExit("Pensieve's init_database reports a failure")
    migrations = Path(memos.__file__).parent / "migrations"
    config = Config(str(migrations / "alembic.ini"))
    config.set_main_option("script_location", str(migrations / "alembic"))
    config.set_main_option("sqlalchemy.url", settings.database_url)
    for script in reversed(list(ScriptDirectory.from_config(config).walk_revisions())):
        try:
            command.upgrade(config, script.revision)
        except OperationalError as error:
            if "duplicate column name" not in str(error):
                raise
            command.stamp(config, script.revision)


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):
        main()
