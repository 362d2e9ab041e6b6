"""What AutoTaskTracker itself says of its database; runs in its checkout with its own interpreter.

Prints one line `PROOF {"type", "manager", "config", "rows"}`: the manager's and the configuration's place of the
database, and how many rows it reads of a table that the migration made, which is in PostgreSQL only.
"""

from __future__ import annotations

import importlib
import json
import logging
import sys

logging.disable(logging.CRITICAL)
# Read from standard input, a program does not find modules in its folder by itself.
sys.path.insert(0, "")

manager = importlib.import_module("autotasktracker.core.database").DatabaseManager()
config = importlib.import_module("autotasktracker.config").get_config()
with manager.get_connection() as connection:
    cursor = connection.cursor()
    cursor.execute("SELECT count(*) FROM data_copy.run")
    rows = cursor.fetchone()[0]
answer = {
    "type": manager.get_database_type(),
    "manager": manager.db_path,
    "config": config.get_db_path(),
    "rows": rows,
}
print("PROOF", json.dumps(answer))
