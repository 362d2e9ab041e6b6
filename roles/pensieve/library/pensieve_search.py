#!/usr/bin/python
"""Ansible module: what Pensieve's own search finds, so that two databases can be compared."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: pensieve_search
short_description: What Pensieve's own full-text search finds
description:
  - Runs with Pensieve's interpreter, and calls the full-text search of its own search provider on the given database. No
    server is needed.
  - Without RV(hits) of an earlier run to repeat, it picks whole words from the newest metadata, seeded, so that the same
    database gives the same words. Words are left out that Pensieve treats differently on the two databases for reasons of
    its own, that is words that begin another word (SQLite searches prefixes), and words of file paths (PostgreSQL keeps a
    path as one word).
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
  description: Ids of the entities found, in ascending order, by word.
  returned: success
  type: dict
  sample: {"invoice": [3, 17]}
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

LIMIT = 200
"""Most hits that Pensieve's search returns; a word with as many is left out, since the cut is arbitrary."""

NEWEST = 2000
"""Entities from which words are picked."""


def pick_words(database: str, count: int) -> list[str]:
    """`count` words of the newest metadata that both databases treat alike, the same ones for the same database."""
    seen: Counter[str] = Counter()
    vocabulary: set[str] = set()
    paths: set[str] = set()
    with contextlib.closing(sqlite3.connect(f"{Path(database).absolute().as_uri()}?mode=ro", uri=True)) as connection:
        connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
        rows = connection.execute(
            "SELECT c1, c2, c3 FROM entities_fts_content ORDER BY id DESC LIMIT ?",
            (NEWEST,),
        )
        for path, tags, metadata in rows:
            paths |= {word.lower() for word in re.findall(r"[A-Za-z]+", f"{path} {tags}")}
            words = {word.lower() for word in WORD.findall(metadata or "")}
            vocabulary |= {word.lower() for word in re.findall(r"[A-Za-z]+", metadata or "")}
            seen.update(words)
    ordered = sorted(vocabulary)
    begins_another = {first for first, second in zip(ordered, ordered[1:]) if second.startswith(first)}
    usable = sorted(word for word, times in seen.items() if times < LIMIT / 2 and word not in begins_another | paths)
    return sorted(random.Random(0).sample(usable, min(count, len(usable))))


def search(database: str, words: list[str]) -> dict[str, list[int]]:
    """Ids that Pensieve's own full-text search finds, by word."""
    os.environ["MEMOS_DATABASE_PATH"] = database
    from memos.config import settings
    from memos.databases.initializers import create_db_initializer
    from memos.search import create_search_provider
    from sqlalchemy.orm import Session

    engine, _initializer = create_db_initializer(settings)
    provider = create_search_provider(settings.database_url)
    with Session(engine) as session:
        return {word: sorted({int(found) for found in provider.full_text_search(word, session, LIMIT)}) for word in words}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "database": {"type": "str", "required": True},
            "words": {"type": "list", "elements": "str", "default": []},
            "count": {"type": "int", "default": 20},
        },
        supports_check_mode=True,
    )
    database: str = module.params["database"]
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            hits = search(database, module.params["words"] or pick_words(database, module.params["count"]))
    except Exception as error:
        module.fail_json(
            msg=f"Found: Pensieve's own search fails on this database: {type(error).__name__}: {str(error).splitlines()[0]}. "
            "Expected: hits. Untouched: both databases. Next: read `output` below.",
            output=output.getvalue()[-3000:],
        )
    module.exit_json(changed=False, hits=hits)


if __name__ == "__main__":
    main()
