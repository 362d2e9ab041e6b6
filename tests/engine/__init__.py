"""Tests of the copy engine on real databases: SQLite made by Pensieve, PostgreSQL in a container."""

from __future__ import annotations
