"""Change Pensieve's SQLite database at random. Runs in Pensieve's interpreter: change.py SEED STEPS EXTRA…

Every step is a transaction of its own, as those of a server: screenshots come, change and go, in all tables, with their
vectors and full-text entries; some rows lose their parents, some get them back. `EXTRA` are further kinds of steps:
`restart` and `checkpoint` (of the write-ahead log), `vacuum`, `truncate` (all rows of a table at once), `define`.
With `live`, a line on stdin is waited for before the first step, so that the connection is older than a snapshot.
Ends without closing the database, as Pensieve's server does.
"""

from __future__ import annotations

import os
import random
import sqlite3
import sys
from typing import Any

import numpy
from memos.config import settings
from memos.databases.initializers import create_db_initializer

NOW = "2025-08-01 10:00:00"
WORDS = [
    "invoice",
    "会议",
    "travel",
    "学习",
    "budget",
    "review",
    "购物",
    "music",
    "sprint",
    "报告",
    "garden",
    "NUL\x00inside",
]


class Writer:
    """One connection and its chances."""

    def __init__(self, connection: sqlite3.Connection, seed: int) -> None:
        self.connection = connection
        self.random = random.Random(seed)
        self.vectors = numpy.random.default_rng(seed)

    def run(self, sql: str, *values: Any) -> sqlite3.Cursor:
        return self.connection.execute(sql, values)

    def some(self, table: str, count: int = 1, column: str = "id") -> list[int]:
        """Keys of some rows."""
        found = [row[0] for row in self.run(f"SELECT {column} FROM {table} ORDER BY 1")]
        return self.random.sample(found, min(count, len(found)))

    def text(self, words: int) -> str:
        return " ".join(self.random.choices(WORDS, k=words))

    def insert(self) -> None:
        for _ in range(self.random.randint(1, 6)):
            self.entity(None)

    def entity(self, wanted: int | None) -> None:
        """A screenshot with all that belongs to it, perhaps with the id of one that is gone."""
        folder, library = self.run("SELECT id, library_id FROM folders LIMIT 1").fetchone()
        number = self.random.randrange(1 << 40)
        entity = self.run(
            "INSERT INTO entities(id, filepath, filename, size, file_created_at, file_last_modified_at, file_type,"
            " file_type_group, last_scan_at, library_id, folder_id, created_at, updated_at)"
            " VALUES (?,?,?,?,?,?,'webp','image',?,?,?,?,?) RETURNING id",
            wanted, f"/s/{number}/some-file_{number}.webp", f"some-file_{number}.webp", number % 900_000,
            NOW + ".123456", NOW + ".000001", NOW, library, folder, NOW, NOW,
        ).fetchone()[0]  # fmt: skip
        for key in ("active_app", "active_window", "ocr_result")[: self.random.randint(0, 3)]:
            self.metadata(entity, key)
        if self.random.random() < 0.7:
            self.index(entity)
        if self.random.random() < 0.7:
            self.vector(entity)
        if self.random.random() < 0.5:
            plugin = self.some("plugins")[0]
            self.run("INSERT OR REPLACE INTO entity_plugin_status VALUES (?,?,?)", entity, plugin, NOW)
        for tag in self.some("tags", self.random.randint(0, 2)):
            self.link(entity, tag)

    def metadata(self, entity: int, key: str) -> None:
        words = self.random.choice([1, 5, 40, 1500])
        label = self.random.choice(["PLUGIN_GENERATED", "PLUGIN_GENERATED", "vlm"])
        self.run(
            "INSERT INTO metadata_entries(entity_id, key, value, source_type, source, data_type, created_at,"
            " updated_at) VALUES (?,?,?,?,NULL,'TEXT_DATA',?,?)",
            entity, key, self.text(1 if key == "active_app" else words), label, NOW, NOW,
        )  # fmt: skip

    def link(self, entity: int, tag: int) -> None:
        self.run(
            "INSERT INTO entity_tags(entity_id, tag_id, source, created_at, updated_at)"
            " VALUES (?,?,'USER_GENERATED',?,?)", entity, tag, NOW, NOW,
        )  # fmt: skip

    def index(self, entity: int) -> None:
        if self.random.random() < 0.7:
            self.run("DELETE FROM entities_fts WHERE id = ?", entity)
        self.run(
            "INSERT OR REPLACE INTO entities_fts(id, filepath, tags, metadata) VALUES (?,?,?,?)",
            entity, f"/s/{entity}.webp", "", self.text(self.random.choice([3, 900])),
        )  # fmt: skip

    def vector(self, entity: int) -> None:
        self.run("DELETE FROM entities_vec_v2 WHERE rowid = ?", entity)
        vector = self.vectors.standard_normal(settings.embedding.num_dim, dtype=numpy.float32)
        self.run(
            "INSERT INTO entities_vec_v2(rowid, embedding, app_name, file_type_group, created_at_timestamp,"
            " file_created_at_timestamp, file_created_at_date, library_id) VALUES (?,?,?,?,?,?,?,?)",
            entity, vector.tobytes(), self.random.choice(["Code", "A name of more than twelve bytes", "微信"]), "image",
            self.random.randrange(1 << 31), 1_750_000_000, self.random.choice(["2025-07-01", "2025-08-01"]), 1,
        )  # fmt: skip

    def vector_in_place(self) -> None:
        """Metadata and numbers of a vector are overwritten where they are."""
        for entity in self.some("entities_vec_v2_rowids", 2, "rowid"):
            vector = self.vectors.standard_normal(settings.embedding.num_dim, dtype=numpy.float32)
            self.run("UPDATE entities_vec_v2 SET embedding = ? WHERE rowid = ?", vector.tobytes(), entity)
            self.run("UPDATE entities_vec_v2 SET library_id = 7 WHERE rowid = ?", entity)
            self.run("UPDATE entities_vec_v2 SET app_name = ? WHERE rowid = ?", self.text(3)[:30], entity)

    def delete(self) -> None:
        """As Pensieve does, which leaves rows behind, or thoroughly."""
        for entity in self.some("entities", self.random.randint(1, 4)):
            self.run("DELETE FROM entities WHERE id = ?", entity)
            if self.random.random() < 0.6:
                self.run("DELETE FROM metadata_entries WHERE entity_id = ?", entity)
                self.run("DELETE FROM entities_fts WHERE id = ?", entity)
                self.run("DELETE FROM entities_vec_v2 WHERE rowid = ?", entity)
            if self.random.random() < 0.3:
                self.run("DELETE FROM entity_tags WHERE entity_id = ?", entity)

    def come_back(self) -> None:
        """A row gets the id of one that is gone, so that its orphans have a parent again."""
        gone = [
            row[0]
            for row in self.run(
                "SELECT entity_id FROM metadata_entries UNION SELECT entity_id FROM entity_tags"
                " EXCEPT SELECT id FROM entities ORDER BY 1"
            )
        ]
        if gone:
            self.entity(self.random.choice(gone))

    def update(self) -> None:
        for entity in self.some("entities", 3):
            self.run("UPDATE entities SET size = size + 1, last_scan_at = NULL WHERE id = ?", entity)
            if self.random.random() < 0.3:
                self.run("UPDATE entities SET filepath = filepath || 'x' WHERE id = ?", entity)

    def update_metadata(self) -> None:
        for entry in self.some("metadata_entries", 4):
            self.run("UPDATE metadata_entries SET value = ? WHERE id = ?", self.text(30), entry)

    def update_in_place(self) -> None:
        """Another text of the same length: SQLite writes the pages that differ, and no other."""
        for entry in self.some("metadata_entries", 6):
            value = self.run("SELECT value FROM metadata_entries WHERE id = ?", entry).fetchone()[0]
            at = self.random.randrange(len(value)) if value else 0
            if value[at : at + 1].isascii() and value:
                changed = value[:at] + ("y" if value[at] != "y" else "z") + value[at + 1 :]
                self.run("UPDATE metadata_entries SET value = ? WHERE id = ?", changed, entry)
        for entry in self.some("entities_fts_content", 2):
            self.run("UPDATE entities_fts_content SET c3 = replace(c3, 'e', 'f') WHERE id = ?", entry)

    def tag(self) -> None:
        choice = self.random.random()
        if choice < 0.4:
            self.run(
                "INSERT INTO tags(name, created_at, updated_at) VALUES (?,?,?)", self.text(1) + NOW, NOW, NOW
            )  # fmt: skip
        elif choice < 0.7:
            self.run("UPDATE tags SET name = name || '变' WHERE id = ?", *self.some("tags"))
        elif choice < 0.85:
            self.run("DELETE FROM tags WHERE id = ?", *self.some("tags"))
        for entity in self.some("entities", 2):
            for tag in self.some("tags"):
                self.link(entity, tag)

    def unlink(self) -> None:
        for link in self.some("entity_tags", 2):
            self.run("DELETE FROM entity_tags WHERE id = ?", link)
        for entity in self.some("entities", 2):
            self.run("DELETE FROM entity_plugin_status WHERE entity_id = ?", entity)
        for row in self.some("entity_plugin_status", 2, "rowid"):
            self.run("UPDATE entity_plugin_status SET processed_at = '2025-09-09 09:09:09' WHERE rowid = ?", row)

    def renumber(self) -> None:
        """A row gets another key, in place."""
        for entry in self.some("metadata_entries", 2):
            self.run("UPDATE OR IGNORE metadata_entries SET id = id + 100000 WHERE id = ?", entry)
        for entry in self.some("metadata_entries", 2):
            entity = self.random.choice([*self.some("entities"), 987_654])
            self.run("UPDATE metadata_entries SET entity_id = ? WHERE id = ?", entity, entry)
        for row in self.some("entity_plugin_status", 1, "rowid"):
            self.run("UPDATE OR IGNORE entity_plugin_status SET entity_id = entity_id + 1 WHERE rowid = ?", row)

    def many(self) -> None:
        """So many rows that leaves split, or that leaves merge."""
        if self.random.random() < 0.5:
            for entity in self.some("entities"):
                for _ in range(150):
                    self.metadata(entity, "note")
        else:
            low = self.some("metadata_entries") or [0]
            self.run("DELETE FROM metadata_entries WHERE id BETWEEN ? AND ?", low[0], low[0] + 90)

    def reindex(self) -> None:
        for entity in self.some("entities", 3):
            self.index(entity)
            self.vector(entity)

    def truncate(self) -> None:
        self.run(f"DELETE FROM {self.random.choice(['entity_tags', 'metadata_entries', 'entity_plugin_status'])}")

    def define(self) -> None:
        self.run("CREATE INDEX IF NOT EXISTS idx_made_meanwhile ON entities (size)")

    def outside(self, statement: str) -> None:
        """A statement that takes no transaction."""
        self.connection.commit()
        try:
            self.run(statement).fetchall()
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise


STEPS = [
    *("insert", "insert", "delete", "come_back", "update", "update_metadata", "update_in_place", "tag", "unlink"),
    *("renumber", "many", "reindex", "vector_in_place"),
]
OUTSIDE = {
    "restart": "PRAGMA wal_checkpoint(RESTART)",
    "checkpoint": "PRAGMA wal_checkpoint(PASSIVE)",
    "vacuum": "VACUUM",
}


def main(seed: int, steps: int, extra: list[str]) -> None:
    """Write."""
    engine, _initializer = create_db_initializer(settings)
    connection = engine.raw_connection().driver_connection
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute("PRAGMA busy_timeout = 100")
    writer = Writer(connection, seed)
    kinds = STEPS + [kind for kind in extra if kind != "live"] * 3
    if "live" in extra:
        print("open", flush=True)
        sys.stdin.readline()
    for _ in range(steps):
        kind = writer.random.choice(kinds)
        if kind in OUTSIDE:
            writer.outside(OUTSIDE[kind])
        else:
            getattr(writer, kind)()
            connection.commit()
    print(f"{steps} steps", flush=True)
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
