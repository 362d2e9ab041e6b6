"""Full text by Pensieve's own PostgreSQL indexer. Runs in Pensieve's interpreter; writes JSON.

words.py entities        id → [filepath, tags, metadata] of every entity of the database, loaded as Pensieve's
                         indexer loads it
words.py given FILE      [filepath, tags, metadata] of each [filepath, tags, [[key, value], …]] of a JSON file;
                         the name of the exception where Pensieve's function raises one
"""

from __future__ import annotations

import json
import sys
from inspect import signature
from pathlib import Path
from types import SimpleNamespace

from memos.config import settings
from memos.crud import get_entity_by_id
from memos.databases.initializers import create_db_initializer
from memos.search import PostgreSQLSearchProvider
from sqlalchemy import text
from sqlalchemy.orm import Session

provider = PostgreSQLSearchProvider()


def entities() -> dict[int, list[str]]:
    """Of the database in Pensieve's settings."""
    engine, _initializer = create_db_initializer(settings)
    # Older versions always load what belongs to an entity.
    asked = {"include_relationships": True} if "include_relationships" in signature(get_entity_by_id).parameters else {}
    with Session(engine) as session:
        ids = [row[0] for row in session.execute(text("SELECT id FROM entities"))]
        return {entity: list(provider.prepare_fts_data(get_entity_by_id(entity, session, **asked))) for entity in ids}


def given(file: str) -> list[list[str] | str]:
    """Of plain values."""
    results: list[list[str] | str] = []
    for filepath, tags, metadata in json.loads(Path(file).read_text()):
        entries = [SimpleNamespace(key=key, value=value) for key, value in metadata]
        entity = SimpleNamespace(filepath=filepath, tag_names=tags, metadata_entries=entries)
        try:
            results.append(list(provider.prepare_fts_data(entity)))
        except Exception as error:
            results.append(type(error).__name__)
    return results


if __name__ == "__main__":
    print("RESULT" + json.dumps(entities() if sys.argv[1] == "entities" else given(sys.argv[2])))
