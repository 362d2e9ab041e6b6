"""Values of both sides in one form, and what each coercion gives. Shares nothing with the copier's codecs."""

from __future__ import annotations

import datetime as dt
import json
import re
import struct
import sys
from array import array
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

_STAMP = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)(?:[ T](\d\d):(\d\d)(?::(\d\d)(?:\.(\d{1,12}))?)?(?P<zone>Z|[+-]\d\d:?\d\d)?)?",
    re.ASCII,
)
_EPOCH_DAY = dt.date(1970, 1, 1).toordinal()
_SECOND = 1_000_000  # microseconds
INTEGERS = frozenset({"int2", "int4", "int8"})
TEXTS = frozenset({"text", "varchar", "name", "json"})
_LABELS = {
    "user_generated": "USER_GENERATED",
    "system_generated": "SYSTEM_GENERATED",
    "plugin_generated": "PLUGIN_GENERATED",
    "json_data": "JSON_DATA",
    "text_data": "TEXT_DATA",
    "number_data": "NUMBER_DATA",
    "default": "DEFAULT",
    "dummy": "DUMMY",
    # written by AutoTaskTracker
    **dict.fromkeys(
        (
            "plugin",
            "task_processor",
            "auto_processor",
            "realtime_processor",
            "vlm_processor",
            "embedding_generator",
            "ai",
            "vlm",
        ),
        "PLUGIN_GENERATED",
    ),
    "text": "TEXT_DATA",
    "json": "JSON_DATA",
    "float": "NUMBER_DATA",
}


class Unequal:
    """What a value becomes that no target value can equal."""


_UNEQUAL = Unequal()


def read_stamp(text: str) -> tuple[int, bool] | None:
    """Microseconds since 1970 of a timestamp as text, taken as UTC, and whether the text says no more than
    that.

    Not exact: an offset other than zero (it is applied), a fraction finer than microseconds (it is cut off).
    None: no timestamp, or one that the calendar does not have.
    """
    match = _STAMP.fullmatch(text)
    if match is None:
        return None
    year, month, day, hour, minute, second = (int(match.group(group) or 0) for group in range(1, 7))
    if hour > 23 or minute > 59 or second > 59:
        return None
    try:
        days = dt.date(year, month, day).toordinal() - _EPOCH_DAY
    except ValueError:
        return None
    fraction, zone = match.group(7) or "", match.group("zone") or "Z"
    minutes = 0
    if zone != "Z":
        minutes = (int(zone[1:3]) * 60 + int(zone[-2:])) * (-1 if zone[0] == "-" else 1)
        if int(zone[1:3]) > 15 or int(zone[-2:]) > 59:
            return None
    seconds = ((days * 24 + hour) * 60 + minute - minutes) * 60 + second
    exact = minutes == 0 and not fraction[6:].strip("0")
    return seconds * _SECOND + int(fraction[:6].ljust(6, "0")), exact


def pad_stamp(value: Any) -> Any:
    """A timestamp text with all six digits of its fraction; anything else as it is."""
    if type(value) is not str or len(value) == 26:
        return value
    if len(value) == 19:
        return value + ".000000"
    return value.ljust(26, "0") if 20 < len(value) < 26 and value[19] == "." else value


def _bits(number: float) -> bytes:
    return struct.pack(">d", number)


def source_form(kind: str, value: Any) -> Any:
    """The one form of a source value for a target type (`typname` of pg_type, or 'enum'); Unequal if there
    is none.
    """
    if value is None:
        return None
    given = type(value)
    if kind in INTEGERS:
        return value if given is int else _UNEQUAL
    if kind == "bool":
        return bool(value) if given is int and value in (0, 1) else _UNEQUAL
    if kind in ("float4", "float8"):
        if given is int:
            number = float(value) if abs(value) < 2**1023 else 0.0
            return _bits(number) if int(number) == value else _UNEQUAL
        return _bits(value) if given is float else _UNEQUAL
    if kind == "numeric":
        return Decimal(value) if given is int else Decimal(repr(value)) if given is float else _UNEQUAL
    if kind in TEXTS or kind == "enum":
        return value if given is str else _UNEQUAL
    if kind in ("timestamp", "timestamptz"):
        read = read_stamp(value) if given is str else None
        return read[0] if read is not None and read[1] else _UNEQUAL
    if kind in ("bytea", "vector"):
        return value if given is bytes else _UNEQUAL
    if kind == "jsonb":
        try:
            return json.dumps(json.loads(value), sort_keys=True)
        except (ValueError, TypeError):
            return _UNEQUAL
    return value if given is str else _UNEQUAL


def target_form(kind: str, value: Any) -> Any:
    """The same form of what `target_column` asks of the server."""
    if value is None:
        return None
    if kind in ("float4", "float8"):
        return _bits(value)
    if kind == "numeric":
        try:
            return Decimal(value)
        except InvalidOperation:
            return value
    if kind == "timestamp":
        read = read_stamp(value)
        return value if read is None else read[0]
    if kind == "timestamptz":
        read = read_stamp(value.replace("+00", ""))
        return value if read is None else read[0]
    if kind == "bytea":
        return bytes(value)
    if kind == "vector":
        return little_endian(bytes(value))
    if kind == "jsonb":
        return json.dumps(json.loads(value), sort_keys=True)
    return value


def little_endian(sent: bytes) -> bytes:
    """Numbers of pgvector's binary form (int16 dimensions, int16 zero, float4 big-endian) as SQLite has
    them.
    """
    numbers = array("f")
    numbers.frombytes(sent[4:])
    if sys.byteorder == "little":
        numbers.byteswap()
    return numbers.tobytes()


def target_column(name: str, kind: str) -> str:
    """SQL for one column, so that psycopg2 gives what `target_form` reads."""
    column = quoted(name)
    if kind in INTEGERS or kind in TEXTS - {"json"} or kind in ("bool", "float8", "bytea"):
        return column
    if kind == "float4":
        return f"{column}::float8"
    return f"vector_send({column})" if kind == "vector" else f"{column}::text"


def quoted(name: str) -> str:
    """An identifier, in either SQL."""
    return '"' + name.replace('"', '""') + '"'


def coerced(kinds: Sequence[str], value: Any, type_name: str, longest: int | None) -> Any:
    """What the named conversions of a source value give, in the form of `source_form`; Unequal if they give
    nothing.

    nul_character: NUL becomes U+2400. invalid_utf8: bytes that are not UTF-8 become U+FFFD. blob_in_text:
    the bytes read as UTF-8 (as text encoded, in a bytea column); a number as Python writes it.
    not_an_integer: the integer that a real or a text stands for. unknown_enum_label: the label in other
    case, or what AutoTaskTracker means by it. unreadable_timestamp: a date written YYYYMMDD, else seconds,
    milliseconds or microseconds since 1970 that fall in 2001 … 2100. lossy_timestamp: in UTC, cut off to
    microseconds. too_long: cut off to the column's length.
    """
    try:
        for kind in kinds:
            value = _coerced_once(kind, value, type_name, longest)
    except (ValueError, TypeError, OverflowError):
        return _UNEQUAL
    if type_name in ("timestamp", "timestamptz") and type(value) is int:
        return value
    return source_form(type_name, value)


def _coerced_once(kind: str, value: Any, type_name: str, longest: int | None) -> Any:
    if kind == "nul_character":
        return value.replace("\0", "\u2400")
    if kind == "invalid_utf8":
        return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace").replace("\0", "\u2400")
    if kind == "blob_in_text":
        if type_name == "bytea":
            return value.encode()
        return value.decode() if type(value) is bytes else str(value)
    if kind == "not_an_integer":
        if type_name == "bool":
            return {"true": 1, "false": 0}[value.lower()]
        if type(value) is float:
            return int(value) if value == int(value) else _UNEQUAL
        return int(value) if re.fullmatch(r"[+-]?\d{1,19}", value, re.ASCII) else _UNEQUAL
    if kind == "unknown_enum_label":
        return _LABELS.get(value.lower(), _UNEQUAL)
    if kind == "too_long":
        return value[:longest]
    if kind == "lossy_timestamp":
        read = read_stamp(value)
        return _UNEQUAL if read is None else read[0]
    if kind == "unreadable_timestamp":
        return _UNEQUAL if type(value) is str else _epoch(value)
    return _UNEQUAL


def _epoch(value: float) -> Any:
    """Microseconds since 1970 of the moment that a number most plainly means."""
    if value == int(value) and 19_700_101 <= value <= 21_001_231:
        day = dt.datetime.strptime(str(int(value)), "%Y%m%d").date()
        return (day.toordinal() - _EPOCH_DAY) * 86_400 * _SECOND
    for unit in (1, 1_000, _SECOND):
        if dt.datetime(2001, 1, 1).replace(tzinfo=dt.timezone.utc).timestamp() * unit <= value and (
            value <= dt.datetime(2101, 1, 1).replace(tzinfo=dt.timezone.utc).timestamp() * unit
        ):
            factor = _SECOND // unit
            return value * factor if type(value) is int else round(value * (_SECOND / unit))
    return _UNEQUAL


def kept_form(value: Any) -> tuple[str, bytes]:
    """Storage class and exact bytes of a source value, as the quarantine keeps them."""
    if value is None:
        return "null", b""
    if type(value) is int:
        return "integer", b"%d" % value
    if type(value) is float:
        return "real", value.hex().encode()
    if type(value) is bytes:
        return "blob", value
    return "text", value.encode("utf-8", "surrogateescape")
