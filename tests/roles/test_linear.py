"""What strangers write is looked through in a time that grows with its length, not with the square of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from ansible.module_utils.autotasktracker_codemod import LEFT_ALONE, changed
from ansible.module_utils.settings_error import LIMIT, lines_that_change, shown, told, without_content, without_values
from ansible.module_utils.yaml_setting import parsed
from pensieve_health_check import Config, without_password
from pensieve_service import LOG_LIMIT, log_tail
from sqlite_to_postgresql.verify_vectors import vec0_columns


def tag(text: str) -> str:
    """What is told of an error of PyYAML that quotes a tag of the file."""
    error = yaml.MarkedYAMLError(problem=text, problem_mark=yaml.Mark("", 0, 0, 0, "", 0))
    return str(told(error))


def columns(text: str) -> Any:
    """Columns of a table of vectors."""
    return vec0_columns(f"CREATE VIRTUAL TABLE v USING vec0({text})")


def source(text: str) -> str:
    """A file of AutoTaskTracker."""
    return str(changed("autotasktracker/utils.py", f"text = '''{text}'''\n", []))


PUMPED: list[tuple[Callable[[str], Any], str]] = [
    (tag, "\\'"),
    (tag, '\\"'),
    (tag, "'"),
    (without_content, "input_value="),
    (without_content, 'in "'),
    (without_content, 'in "", line 1, column 1:\n '),
    (without_content, '\' in "", line 1, column 1'),
    (without_content, '\n in "", line 1, column 1\n\''),
    (without_content, "Value error, "),
    (lambda text: without_values(text, text), "ab cde"),
    (lambda text: without_values("x" * 16_000, text), "\nlong: value"),
    (shown, "a:@"),
    (shown, "://:"),
    (shown, "://a:b"),
    (without_password, "://:"),
    (lambda text: lines_that_change(text + "a", text + "b"), "\n"),
    (Config._plain, "a "),
    (Config._plain, " "),
    (LEFT_ALONE.search, "_backup_"),
    (LEFT_ALONE.search, "/tests"),
    (source, "/home/a"),
    (source, "postgres://:"),
    (source, "postgres://a:"),
    (columns, ","),
    (columns, "a b,"),
    (columns, "=[,"),
]
"""What looks at the text of another, and what it is given again and again."""


def seconds(look: Callable[[str], Any], text: str) -> float:
    """The shortest of three."""
    took = []
    for _ in range(3):
        begin = time.process_time()
        look(text)
        took.append(time.process_time() - begin)
    return min(took)


@pytest.mark.parametrize(("look", "pump"), PUMPED, ids=range(len(PUMPED)))
def test_eight_times_as_long_takes_about_eight_times_as_long(look: Callable[[str], Any], pump: str) -> None:
    """A square would be 64 times. What takes no time at all for 128 kB is fast enough."""
    short, long = pump * (16_000 // len(pump)), pump * (128_000 // len(pump))
    assert seconds(look, long) < max(24 * seconds(look, short), 0.02)


def test_settings_of_the_health_check(tmp_path: Any) -> None:
    """Each line of the block could be read in several ways, all of which were tried: it took for ever."""
    (tmp_path / ".memos").mkdir()
    (tmp_path / ".memos" / "config.yaml").write_text("embedding:\n" + "        enabled: true\n" * 2000 + "port: 1\n")
    assert seconds(lambda _: Config(tmp_path), "") < 0.5


def test_what_is_longer_than_any_settings_or_log_is_not_read_whole(tmp_path: Any) -> None:
    with pytest.raises(ValueError, match=f"^{LIMIT + 4} bytes, where settings have {LIMIT} at most$"):
        parsed(b"a: 1" + b"\n" * LIMIT)
    (tmp_path / "logs").mkdir()
    log = tmp_path / "logs" / "serve.log"
    log.write_text("input_value=hunter2" + "a" * LOG_LIMIT + "\nlast\n")
    assert log_tail(tmp_path, "serve", tmp_path / "config.yaml") == "last"
