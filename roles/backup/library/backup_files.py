#!/usr/bin/python
"""Ansible module: keep settings files, and take the migration's changes back."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: backup_files
short_description: Keep settings files, and take the migration's changes back
description:
  - Saving copies each file, and returns entries for the manifest, with digest, mode and owner, and with the place where
    M(pensieve_setting) and M(autotasktracker_source) record what they change, right before they do. A file that is not
    there yet is noted as absent.
  - Restoring takes back what the migration wrote, and nothing else. A file that still is what the migration wrote gets
    its bytes, mode and owner of before, or is removed where there was none. One that was edited since keeps its edits,
    and its mode and owner; the setting, the lines or the block of the migration alone go back. One that the migration
    has not written stays as it is.
  - An edit of what the migration wrote stops the restoring before anything is changed, unless O(overwrite) is set. So
    does a disk that has no room for all files.
  - Runs with an interpreter that has PyYAML, and needs C(diff3) of the package diffutils for files other than settings.
options:
  state:
    description: What to do.
    type: str
    choices: [saved, restored]
    required: true
  files:
    description: Files to save.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: The file.
        type: path
        required: true
      key:
        description: Top-level setting that the migration will write there, in a YAML file.
        type: str
      block:
        description: Lines that the migration will add, with their first and last one, which mark them.
        type: str
  directory:
    description: Directory of the copies. Needed for V(saved).
    type: path
  entries:
    description: Entries as returned by saving, for V(restored).
    type: list
    elements: dict
    default: []
  overwrite:
    description:
      - Give whole files of before back where the edits of a person stand in the way, or stand beside the migration's.
        The edited ones are kept beside them.
    type: bool
    default: false
attributes:
  check_mode:
    support: full
    description: Says what it would do.
  diff_mode:
    support: full
    description:
      - Shows the setting or the lines of the migration that restoring takes back, and which other lines it changes. Not
        what these say, which may be a password.
author:
  - Pensieve migration maintainers (@pensieve-migration)
"""

EXAMPLES = r"""
- name: Keep the settings
  backup_files:
    state: saved
    files:
      - path: /home/ada/.memos/config.yaml
        key: database_path
    directory: /home/ada/backup
"""

RETURN = r"""
entries:
  description: One entry a file.
  returned: when saved
  type: list
  elements: dict
  sample:
    - path: /home/ada/.memos/config.yaml
      key: database_path
      copy: /home/ada/backup/0-config.yaml
      record: /home/ada/backup/0-config.yaml.record
      sha256: "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
      mode: "0600"
      uid: 1000
      gid: 1000
      absent: false
files:
  description: What was done to which file. Files that stay as they are, are not named.
  returned: when restored
  type: list
  elements: dict
  sample:
    - path: /home/ada/.memos/config.yaml
      done: database_path put back, later edits kept
"""

import contextlib
import hashlib
import stat
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NamedTuple

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.file_record import Record, kept, undone
from ansible.module_utils.settings_error import lines_that_change, told
from ansible.module_utils.whole_file import Staged, read, remove, status_of, write
from ansible.module_utils.yaml_setting import line, place, put_back

Entry = dict[str, Any]

WHOLE = "given back byte for byte"
REMOVED = "removed, since it was not there before"


class Owned(NamedTuple):
    """Mode and owner of a file."""

    mode: int
    uid: int
    gid: int


class Wanted(NamedTuple):
    """What a file is to hold (None: not there), what that is called, and mode and owner; None: they stay."""

    content: bytes | None
    done: str
    owned: Owned | None = None


class Work(NamedTuple):
    """One file to restore: what it holds now, what it is to hold, and where the edited one goes, if anywhere."""

    entry: Entry
    path: Path
    now: bytes | None
    wanted: Wanted
    aside: Path | None


def sha256(content: bytes) -> str:
    """Digest in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def content_of(path: Path) -> bytes | None:
    """Bytes of a file, None when it is not there."""
    try:
        return bytes(read(path))
    except FileNotFoundError:
        return None


def owned(path: Path) -> Owned:
    """Mode and owner of a file."""
    status = status_of(path)
    return Owned(stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid)


def save(file: Entry, copy: Path, check_mode: bool) -> Entry:
    """Keep one file; a link is kept as the file that it points to."""
    path = Path(file["path"]).resolve()
    entry = {name: value for name, value in file.items() if value is not None} | {"path": str(path)}
    if "block" not in entry:
        entry["record"] = f"{copy}.record"
    content = content_of(path)
    if content is None:
        return {**entry, "absent": True}
    mode, uid, gid = owned(path)
    if not check_mode:
        write(copy, content, 0o600)
    kept_as = {"copy": str(copy), "sha256": sha256(content), "mode": f"{mode:04o}", "uid": uid, "gid": gid}
    return {**entry, **kept_as, "absent": False}


def saved(entry: Entry) -> Wanted:
    """A file as it was saved.

    Raises:
        ValueError: its copy is not what the manifest says.
    """
    if entry["absent"]:
        return Wanted(None, REMOVED)
    content = content_of(Path(entry["copy"]))
    if content is None or sha256(content) != entry["sha256"]:
        raise ValueError(f"{entry['copy']} is {'missing' if content is None else 'not what the manifest says'}")
    return Wanted(content, WHOLE, Owned(int(entry["mode"], 8), entry["uid"], entry["gid"]))


def recorded(record: Record) -> Wanted:
    """A file as it was right before the migration wrote it."""
    if record.before is None:
        return Wanted(None, REMOVED)
    return Wanted(record.before, WHOLE, Owned(record.mode or 0, record.uid or 0, record.gid or 0))


def block_of(content: bytes, block: bytes) -> bytes | None:
    """The lines between the first and the last one of `block`, with these; None when they are not there.

    Raises:
        ValueError: they are not whole.
    """
    lines = content.splitlines(keepends=True)
    first, last = (block.splitlines()[place] for place in (0, -1))
    begins, ends = ([n for n, line in enumerate(lines) if line.rstrip() == mark] for mark in (first, last))
    if not begins and not ends:
        return None
    if len(begins) != 1 or len(ends) != 1 or begins > ends:
        raise ValueError("the first and the last line of what the migration added are not both there once")
    return b"".join(lines[begins[0] : ends[0] + 1])


def without_block(now: bytes, block: bytes, before: bytes) -> bytes:
    """A file with its block as it was before, which usually is none; all else stays.

    Raises:
        ValueError: somebody has edited within the block.
    """
    here, old = block_of(now, block), block_of(before, block) or b""
    if here is None or here == old:
        return now
    if here.splitlines() != block.splitlines():
        raise ValueError("the edit stands within the lines that the migration added")
    back = now.replace(here, old)
    # A line end separates the block from a last line that had none.
    return before if back == before + b"\n" else back


def wanted(entry: Entry, record: Record | None, before: Wanted, now: bytes) -> Wanted | None:
    """What a file is to be that is not what it was before; None when nothing of the migration's stands in it.

    Raises:
        ValueError: a person has edited what the migration wrote.
    """
    if "block" in entry:
        content = without_block(now, entry["block"].encode(), before.content or b"")
        if before.content is None and not content:
            return before
        done = WHOLE if content == before.content else "the lines of the migration taken out, later edits kept"
    elif record is None:  # in manifests of versions that kept no records
        if sha256(now) != entry.get("written"):
            raise ValueError("it is not what the migration wrote")
        return before
    elif now == record.after:
        return before
    elif "key" in entry and record.before is not None:
        try:
            texts = [content.decode("utf-8") for content in (now, record.before, record.after)]
        except UnicodeDecodeError as error:
            raise ValueError(told(error)) from None
        content = put_back(*texts, entry["key"]).encode("utf-8")
        done = f"{entry['key']} put back, later edits kept"
    else:
        content = undone(record, now)
        done = "the lines that the migration changed put back, later edits kept"
    if content == now:
        return None
    # The block's file has kept its mode and owner all the time, which may have been changed since it was saved.
    return before if content == before.content and "block" not in entry else Wanted(content, done)


def difference(entry: Entry, now: bytes | None, then: bytes | None) -> str:
    """What restoring one file changes: the migration's own setting in full, of all else the numbers of the lines."""
    texts = [(content or b"").decode("utf-8", "replace") for content in (now, then)]
    said = []
    if "key" in entry:
        with contextlib.suppress(ValueError):  # one of both cannot be read
            places = [place(text, entry["key"]) for text in texts]
            lines = [line(entry["key"], found and found.value) for found in places]
            said = [f"{sign}{one}" for sign, one in zip("-+", lines) if one and lines[0] != lines[1]]
    return "".join([*said, f"{lines_that_change(*texts)} of {entry['path']}\n"])


def replace(module: AnsibleModule, work: list[Work]) -> None:
    """Give files their content back. All are written beside their places first, since a disk may be full."""
    path = work[0].path if work else Path()
    try:
        with ExitStack() as held:
            made: list[Staged] = []
            for _entry, path, now, wanted, aside in work:
                contents = [(path, wanted.content, wanted.owned)]
                if aside is not None:
                    contents.insert(0, (aside, now, None))
                for target, content, status in contents:
                    if content is not None:
                        mode, uid, gid = status or owned(path)
                        made.append(held.enter_context(closing(Staged(target, content, mode, gid, uid))))
            for file in made:
                path = file.path
                file.put()
            for _entry, path, _now, wanted, _aside in work:
                if wanted.content is None:
                    remove(path)
    except OSError as error:
        left = [str(one.path) for one in work if content_of(one.path) == one.now]
        untouched = "every settings file" if len(left) == len(work) else ", ".join(left) or "no file that was to change"
        module.fail_json(
            msg=f"Found: the settings cannot be restored: {path}: {error}. Expected: room and the right to write "
            f"there. Untouched: {untouched}. Next: free some space on its disk (or mend what stands above), then run "
            "the playbook again; it restores what is left."
        )


def restore(module: AnsibleModule, entries: list[Entry], overwrite: bool) -> list[Work]:
    """Take the migration's changes back in every file, or in none: all are checked before the first is written."""
    work = []
    for entry in entries:
        path = Path(entry["path"])
        now = content_of(path)
        try:
            record = kept(Path(entry["record"])) if "record" in entry else None
            if "record" in entry and record is None and now is not None:
                continue  # the migration has not come to write it
            before = recorded(record) if record else saved(entry)
        except ValueError as error:
            module.fail_json(
                msg=f"Found: {error}. Expected: {path} as it was before the switch, kept there. "
                f"Untouched: every settings file. Next: restore {path} by hand (database_path: your SQLite file)."
            )
        if now == before.content:
            continue
        edited = False
        try:
            found = before if now is None else wanted(entry, record, before, now)
            edited = found is not None and found.content != before.content
        except ValueError as error:
            found, edited = before, True
            if not overwrite:
                shown = difference(entry, now, before.content)
                copy = entry.get("copy")
                if copy and content_of(Path(copy)) == before.content:
                    shown += f"(diff {path} {copy} shows it)"
                module.fail_json(
                    msg=f"Found: {path} was edited since the switch: {error}. The whole file of before would "
                    f"change:\n{shown}\nExpected: what the migration wrote. Untouched: every settings file. "
                    "Next: take that edit back, then run the playbook again; or ansible-playbook rollback.yml "
                    "-e rollback_overwrite_config=true, which restores the whole file and keeps yours beside it."
                )
        if found is None:
            continue
        aside = None
        if edited and overwrite:
            aside = path.with_name(f"{path.name}.edited-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}")
            found = before._replace(done=f"{before.done}; the edited one is kept as {aside}")
        work.append(Work(entry, path, now, found, aside))
    if not module.check_mode:
        replace(module, work)
    return work


def main() -> None:
    """Run the module."""
    file = {
        "path": {"type": "path", "required": True},
        "key": {"type": "str", "no_log": False},
        "block": {"type": "str"},
    }
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["saved", "restored"], "required": True},
            "files": {"type": "list", "elements": "dict", "default": [], "options": file},
            "directory": {"type": "path"},
            "entries": {"type": "list", "elements": "dict", "default": []},
            "overwrite": {"type": "bool", "default": False},
        },
        required_if=[("state", "saved", ("directory",))],
        supports_check_mode=True,
    )
    params = module.params
    if params["state"] == "restored":
        try:
            work = restore(module, params["entries"], params["overwrite"])
        except OSError as error:
            module.fail_json(
                msg=f"Found: {error}. Expected: settings files, and copies of them, that this user owns and can read. "
                "Untouched: every settings file. Next: mend that, then run the playbook again."
            )
        prepared = "\n".join(
            f"{one.path}: {one.wanted.done}\n{difference(one.entry, one.now, one.wanted.content)}" for one in work
        )
        module.exit_json(
            changed=bool(work),
            files=[{"path": str(one.path), "done": one.wanted.done} for one in work],
            diff={"prepared": prepared} if prepared else {},
        )
    directory = Path(params["directory"])
    try:
        entries = [
            save(file, directory / f"{number}-{Path(file['path']).name}", module.check_mode)
            for number, file in enumerate(params["files"])
        ]
    except OSError as error:
        module.fail_json(
            msg=f"Found: the settings cannot be kept: {error}. Expected: files that can be read, room and the right to "
            f"write in {directory}. Untouched: every settings file. Next: mend that, then run the playbook again."
        )
    module.exit_json(changed=bool(entries), entries=entries)


if __name__ == "__main__":
    main()
