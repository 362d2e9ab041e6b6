"""What a file was before the migration wrote it, and what was written: kept beside its backup before it is written.

Afterwards, also after a kill in between, this tells the migration's own change from the edits of a person, and takes it
back alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from ansible.module_utils.whole_file import read, status_of, write


class Record(NamedTuple):
    """Content before (None: absent), with mode and owner, and after."""

    before: bytes | None
    after: bytes
    mode: int | None
    uid: int | None
    gid: int | None


def place_of(path: Path, entries: Iterable[dict[str, Any]]) -> Path:
    """Where the record of a file belongs, by the manifest's entries.

    Raises:
        ValueError: they do not name the file, so that nothing could give it back.
    """
    for entry in entries:
        if entry["path"] == str(path.resolve()) and "record" in entry:
            return Path(entry["record"])
    raise ValueError(f"the manifest does not name {path}, so nothing could give it back")


def text_of(content: bytes | None) -> str | None:
    """Bytes as JSON can hold them."""
    return None if content is None else content.decode("utf-8", "surrogateescape")


def bytes_of(text: str | None) -> bytes | None:
    """The same backwards."""
    return None if text is None else text.encode("utf-8", "surrogateescape")


def checksum(record: Record) -> str:
    """Of both contents."""
    return hashlib.sha256(repr((record.before, record.after)).encode()).hexdigest()


def keep(place: Path, path: Path, before: bytes | None, after: bytes) -> None:
    """Write the record of a change, right before the change."""
    status = status_of(path) if before is not None else None
    owned = (status.st_mode & 0o7777, status.st_uid, status.st_gid) if status else (None, None, None)
    record = Record(before, after, *owned)
    content = {**record._asdict(), "before": text_of(before), "after": text_of(after), "sha256": checksum(record)}
    text = json.dumps({"path": str(path), **content}, indent=4) + "\n"
    write(place, text.encode(), 0o600)


def kept(place: Path) -> Record | None:
    """A record; None when the migration has not come to write that file.

    Raises:
        ValueError: it is damaged.
    """
    try:
        content = json.loads(read(place))
        before, after = bytes_of(content["before"]), bytes_of(content["after"])
        record = Record(before, after or b"", content["mode"], content["uid"], content["gid"])
        if not all(number is None or isinstance(number, int) for number in record[2:]):
            raise ValueError("its mode or owner is no number")
        if checksum(record) != content["sha256"]:
            raise ValueError("its checksum differs")
    except FileNotFoundError:
        return None
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{place} is damaged: {error}") from None
    return record


def merged(mine: bytes, older: bytes, yours: bytes) -> bytes:
    """What leads from `older` to `yours`, done to `mine`, line by line.

    Raises:
        ValueError: both have changed the same lines.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("mine", "older", "yours")]
        for file, content in zip(files, (mine, older, yours)):
            file.write_bytes(content)
        command = ["diff3", "--merge", "--show-overlap", "--text", *map(str, files)]
        try:
            done = subprocess.run(command, env={**os.environ, "LC_ALL": "C"}, capture_output=True, check=False)
        except FileNotFoundError:
            raise ValueError("diff3 of the package diffutils, which could tell the edit apart, is not there") from None
    if done.returncode:
        raise ValueError("the edit touches lines that the migration has changed")
    return done.stdout


def undone(record: Record, now: bytes) -> bytes:
    """The content of now without the migration's change; edits of a person stay.

    Raises:
        ValueError: an edit touches what the migration has changed.
    """
    if record.before is None:
        raise ValueError("the migration has made this file, and it was edited since")
    back = merged(now, record.after, record.before)
    if back != now and merged(back, record.before, record.after) != now:
        raise ValueError("the edit touches lines that the migration has changed")
    return back
