"""The raw text comes back from the words that jieba made of it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlite_to_postgresql.carry_words import WordsBack, ordered, untokenized
from sqlite_to_postgresql.fts import Tokenizer

TOKENIZER = Tokenizer()
BACK = WordsBack()


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=60))
def test_words_give_their_text_back(text: str) -> None:
    assert untokenized(TOKENIZER.tokenize(text)) == text


@pytest.mark.parametrize("text", ["a  b", "a \n b", " a ", "会议 记录", "tab\there", "\r\n x", "a_b-c.d  e"])
def test_blanks_come_back(text: str) -> None:
    assert untokenized(TOKENIZER.tokenize(text)) == text


@pytest.mark.parametrize("words", ["a ", "a  b", " a"])
def test_what_is_no_words_is_refused(words: str) -> None:
    assert untokenized(words) is None


def test_tags_in_the_order_of_their_words() -> None:
    names = ["red, urgent", "to do", "to", "do"]
    words = TOKENIZER.tokenize(" ".join(["do", "to do", "red, urgent", "to"]))
    found = ordered(names, words)
    assert found is not None
    assert sorted(found) == sorted(names)
    assert TOKENIZER.tokenize(" ".join(found)).replace(" ", "") == words.replace(" ", "")
    assert ordered(["other"], words) is None


def test_an_entry_that_lags_behind_its_rows_keeps_its_own_text() -> None:
    old = ("/a/b.webp", ["work"], [("note", "an old  text"), ("active_app", "微信")])
    entry = TOKENIZER.prepare(*old)
    now = ("/a/b.webp", ["work", "new"], [("note", "another text")])
    assert BACK.raw(entry, *old) == ("/a/b.webp", "work", "note: an old  text\nactive_app: 微信")
    assert BACK.raw(entry, *now) == ("/a/b.webp", "work", "note: an old  text\nactive_app: 微信")
    assert BACK.raw(entry, None, [], [])[0] == "/a/b.webp"
