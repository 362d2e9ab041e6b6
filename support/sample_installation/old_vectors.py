"""Leave the vector table of Pensieve before 0.24 in a SQLite database, as later versions do: old_vectors.py ROW…

Runs with Pensieve's interpreter, on the database of its settings. Makes the table unless it is there.
"""

from __future__ import annotations

import sys

import numpy
from memos.config import settings
from memos.databases.initializers import create_db_initializer


def add_old_vectors(rows: list[int]) -> None:
    """Give the table rows with these ids and random vectors."""
    engine, _initializer = create_db_initializer(settings)
    connection = engine.raw_connection().driver_connection
    size = settings.embedding.num_dim
    connection.execute(f"CREATE VIRTUAL TABLE IF NOT EXISTS entities_vec USING vec0(embedding float[{size}])")
    vectors = numpy.random.default_rng(rows[0]).standard_normal((len(rows), size), dtype=numpy.float32)
    connection.executemany(
        "INSERT INTO entities_vec (rowid, embedding) VALUES (?, ?)",
        [(row, vector.tobytes()) for row, vector in zip(rows, vectors)],
    )
    connection.commit()
    connection.close()


if __name__ == "__main__":
    add_old_vectors([int(row) for row in sys.argv[1:]])
