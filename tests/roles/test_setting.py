"""pensieve_setting changes one value and not one other byte."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from pensieve_setting import with_setting, write

URI = "postgresql://autotasktracker@127.0.0.1:5433/autotasktracker"


@pytest.mark.parametrize(
    ("before", "after", "previous"),
    [
        ("database_path: database.db\n", f"database_path: {URI}\n", "database.db"),
        ("a: 1\ndatabase_path:   'x.db'  # why\nb: 2", f"a: 1\ndatabase_path:   {URI}  # why\nb: 2", "x.db"),
        ('# c\r\ndatabase_path: "x.db"\r\nb: é\r\n', f"# c\r\ndatabase_path: {URI}\r\nb: é\r\n", "x.db"),
        ("# database_path: old\nb: |\n  database_path: no\n", None, None),
        ("a: 1", f"a: 1\ndatabase_path: {URI}\n", None),
        ("a: 1\r\n", f"a: 1\r\ndatabase_path: {URI}\r\n", None),
        ("", f"database_path: {URI}\n", None),
        ("# only a comment\n", f"# only a comment\ndatabase_path: {URI}\n", None),
        ("database_path:\nb: 2\n", f"database_path: {URI}\nb: 2\n", ""),
        ("{a: 1, database_path: x}\n", f"{{a: 1, database_path: {URI}}}\n", "x"),
        ("\ufeffdatabase_path: x\n", f"\ufeffdatabase_path: {URI}\n", "x"),
        ("b: {database_path: inner}\ndatabase_path: x\n", f"b: {{database_path: inner}}\ndatabase_path: {URI}\n", "x"),
        ("😀: 1\ndatabase_path: x\n", f"😀: 1\ndatabase_path: {URI}\n", "x"),
    ],
)
def test_only_the_value_changes(before: str, after: str | None, previous: str | None) -> None:
    found, was = with_setting(before, "database_path", URI)
    assert was == previous
    assert found == (after if after is not None else f"{before}database_path: {URI}\n")
    assert yaml.safe_load(found)["database_path"] == URI


@pytest.mark.parametrize(
    "text",
    ["- a\n- list\n", "x: &a y\ndatabase_path: *a\n", "database_path: |\n  x\n", "database_path: [x]\n", "{a: 1}\n"],
)
def test_what_cannot_be_replaced_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        with_setting(text, "database_path", URI)


def test_going_back_gives_the_same_bytes() -> None:
    text = "a: 1   # one\ndatabase_path: database.db\n\n\nb: [1,2]"
    assert with_setting(with_setting(text, "database_path", URI)[0], "database_path", "database.db")[0] == text


def test_write_keeps_the_mode_and_follows_a_link(tmp_path: Path) -> None:
    real, link = tmp_path / "real.yaml", tmp_path / "config.yaml"
    real.write_text("a: 1\n")
    real.chmod(0o640)
    link.symlink_to(real)
    write(link, b"a: 2\n")
    assert link.is_symlink()
    assert real.read_bytes() == b"a: 2\n"
    assert real.stat().st_mode & 0o7777 == 0o640
