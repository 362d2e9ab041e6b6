"""Reading the source, by Python's own library and by one that uses a statement again as Python 3.10 and older do."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from types import ModuleType

import pytest
import sqlean
from sqlite_to_postgresql import source
from sqlite_to_postgresql.convert import InvalidText

ROWS = 1_000


@pytest.mark.parametrize("library", [sqlite3, sqlean], ids=lambda library: f"SQLite {library.sqlite_version}")
@pytest.mark.parametrize("bad", [[6], [6, 7, 500, 999]])
def test_every_row_comes_once_where_texts_are_not_utf8(
    library: ModuleType, bad: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "database.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE entities (id INTEGER PRIMARY KEY, filepath TEXT)")
        connection.executemany("INSERT INTO entities VALUES (?, 'x')", [(number,) for number in range(1, ROWS + 1)])
        connection.executemany(
            "UPDATE entities SET filepath = CAST(x'61ff62' AS TEXT) WHERE id = ?", [(number,) for number in bad]
        )
        connection.commit()
    monkeypatch.setattr(source, "sqlite3", library)
    with closing(source.Source(path)) as opened:
        table = opened.schema().tables["entities"]
        batches = list(opened.batches(table, ["id", "filepath"]))
    keys = [key for batch in batches for key in batch.keys]
    texts = [text for batch in batches for text in batch.columns[1]]
    assert keys == list(range(1, ROWS + 1))
    assert [key for key, text in zip(keys, texts) if isinstance(text, InvalidText)] == bad
    assert {text for text in texts if isinstance(text, str)} == {"x"}
