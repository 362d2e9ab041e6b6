"""The newest tasks."""

from __future__ import annotations

import streamlit as st

from .base import BaseDashboard


def main() -> None:
    """Draw the page."""
    st.title("Tasks")
    st.dataframe(BaseDashboard().db_manager.recent_tasks("tasks", 20))


if __name__ == "__main__":
    main()
