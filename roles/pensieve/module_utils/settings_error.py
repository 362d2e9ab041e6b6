"""What may be said of a settings file: what is wrong and where, and what changes; never a token or a password.

Needs nothing but the standard library, since it also runs in other interpreters than the module's.
"""

from __future__ import annotations

import re

# What PyYAML quotes, as Python writes it: tokens of YAML itself and the tabs that people indent with, which are no
# content, or else a name, a tag, a character of the file.
QUOTED = re.compile(r"""('(?:<[a-z ]+>|\\t|[],}:.>! ])')|'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""")

HIDDEN = "(not shown)"

# A line with such a key, and those that go on with its value: deeper ones and items of a list, empty ones in between.
SECRET = re.compile(
    r"""^([ \t]*)(.*?(?:passw(?:or)?d|token|secret|api_?key)[\w"']*[ \t]*[:=]).*"""
    r"""(?:\n(?:[ \t\r]*\n)*\1(?:[ \t]+|- )\S.*)*""",
    re.I | re.M,
)
URI = re.compile(r"(://[^\s:/@]*:)[^\s@]+(?=@)")


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
    log = re.sub(r'(in "[^"\n]*", line \d+, column \d+):\n.*\n *\^', r"\1", log)
    return re.sub(r"input_value=.*?(?=, input_type=)", f"input_value={HIDDEN}", log)


def masked(text: str) -> str:
    """Settings as a person may be shown them: without the values of keys that sound secret, and URIs' passwords."""
    return URI.sub(rf"\1{HIDDEN}", SECRET.sub(rf"\1\2 {HIDDEN}", text))
