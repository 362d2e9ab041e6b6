"""Values of SQLite as fields of PostgreSQL's binary COPY, one codec per target type.

A codec has three pure functions, which agree:

    cell(value)    the value as this type holds it, or the Problem that it has
    encode(value)  the bytes of a field, without its length, for a value that ``cell`` gave
    bulk(values)   all fields of a column of a batch at once, or None if any of its values has a Problem

Census and copy both ask a codec, so that they cannot disagree. Formats: the ``*_recv`` functions of
PostgreSQL; all integers are big-endian; timestamps are int64 microseconds since 2000-01-01.
"""

from __future__ import annotations

import math
import re
import struct
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from itertools import chain
from typing import Any, NamedTuple, Union

import numpy as np
import numpy.typing as npt

Bytes2D = npt.NDArray[np.uint8]
Int32s = npt.NDArray[np.int32]

_EPOCH = datetime(2000, 1, 1)
_MICROSECOND = timedelta(microseconds=1)


class InvalidText(bytes):
    """Bytes that SQLite stores as TEXT and that are not UTF-8."""


@dataclass(frozen=True)
class Problem:
    """Why a value cannot go over as it is. ``coerced`` is the value of a defensible conversion, if there is one."""

    kind: str
    reason: str
    coerced: Any = None


class Fixed(NamedTuple):
    """A column whose fields all have one width: (rows, 4 + width) bytes, lengths included."""

    fields: Bytes2D


class Variable(NamedTuple):
    """A column of payloads and their lengths (int32, -1 is NULL, whose payload is empty)."""

    payloads: list[bytes]
    lengths: Int32s


Encoded = Union[Fixed, Variable]


def has_null(column: Encoded) -> bool:
    """Tell whether an encoded column holds a NULL."""
    return isinstance(column, Variable) and len(column.lengths) > 0 and int(column.lengths.min()) < 0


def longer_than(column: Encoded, limit: int) -> list[int]:
    """Give the rows whose payload has more than ``limit`` bytes."""
    if isinstance(column, Fixed):
        return list(range(len(column.fields))) if column.fields.shape[1] - 4 > limit else []
    rows: list[int] = np.flatnonzero(column.lengths > limit).tolist()
    return rows


def take(column: Encoded, rows: npt.NDArray[np.intp]) -> Encoded:
    """Keep only some rows of an encoded column."""
    if isinstance(column, Fixed):
        return Fixed(column.fields[rows])
    return Variable([column.payloads[row] for row in rows.tolist()], column.lengths[rows])


def to_copy_rows(columns: Sequence[Encoded], rows: int) -> bytes:
    """Join encoded columns into rows of binary COPY (each: int16 field count, then the fields)."""
    pieces: list[list[bytes]] = []
    fixed: list[Bytes2D] = [np.tile(np.frombuffer(struct.pack(">h", len(columns)), np.uint8), (rows, 1))]
    for column in columns:
        if isinstance(column, Fixed):
            fixed.append(column.fields)
            continue
        fixed.append(column.lengths.astype(">i4").view(np.uint8).reshape(rows, 4))
        pieces.append(_rows_of(fixed))
        pieces.append(column.payloads)
        fixed = []
    if fixed:
        pieces.append(_rows_of(fixed))
    return b"".join(chain.from_iterable(zip(*pieces)))


def _rows_of(parts: list[Bytes2D]) -> list[bytes]:
    joined = np.ascontiguousarray(np.concatenate(parts, axis=1) if len(parts) > 1 else parts[0])
    rows: list[bytes] = joined.view(f"V{joined.shape[1]}").ravel().tolist()
    return rows


def _variable(payloads: list[bytes]) -> Variable:
    return Variable(payloads, np.fromiter(map(len, payloads), np.int32, len(payloads)))


def storage_class(value: object) -> str:
    """Name the storage class that SQLite's typeof() would give."""
    if value is None:
        return "null"
    if isinstance(value, (bool, int, np.integer)):
        return "integer"
    if isinstance(value, (float, np.floating)):
        return "real"
    return "text" if isinstance(value, (str, InvalidText)) else "blob"


class Codec(ABC):
    """One target type. ``name`` is as PostgreSQL's format_type() writes it."""

    name: str

    @abstractmethod
    def cell(self, value: Any) -> Any:
        """Give the value as this type holds it, or a Problem. ``value`` is not NULL."""

    @abstractmethod
    def encode(self, value: Any) -> bytes:
        """Give the payload of a field for a value that ``cell`` has given."""

    def bulk(self, values: Sequence[Any]) -> Encoded | None:
        """Encode a whole column without NULLs, or give None when any value has a Problem."""
        payloads = []
        for value in values:
            canonical = None if value is None else self.cell(value)
            if canonical is None or isinstance(canonical, Problem):
                return None
            payloads.append(self.encode(canonical))
        return _variable(payloads)

    def column(self, values: Sequence[Any]) -> Encoded | None:
        """Encode a whole column, NULLs included, or give None when any value has a Problem."""
        whole = self.bulk(values)
        if whole is not None or isinstance(values, np.ndarray) or None not in values:
            return whole
        present = [value for value in values if value is not None]
        encoded = self.bulk(present) if present else _variable([])
        if encoded is None:
            return None
        if isinstance(encoded, Fixed):
            width = encoded.fields.shape[1]
            payloads = iter(np.ascontiguousarray(encoded.fields[:, 4:]).view(f"V{width - 4}").ravel().tolist())
        else:
            payloads = iter(encoded.payloads)
        lengths = np.fromiter((-1 if value is None else 0 for value in values), np.int32, len(values))
        lengths[lengths == 0] = encoded.fields.shape[1] - 4 if isinstance(encoded, Fixed) else encoded.lengths
        return Variable([b"" if value is None else next(payloads) for value in values], lengths)

    def from_canonical(self, values: Sequence[Any]) -> Variable:
        """Encode values that ``cell`` has given, NULLs included."""
        payloads = [b"" if value is None else self.encode(value) for value in values]
        lengths = np.fromiter((-1 if v is None else len(p) for v, p in zip(values, payloads)), np.int32, len(values))
        return Variable(payloads, lengths)


def _with_length(width: int, payload: Bytes2D) -> Fixed:
    """Put the length in front of every payload of a column of one width."""
    fields = np.empty((payload.shape[0], 4 + width), np.uint8)
    fields[:, :4] = np.frombuffer(struct.pack(">i", width), np.uint8)
    fields[:, 4:] = payload
    return Fixed(fields)


_INTEGER_TEXT = re.compile(r"[+-]?[0-9]{1,19}", re.ASCII)


class Integer(Codec):
    """smallint, integer and bigint."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.name = {2: "smallint", 4: "integer", 8: "bigint"}[width]
        self.least, self.most = -(1 << (8 * width - 1)), (1 << (8 * width - 1)) - 1

    def cell(self, value: Any) -> Any:
        if isinstance(value, (int, np.integer)):
            if self.least <= value <= self.most:
                return int(value)
            return Problem("integer_out_of_range", f"{value} does not fit into {self.name}")
        coerced: int | None = None
        if isinstance(value, float) and value.is_integer() or isinstance(value, str) and _INTEGER_TEXT.fullmatch(value):
            coerced = int(value)
        if coerced is not None and not self.least <= coerced <= self.most:
            coerced = None
        return Problem("not_an_integer", f"{storage_class(value)} in a column of type {self.name}", coerced)

    def encode(self, value: Any) -> bytes:
        return int(value).to_bytes(self.width, "big", signed=True)

    def bulk(self, values: Sequence[Any]) -> Encoded | None:
        if isinstance(values, np.ndarray):
            if values.dtype.kind != "i":
                return None
            numbers = values.astype(np.int64, copy=False)
        elif set(map(type, values)) == {int}:
            numbers = np.array(values, np.int64)
        else:
            return None
        if not len(numbers) or numbers.min() < self.least or numbers.max() > self.most:
            return None
        raw = numbers.astype(f">i{self.width}").view(np.uint8).reshape(len(numbers), self.width)
        return _with_length(self.width, raw)


class Boolean(Codec):
    """boolean; SQLite knows 0 and 1."""

    name = "boolean"

    def cell(self, value: Any) -> Any:
        if isinstance(value, (int, np.integer)) and value in (0, 1):
            return bool(value)
        if isinstance(value, (int, np.integer)):
            return Problem("integer_out_of_range", f"{value} is neither 0 nor 1, in a column of type boolean")
        truth = {"true": True, "false": False}.get(value.lower()) if isinstance(value, str) else None
        return Problem("not_an_integer", f"{storage_class(value)} in a column of type boolean", truth)

    def encode(self, value: Any) -> bytes:
        return b"\x01" if value else b"\x00"


class Double(Codec):
    """double precision, bit for bit; an integer of SQLite only if a double holds it exactly."""

    name = "double precision"

    def cell(self, value: Any) -> Any:
        if isinstance(value, float):
            return value
        if isinstance(value, (int, np.integer)):
            number = int(value)
            if int(float(number)) == number:
                return float(number)
            return Problem("integer_out_of_range", f"{number} is not exact as double precision")
        return Problem("not_an_integer", f"{storage_class(value)} in a column of type double precision")

    def encode(self, value: Any) -> bytes:
        return struct.pack(">d", value)

    def bulk(self, values: Sequence[Any]) -> Encoded | None:
        if not len(values) or set(map(type, values)) != {float}:
            return super().bulk(values)
        raw = np.array(values, ">f8").view(np.uint8).reshape(len(values), 8)
        return _with_length(8, raw)


class Text(Codec):
    """text, varchar and varchar(n), untouched.

    ``longest`` is the n of varchar(n), in characters. ``index_limit`` is the most bytes that a value may have
    when a btree index holds it.
    """

    def __init__(self, longest: int | None = None, index_limit: int | None = None) -> None:
        self.longest, self.index_limit = longest, index_limit
        self.name = "text" if longest is None else f"character varying({longest})"

    def cell(self, value: Any) -> Any:
        if isinstance(value, InvalidText):
            readable = value.decode("utf-8", "replace").replace("\0", "\u2400")
            return Problem("invalid_utf8", "text that is not UTF-8", self._fitting(readable))
        if isinstance(value, bytes):
            return Problem("blob_in_text", "blob in a text column", self._fitting(_decoded(value)))
        if not isinstance(value, str):
            reason = f"{storage_class(value)} in a column of type {self.name}"
            return Problem("blob_in_text", reason, self._fitting(str(value)))
        if "\0" in value:
            reason = "text with a NUL character"
            return Problem("nul_character", reason, self._fitting(value.replace("\0", "\u2400")))
        if self.longest is not None and len(value) > self.longest:
            reason = f"{len(value)} characters in a column of type {self.name}"
            return Problem("too_long", reason, self._fitting(value[: self.longest]))
        if self.index_limit is not None and len(value) > self.index_limit // 4:
            size = len(value.encode())
            if size > self.index_limit:
                return Problem("index_row_too_large", f"{size} bytes; an index holds at most {self.index_limit}")
        return value

    def _fitting(self, text: str | None) -> str | None:
        """Give a text that this type holds as it is, or None."""
        return None if text is None or isinstance(self.cell(text), Problem) else text

    def encode(self, value: Any) -> bytes:
        return str(value).encode()

    def bulk(self, values: Sequence[Any]) -> Encoded | None:
        if set(map(type, values)) != {str}:
            return None
        payloads = list(map(str.encode, values))
        if b"".join(payloads).find(b"\0") >= 0:
            return None
        encoded = _variable(payloads)
        most = int(encoded.lengths.max())
        if self.index_limit is not None and most > self.index_limit:
            return None
        if self.longest is not None and most > self.longest and max(map(len, values)) > self.longest:
            return None
        return encoded


def _decoded(value: bytes) -> str | None:
    """Read bytes as UTF-8 text that PostgreSQL holds, or give None."""
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text


class Enum(Codec):
    """A native enum, by label. ``synonyms`` are labels that other programs write, and what they mean."""

    def __init__(self, name: str, labels: Sequence[str], synonyms: dict[str, str] | None = None) -> None:
        self.name, self.labels = name, frozenset(labels)
        self._synonyms = {label.lower(): label for label in labels}
        self._synonyms.update({key: label for key, label in (synonyms or {}).items() if label in self.labels})
        self._payloads = {label: label.encode() for label in labels}

    def cell(self, value: Any) -> Any:
        if isinstance(value, str):
            if value in self.labels:
                return value
            coerced = self._synonyms.get(value.lower())
        else:
            coerced = None
        return Problem("unknown_enum_label", f"not a label of {self.name}", coerced)

    def encode(self, value: Any) -> bytes:
        return self._payloads[value]

    def bulk(self, values: Sequence[Any]) -> Encoded | None:
        try:
            return _variable([self._payloads[value] for value in values])
        except (KeyError, TypeError):
            return None


_TIMESTAMP = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})"
    r"(?:[ T]([0-9]{2}):([0-9]{2})(?::([0-9]{2})(?:\.([0-9]{1,12}))?)?)?"
    r"(Z|[+-][0-9]{2}:?[0-9]{2})?",
    re.ASCII,
)
_DAYS_IN_MONTH = np.array([0, 31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31], np.int64)
_DAYS_BEFORE_2000 = 730425  # of 2000-01-01, counted from 0000-03-01
_SEPARATORS = ((4, b"-"), (7, b"-"), (13, b":"), (16, b":"), (19, b"."))
_DIGITS = [i for i in range(26) if i not in (4, 7, 10, 13, 16, 19)]


class Timestamp(Codec):
    """timestamp without time zone; Pensieve writes UTC as text, PostgreSQL gets the microseconds."""

    name = "timestamp without time zone"

    def cell(self, value: Any) -> Any:
        """Give microseconds since 2000-01-01, or a Problem."""
        if isinstance(value, str):
            return self._text(value)
        coerced = _epoch(value) if isinstance(value, (int, float)) else None
        return Problem("unreadable_timestamp", f"{storage_class(value)} in a timestamp column", coerced)

    @staticmethod
    def _text(value: str) -> Any:
        match = _TIMESTAMP.fullmatch(value)
        if match is None:
            return Problem("unreadable_timestamp", "text that is no timestamp", None)
        year, month, day, hour, minute, second = (int(part or 0) for part in match.groups()[:6])
        fraction, offset = match.group(7) or "", match.group(8)
        if offset and match.group(4) is None:
            return Problem("unreadable_timestamp", "a date with an offset", None)
        try:
            moment = datetime(year, month, day, hour, minute, second, int(fraction[:6].ljust(6, "0")))
            shift = timedelta(0) if offset in (None, "Z") else _offset(offset)
        except ValueError as error:
            return Problem("unreadable_timestamp", str(error), None)
        micros = (moment - _EPOCH) // _MICROSECOND
        if shift:
            return Problem("lossy_timestamp", f"offset {offset} would be dropped", micros - shift // _MICROSECOND)
        if fraction[6:].strip("0"):
            return Problem("lossy_timestamp", "finer than microseconds", micros)
        return micros

    def encode(self, value: Any) -> bytes:
        return int(value).to_bytes(8, "big", signed=True)

    def bulk(self, values: Sequence[Any]) -> Encoded | None:
        if set(map(type, values)) != {str}:
            return None
        lengths = set(map(len, values))
        if lengths == {19}:
            joined = ".000000".join(values) + ".000000"
        elif lengths == {26}:
            joined = "".join(values)
        elif lengths == {19, 26}:
            joined = "".join(value if len(value) == 26 else value + ".000000" for value in values)
        else:
            return super().bulk(values)
        try:
            text = np.frombuffer(joined.encode("ascii"), np.uint8).reshape(len(values), 26)
        except UnicodeEncodeError:
            return None
        micros = _micros(text)
        if micros is None:
            return super().bulk(values)
        return _with_length(8, micros.astype(">i8").view(np.uint8).reshape(len(values), 8))


def _micros(text: Bytes2D) -> npt.NDArray[np.int64] | None:
    """Read rows of ``YYYY-MM-DD HH:MM:SS.ffffff`` (n, 26); None if any row is not exactly that."""
    if any((text[:, at] != mark[0]).any() for at, mark in _SEPARATORS):
        return None
    if not ((text[:, 10] == ord(" ")) | (text[:, 10] == ord("T"))).all():
        return None
    if ((text[:, _DIGITS] - np.uint8(48)) > 9).any():
        return None
    digits = text.astype(np.int64) - 48

    def number(start: int, stop: int) -> npt.NDArray[np.int64]:
        value = digits[:, start]
        for at in range(start + 1, stop):
            value = value * 10 + digits[:, at]
        return value

    year, month, day = number(0, 4), number(5, 7), number(8, 10)
    hour, minute, second = number(11, 13), number(14, 16), number(17, 19)
    if (year < 1).any() or (month < 1).any() or (month > 12).any() or (day < 1).any():
        return None
    leap = (year % 4 == 0) & ((year % 100 != 0) | (year % 400 == 0))
    if (day > _DAYS_IN_MONTH[month] - ((month == 2) & ~leap)).any():
        return None
    if (hour > 23).any() or (minute > 59).any() or (second > 59).any():
        return None
    # Civil days with March as the first month, so that the leap day is the last of its year.
    shifted = year - (month <= 2)
    day_of_year = (153 * ((month + 9) % 12) + 2) // 5 + day - 1
    days = 365 * shifted + shifted // 4 - shifted // 100 + shifted // 400 + day_of_year - _DAYS_BEFORE_2000
    seconds = ((days * 24 + hour) * 60 + minute) * 60 + second
    return seconds * 1_000_000 + number(20, 26)


def _offset(text: str) -> timedelta:
    hours, minutes = int(text[1:3]), int(text[-2:])
    if hours > 15 or minutes > 59:
        raise ValueError(f"offset {text} does not exist")
    shift = timedelta(hours=hours, minutes=minutes)
    return -shift if text[0] == "-" else shift


def _epoch(value: float) -> int | None:
    """Read a number as the moment it most plainly means: seconds, milliseconds or microseconds since 1970
    within 2001 … 2100, or a date written YYYYMMDD. Microseconds since 2000-01-01, or None.
    """
    if not math.isfinite(value):
        return None
    if float(value).is_integer() and 19700101 <= value <= 21001231:
        try:
            moment = datetime.strptime(str(int(value)), "%Y%m%d")
        except ValueError:
            return None
        return (moment - _EPOCH) // _MICROSECOND
    for unit in (1, 1_000, 1_000_000):
        if 978_307_200 * unit <= value <= 4_133_980_800 * unit:
            micros = value * (1_000_000 // unit) if isinstance(value, int) else round(value * (1_000_000 / unit))
            start = datetime(1970, 1, 1, tzinfo=timezone.utc).replace(tzinfo=None)
            return int(micros) + (start - _EPOCH) // _MICROSECOND
    return None


class Bytea(Codec):
    """bytea; a text of SQLite is no blob, and says so."""

    name = "bytea"

    def cell(self, value: Any) -> Any:
        if isinstance(value, bytes) and not isinstance(value, InvalidText):
            return value
        coerced = value.encode() if isinstance(value, str) else None
        return Problem("blob_in_text", f"{storage_class(value)} in a column of type bytea", coerced)

    def encode(self, value: Any) -> bytes:
        return bytes(value)


class Vector(Codec):
    """pgvector's vector(n): int16 dimensions, int16 zero, n float4. The source is little-endian float32."""

    def __init__(self, dimensions: int) -> None:
        self.dimensions = dimensions
        self.name = f"vector({dimensions})"
        self._head = np.frombuffer(struct.pack(">ihh", 4 + 4 * dimensions, dimensions, 0), np.uint8)

    def cell(self, value: Any) -> Any:
        raw = value.tobytes() if isinstance(value, np.ndarray) else value
        if not isinstance(raw, bytes):
            return Problem("vector_length", f"{storage_class(value)} in a column of type {self.name}")
        if len(raw) != 4 * self.dimensions:
            return Problem("vector_length", f"{len(raw)} bytes; {self.name} has {4 * self.dimensions}")
        numbers = np.frombuffer(raw, "<f4")
        if not np.isfinite(numbers).all():
            return Problem("vector_not_finite", "a vector with NaN or infinity")
        return numbers

    def encode(self, value: Any) -> bytes:
        return bytes(self._head[4:]) + bytes(value.astype(">f4"))

    def bulk(self, values: Sequence[Any]) -> Encoded | None:
        if not isinstance(values, np.ndarray) or not len(values):
            return super().bulk(values)
        if values.shape[1] != self.dimensions or not np.isfinite(values).all():
            return None
        fields = np.empty((len(values), 8 + 4 * self.dimensions), np.uint8)
        fields[:, :8] = self._head
        fields[:, 8:] = values.astype(">f4").view(np.uint8).reshape(len(values), -1)
        return Fixed(fields)


def quarantine_form(value: Any) -> tuple[str, bytes]:
    """Give storage class and exact bytes of a cell: text and blob as stored, integer and real in ASCII.

    A real is written by ``float.hex`` so that every bit comes back; NULL is empty.
    """
    if isinstance(value, np.ndarray):
        return "blob", value.tobytes()
    kind = storage_class(value)
    if value is None:
        return kind, b""
    if kind == "integer":
        return kind, str(int(value)).encode()
    if kind == "real":
        return kind, float(value).hex().encode()
    return kind, value.encode() if isinstance(value, str) else bytes(value)
