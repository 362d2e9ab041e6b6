"""The searches that both databases must answer alike: what may differ for other reasons is left out."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import ansible
import pensieve_search
import pytest
from engine.pensieve import Pensieve

pytestmark = [pytest.mark.pensieve]

SEARCH = """
import json, sys
sys.path += sys.argv[1:3]
import pensieve_search
pensieve_search.LIMIT = int(sys.argv[4])
print(json.dumps(pensieve_search.search(sys.argv[3], sys.argv[6:], 0, int(sys.argv[5]))))
"""
INDEX_AGAIN = """
import sys
from memos.config import settings
from memos.databases.initializers import create_db_initializer
from sqlalchemy import text
entry = "SELECT c0 AS a, c1 AS b, c2 AS c, c3 AS d FROM entities_fts_content WHERE c0 = :entity"
insert = "INSERT INTO entities_fts (id, filepath, tags, metadata) VALUES (:a, :b, :c, :d)"
with create_db_initializer(settings)[0].begin() as connection:
    found = connection.execute(text(entry), {"entity": int(sys.argv[1])}).mappings().one()
    connection.execute(text(insert), dict(found))
"""


@pytest.fixture(scope="module")
def pensieve(pensieve_venv: Path, tmp_path_factory: pytest.TempPathFactory) -> Pensieve:
    """Pensieve's commands, with a home of their own."""
    return Pensieve(pensieve_venv, tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def filled(pensieve: Pensieve, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with 40 screenshots."""
    return pensieve.make_source(tmp_path_factory.mktemp("filled") / "database.db", 40)


def test_an_entity_that_was_indexed_twice_does_not_hide_the_cut(
    pensieve: Pensieve, filled: Path, tmp_path: Path
) -> None:
    database = Path(shutil.copy(filled, tmp_path / "database.db"))

    def found(word: str, limit: int, most: int) -> dict[str, list[int]]:
        paths = [str(Path(ansible.__file__).parents[1]), str(Path(pensieve_search.__file__).parent)]
        done = pensieve.run(
            "python", "-c", SEARCH, *paths, str(database), str(limit), str(most), word, database=str(database)
        )
        hits: dict[str, list[int]] = json.loads(done.stdout.splitlines()[-1])
        return hits

    with closing(sqlite3.connect(database)) as connection:
        entries = "SELECT count(*) FROM entities_fts_content WHERE c3 LIKE ?"
        word = max(
            pensieve_search.pick_words(str(database), 1000)[0],
            key=lambda word: int(connection.execute(entries, (f"% {word} %",)).fetchone()[0]),
        )
    first = found(word, 200, 200)[word]
    hits = len(first)
    assert hits >= 3
    # As many as asked for: there may be more.
    assert found(word, hits, hits) == {}
    assert len(found(word, hits + 1, hits + 1)[word]) == hits
    pensieve.run("python", "-c", INDEX_AGAIN, str(first[0]), database=str(database))
    assert found(word, 200, 200)[word] == first
    assert found(word, hits + 1, hits + 1) == {}, "hits + 1 rows came, of hits entities"


def test_words_that_only_one_entry_of_an_entity_holds_are_not_picked(
    pensieve: Pensieve, filled: Path, tmp_path: Path
) -> None:
    database = Path(shutil.copy(filled, tmp_path / "database.db"))
    words, _since = pensieve_search.pick_words(str(database), 1000)
    with closing(sqlite3.connect(database)) as connection:
        word, entity = next(
            (word, entity)
            for word in words
            for (entity,) in connection.execute(
                "SELECT c0 FROM entities_fts_content WHERE c3 LIKE ? ORDER BY id DESC", (f"% {word} %",)
            )
        )
    pensieve.run("python", "-c", INDEX_AGAIN, str(entity), database=str(database))
    with closing(sqlite3.connect(database)) as connection:
        # What Pensieve leaves behind when metadata change and are indexed again: the old entry, and the new one.
        for table, column, where in (
            ("entities_fts_content", "c3", "id = (SELECT max(id) FROM entities_fts_content WHERE c0 = ?)"),
            ("metadata_entries", "value", "entity_id = ?"),
        ):
            connection.execute(
                f"UPDATE {table} SET {column} = replace({column}, ?, 'gone') WHERE {where}", (word, entity)
            )
        connection.commit()
    assert word not in pensieve_search.pick_words(str(database), 1000)[0]
