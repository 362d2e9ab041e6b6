"""A small sample in SQLite, and what Pensieve writes there as it goes on. With Pensieve's own extensions."""

from __future__ import annotations

import random
import sqlite3
import struct
from pathlib import Path

from sqlite_to_postgresql.carry_back import pensieve_package
from sqlite_to_postgresql.carry_sides import Database

ENTITIES = 20
NOW = "2025-07-01 08:09:10"
WORDS = ["invoice", "会议", "travel", "学习", "budget", "review", "购物", "music", "报告", "garden"]

_open: list[Database] = []  # until its process ends, as Pensieve's server does: so the log is not moved into the file


class Writer:
    """Writes screenshots with all that belongs to them."""

    def __init__(self, database: Path, seed: int) -> None:
        opened = Database(database, pensieve_package())
        _open.append(opened)
        self.connection: sqlite3.Connection = opened.connection
        self.run = self.connection.execute
        self.chance = random.Random(seed)

    def text(self, words: int) -> str:
        """Some words."""
        return " ".join(self.chance.choices(WORDS, k=words))

    def add(self, name: str, folder: int) -> int:
        """A screenshot, its metadata (a long one now and then), status, vector, and entry of full text."""
        ((entity,),) = self.run(
            "INSERT INTO entities (filepath, filename, size, file_created_at, file_last_modified_at, file_type,"
            " file_type_group, library_id, folder_id, created_at, updated_at)"
            " VALUES (?, ?, 1000, ?, ?, 'webp', 'image', 1, ?, ?, ?) RETURNING id",
            (f"/s/{name}.webp", f"{name}.webp", f"{NOW}.123456", f"{NOW}.000001", folder, NOW, NOW),
        )
        entries = [("active_app", self.text(1)), ("note", self.text(5))]
        if self.chance.random() < 0.1:
            entries.append(("ocr_result", self.text(600)))
        for key, value in entries:
            label = self.chance.choice(["PLUGIN_GENERATED", "PLUGIN_GENERATED", "vlm"])
            self.run(
                "INSERT INTO metadata_entries (entity_id, key, value, source_type, data_type, created_at, updated_at)"
                " VALUES (?, ?, ?, ?, 'TEXT_DATA', ?, ?)",
                (entity, key, value, label, NOW, NOW),
            )
        self.run("INSERT INTO entity_plugin_status VALUES (?, 1, ?)", (entity, NOW))
        vector = struct.pack("<8f", *(self.chance.random() for _ in range(8)))
        self.run(
            "INSERT INTO entities_vec_v2 (rowid, embedding, app_name, file_type_group, created_at_timestamp,"
            " file_created_at_timestamp, file_created_at_date, library_id)"
            " VALUES (?, ?, ?, 'image', 1751357350, 1751357350, '2025-07-01', 1)",
            (entity, vector, self.chance.choice(["Code", "a name of more than twelve bytes"])),
        )
        self.run(
            "INSERT INTO entities_fts (id, filepath, tags, metadata) VALUES (?, ?, '', ?)",
            (entity, f"/s/{name}.webp", "\n".join(f"{key}: {value}" for key, value in entries)),
        )
        return int(entity)

    def tag(self, entity: int, tag: int) -> None:
        """A link to a tag, which may not be there."""
        self.run(
            "INSERT INTO entity_tags (entity_id, tag_id, source, created_at, updated_at)"
            " VALUES (?, ?, 'USER_GENERATED', ?, ?)",
            (entity, tag, NOW, NOW),
        )

    def remove(self, entity: int) -> None:
        """A screenshot without what belongs to it, as Pensieve leaves it."""
        self.run("DELETE FROM entities WHERE id = ?", (entity,))


def fill(database: Path) -> None:
    """Rows in all tables, and some for quarantine: orphans, a NUL character, labels that Pensieve does not know."""
    writer = Writer(database, 1)
    writer.run("BEGIN")
    ((folder,),) = writer.run(
        "INSERT INTO folders (path, library_id, type, last_modified_at, created_at, updated_at)"
        f" VALUES ('/s', 1, 'DEFAULT', '{NOW}.5', '{NOW}', '{NOW}') RETURNING id"
    )
    for name in ("work", "私人", "red, urgent", "gone"):
        writer.run("INSERT INTO tags (name, created_at, updated_at) VALUES (?, ?, ?)", (name, NOW, NOW))
    for number in range(ENTITIES):
        entity = writer.add(f"some-file_{number}", folder)
        if number % 3 == 0:
            writer.tag(entity, number // 3 % 4 + 1)
    writer.run("DELETE FROM tags WHERE name = 'gone'")
    writer.run("UPDATE metadata_entries SET value = 'NUL' || char(0) || 'inside' WHERE id = 7")
    writer.remove(11)
    writer.run("COMMIT")
    writer.run("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def go_on(database: Path, seed: int) -> None:
    """Screenshots come, change and go; orphans too. It stays in the write-ahead log."""
    writer = Writer(database, seed)
    writer.run("BEGIN")
    old = [row[0] for row in writer.run("SELECT id FROM entities ORDER BY id")]
    for number in range(3):
        writer.tag(writer.add(f"new-{seed}-{number}", 1), 1)
    some = writer.chance.sample(old, 8)
    writer.remove(some[0])
    for table in ("entity_tags", "metadata_entries", "entity_plugin_status"):
        writer.run(f"DELETE FROM {table} WHERE entity_id = ?", (some[1],))
    writer.run("DELETE FROM entities_fts WHERE id = ?", (some[1],))
    writer.run("DELETE FROM entities_vec_v2 WHERE rowid = ?", (some[1],))
    writer.remove(some[1])
    for entity in some[2:5]:
        writer.run("UPDATE entities SET size = size + 1 WHERE id = ?", (entity,))
        writer.run("UPDATE metadata_entries SET value = ? WHERE entity_id = ?", (writer.text(4), entity))
    writer.run("UPDATE entities_vec_v2 SET embedding = ? WHERE rowid = ?", (struct.pack("<8f", *range(8)), some[5]))
    writer.tag(some[6], 2)
    writer.run("UPDATE tags SET name = name || ? WHERE id = 1", (f" {seed}",))
    writer.tag(some[7], 987)
    writer.run("COMMIT")
