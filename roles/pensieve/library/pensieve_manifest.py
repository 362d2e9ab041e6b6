#!/usr/bin/python
"""Ansible module: read and write the manifest of a migration."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: pensieve_manifest
short_description: Read and write the manifest of a migration
description:
  - The manifest says how far a migration came, which settings to restore, and where the backup is. Without O(content)
    it is read; a damaged one is told in RV(problems), with the command that helps.
  - It is written as a whole or not at all, and a second time into the backup that it names. Both are on the disk when
    the module returns.
  - How far the migration came is told to the journal first. Where the two differ, since a run was killed in between,
    the journal is right, and RV(manifest) says what it says.
options:
  state_dir:
    description: Directory of C(manifest.json), and of the C(backups).
    type: path
    required: true
  content:
    description: What to write.
    type: dict
  user_home:
    description: Home of the user who runs Pensieve. With it, a manifest that names what is not this user's is refused.
    type: path
  settings:
    description: Files, and folders of files, beside this home that a manifest may name as settings.
    type: list
    elements: path
    default: []
attributes:
  check_mode:
    support: full
    description: Says what it would do.
  diff_mode:
    support: none
    description: There is nothing in it that a person has to compare.
author:
  - Pensieve migration maintainers (@pensieve-migration)
"""

EXAMPLES = r"""
- name: Read it
  pensieve_manifest:
    state_dir: /home/ada/.local/state/pensieve-postgres
  register: found
"""

RETURN = r"""
manifest:
  description: Its content. C(phase) is V(none) where there is none, and V(damaged) where it cannot be used.
  returned: always
  type: dict
  sample: {"phase": "complete", "stamp": "20251125T110555Z"}
problems:
  description: What is wrong with it, as M(pensieve_facts) returns problems.
  returned: always
  type: list
  elements: dict
"""

import json
from pathlib import Path
from shlex import quote
from typing import Any

from ansible.module_utils import migration_journal
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.migration_manifest import NAME, Bounds, OutsideError, read
from ansible.module_utils.ownership import owner_of
from ansible.module_utils.pensieve_process import Unit, is_of_pensieve
from ansible.module_utils.whole_file import make_folder, write


def copy_of(file: Path, bounds: Bounds | None) -> Path | None:
    """Its copy in the latest backup that has one, if that can be used."""
    latest = max((file.parent / "backups").glob(f"*/{NAME}"), default=None)
    if latest is None:
        return None
    try:
        read(latest, bounds)
    except (OSError, ValueError):
        return None
    return latest


def problem(file: Path, error: Exception, bounds: Bounds | None) -> dict[str, Any]:
    """What is wrong with one that cannot be used, and what helps."""
    if isinstance(error, OutsideError):
        return {
            "code": "manifest_foreign",
            "found": f"{file} names {error}",
            "expected": "what migrate.yml wrote for this home, with the variables of now",
            "next": "run with the -e pensieve_state_dir=… and -e autotasktracker_dir=… of migrate.yml; if they are "
            "the same, see who has changed that file",
            "curable": False,
        }
    copy, place = copy_of(file, bounds), quote(str(file))
    return {
        "code": "manifest_damaged",
        "found": f"{file} is damaged: {error}",
        "expected": "the manifest that migrate.yml wrote; it says how far it came, and which settings to restore",
        "next": f"cp {quote(str(copy))} {place} (its copy), then run the playbook again"
        if copy
        else f"mv {place} {place}.damaged (it has no copy in {file.parent}/backups), then run the playbook again; "
        "docs/rollback.md tells what is lost with it",
        "curable": False,
    }


def known(state_dir: Path, manifest: dict[str, Any], bounds: Bounds | None = None) -> dict[str, Any]:
    """What the journal says of the migration that a manifest describes."""
    journal = migration_journal.read(state_dir, bounds.uid if bounds else None)
    return dict(journal.facts.get(manifest["stamp"], {}))


def bounds_of(home: Path | None, state_dir: Path, settings: list[str]) -> Bounds | None:
    """What a manifest for a home may name; None where no home is given, or there is none."""
    try:
        uid = None if home is None else owner_of(home)
    except OSError:
        return None
    if home is None or uid is None:
        return None
    return Bounds(uid, state_dir, [home, home / ".memos", *map(Path, settings)])


def with_units_of_pensieve(module: AnsibleModule, manifest: dict[str, Any], uid: int) -> dict[str, Any]:
    """A manifest without units that systemd does not know as those of this user's Pensieve."""
    if "units" not in manifest:
        return manifest
    ours = [unit for unit in manifest["units"] if is_of_pensieve(Unit(unit["name"], unit["scope"]), uid)]
    if left := [unit["name"] for unit in manifest["units"] if unit not in ours]:
        module.warn(f"the manifest names {', '.join(left)}, which systemd does not know as Pensieve's; left alone")
    return {**manifest, "units": ours}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state_dir": {"type": "path", "required": True},
            "content": {"type": "dict"},
            "user_home": {"type": "path"},
            "settings": {"type": "list", "elements": "path", "default": []},
        },
        supports_check_mode=True,
    )
    file = Path(module.params["state_dir"]) / NAME
    content, home = module.params["content"], module.params["user_home"]
    if content is None:
        bounds = bounds_of(Path(home) if home else None, file.parent, module.params["settings"])
        try:
            manifest = read(file, bounds)
            manifest.update(known(file.parent, manifest, bounds))
        except FileNotFoundError:
            module.exit_json(changed=False, manifest={"phase": "none"}, problems=[])
        except (OSError, ValueError) as error:
            module.exit_json(changed=False, manifest={"phase": "damaged"}, problems=[problem(file, error, bounds)])
        if bounds is not None:
            manifest = with_units_of_pensieve(module, manifest, bounds.uid)
        module.exit_json(changed=False, manifest=manifest, problems=[])
    text = (json.dumps(content, indent=4, sort_keys=True, ensure_ascii=False) + "\n").encode()
    # The copy first: what is interrupted in between has the other as it was.
    places = [file.parent / "backups" / content["stamp"] / NAME, file]
    changed = [place for place in places if not place.is_file() or place.read_bytes() != text]
    facts = {name: content[name] for name in migration_journal.FACTS if name in content}
    if not module.check_mode:
        try:
            if known(file.parent, content) != facts:
                migration_journal.append(file.parent, {"step": "manifest", "stamp": content["stamp"], **facts})
            for place in changed:
                for folder in (place.parent.parent, place.parent):
                    make_folder(folder)
                write(place, text, 0o600)
        except OSError as error:
            there = file.is_file() and file.read_bytes() == text
            untouched = "all but the manifest, which has the new content" if there else "the manifest of before"
            module.fail_json(
                msg=f"Found: {file} cannot be written: {error}. Expected: room and the right to write there. "
                f"Untouched: {untouched}. Next: mend that, then run the playbook again."
            )
    module.exit_json(changed=bool(changed), manifest=content, problems=[])


if __name__ == "__main__":
    main()
