"""The tasks of one day; of a day without any, until another is chosen."""

from __future__ import annotations

from datetime import date

import streamlit as st

from .base import BaseDashboard


def main() -> None:
    """Draw the page."""
    st.title("Tasks of a day")
    day = st.date_input("Day", date(2000, 1, 1), max_value=date.today())
    st.dataframe(BaseDashboard().db_manager.tasks_of_day("tasks", day))


if __name__ == "__main__":
    main()
