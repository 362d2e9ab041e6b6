"""What Pensieve itself is set to."""

from __future__ import annotations
