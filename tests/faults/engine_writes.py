"""What Pensieve writes to PostgreSQL after a cutover, and what it writes to SQLite when it is back there too early."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import psycopg2

from faults.engine_place import Cursor, tokenizer

ENTITY = (
    "INSERT INTO entities (filepath, filename, size, file_created_at, file_last_modified_at, file_type,"
    " file_type_group, library_id, folder_id) SELECT '/new/' || %s, %s, 1, '2025-07-01 08:09:10',"
    " '2025-07-01 08:09:10.5', 'webp', 'image', library_id, id FROM folders LIMIT 1 RETURNING id"
)
VECTOR = (
    "INSERT INTO entities_vec_v2 (rowid, embedding, app_name, file_type_group, created_at_timestamp,"
    " file_created_at_timestamp, file_created_at_date, library_id)"
    " VALUES (%s, %s, %s, 'image', 1751357350, 1751357350, '2025-07-01', 1)"
)
REPLACE_TEXT = (
    "INSERT INTO entities_fts (id, filepath, tags, metadata) VALUES (%s, %s, %s, %s)"
    " ON CONFLICT (id) DO UPDATE SET filepath = excluded.filepath, tags = excluded.tags, metadata = excluded.metadata"
)


def _ids(cursor: Cursor, sql: str, *values: object) -> list[int]:
    cursor.execute(sql, values)
    return [row[0] for row in cursor.fetchall()]


def _index(cursor: Cursor, entity: int) -> None:
    """As Pensieve's indexer does."""
    cursor.execute("SELECT filepath FROM entities WHERE id = %s", (entity,))
    ((path,),) = cursor.fetchall()
    cursor.execute(
        "SELECT DISTINCT ON (l.tag_id) t.name, l.id FROM entity_tags l JOIN tags t ON t.id = l.tag_id"
        " WHERE entity_id = %s ORDER BY l.tag_id, l.id",
        (entity,),
    )
    tags = [name for name, _ in sorted(cursor.fetchall(), key=lambda row: int(row[1]))]
    cursor.execute("SELECT key, value FROM metadata_entries WHERE entity_id = %s ORDER BY id", (entity,))
    cursor.execute(REPLACE_TEXT, (entity, *tokenizer().prepare(path, tags, cursor.fetchall())))


def _note(cursor: Cursor, entity: int, value: str) -> None:
    cursor.execute(
        "INSERT INTO metadata_entries (entity_id, key, value, source_type, source, data_type)"
        " VALUES (%s, 'note', %s, 'USER_GENERATED', 'me', 'TEXT_DATA')",
        (entity, value),
    )


def _tag(cursor: Cursor, entity: int, name: str) -> None:
    found = _ids(cursor, "SELECT id FROM tags WHERE name = %s", name)
    tag = found[0] if found else _ids(cursor, "INSERT INTO tags (name) VALUES (%s) RETURNING id", name)[0]
    cursor.execute(
        "INSERT INTO entity_tags (entity_id, tag_id, source) VALUES (%s, %s, 'USER_GENERATED')", (entity, tag)
    )


def _add(cursor: Cursor, name: str) -> int:
    (entity,) = _ids(cursor, ENTITY, name, name)
    _note(cursor, entity, f"{name} 会议 invoice")
    _tag(cursor, entity, "work")
    _tag(cursor, entity, f"tag of {name}")
    cursor.execute("INSERT INTO entity_plugin_status (entity_id, plugin_id) SELECT %s, min(id) FROM plugins", (entity,))
    cursor.execute(VECTOR, (entity, _vector(entity), f"a name of {entity} longer than twelve bytes"))
    _index(cursor, entity)
    return entity


def _vector(seed: int) -> str:
    return str([(seed * 7 + place * 3) % 11 / 8 for place in range(8)])


def _delete(cursor: Cursor, entity: int) -> None:
    for table in ("entity_tags", "metadata_entries", "entity_plugin_status"):
        cursor.execute(f"DELETE FROM {table} WHERE entity_id = %s", (entity,))
    cursor.execute("DELETE FROM entities_fts WHERE id = %s", (entity,))
    cursor.execute("DELETE FROM entities_vec_v2 WHERE rowid = %s", (entity,))
    cursor.execute("DELETE FROM entities WHERE id = %s", (entity,))


def _change(cursor: Cursor, entity: int, value: str) -> None:
    cursor.execute("UPDATE entities SET size = size + 1, updated_at = now() WHERE id = %s", (entity,))
    cursor.execute(
        "UPDATE metadata_entries SET value = %s WHERE id = (SELECT max(id) FROM metadata_entries WHERE entity_id = %s)",
        (value, entity),
    )
    _index(cursor, entity)


def _retag(cursor: Cursor, entity: int, name: str) -> None:
    cursor.execute("DELETE FROM entity_tags WHERE entity_id = %s", (entity,))
    _tag(cursor, entity, name)
    _index(cursor, entity)


def _embed(cursor: Cursor, entity: int, seed: int) -> None:
    cursor.execute("DELETE FROM entities_vec_v2 WHERE rowid = %s", (entity,))
    cursor.execute(VECTOR, (entity, _vector(seed), "Code"))


def serve(dsn: str) -> None:
    """Rows come, change and go in all tables."""
    with closing(psycopg2.connect(dsn)) as connection, connection, connection.cursor() as cursor:
        old = _ids(cursor, "SELECT id FROM entities ORDER BY id")
        _add(cursor, "first")
        _add(cursor, "second")
        _change(cursor, old[0], "changed 更改")
        _change(cursor, old[1], "changed, too")
        _delete(cursor, old[2])
        _retag(cursor, old[3], "私人")
        _embed(cursor, old[4], 5)


def serve_on(dsn: str) -> None:
    """The same rows change once more, or go, those that came last included; others come."""
    with closing(psycopg2.connect(dsn)) as connection, connection, connection.cursor() as cursor:
        old = _ids(cursor, "SELECT id FROM entities WHERE filepath NOT LIKE '/new/%%' ORDER BY id")
        first, second = _ids(cursor, "SELECT id FROM entities WHERE filepath LIKE '/new/%%' ORDER BY id")
        _delete(cursor, first)
        _change(cursor, second, "changed after it was carried")
        _retag(cursor, second, "travel")
        _change(cursor, old[0], "changed twice")
        _delete(cursor, old[1])
        _retag(cursor, old[2], "work")
        _embed(cursor, old[3], 6)
        _add(cursor, "third")


def go_on_sqlite(database: Path) -> None:
    """New rows with ids that PostgreSQL has given, too; one row that both sides have changed; one tag of both."""
    with closing(sqlite3.connect(database)) as connection:
        connection.execute(
            "INSERT INTO entities (filepath, filename, size, file_created_at, file_last_modified_at, file_type,"
            " file_type_group, library_id, folder_id) SELECT '/on/sqlite', 'sqlite', 1, '2025-07-02 08:09:10.000000',"
            " '2025-07-02 08:09:10.500000', 'webp', 'image', library_id, id FROM folders LIMIT 1"
        )
        connection.execute(
            "INSERT INTO metadata_entries (entity_id, key, value, source_type, source, data_type)"
            " SELECT max(id), 'note', 'on SQLite', 'USER_GENERATED', 'me', 'TEXT_DATA' FROM entities"
        )
        connection.execute("INSERT INTO tags (name) VALUES ('work again')")
        connection.execute("UPDATE entities SET size = 77 WHERE id = (SELECT min(id) FROM entities)")
        connection.commit()


def go_on_carried(database: Path) -> None:
    """What was carried into SQLite is changed there, and goes."""
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("UPDATE entities SET size = 88 WHERE filepath = '/new/first'")
        connection.execute(
            "DELETE FROM metadata_entries WHERE entity_id = (SELECT id FROM entities WHERE filepath = '/new/second')"
        )
        connection.execute(
            "UPDATE metadata_entries SET value = 'SQLite''s' WHERE id = (SELECT max(id) FROM metadata_entries)"
        )
        connection.commit()
