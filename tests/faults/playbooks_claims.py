"""What a message claims, and whether it is so: each claim has a check that looks at the world before and after."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import yaml

from .playbooks_world import POSTGRESQL, SQLITE, Rows, View


@dataclass(frozen=True)
class Seen:
    """What checks go by. ``changed`` compares rows, but for those that the writer may have changed.

    Attributes:
        before: the world as it was when the run began.
        after: the world when it had ended.
        settings: what config.yaml must hold on a backend, with a person's edits.
        changed: rows of two views that differ though nobody has touched them.
        mended: what stood in the way was taken away before anybody looked.
    """

    before: View
    after: View
    settings: Callable[[str], bytes]
    changed: Callable[[Rows, Rows], list[str]]
    mended: bool = False


Check = Callable[[Seen], str]
"""What is not so; nothing when all is well."""


def _on(backend: str | None) -> Check:
    def check(seen: Seen) -> str:
        there = seen.after.backend
        return "" if there == backend and not seen.after.odd else f"is on {there or 'nothing'} {seen.after.odd}".strip()

    return check


def _answers(seen: Seen) -> str:
    return "" if seen.after.backend else "does not answer"


def _same_process(seen: Seen) -> str:
    if seen.before.serving != seen.after.serving:
        return f"processes {seen.after.serving}, before {seen.before.serving}"
    return _answers(seen)


def _sqlite(seen: Seen) -> str:
    found = seen.changed(seen.before.sqlite, seen.after.sqlite)
    return f"SQLite: {'; '.join(found[:3])}" if found else ""


def _postgresql(seen: Seen) -> str:
    if seen.before.postgresql is None or seen.after.postgresql is None:
        return ""  # Nobody can see it.
    found = seen.changed(seen.before.postgresql, seen.after.postgresql)
    return f"PostgreSQL: {'; '.join(found[:3])}" if found else ""


def _both(seen: Seen) -> str:
    return _sqlite(seen) or _postgresql(seen)


def _settings(seen: Seen) -> str:
    """As before the run."""
    edited = seen.settings(seen.before.backend or SQLITE)
    if seen.after.config not in (seen.before.config, edited):
        return "config.yaml is not as before"
    return "" if seen.after.others == seen.before.others else f"{', '.join(seen.after.others)} is not as before"


def _settings_of_sqlite(seen: Seen) -> str:
    return "" if seen.after.config == seen.settings(SQLITE) else "config.yaml is not as before the migration"


def _everything(seen: Seen) -> str:
    manifest = "" if seen.before.manifest == seen.after.manifest else "the manifest changed"
    return _both(seen) or _settings(seen) or manifest


def _names(backend: str) -> Check:
    def check(seen: Seen) -> str:
        value = str(yaml.safe_load(seen.after.config)["database_path"])
        there = POSTGRESQL if value.startswith("postgresql:") else SQLITE
        return "" if there == backend else f"names {value}"

    return check


def _true(seen: Seen) -> str:
    """The ledger, or nobody at all, can tell."""
    return ""


def _mine(seen: Seen) -> str:
    """What a step's own message calls everything: what a person has. The run has written to PostgreSQL before."""
    return _sqlite(seen) or _settings(seen)


CLAIMS: list[tuple[str, Check]] = [
    # the whole
    (r"everything|nothing was (changed|stopped)|this run has changed nothing", _everything),
    (r"this playbook only reads|no container was made|only Docker was installed|every other database", _true),
    # databases
    (r"(the )?(SQLite|(SQLite )?database)( \S+)?(, which was only read)?|both files", _sqlite),
    (r"the source( was only read)?|SQLite,? (is )?as before( this run)?", _sqlite),
    (r"PostgreSQL|all of the target|the data in the volume \S+|the rows of Pensieve in PostgreSQL", _postgresql),
    (r"(every row of )?both databases", _both),
    (r"both databases by (this comparison|the report|the start)(, which only reads)?", _true),
    (r"what was written before it stands|all that this connection was to change", _true),
    (r"the target shows the snapshot or all of the difference, never a part of it", _true),
    (
        r"both databases(, which were only read)?|PostgreSQL, which are as before this run|nothing was carried back",
        _both,
    ),
    (r"the tables of the target are as they were|the target shows the snapshot as before|that database", _true),
    (
        r"what was carried back into SQLite|since PostgreSQL does not answer|the (manifest of before|present backup)",
        _true,
    ),
    # settings
    (r"database_path names SQLite", _names(SQLITE)),
    (r"database_path names PostgreSQL", _names(POSTGRESQL)),
    (r"every setting|(the )?settings|every settings file|\S+/config\.yaml", _settings),
    (r"with its settings as before", _settings_of_sqlite),
    # Pensieve
    (r"Pensieve answers on SQLite", _on(SQLITE)),
    (r"Pensieve answers on PostgreSQL", _on(POSTGRESQL)),
    (r"Pensieve does not run|Pensieve's server runs, but \S+ is not 200", _on(None)),
    (r"Pensieve may have recorded on PostgreSQL", _true),
    (r"Pensieve was not stopped", _same_process),
    (r"((it|Pensieve) )?runs on SQLite as before|Pensieve is back on it|Pensieve is on SQLite again", _on(SQLITE)),
    (r"Pensieve( runs| is)? on PostgreSQL( again| as before)?|Pensieve was started on PostgreSQL", _on(POSTGRESQL)),
    (r"may have recorded there since", _on(POSTGRESQL)),
    (r"started( and healthy)?|healthy|Pensieve runs again with the settings that stand", _answers),
    (r"Pensieve is stopped", _on(None)),
    (r"this has started nothing", _true),
    (r"Pensieve( and its( SQLite)? database)?", lambda seen: _answers(seen) or _sqlite(seen)),
]


#: What Ansible itself says of a module that was killed; it claims nothing.
OF_ANSIBLE = r"'?Module result deserialization failed|MODULE FAILURE"

#: Where one claim ends and the next begins.
SEAMS = r"[;.] |\.$|,? and (?!its )|, (?=both|every|started|with|what|since|Pensieve|which says|settings|the )"


def parts(message: str) -> list[str]:
    """Names of the four parts in the order in which they stand."""
    return re.findall(r"\b(Found|Expected|Untouched|Next): ", message)


def claims(message: str) -> list[tuple[str, bool]]:
    """Single claims of all texts that say what is untouched, and where Pensieve is; whether the final text says it.

    A step's own message stands within the final one, where it is read as one that is true now.
    """
    flat = re.sub(r"\s+", " ", message)
    found: list[tuple[str, bool]] = []
    texts = re.findall(r"Untouched: (.*?)(?= Next: |$)", flat)
    for number, text in enumerate(texts, 1):
        text = re.sub(r"[^;.]* by this step, which has done nothing", "", text)
        single = re.split(SEAMS, re.sub(r" \([^)]*\)", "", text))
        found += [(claim.strip(" ."), number == len(texts)) for claim in single if claim.strip(" .")]
    if again := re.match(r"Found: (Pensieve is on SQLite again), (healthy)", flat):
        found += [(claim, True) for claim in again.groups()]
    return found


def judge(message: str, seen: Seen) -> tuple[list[str], list[str]]:
    """What is false, and which claims nobody can check."""
    wrong, unknown = [], []
    down = "DOWN" in message.partition("\n")[0]
    if not {"Found", "Expected", "Untouched", "Next"} <= set(parts(message)) and not re.match(OF_ANSIBLE, message):
        wrong.append(f"the message has not four parts: {message[:200]}")
    if down and seen.after.backend and not seen.mended:
        wrong.append(f"the message says DOWN, and Pensieve answers on {seen.after.backend}")
    for claim, final in claims(message):
        for pattern, check in CLAIMS:
            if re.fullmatch(pattern, claim):
                if found := (check if final or check is not _everything else _mine)(seen):
                    wrong.append(f"claims “{claim}”: {found}")
                break
        else:
            unknown.append(claim)
    return wrong, unknown
