"""Lines of a libpq password file, as libpq reads them."""

from __future__ import annotations

import re


def split_lines(content: bytes) -> list[bytes]:
    """Lines with their ends, as libpq reads them: only a line feed ends one."""
    return re.findall(rb"[^\n]*\n|[^\n]+", content)


def split_entry(line: bytes) -> list[bytes]:
    """Fields of a line, unescaped, with lone asterisks as they are: host, port, database, user, password."""
    fields = [b""]
    escaped = False
    for value in line:
        char = bytes([value])
        if escaped:
            fields[-1] += char
            escaped = False
        elif char == b"\\":
            escaped = True
        elif char == b":" and len(fields) < 5:
            fields.append(b"")
        else:
            fields[-1] += char
    return fields


def escape(field: str) -> str:
    """`field` as it stands in the file."""
    return field.replace("\\", "\\\\").replace(":", "\\:")


def matches(line: bytes, key: list[bytes]) -> bool:
    """Whether libpq would take this line for host, port, database and user in `key`."""
    if line.startswith(b"#"):
        return False
    fields = split_entry(line.rstrip(b"\r\n"))
    # An escaped asterisk is no wildcard for libpq either, but no name here holds one.
    return len(fields) == 5 and all(field in (b"*", wanted) for field, wanted in zip(fields, key))


def find_password(content: bytes, key: list[bytes]) -> bytes | None:
    """Password of the line that is exactly for `key`; wildcard lines are for others."""
    for line in split_lines(content):
        if not line.startswith(b"#"):
            fields = split_entry(line.rstrip(b"\r\n"))
            if len(fields) == 5 and fields[:4] == key and fields[4]:
                return fields[4]
    return None


def with_entry(content: bytes, key: list[bytes], password: bytes) -> bytes:
    """`content` with an entry for `key` that wins; itself if that is so already."""
    lines = split_lines(content)
    winner = next((line for line in lines if matches(line, key)), None)
    if winner is not None and split_entry(winner.rstrip(b"\r\n")) == [*key, password]:
        return content
    entry = ":".join(escape(field.decode()) for field in [*key, password]).encode() + b"\n"
    return entry + without_entry(content, key)


def without_entry(content: bytes, key: list[bytes]) -> bytes:
    """`content` without entries for exactly `key`."""
    lines = split_lines(content)
    others = [line for line in lines if line.startswith(b"#") or split_entry(line.rstrip(b"\r\n"))[:4] != key]
    return b"".join(others)
