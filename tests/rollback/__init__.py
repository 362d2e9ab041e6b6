"""Carrying back: a real Pensieve writes on PostgreSQL, and SQLite must hold all of it afterwards."""
