"""Ask the consumer from the command line.

Usage: tasktracker.py status|tasks|add [--dashboard] [--limit N] [--key KEY] [--entity ID --task TEXT]; prints JSON.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import sys
from typing import Any

import psycopg2
from autotasktracker.core.database import DatabaseManager
from autotasktracker.dashboards.base import BaseDashboard


def main() -> int:
    """Print what was asked for as JSON; 1 with the reason when the database does not answer."""
    parser = argparse.ArgumentParser(description="Read Pensieve's database as AutoTaskTracker finds it.")
    parser.add_argument("command", choices=["status", "tasks", "add"])
    parser.add_argument("--dashboard", action="store_true", help="as the dashboards find it, not the manager")
    parser.add_argument("--limit", type=int, default=5)
    parser.add_argument("--key", default="tasks", help="metadata key that holds the task")
    parser.add_argument("--entity", type=int, default=0, help="of which a task is added")
    parser.add_argument("--task", default="", help="text of the task that is added")
    arguments = parser.parse_args()
    answer: dict[str, Any] = {}
    try:
        manager = BaseDashboard().db_manager if arguments.dashboard else DatabaseManager()
        answer = {"type": manager.get_database_type(), "database": manager.db_path}
        if arguments.command == "status":
            with manager.get_connection() as connection:
                for table in ("entities", "metadata_entries"):
                    cursor = connection.cursor()
                    cursor.execute(f"SELECT count(*) FROM {table}")
                    answer[table] = cursor.fetchone()[0]
        elif arguments.command == "add":
            answer["id"] = manager.add_task(arguments.entity, arguments.task)
        else:
            answer["tasks"] = manager.recent_tasks(arguments.key, arguments.limit)
    except (sqlite3.Error, psycopg2.Error) as error:
        print(json.dumps({**answer, "error": str(error).strip()}), file=sys.stderr)
        return 1
    print(json.dumps(answer, ensure_ascii=False, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
