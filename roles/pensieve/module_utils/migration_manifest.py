"""The manifest of a migration: what its file is called, and whether it can be used.

It lies in the home of the user who runs Pensieve, and says what is stopped, restored and removed. So it is read like
what a stranger sends: each value has its type, and paths lead to what was found anew, and nowhere else.
"""

from __future__ import annotations

import json
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible.module_utils import whole_file
from ansible.module_utils.ownership import require_owner

NAME = "manifest.json"

STAMP = re.compile(r"\d{8}T\d{6}Z")
"""What a run calls the folder of its backup. One of another name is a person's."""

UNIT = re.compile(r"(?!-)[A-Za-z0-9:_.@\\-]+\.service")  # a leading - would be an option of systemctl

Kinds = dict[str, "type | tuple[type, ...]"]

NEEDED: Kinds = {
    **dict.fromkeys(("phase", "stamp", "uri", "setting"), str),
    **dict.fromkeys(("source", "backup"), dict),
    **dict.fromkeys(("files", "services"), list),
}
"""What every manifest has."""

KINDS: Kinds = {
    **NEEDED,
    **dict.fromkeys(("home", "version", "completed", "rolled_back"), str),
    **dict.fromkeys(("fresh", "database_restored"), bool),
    **{"left_behind": int, "units": list},
}
SOURCE: Kinds = dict.fromkeys(("database", "revision"), str)
BACKUP: Kinds = {**dict.fromkeys(("database", "sha256", "moment"), str), "bytes": (int, str)}
FILE: Kinds = {
    **dict.fromkeys(("path", "key", "block", "copy", "record", "sha256", "mode", "written"), str),
    **{"uid": int, "gid": int, "absent": bool},
}
PLACE: Kinds = {"name": str, "scope": str, "services": list}


class OutsideError(ValueError):
    """A manifest names what is none of this installation's."""


@dataclass(frozen=True)
class Bounds:
    """What a manifest may name.

    Attributes:
        uid: owner of the home.
        state_dir: the state directory, with the backups.
        folders: files and folders where settings lie.
    """

    uid: int
    state_dir: Path
    folders: list[Path] = field(default_factory=list)


def require_kinds(name: str, found: Any, kinds: Kinds) -> dict[str, Any]:
    """A mapping whose known values are of their types. Raises ValueError, which names what is not."""
    if not isinstance(found, dict):
        raise ValueError(f"{name} is no mapping")
    if wrong := [key for key, kind in kinds.items() if key in found and not isinstance(found[key], kind)]:
        raise ValueError(f"{name} with {', '.join(wrong)} that cannot be")
    return found


def read(file: Path, bounds: Bounds | None = None) -> dict[str, Any]:
    """A manifest.

    Raises:
        OSError, ValueError: it cannot be used; OutsideError: it names what it may not.
    """
    text = whole_file.read(file, bounds.uid if bounds else None)
    try:
        content = json.loads(text)
    except RecursionError:
        raise ValueError("nested without end") from None
    if not isinstance(content, dict):
        raise ValueError("not a mapping")
    if missing := [name for name, kind in NEEDED.items() if not isinstance(content.get(name), kind)]:
        raise ValueError(f"without {', '.join(missing)}")
    require_kinds("it", content, KINDS)
    if not STAMP.fullmatch(content["stamp"]):
        raise ValueError("with a stamp that is none")
    require_kinds("source", content["source"], SOURCE)
    require_kinds("backup", content["backup"], BACKUP)
    if not content["source"].get("database") or not all(isinstance(name, str) for name in content["services"]):
        raise ValueError("without a source database, or with services that cannot be")
    for entry in content["files"]:
        require_kinds("files", entry, FILE)
        if not {"path", "absent"} <= entry.keys() or not entry["absent"] and not {"copy", "sha256"} <= entry.keys():
            raise ValueError("with a file that lacks what restores it")
    for unit in content.get("units", []):
        require_kinds("units", unit, PLACE)
        if not UNIT.fullmatch(unit.get("name", "")) or unit.get("scope") not in ("user", "system"):
            raise ValueError("with a unit that is none")
    if bounds is not None:
        try:
            require_within(content, bounds)
        except RuntimeError:  # of pathlib before Python 3.13
            raise OutsideError("a path that leads round in a circle") from None
    return content


def require_within(content: dict[str, Any], bounds: Bounds) -> None:
    """Raise OutsideError where a manifest names what is none of this installation's."""
    backups = bounds.state_dir.resolve() / "backups"
    copies = [content["backup"].get("database", "")]
    for entry in content["files"]:
        copies += [entry.get("copy", ""), entry.get("record", "")]
        path = Path(entry["path"]).resolve()
        if not any(place in (path, *path.parents) for place in (folder.resolve() for folder in bounds.folders)):
            raise OutsideError(f"{path} among its files, which is no settings file of this installation")
        if entry.get("uid", bounds.uid) != bounds.uid:
            raise OutsideError(f"{path} for another user, {entry['uid']}")
    for copy in (Path(copy).resolve() for copy in copies if copy):
        if copy.parent.parent != backups:
            raise OutsideError(f"{copy} as a copy, which is in no backup below {backups}")
    database = Path(content["source"]["database"])
    try:
        with whole_file.folder_of(database, bounds.uid) as (folder, name):
            there = whole_file.status_in(folder, name)
            if there is None:
                require_owner(database, whole_file.status_in(folder, "."), bounds.uid)
            elif not stat.S_ISREG(there.st_mode):
                raise OutsideError(f"{database} as the database, which is no file")
            else:
                require_owner(database, there, bounds.uid)
    except OSError as error:
        raise OutsideError(f"{database} as the database: {error.strerror}") from None
