"""Leave the vector table of Pensieve before 0.24 in a database, as later versions do: old_vectors.py ROW…

Runs in Pensieve's interpreter. Makes the table unless it is there, and gives it rows with these ids.
"""

from __future__ import annotations

import sys

import numpy
from memos.config import settings
from memos.databases.initializers import create_db_initializer


def main(rows: list[int]) -> None:
    """Write, and move the write-ahead log into the file."""
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
    main([int(row) for row in sys.argv[1:]])
