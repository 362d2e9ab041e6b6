"""What may be said of a settings file: what is wrong and where, and what changes; never a token or a password.

Needs nothing but the standard library, since it also runs in other interpreters than the module's.
"""

from __future__ import annotations

import re

# What PyYAML quotes, as Python writes it: tokens of YAML itself and the tabs that people indent with, which are no
# content, or else a name, a tag, a character of the file.
# One that does not end is taken to the end, so that each character is looked at once.
QUOTED = re.compile(
    r"""('(?:<[a-z ]+>|\\t|[],}:.>! ])')|'(?:[^'\\]|\\[\s\S])*(?:'|\\?\Z)|"(?:[^"\\]|\\[\s\S])*(?:"|\\?\Z)"""
)

HIDDEN = "(not shown)"

LIMIT = 1 << 20
"""Bytes of a settings file. Pensieve's own are a few thousand, and PyYAML takes seconds for this many."""

PLACE = re.compile(r'^ *in "[^"\n]*", line \d+, column \d+')
URI = re.compile(r"([A-Za-z][\w+.-]*:(?://)?)(.*)", re.DOTALL)
KEYWORD = re.compile(r"(pass|pwd|secret|token|key)\w{0,20}\s{0,20}=", re.IGNORECASE)


def told(error: Exception) -> str:
    """Kind and place of an error of PyYAML, of Pydantic or of decoding UTF-8; the name of any other."""
    if isinstance(error, UnicodeDecodeError):
        return f"{error.reason}, byte {error.start + 1} of the file"
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is not None:
        parts = [getattr(error, "context", None), getattr(error, "problem", None)]
        kind = ": ".join(QUOTED.sub(lambda quoted: quoted[1] or HIDDEN, part) for part in parts if part)
        return f"line {mark.line + 1}, column {mark.column + 1}: {kind}"
    if hasattr(error, "position"):  # a control character, which YAML does not allow anywhere
        return f"{getattr(error, 'reason', 'unreadable')}, character {error.position + 1} of the file"
    if hasattr(error, "errors"):
        # The text of a check of Pensieve's own may name the value.
        return "; ".join(
            f"{'.'.join(map(str, one['loc']))}: {one['type'] if one['type'] == 'value_error' else one['msg']}"
            for one in error.errors()
        )
    return f"a value that cannot be read ({type(error).__name__})"


def without_content(log: str) -> str:
    """A log without what errors of PyYAML and Pydantic quote of the file."""
    lines = re.sub(r'(in "[^"\n]*", line \d+, column \d+):\n.*\n *\^', r"\1", log).split("\n")
    for number, line in enumerate(lines):
        if PLACE.search(line):  # PyYAML says what is wrong in the line before, or the two before
            for said in range(max(0, number - 2), number):
                if not PLACE.search(lines[said]):
                    lines[said] = QUOTED.sub(lambda quoted: quoted[1] or HIDDEN, lines[said])
    log = re.sub(r"input_value=(.*(?=, input_type=)|.*)", f"input_value={HIDDEN}", "\n".join(lines))
    return re.sub(r"(Value error|Assertion failed), (.*(?= \[type=)|.*)", rf"\1: {HIDDEN}", log)


def shown(value: str) -> str:
    """The value of database_path as a person may be shown it: where it may hold a password, its scheme alone."""
    uri = URI.match(value)
    scheme, rest = uri.groups() if uri else ("", "")
    return f"{scheme}{HIDDEN}" if ":" in rest.rpartition("@")[0] or "?" in rest or KEYWORD.search(value) else value


def lines_that_change(before: str, after: str) -> str:
    """Numbers of the first and the last line of `before` that are others in `after`, and nothing of what they say."""
    old, new = before.split("\n"), after.split("\n")
    both = min(len(old), len(new))
    first = next((number for number in range(both) if old[number] != new[number]), both)
    same = next((number for number in range(both - first) if old[-1 - number] != new[-1 - number]), both - first)
    last = len(old) - same
    if first == last:
        return f"what follows line {first}"
    return f"line {last}" if first + 1 == last else f"lines {first + 1} to {last}"
