#!/usr/bin/python
"""Ansible module: what Pensieve's own search finds, so that two databases can be compared."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: pensieve_search
short_description: What Pensieve's own full-text search finds
description:
  - Runs with Pensieve's interpreter, and calls the full-text search of its own search provider on the given database.
    No server is needed.
  - Without O(words) it picks whole words from the newest entities, seeded, so that the same database gives the same
    words. Words are left out that Pensieve treats differently on the two databases for reasons of its own, that is
    words that begin another word (SQLite searches prefixes), words of file paths (PostgreSQL keeps a path as one word),
    and words of metadata that was written without indexing it anew (full text on PostgreSQL is made from the metadata
    as it is now).
options:
  database:
    description: Pensieve's C(database_path), the path of a SQLite file or a URI without a password.
    type: str
    required: true
  words:
    description: Words to look for; picked from the database when empty. Picking needs SQLite.
    type: list
    elements: str
    default: []
  count:
    description: How many words to pick.
    type: int
    default: 20
  since:
    description: Smallest id of an entity that counts as a hit; the one returned as RV(since) before.
    type: int
    default: 0
attributes:
  check_mode:
    support: full
    description: It only reads.
  diff_mode:
    support: none
    description: It changes nothing.
author:
  - Pensieve migration maintainers (@pensieve-migration)
"""

EXAMPLES = r"""
- name: Search before the switch
  pensieve_search:
    database: /home/ada/.memos/database.db
  environment:
    HOME: /home/ada
  register: before
"""

RETURN = r"""
hits:
  description:
    - Ids of the entities found, in ascending order, by word. Words with so many hits that Pensieve cuts them off are
      missing.
  returned: success
  type: dict
  sample: {"invoice": [3, 17]}
since:
  description: Smallest id of the entities from which words were picked, or O(since).
  returned: success
  type: int
"""

import contextlib
import io
import os
import random
import re
import sqlite3
from collections import Counter
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

WORD = re.compile(r"(?<![\w./\\:@#%+&-])[A-Za-z]{4,20}(?![\w./\\:@#%+&-])")
"""A whole Latin word with no neighbour that a tokeniser might join to it."""

LATIN = re.compile(r"[A-Za-z]+")

LIMIT = 200
"""Most hits that are asked for. A word with as many is left out, since the cut is arbitrary; and when words are picked,
one with half as many, so that a few more on the other side are no cut there."""

NEWEST = 2000
"""Entities from which words are picked."""


def latin(text: str | None) -> set[str]:
    """All Latin words of a text, in lower case."""
    return {word.lower() for word in LATIN.findall(text or "")}


def pick_words(database: str, count: int) -> tuple[list[str], int]:
    """`count` words of the newest entities that both databases treat alike, and the smallest id of these entities."""
    whole: Counter[str] = Counter()
    vocabulary: set[str] = set()
    unusable: set[str] = set()
    indexed: dict[int, set[str]] = {}
    with contextlib.closing(sqlite3.connect(f"{Path(database).absolute().as_uri()}?mode=ro", uri=True)) as connection:
        connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
        rows = connection.execute(
            "SELECT c0, c1, c2, c3 FROM entities_fts_content ORDER BY CAST(c0 AS integer) DESC LIMIT ?", (NEWEST,)
        )
        for entity, path, tags, metadata in rows:
            unusable |= latin(f"{path} {tags}")
            indexed.setdefault(int(entity), set()).update(latin(metadata))
            vocabulary |= indexed[int(entity)]
            whole.update({word.lower() for word in WORD.findall(metadata or "")})
            every = Counter(word.lower() for word in LATIN.findall(metadata or ""))
            unusable |= (every - Counter(word.lower() for word in WORD.findall(metadata or ""))).keys()
        since = min(indexed, default=0)
        current: dict[int, set[str]] = {}
        for entity, key, value in connection.execute(
            "SELECT entity_id, key, value FROM metadata_entries WHERE entity_id >= ?", (since,)
        ):
            current.setdefault(entity, set()).update(latin(f"{key} {value}"))
        for entity in current.keys() | indexed.keys():
            unusable |= current.get(entity, set()) ^ indexed.get(entity, set())
    ordered = sorted(vocabulary)
    unusable |= {first for first, second in zip(ordered, ordered[1:]) if second.startswith(first)}
    usable = sorted(word for word, times in whole.items() if times < LIMIT and word not in unusable)
    return sorted(random.Random(0).sample(usable, min(count, len(usable)))), since


def search(database: str, words: list[str], since: int, most: int) -> dict[str, list[int]]:
    """Ids that Pensieve's own full-text search finds, by word; those found `most` times or more are left out."""
    os.environ["MEMOS_DATABASE_PATH"] = database
    from memos.config import settings
    from memos.databases.initializers import create_db_initializer
    from memos.search import create_search_provider
    from sqlalchemy.orm import Session

    engine, _initializer = create_db_initializer(settings)
    provider = create_search_provider(settings.database_url)
    with Session(engine) as session:
        # An entity that was indexed twice in SQLite is found twice, and both count for the cut.
        found = {word: [int(entity) for entity in provider.full_text_search(word, session, LIMIT)] for word in words}
    return {
        word: sorted({entity for entity in hits if entity >= since}) for word, hits in found.items() if len(hits) < most
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "database": {"type": "str", "required": True},
            "words": {"type": "list", "elements": "str", "default": []},
            "count": {"type": "int", "default": 20},
            "since": {"type": "int", "default": 0},
        },
        supports_check_mode=True,
    )
    database: str = module.params["database"]
    words, since = module.params["words"], module.params["since"]
    output = io.StringIO()
    try:
        from ansible.module_utils.watched_engines import watched_engines

        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output), watched_engines():
            most = LIMIT if words else LIMIT // 2
            if not words:
                words, since = pick_words(database, module.params["count"])
            hits = search(database, words, since, most)
    except Exception as error:
        module.fail_json(
            msg="Found: Pensieve's own search fails on this database: "
            f"{type(error).__name__}: {str(error).splitlines()[0]}. "
            "Expected: hits. Untouched: both databases. Next: read `output` below.",
            output=output.getvalue()[-3000:],
        )
    module.exit_json(changed=False, hits=hits, since=since)


if __name__ == "__main__":
    main()
