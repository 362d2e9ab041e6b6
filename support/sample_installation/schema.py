"""Make the tables of a fresh database with Pensieve's own code, also where its `init` cannot.

`memos init` of 0.33 to 0.37 fails on a fresh database: `create_all` makes a column that a later revision adds
again. Here the revisions run one by one, and one whose object is there already is marked as done. SQLite or
PostgreSQL, as Pensieve's settings say. Runs with Pensieve's interpreter.
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
from memos.databases import initializers
from sqlalchemy.exc import DBAPIError

THERE_ALREADY = ("duplicate column name", "already exists")  # as SQLite and PostgreSQL say it


def main() -> None:
    """Bring the database of Pensieve's settings to its newest revision, with the rows that `init` makes."""
    if not initializers.init_database(settings):
        raise SystemExit("Pensieve's init_database reports a failure")
    migrations = Path(memos.__file__).parent / "migrations"
    config = Config(str(migrations / "alembic.ini"))
    config.set_main_option("script_location", str(migrations / "alembic"))
    config.set_main_option("sqlalchemy.url", settings.database_url)
    for script in reversed(list(ScriptDirectory.from_config(config).walk_revisions())):
        try:
            command.upgrade(config, script.revision)
        except DBAPIError as error:
            if not any(words in str(error.orig) for words in THERE_ALREADY):
                raise
            command.stamp(config, script.revision)
    seed = getattr(initializers, "seed_default_data", None)
    if seed is not None:  # older versions: init_database has made Pensieve's own library and plugins
        seed(settings)


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):
        main()
