"""The copy engine: a Pensieve database from SQLite to PostgreSQL, exactly.

    census.census(source, target_dsn=..., policy=...)    what is there, and what PostgreSQL cannot hold (read only)
    copier.copy(source, target_dsn, policy, progress)    every row, all or nothing
    verify.verify(source, target_dsn)                    every cell compared, by code of its own

Nothing here imports Ansible: the modules in ``library/`` are thin callers, and so is ``python -m``.
"""

from __future__ import annotations
