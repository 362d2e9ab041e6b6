#!/usr/bin/python
"""Ansible module: make AutoTaskTracker's source ask PostgreSQL first."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: autotasktracker_source
short_description: Make AutoTaskTracker's source ask PostgreSQL first
description:
  - Changes a checkout of AutoTaskTracker on its syntax tree, and puts one module of ours into the package. SQLite stays
    as an emergency way that has to be asked for.
  - All is worked out before the first file is written. A checkout that lacks one of the constructs is refused, and the
    construct named; so is one in which git finds edits that are not ours.
  - The way back is M(backup_files). With O(entries) each file of RV(files) is recorded before the first is written, as
    it is and as it will be. So it can be given back, also when the run is killed in between, and later edits can be
    told from our changes.
  - Runs with an interpreter that has LibCST.
options:
  checkout:
    description: The checkout.
    type: path
    required: true
  module:
    description: Text of the module to put into the package.
    type: str
    required: true
  allow_dirty:
    description: Change a checkout with edits in tracked files, too.
    type: bool
    default: false
  entries:
    description: Entries of the manifest, as M(backup_files) returned them; they name the records.
    type: list
    elements: dict
    default: []
attributes:
  check_mode:
    support: full
    description: Says which files it would write.
  diff_mode:
    support: full
    description: Shows the lines that change, without what texts and comments say, since there may be passwords.
  idempotent:
    support: full
    description: Source that is changed already stays as it is.
author:
  - Pensieve migration maintainers (@pensieve-migration)
"""

EXAMPLES = r"""
- name: Let PostgreSQL come first
  autotasktracker_source:
    checkout: /home/ada/AutoTaskTracker
    module: "{{ lookup('ansible.builtin.file', role_path ~ '/module_utils/postgresql_first.py', rstrip=false) }}"
"""

RETURN = r"""
files:
  description: Files that are written, the new one too.
  returned: always
  type: list
  elements: str
"""

import difflib
import subprocess
import traceback
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule, missing_required_lib
from ansible.module_utils.file_record import bytes_of, keep, kept, place_of, undone
from ansible.module_utils.whole_file import write_like

try:
    from ansible.module_utils.autotasktracker_codemod import Change, Unrecognised, changed, changes, without_texts

    IMPORT_ERROR = None
except ImportError:
    IMPORT_ERROR = traceback.format_exc()


def git(checkout: Path, *command: str) -> subprocess.CompletedProcess[bytes]:
    """Run git in the checkout, whoever owns it; it only reads."""
    options = ["-c", "safe.directory=*", "--no-optional-locks"]
    return subprocess.run(["git", *options, "-C", str(checkout), *command], capture_output=True, check=False)


def edited(checkout: Path) -> list[str]:
    """Tracked files with edits that are not ours. None where there is no git, or no repository."""
    try:
        status = git(checkout, "status", "--porcelain", "-z", "--untracked-files=no", "--", ".")
    except FileNotFoundError:
        return []
    if status.returncode:
        return []
    found = []
    for line in status.stdout.decode("utf-8", "surrogateescape").split("\0"):
        path = line[3:]
        if not path:
            continue
        committed = git(checkout, "show", f"HEAD:./{path}")
        now = (checkout / path).read_bytes() if (checkout / path).exists() else None
        before = committed.stdout.decode("utf-8", "surrogateescape")
        if now is None or committed.returncode or changed(path, before, []).encode("utf-8", "surrogateescape") != now:
            found.append(path)
    return found


def record(path: Path, change: Change, entries: list[dict[str, Any]]) -> None:
    """Keep what a file was and what it will be.

    Raises:
        ValueError: the manifest does not name it, or an edit stands in the way of telling what it was.
    """
    place, before = place_of(path, entries), bytes_of(change.before)
    earlier = kept(place)
    if earlier is not None and before is not None:
        # A run that was cut has changed it, and it was edited since: what it was before is that without our change.
        before = undone(earlier, before) if earlier.before is not None else None
    keep(place, path, before, change.after.encode("utf-8", "surrogateescape"))


def write(path: Path, text: str) -> None:
    """Put a file in place at once, with the mode and group that it has, or that its folder's other files have."""
    like = path if path.exists() else path.parent / "__init__.py"
    write_like(path, text.encode("utf-8", "surrogateescape"), like)


def difference(change: Change) -> dict[str, str]:
    """For `--diff`: the lines that change and no others. Our own module is not shown line by line."""
    if change.path.endswith("postgresql_first.py"):
        return {"prepared": f"{change.path}: the module that comes along\n"}
    before, after = (without_texts(text or "").splitlines(keepends=True) for text in (change.before, change.after))
    found = "".join(difflib.unified_diff(before, after, change.path, change.path, n=0))
    return {"prepared": found or f"{change.path}: a text\n"}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "checkout": {"type": "path", "required": True},
            "module": {"type": "str", "required": True},
            "allow_dirty": {"type": "bool", "default": False},
            "entries": {"type": "list", "elements": "dict", "default": []},
        },
        supports_check_mode=True,
    )
    if IMPORT_ERROR:
        module.fail_json(msg=missing_required_lib("libcst"), exception=IMPORT_ERROR)
    checkout = Path(module.params["checkout"])
    untouched = f"Untouched: every file in {checkout}."
    try:
        found = changes(checkout, module.params["module"])
    except Unrecognised as error:
        module.fail_json(
            msg=f"Found: {checkout} lacks {'; '.join(error.missing)}. "
            "Expected: a version of AutoTaskTracker that has these, as e7ded0d and af90736 have. "
            f"{untouched} Next: check out such a version, or run again with -e autotasktracker_change_source=false, "
            "which writes its settings only.",
            missing=error.missing,
        )
    dirty = [] if module.params["allow_dirty"] or not found else edited(checkout)
    if dirty:
        module.fail_json(
            msg=f"Found: edits that are not committed in {', '.join(dirty)} of {checkout}. "
            f"Expected: a clean checkout. {untouched} Next: git -C {checkout} stash, then run again; or run again with "
            "-e autotasktracker_allow_dirty=true, which keeps the edits (a rollback gives back the files with them)."
        )
    if not module.check_mode:
        try:
            if module.params["entries"]:
                for change in found:
                    record(checkout / change.path, change, module.params["entries"])
        except (OSError, ValueError) as error:
            module.fail_json(
                msg=f"Found: {checkout / change.path} cannot be recorded: {error}. "
                f"Expected: what each file was, kept before it is changed. {untouched} "
                "Next: mend that, then run again; or ansible-playbook rollback.yml, then migrate.yml."
            )
        for change in found:
            write(checkout / change.path, change.after)
    module.exit_json(
        changed=bool(found),
        files=[str(checkout / change.path) for change in found],
        diff=[difference(change) for change in found] if module._diff else [],
    )


if __name__ == "__main__":
    main()
