"""A settings file that cannot be read: kind and place are told, and never what stands there."""

from __future__ import annotations

import os
import re
import traceback
from pathlib import Path

import pytest
import yaml
from ansible.module_utils.settings_error import told, without_content
from ansible.module_utils.yaml_setting import parsed, with_setting
from pensieve_facts import run_probe
from pensieve_service import log_tail

SECRET = "hunter2"

BROKEN = {
    f'auth_password: "{SECRET}\n': r"line 2, column 1: while scanning a quoted scalar: found unexpected end of stream",
    f"vlm: [{SECRET}\nocr: 1\n": r"line 2, column 4: while parsing a flow sequence: expected ',' or '\]', but got ':'",
    f"a: {SECRET}: b\n": "line 1, column 11: mapping values are not allowed here",
    f"\ttoken: {SECRET}\n": r"line 1, column 1: .*found character '\\t' that cannot start any token",
    f"token: @{SECRET}\n": r"line 1, column 8: .*found character \(not shown\) that cannot start any token",
    f"token: *{SECRET}\n": r"line 1, column 8: found undefined alias \(not shown\)",
    f"token: !{SECRET} x\n": r"line 1, column 8: could not determine a constructor for the tag \(not shown\)",
    f"token: !it's%27{SECRET} x\n": r"line 1, column 8: could not determine a constructor for the tag \(not shown\)",
    f"token: !!int {SECRET}\n": r"a value that cannot be read \(ValueError\)",
    f"token: !!bool {SECRET}\n": r"a value that cannot be read \(KeyError\)",
    f"token: {SECRET}\a\n": "special characters are not allowed, character 15 of the file",
}


@pytest.mark.parametrize(("text", "said"), BROKEN.items(), ids=range(len(BROKEN)))
def test_kind_and_place_of_an_error(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=rf"^{said}$") as refused:
        parsed(text.encode())
    assert SECRET not in str(refused.value)


def test_bytes_that_are_no_text() -> None:
    with pytest.raises(ValueError, match="^invalid start byte, byte 8 of the file$"):
        parsed(b"token: \xff")


@pytest.mark.pensieve
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\n" * 300_000, "more than 1048576 bytes, where settings have fewer"),
        (f"vlm:\n  token: {SECRET}: x\n", "line 2, column 17: mapping values are not allowed here"),
        (f"vlm: {SECRET}\nauth_password: [{SECRET}]\n", "vlm: Input should be .*; auth_password: Input should be "),
        (f"- {SECRET}\n", "the top level is list, not a mapping"),
    ],
)
def test_the_interpreter_of_pensieve_tells_the_same(text: str, said: str, tmp_path: Path, pensieve_venv: Path) -> None:
    config = tmp_path / ".memos" / "config.yaml"
    config.parent.mkdir()
    config.write_text(text)
    answer = run_probe(pensieve_venv / "bin" / "python", tmp_path, config, os.geteuid())
    assert re.match(said, answer["config_error"]), answer
    assert SECRET not in str(answer)


def test_a_log_quotes_nothing_of_the_file(tmp_path: Path) -> None:
    text = f"vlm:\n  token: {SECRET}: x\n"
    (log := tmp_path / "logs" / "serve.log").parent.mkdir()
    with pytest.raises(yaml.YAMLError) as broken:
        yaml.safe_load(text)
    values = f"  Input should be a string [type=string_type, input_value=['{SECRET}'], input_type=list]\n"
    log.write_text("".join(traceback.format_exception(broken.value)) + values)
    said = log_tail(tmp_path, "serve", tmp_path / "config.yaml")
    assert "line 2, column 17" in said
    assert said.endswith("input_value=(not shown), input_type=list]")
    assert SECRET not in said
    assert without_content("started\n") == "started\n"
    assert told(broken.value) == "line 2, column 17: mapping values are not allowed here"


@pytest.mark.parametrize("text", [f"token: *{SECRET}\n", f"token: !{SECRET} x\n", f"a: &{SECRET} 1\nb: &{SECRET} 2\n"])
def test_a_log_names_no_alias_anchor_or_tag(text: str) -> None:
    with pytest.raises(yaml.YAMLError) as broken:
        yaml.safe_load(text)
    log = "".join(traceback.format_exception(broken.value))
    assert SECRET in log
    said = without_content(log)
    assert SECRET not in said
    assert 'in "<unicode string>", line ' in said


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            f"Input should be a string [type=string_type, input_value=['a', input_type=, '{SECRET}'], input_type=list]",
            "Input should be a string [type=string_type, input_value=(not shown), input_type=list]",
        ),
        (
            f"Value error, {SECRET} is no port [type=value_error, input_value='{SECRET}', input_type=str]",
            "Value error: (not shown) [type=value_error, input_value=(not shown), input_type=str]",
        ),
        (f"│ │ 'password': '{SECRET}', │ │\nover", "over"),
        (f"  | ╭─ {SECRET} ─╮\n", ""),
    ],
)
def test_a_log_names_no_value(line: str, said: str) -> None:
    assert without_content(line) == said


@pytest.mark.parametrize(
    ("settings", "log", "said"),
    [
        (
            f"auth_password: !!int {SECRET}\n",
            f"invalid literal for int(): '{SECRET}'",
            "invalid literal for int(): '(not shown)'",
        ),
        (f"database_path: postgresql://me:a@b:{SECRET}@db/x\n", f"base 10: '{SECRET}@db'", "base 10: '(not shown)@db'"),
        (f"vlm:\n  token: [{SECRET}\n", f"  |   token: [{SECRET}", "  |   token: (not shown)"),
        ("token: p.w!d:x\n", "KeyError: 'p.w!d:x'", "KeyError: '(not shown)'"),
        (f"{SECRET}\n", f"found {SECRET}", "found (not shown)"),
        ("tokens:\n- p.w!d:x\n", "KeyError: 'p.w!d:x'", "KeyError: '(not shown)'"),
        (f"prompt: |\n  {SECRET}: x\n", f"found {SECRET}", "found (not shown)"),
        (f"ocr: !!bool {SECRET.upper()}\n", f"KeyError: '{SECRET}'", "KeyError: '(not shown)'"),
        (
            "base_dir: /home/ada/.memos\ndatabase_path: database.db\nocr:\n  enabled: false\n",
            "unable to open database file /home/ada/.memos/database.db, false",
            "unable to open database file /home/ada/.memos/database.db, false",
        ),
    ],
)
def test_a_log_tells_no_value_of_the_settings(settings: str, log: str, said: str, tmp_path: Path) -> None:
    """Whatever wrote it, and whether the settings can be read or not."""
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "serve.log").write_text(log)
    (tmp_path / "config.yaml").write_text(settings)
    assert log_tail(tmp_path, "serve", tmp_path / "config.yaml") == said


@pytest.mark.parametrize(
    "text", ["a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 23))]
)
def test_aliases_that_double_again_and_again(text: str) -> None:
    with pytest.raises(ValueError, match="^44 aliases, where settings have 15 at most$"):
        parsed(text.encode())
    with pytest.raises(ValueError, match="^44 aliases"):
        with_setting(text, "database_path", "x")
