"""Reads Pensieve's settings."""

from __future__ import annotations

import os
from pathlib import Path

import yaml


class PensieveConfigReader:
    """Reader of config.yaml."""

    def __init__(self) -> None:
        self.memos_dir = Path.home() / ".memos"

    def database_path(self) -> str:
        """What Pensieve's manager opens."""
        file = self.memos_dir / "config.yaml"
        config = yaml.safe_load(file.read_text(encoding="utf-8")) if file.exists() else {}
        db_path = str(config.get("database_path", "database.db"))
        if not os.path.isabs(db_path):
            db_path = str(self.memos_dir / db_path)
        return os.getenv("MEMOS_DB_PATH") or db_path


def get_pensieve_database() -> str:
    """`database_path` of Pensieve."""
    return PensieveConfigReader().database_path()
