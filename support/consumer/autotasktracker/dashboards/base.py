"""What every page has."""

from __future__ import annotations

from autotasktracker.config import get_config
from autotasktracker.core.database import DatabaseManager


class BaseDashboard:
    """Opens the database that the configuration names."""

    @property
    def db_manager(self) -> DatabaseManager:
        """The manager of this page."""
        return DatabaseManager(db_path=get_config().DB_PATH)
