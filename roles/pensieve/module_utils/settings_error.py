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

PLAIN_ERRORS = ("_type", "_parsing", "missing")
"""Ends of the names of Pydantic's errors whose texts quote nothing."""

LIMIT = 1 << 20
"""Bytes of a settings file. Pensieve's own are a few thousand, and PyYAML takes seconds for this many."""

PLACE = re.compile(r'^ *in "[^"\n]*", line \d+, column \d+')
FRAME = re.compile(r"(?m)^[ |]*[\u2500-\u257f].*\n?")
"""A line of a traceback that is drawn with frames, which shows the values of variables."""

OURS = re.compile(r"postgresql://[\w.-]+@[\w.-]+(:\d+)?/[\w-]+")
SCHEME = re.compile(r"(sqlite|postgresql)(\+\w+)?:(//)?")

HARMLESS = ("base_dir", "database_path", "screenshots_dir", "server_host", "server_port")
"""Settings whose values may be told, where they hold no password."""

KEY = re.compile(r"[a-z_]+")
WORD = re.compile(r"\w[\w-]{4,}")
VALUES = 2000
"""Values of a settings file that are looked for in a log as they are; of further ones their words."""


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
        # Texts of other kinds than these may name the value.
        return "; ".join(
            f"{'.'.join(map(str, one['loc']))}: {one['msg'] if one['type'].endswith(PLAIN_ERRORS) else one['type']}"
            for one in error.errors()
        )
    return f"a value that cannot be read ({type(error).__name__})"


def without_content(log: str) -> str:
    """A log without what errors of PyYAML and Pydantic quote of the file, and without the values of variables."""
    log = FRAME.sub("", log.replace("\r", ""))
    lines = re.sub(r'(in "[^"\n]*", line \d+, column \d+):\n.*\n *\^', r"\1", log).split("\n")
    for number, line in enumerate(lines):
        if PLACE.search(line):  # PyYAML says what is wrong in the line before, or the two before
            for said in range(max(0, number - 2), number):
                if not PLACE.search(lines[said]):
                    lines[said] = QUOTED.sub(lambda quoted: quoted[1] or HIDDEN, lines[said])
    log = re.sub(r"input_value=(.*(?=, input_type=)|.*)", f"input_value={HIDDEN}", "\n".join(lines))
    return re.sub(r"(Value error|Assertion failed), (.*(?= \[type=)|.*)", rf"\1: {HIDDEN}", log)


def without_values(log: str, settings: str) -> str:
    """A log without what stands in a settings file, read or not: values and words of five characters or more.

    HARMLESS settings without a password may be told.
    """
    values = set()
    for line in settings.splitlines():
        key, _, value = line.strip().partition(":")
        if not KEY.fullmatch(key):  # an item of a list, or a further line of a value, which may have a colon of its own
            value = line.strip().removeprefix("- ")
        value = value.strip().strip("\"'")
        if value != "false" and (key not in HARMLESS or shown(value) != value):
            values.add(value)
    words = {word.lower() for value in values for word in WORD.findall(value)}
    for value in sorted((value for value in values if len(value) > len("true")), key=len, reverse=True)[:VALUES]:
        log = log.replace(value, HIDDEN)
    return WORD.sub(lambda word: HIDDEN if word[0].lower() in words else word[0], log)


def shown(value: str) -> str:
    """The value of database_path as a person may be shown it: a path, or a URI without a password; else its scheme."""
    path = value[len("sqlite:///") :] if value.startswith("sqlite:///") else value
    plain = not ("://" in path or "=" in path or path.startswith("//") or ":" in path.rpartition("@")[0])
    if OURS.fullmatch(value) or plain and not SCHEME.match(path):
        return value
    scheme = SCHEME.match(value)
    return f"{scheme[0] if scheme else ''}{HIDDEN}"


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
