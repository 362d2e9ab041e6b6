#!/usr/bin/python
"""Ansible module: keep settings files byte for byte, and give them back."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: backup_files
short_description: Keep settings files byte for byte, and give them back
description:
  - Saving copies each file, and returns entries with digest, mode and owner for the manifest. A file that is not
    there yet is noted as absent.
  - Noting adds to each entry the digest of what stands in the file now, right after the migration wrote it.
  - Restoring gives each file its bytes, mode and owner back, and removes those that were absent. A file whose content
    is neither the one before nor the one that the migration wrote has been edited by hand since; it stops the
    restoring before anything is changed, unless O(overwrite) is set. So does a disk that has no room for all of them.
options:
  state:
    description: What to do.
    type: str
    choices: [saved, noted, restored]
    required: true
  paths:
    description: Files to save.
    type: list
    elements: path
    default: []
  directory:
    description: Directory of the copies. Needed for V(saved).
    type: path
  entries:
    description: Entries as returned by saving, for V(restored) with C(written) as added by V(noted).
    type: list
    elements: dict
    default: []
  overwrite:
    description: Restore over edits made by hand.
    type: bool
    default: false
attributes:
  check_mode:
    support: full
    description: Says what it would do.
  diff_mode:
    support: full
    description: Shows the lines that restoring changes.
author:
  - Pensieve migration maintainers (@pensieve-migration)
"""

EXAMPLES = r"""
- name: Keep the settings
  backup_files:
    state: saved
    paths: [/home/ada/.memos/config.yaml]
    directory: /home/ada/backup
"""

RETURN = r"""
entries:
  description: One entry a file.
  returned: always
  type: list
  elements: dict
  sample:
    - path: /home/ada/.memos/config.yaml
      copy: /home/ada/backup/0-config.yaml
      sha256: "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
      mode: "0600"
      uid: 1000
      gid: 1000
      absent: false
"""

import difflib
import hashlib
import os
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.settings_error import masked
from ansible.module_utils.whole_file import staged, write

Entry = dict[str, Any]


def sha256(content: bytes) -> str:
    """Digest in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def content_of(path: Path) -> bytes | None:
    """Bytes of a file, None when it is not there."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def save(path: Path, copy: Path, check_mode: bool) -> Entry:
    """Keep one file; a link is kept as the file that it points to."""
    path = path.resolve()
    content = content_of(path)
    if content is None:
        return {"path": str(path), "absent": True}
    status = path.stat()
    if not check_mode:
        write(copy, content, 0o600, os.geteuid(), os.getegid())
    return {
        "path": str(path),
        "copy": str(copy),
        "sha256": sha256(content),
        "mode": f"{status.st_mode & 0o7777:04o}",
        "uid": status.st_uid,
        "gid": status.st_gid,
        "absent": False,
    }


def difference(entry: Entry, now: bytes | None, then: bytes | None) -> str:
    """Lines that restoring one file changes."""
    lines = [masked((content or b"").decode("utf-8", "replace")).splitlines(keepends=True) for content in (now, then)]
    shown = difflib.unified_diff(lines[0], lines[1], f"{entry['path']} (now)", f"{entry['path']} (restored)")
    return "".join(shown) or f"{entry['path']}: its mode, or a value that is not shown\n"


def restorable(module: AnsibleModule, entry: Entry) -> bytes | None:
    """The bytes to restore, checked against the manifest."""
    if entry["absent"]:
        return None
    content = content_of(Path(entry["copy"]))
    if content is None or sha256(content) != entry["sha256"]:
        module.fail_json(
            msg=f"Found: {entry['copy']} is {'missing' if content is None else 'not what the manifest says'}. "
            f"Expected: the copy of {entry['path']} made before the switch (SHA-256 {entry['sha256']}). "
            f"Untouched: every settings file. Next: restore {entry['path']} by hand (database_path: your SQLite file)."
        )
    return content


def replace(module: AnsibleModule, work: list[tuple[Entry, bytes | None]]) -> None:
    """Give files their content back. All are written beside their places first, since a disk may be full."""
    made: list[tuple[Path, Path]] = []
    try:
        try:
            for entry, then in work:
                path = Path(entry["path"])
                if then is not None:
                    made.append((staged(path, then, int(entry["mode"], 8), entry["uid"], entry["gid"]), path))
        except OSError as error:
            module.fail_json(
                msg=f"Found: the settings cannot be restored: {path}: {error}. Expected: room and the right to write "
                "there. Untouched: every settings file. Next: free some space on its disk (or mend what stands above), "
                "then run the playbook again."
            )
        for file, path in made:
            file.replace(path)
    finally:
        for file, _path in made:
            file.unlink(missing_ok=True)
    for entry, then in work:
        if then is None:
            Path(entry["path"]).unlink(missing_ok=True)


def restore(module: AnsibleModule, entries: list[Entry], overwrite: bool) -> tuple[bool, list[str]]:
    """Give every file back, or none: all are checked before the first is written."""
    work = []
    for entry in entries:
        now, then = content_of(Path(entry["path"])), restorable(module, entry)
        status = Path(entry["path"]).stat() if now is not None else None
        mode_differs = status is not None and not entry["absent"] and f"{status.st_mode & 0o7777:04o}" != entry["mode"]
        if now == then and not mode_differs:
            continue
        by_hand = now != then and now is not None and sha256(now) != entry.get("written", "")
        if by_hand and not overwrite:
            module.fail_json(
                msg=f"Found: {entry['path']} was edited since the switch:\n{difference(entry, now, then)}\n"
                "Expected: the file that the migration wrote. Untouched: every settings file, both databases. "
                "Next: save your edits elsewhere, then run the playbook again with -e rollback_overwrite_config=true."
            )
        work.append((entry, now, then))
    if not module.check_mode:
        replace(module, [(entry, then) for entry, _now, then in work])
    return bool(work), [difference(entry, now, then) for entry, now, then in work]


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["saved", "noted", "restored"], "required": True},
            "paths": {"type": "list", "elements": "path", "default": []},
            "directory": {"type": "path"},
            "entries": {"type": "list", "elements": "dict", "default": []},
            "overwrite": {"type": "bool", "default": False},
        },
        required_if=[("state", "saved", ("directory",))],
        supports_check_mode=True,
    )
    params = module.params
    if params["state"] == "restored":
        changed, differences = restore(module, params["entries"], params["overwrite"])
        prepared = "\n".join(differences)
        module.exit_json(changed=changed, entries=params["entries"], diff={"prepared": prepared} if prepared else {})
    if params["state"] == "noted":
        noted = [{**entry, "written": sha256(content_of(Path(entry["path"])) or b"")} for entry in params["entries"]]
        module.exit_json(changed=False, entries=noted)
    directory = Path(params["directory"])
    entries = [
        save(Path(path), directory / f"{number}-{Path(path).name}", module.check_mode)
        for number, path in enumerate(params["paths"])
    ]
    module.exit_json(changed=bool(entries), entries=entries)


if __name__ == "__main__":
    main()
