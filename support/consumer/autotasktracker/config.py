"""Settings of the consumer."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

BUILT_IN = "postgresql://postgres@localhost:5433/autotasktracker"


@dataclass
class Config:
    """What the dashboards open (`DB_PATH`), and the manager's place of the database."""

    DB_PATH: str = field(default_factory=lambda: os.getenv("AUTOTASK_DATABASE_URL", BUILT_IN))
    PENSIEVE_CONFIG_SYNC: bool = True

    def get_db_path(self) -> str:
        """The database as a path, which a URI is not: it comes back mangled."""
        return str(Path(os.getenv("AUTOTASK_DB_PATH", self.DB_PATH)))


@lru_cache(maxsize=1)
def get_config() -> Config:
    """The one configuration of this process."""
    return Config()
