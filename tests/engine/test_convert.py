"""Converters: what each type takes, what it says of the rest, and that the fast way equals the exact way."""

from __future__ import annotations

import math
import struct
from datetime import datetime
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlite_to_postgresql.convert import (
    Boolean,
    Bytea,
    Codec,
    Double,
    Encoded,
    Enum,
    Fixed,
    Integer,
    InvalidText,
    Problem,
    Text,
    Timestamp,
    Vector,
    quarantine_form,
    take,
    to_copy_rows,
)
from sqlite_to_postgresql.rows import excerpt
from sqlite_to_postgresql.target import SYNONYMS

SOURCE = Enum("metadatasource", ["USER_GENERATED", "SYSTEM_GENERATED", "PLUGIN_GENERATED"], SYNONYMS["metadatasource"])
CODECS: list[Codec] = [
    Integer(2),
    Integer(4),
    Integer(8),
    Boolean(),
    Double(),
    Text(),
    Text(longest=5),
    Text(index_limit=20),
    SOURCE,
    Timestamp(),
    Bytea(),
    Vector(2),
]

VALUES = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**63 - 1),
    st.sampled_from([0, 1, 2**31 - 1, 2**31, -(2**31), 1751328000, 20250701]),
    st.floats(),
    st.text(),
    st.binary(),
    st.binary().map(InvalidText),
    st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31)).map(lambda moment: moment.isoformat(" ")),
    st.sampled_from(["2025-07-01", "2025-07-01T10:00:00Z", "PLUGIN_GENERATED", "ai", "now", "\0", "true", "1"]),
)


def micros(text: str) -> int:
    moment = datetime.fromisoformat(text) - datetime(2000, 1, 1)
    return (moment.days * 86400 + moment.seconds) * 10**6 + moment.microseconds


def fields(encoded: Encoded) -> list[bytes | None]:
    """Payloads of a column, None for NULL."""
    if isinstance(encoded, Fixed):
        assert all(struct.unpack(">i", field[:4].tobytes()) == (len(field) - 4,) for field in encoded.fields)
        return [field[4:].tobytes() for field in encoded.fields]
    for payload, length in zip(encoded.payloads, encoded.lengths.tolist(), strict=True):
        assert length == (len(payload) if length >= 0 else -1)
    return [None if n < 0 else payload for payload, n in zip(encoded.payloads, encoded.lengths.tolist(), strict=True)]


@given(st.sampled_from(CODECS), st.lists(VALUES, min_size=1, max_size=8))
def test_column_equals_cell_by_cell(codec: Codec, values: list[Any]) -> None:
    """The fast way gives the very bytes of the exact way, or nothing when a cell has a problem."""
    cells = [None if value is None else codec.cell(value) for value in values]
    encoded = codec.column(values)
    if any(isinstance(cell, Problem) for cell in cells):
        assert encoded is None
    else:
        assert encoded is not None
        assert fields(encoded) == [None if cell is None else codec.encode(cell) for cell in cells]
        assert fields(codec.from_canonical(cells)) == fields(encoded)


@given(st.sampled_from(CODECS), VALUES.filter(lambda value: value is not None))
def test_a_coerced_value_is_one_that_the_type_holds(codec: Codec, value: Any) -> None:
    outcome = codec.cell(value)
    if isinstance(outcome, Problem) and outcome.coerced is not None:
        assert isinstance(codec.encode(outcome.coerced), bytes)
        if isinstance(codec, (Text, Enum, Integer)):
            follow_up = codec.cell(outcome.coerced)
            assert not isinstance(follow_up, Problem), follow_up
            assert follow_up == outcome.coerced


@given(st.lists(st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31)), min_size=1))
def test_timestamps_by_columns(moments: list[datetime]) -> None:
    texts = [moment.strftime("%Y-%m-%d %H:%M:%S.%f").zfill(26) for moment in moments]
    encoded = Timestamp().column(texts)
    assert encoded is not None
    expected = [micros(moment.isoformat()).to_bytes(8, "big", signed=True) for moment in moments]
    assert fields(encoded) == expected


@pytest.mark.parametrize(
    ("text", "same_as"),
    [
        ("2025-07-01 10:11:12", "2025-07-01 10:11:12"),
        ("2025-07-01 10:11:12.123456", "2025-07-01 10:11:12.123456"),
        ("2025-07-01 10:11:12.5", "2025-07-01 10:11:12.500000"),
        ("2025-07-01T10:11:12", "2025-07-01 10:11:12"),
        ("2025-07-01T10:11:12Z", "2025-07-01 10:11:12"),
        ("2025-07-01T10:11:12+00:00", "2025-07-01 10:11:12"),
        ("2025-07-01 10:11:12.123456000", "2025-07-01 10:11:12.123456"),
        ("2025-07-01 10:11", "2025-07-01 10:11:00"),
        ("2025-07-01", "2025-07-01 00:00:00"),
        ("2024-02-29 00:00:00", "2024-02-29 00:00:00"),
        ("0001-01-01 00:00:00", "0001-01-01 00:00:00"),
        ("1900-03-01 00:00:00", "1900-03-01 00:00:00"),
        ("9999-12-31 23:59:59.999999", "9999-12-31 23:59:59.999999"),
    ],
)
def test_timestamps_that_go_over(text: str, same_as: str) -> None:
    assert Timestamp().cell(text) == micros(same_as)


@pytest.mark.parametrize(
    ("value", "kind", "coerced"),
    [
        ("2025-07-01 12:00:00+02:00", "lossy_timestamp", "2025-07-01 10:00:00"),
        ("2025-07-01 12:00:00-0530", "lossy_timestamp", "2025-07-01 17:30:00"),
        ("2025-07-01 12:00:00.123456789", "lossy_timestamp", "2025-07-01 12:00:00.123456"),
        (1751364000, "unreadable_timestamp", "2025-07-01 10:00:00"),
        (1751364000123, "unreadable_timestamp", "2025-07-01 10:00:00.123000"),
        (1751364000.25, "unreadable_timestamp", "2025-07-01 10:00:00.250000"),
        (20250701, "unreadable_timestamp", "2025-07-01 00:00:00"),
        (20250732, "unreadable_timestamp", None),
        (math.nan, "unreadable_timestamp", None),
        (-1, "unreadable_timestamp", None),
        ("", "unreadable_timestamp", None),
        ("now", "unreadable_timestamp", None),
        ("yesterday", "unreadable_timestamp", None),
        ("01/07/2025", "unreadable_timestamp", None),
        ("0000-00-00 00:00:00", "unreadable_timestamp", None),
        ("2025-02-29 00:00:00", "unreadable_timestamp", None),
        ("2025-07-01 24:00:00", "unreadable_timestamp", None),
        ("2025-07-01 10:00:60", "unreadable_timestamp", None),
        ("2025-07-01 12:00:00+99:00", "unreadable_timestamp", None),
        ("\uff12\uff10\uff12\uff15-07-01", "unreadable_timestamp", None),
        (b"2025-07-01", "unreadable_timestamp", None),
    ],
)
def test_timestamps_that_do_not(value: Any, kind: str, coerced: str | None) -> None:
    problem = Timestamp().cell(value)
    assert isinstance(problem, Problem)
    assert problem.kind == kind
    assert problem.coerced == (None if coerced is None else micros(coerced))


@pytest.mark.parametrize(
    ("codec", "value", "kind", "coerced"),
    [
        (Integer(4), 2**31, "integer_out_of_range", None),
        (Integer(8), "abc", "not_an_integer", None),
        (Integer(4), "", "not_an_integer", None),
        (Integer(4), "17", "not_an_integer", 17),
        (Integer(4), str(2**40), "not_an_integer", None),
        (Integer(4), 1.5, "not_an_integer", None),
        (Integer(4), 2.0, "not_an_integer", 2),
        (Integer(4), math.inf, "not_an_integer", None),
        (Boolean(), 2, "integer_out_of_range", None),
        (Boolean(), "TRUE", "not_an_integer", True),
        (Double(), 2**53 + 1, "integer_out_of_range", None),
        (Text(), "a\0b", "nul_character", "a\u2400b"),
        (Text(), b"abc", "blob_in_text", "abc"),
        (Text(), b"\xff", "blob_in_text", None),
        (Text(), InvalidText(b"a\xffb"), "invalid_utf8", "a\ufffdb"),
        (Text(), InvalidText(b"\xed\xa0\x80"), "invalid_utf8", "\ufffd\ufffd\ufffd"),
        (Text(), 5, "blob_in_text", "5"),
        (Text(longest=3), "\u6570\u636e\u5e93\u8fc1", "too_long", "\u6570\u636e\u5e93"),
        (Text(index_limit=8), "\u6570\u636e\u5e93", "index_row_too_large", None),
        (SOURCE, "ai", "unknown_enum_label", "PLUGIN_GENERATED"),
        (SOURCE, "plugin_generated", "unknown_enum_label", "PLUGIN_GENERATED"),
        (SOURCE, "stranger", "unknown_enum_label", None),
        (SOURCE, 5, "unknown_enum_label", None),
        (Bytea(), "text", "blob_in_text", b"text"),
        (Vector(2), b"\0" * 12, "vector_length", None),
        (Vector(2), "text", "vector_length", None),
        (Vector(2), np.array([1, np.nan], "<f4").tobytes(), "vector_not_finite", None),
        (Vector(2), np.array([1, np.inf], "<f4").tobytes(), "vector_not_finite", None),
    ],
)
def test_problems(codec: Codec, value: Any, kind: str, coerced: Any) -> None:
    problem = codec.cell(value)
    assert isinstance(problem, Problem)
    assert (problem.kind, problem.coerced) == (kind, coerced)


def test_vectors_keep_their_bits() -> None:
    """Negative zero and the smallest number too."""
    numbers = np.array([[-0.0, 1e-45], [3.4028235e38, -1.5]], "<f4")
    encoded = Vector(2).column(numbers)  # type: ignore[arg-type]
    assert encoded is not None
    for row, payload in zip(numbers, fields(encoded), strict=True):
        assert payload == struct.pack(">hh", 2, 0) + row.astype(">f4").tobytes()
        assert payload == Vector(2).encode(Vector(2).cell(row.tobytes()))


def test_rows_of_copy() -> None:
    columns = [Integer(4).column([7, 8]), Text().column([None, "x"]), Boolean().column([1, 0])]
    rows = to_copy_rows([column for column in columns if column is not None], 2)
    first = struct.pack(">hiiiiB", 3, 4, 7, -1, 1, 1)
    second = struct.pack(">hiii", 3, 4, 8, 1) + b"x" + struct.pack(">iB", 1, 0)
    assert rows == first + second


@given(st.lists(st.one_of(st.none(), st.text(max_size=4)), min_size=1), st.data())
def test_taking_rows(values: list[Any], data: st.DataObject) -> None:
    encoded = Text().column([value if value is None else value.replace("\0", "") for value in values])
    assert encoded is not None
    rows = data.draw(st.lists(st.integers(0, len(values) - 1), unique=True).map(sorted))
    assert all(before < after for before, after in pairwise(rows))
    assert fields(take(encoded, np.array(rows, np.intp))) == [fields(encoded)[row] for row in rows]


@given(VALUES.filter(lambda value: value == value))
def test_quarantine_gives_back_what_was_there(value: Any) -> None:
    """SQLite stores no NaN: it makes NULL of it."""
    kind, original = quarantine_form(value)
    back: Any = original
    if kind == "null":
        back = None
    elif kind == "integer":
        back = int(original)
    elif kind == "real":
        back = float.fromhex(original.decode())
    elif kind == "text" and not isinstance(value, bytes):
        back = original.decode()
    assert back == value
    if isinstance(value, float):
        assert math.copysign(1, back) == math.copysign(1, value)


@given(VALUES)
def test_excerpts_are_short_and_safe(value: Any) -> None:
    shown = excerpt(value)
    assert len(shown) <= 60
    assert shown.isprintable() or not any(ord(character) < 32 for character in shown)
