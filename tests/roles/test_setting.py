"""pensieve_setting changes one value and not one other byte."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import yaml
from ansible.module_utils.whole_file import write_like
from ansible.module_utils.yaml_setting import put_back, with_setting

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
    ["- a\n- list\n", "x: &a y\ndatabase_path: *a\n", "database_path: |\n  x\n", "database_path: [x]\n", "{a: 1}\n"]
    + ["database_path: x\na: 1\ndatabase_path: x\n", "a: [\n", "a: 1\n---\nb: 2\n"],
)
def test_what_cannot_be_replaced_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        with_setting(text, "database_path", URI)


BEFORE = [
    "a: 1   # one\ndatabase_path: database.db\n\n\nb: [1,2]",
    "database_path:   'x.db'  # why\nb: 2",
    '# c\r\ndatabase_path: "x.db"\r\nb: é\r\n',
    "a: 1",
    "a: 1\r\nb: 2",
    "a: 1\n",
    "",
    "# only a comment",
    "database_path:\nb: 2\n",
    "database_path:",
    "database_path:    # the default\n",
    "{a: 1, database_path: x, b: [1]}\n",
    "{database_path: , a: 1}",
    "\ufeffdatabase_path: x\n",
    '"database_path" : !!str x\n',
    "database_path: &place x\nb: 2\n",
    "database_path: a plain\n  one of two lines\nb: 2\n",
    "---\ndatabase_path: ~\n...\n",
    "base: &base {database_path: inner}\n<<: *base\n",
]


@pytest.mark.parametrize("before", BEFORE)
def test_going_back_gives_the_same_bytes(before: str) -> None:
    after = with_setting(before, "database_path", URI)[0]
    assert after != before
    assert put_back(after, before, after, "database_path") == before
    assert put_back(before, before, after, "database_path") == before


@pytest.mark.parametrize(
    ("before", "edit", "back"),
    [
        ("a: 1\ndatabase_path: 'x'\n", ("a: 1", "a: 2  # mine"), "a: 2  # mine\ndatabase_path: 'x'\n"),
        ("database_path: x\nb: 2", (URI, f"'{URI}'   # why"), "database_path: x   # why\nb: 2"),
        ("database_path:\nb: 2\n", ("b: 2", "b: 3"), "database_path:\nb: 3\n"),
        ("a: 1", (f"{URI}\n", f"{URI}\nmine: 1"), "a: 1\nmine: 1"),
        ("a: 1", ("a: 1", "a: 2"), "a: 2"),
        ("a: 1\r\nb: 2", ("a: 1", "a: 2"), "a: 2\r\nb: 2"),
        ("a: 1\n", (URI, f"{URI}  # mine"), "a: 1\n  # mine\n"),
        ("", (URI, f"{URI}\nmine: 1"), "mine: 1\n"),
        (
            "a: 1\ndatabase_path: x\n",
            (f"a: 1\ndatabase_path: {URI}", f"{{database_path: {URI}, c: 1}}"),
            "{database_path: x, c: 1}\n",
        ),
    ],
)
def test_an_edit_elsewhere_stays(before: str, edit: tuple[str, str], back: str) -> None:
    after = with_setting(before, "database_path", URI)[0]
    assert edit[0] in after
    now = after.replace(*edit)
    assert put_back(now, before, after, "database_path") == back


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        ((URI, "other.db"), f"^database_path: other.db, where the migration wrote {URI}$"),
        ((URI, "postgresql://me:hunter2@host/db"), r"^database_path: postgresql://\(not shown\), where"),
        ((f"database_path: {URI}\n", ""), "^database_path is not there any more, where the migration wrote"),
        (("a: 1", f"database_path: {URI}"), "^database_path stands there 2 times$"),
        ((URI, "[1]"), "^database_path is not a plain value$"),
        ((URI, f"|\n  {URI}"), "^database_path is a block of several lines$"),
        ((URI, f"&here {URI}\nother: *here"), "^putting database_path back would change more than"),
        (("a: 1", "a: ["), "^line 3, column 1: "),
        (("a: 1", "- a"), "^line 2, column 1: "),
    ],
)
def test_an_edit_of_the_value_is_refused(edit: tuple[str, str], said: str) -> None:
    before = "a: 1\ndatabase_path: 'x.db'\n"
    after = with_setting(before, "database_path", URI)[0]
    with pytest.raises(ValueError, match=said) as refused:
        put_back(after.replace(*edit), before, after, "database_path")
    assert "hunter2" not in str(refused.value)


def test_a_setting_that_was_added_is_not_taken_out_of_braces() -> None:
    after = f"a: 1\ndatabase_path: {URI}\n"
    with pytest.raises(ValueError, match="^putting database_path back would change more than database_path$"):
        put_back(f"{{database_path: {URI}, a: 1}}\n", "a: 1\n", after, "database_path")


def test_the_value_of_before_is_left_as_a_person_wrote_it() -> None:
    before = "a: 1\ndatabase_path: 'x.db'\n"
    after = with_setting(before, "database_path", URI)[0]
    now = "database_path: x.db # back\nmine: 1\n"
    assert put_back(now, before, after, "database_path") == now
    assert put_back("mine: 1\n", "a: 1\n", f"a: 1\ndatabase_path: {URI}\n", "database_path") == "mine: 1\n"


LINES = [
    "a: 1",
    "b: 'two'  # why",
    "# a comment",
    "",
    "c: [1, 2]",
    "d: {e: f}",
    "g:\n  h: é",
    "i: |\n  text\n\n  more\nj: 1",
]
VALUES = ["database_path: x.db", "database_path:  'it''s'   # here", 'database_path: "a\\tb"', "database_path:", ""]


@pytest.mark.parametrize("seed", range(300))
def test_random_edits_elsewhere_stay(seed: int) -> None:
    """What is put back is what was before with the very edit that was made meanwhile."""
    chance = random.Random(seed)
    newline = chance.choice(["\n", "\n", "\r\n"])
    lines = chance.sample(LINES, chance.randint(0, 5))
    setting = chance.choice(VALUES)
    place = chance.randint(0, len(lines)) if setting else len(lines)
    end = chance.choice(["", newline])

    def text(lines: list[str], setting: str) -> str:
        rows = [*lines[:place], *([setting] if setting else []), *lines[place:]]
        return newline.join(rows).replace("\n", newline).replace("\r\r", "\r") + (end if rows else "")

    before = text(lines, setting)
    after = with_setting(before, "database_path", URI)[0]
    # Each change of a line, made in both.
    edited = [chance.choice([line, line, f"{line}\n# mine", f"mine{n}: 1\n{line}"]) for n, line in enumerate(lines)]
    wanted = text(edited, setting)
    now = after
    assert put_back(now, before, after, "database_path") == before
    now = with_setting(wanted, "database_path", URI)[0]
    assert put_back(now, before, after, "database_path") == wanted


def test_write_keeps_the_mode_and_follows_a_link(tmp_path: Path) -> None:
    real, link = tmp_path / "real.yaml", tmp_path / "config.yaml"
    real.write_text("a: 1\n")
    real.chmod(0o640)
    link.symlink_to(real)
    write_like(link, b"a: 2\n", link)
    assert link.is_symlink()
    assert real.read_bytes() == b"a: 2\n"
    assert real.stat().st_mode & 0o7777 == 0o640
