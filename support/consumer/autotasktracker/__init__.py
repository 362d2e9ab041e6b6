"""A small reader of Pensieve's database that finds it as AutoTaskTracker e7ded0d does.

It stands in for AutoTaskTracker in the sample installation and in tests. The code is its own; the way to the database,
and so what goes wrong on it with a PostgreSQL URI, is AutoTaskTracker's: the *manager* takes `MEMOS_DB_PATH`, else
`database_path` of Pensieve's config.yaml, which it joins to Pensieve's folder; the *dashboards* take
`AUTOTASK_DATABASE_URL`, else a URI that is built in.
"""

from __future__ import annotations
