"""Values of the target as Pensieve itself writes them on SQLite, and whether a cell there gives one already."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

import numpy as np

from .convert import Boolean, Bytea, Codec, Enum, Problem, Timestamp, Vector
from .source import quoted

_EPOCH = datetime(2000, 1, 1)
_EPOCH_SECONDS = 946_684_800  # of 2000-01-01, since 1970


def selected(name: str, codec: Codec) -> str:
    """SQL for one column of the target, whose table is ``t``, so that psycopg2 gives what ``held`` reads."""
    column = f"t.{quoted(name)}"
    if isinstance(codec, Timestamp):
        return f"((extract(epoch FROM {column}) - {_EPOCH_SECONDS}) * 1000000)::bigint"
    if isinstance(codec, Enum):
        return f"{column}::text"
    return f"vector_send({column})" if isinstance(codec, Vector) else column


def held(codec: Codec, value: Any) -> Any:
    """A value of the target in the form that the codec's ``cell`` gives for one of SQLite; vectors as their bytes."""
    if value is None:
        return None
    if isinstance(codec, Vector):
        return np.frombuffer(bytes(value)[4:], ">f4").astype("<f4").tobytes()
    return bytes(value) if isinstance(codec, Bytea) else value


def written(codec: Codec, value: Any, whole_seconds: bool) -> Any:
    """What Pensieve writes on SQLite for a value that ``held`` gives.

    ``whole_seconds``: the column's default is CURRENT_TIMESTAMP, whose text has no fraction; other timestamps are
    written by SQLAlchemy, always with six digits.
    """
    if value is None:
        return None
    if isinstance(codec, Timestamp):
        moment = _EPOCH + timedelta(microseconds=value)
        bare = whole_seconds and not moment.microsecond
        return moment.isoformat(" ", "seconds" if bare else "microseconds")
    return int(value) if isinstance(codec, Boolean) else value


def stands_for(codec: Codec, cell: Any, value: Any, actions: Iterable[str], old_label: Any) -> bool:
    """Whether a cell of SQLite, copied as it was at the cutover, gives this value of the target.

    ``actions``: those of its records in quarantine. ``old_label``: the label beside it, which the copy puts into a cell
    that holds NULL.
    """
    if cell is None:
        return value is None or ("coerce" in actions and value == old_label)
    found = codec.cell(cell)
    if isinstance(found, Problem):
        if value is None:
            return "quarantine" in actions
        found = found.coerced
    if isinstance(found, np.ndarray):
        found = found.tobytes()
    if found is None or value is None:
        return False
    if isinstance(found, float) and isinstance(value, float):
        return found.hex() == value.hex()
    return bool(found == value)
