"""Tests of the role autotasktracker."""

from __future__ import annotations
