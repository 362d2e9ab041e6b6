"""Our full text equals that of Pensieve's own PostgreSQL indexer, which runs here too."""

from __future__ import annotations

import json
import pickle
import random
import shutil
import sqlite3
from pathlib import Path

import jieba
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlite_to_postgresql.fts import Tokenizer, storable
from sqlite_to_postgresql.verify_words import held, raw_entry

from engine.pensieve import Pensieve

Given = tuple[str, list[str], list[tuple[str, str]]]
TEXTS = 3_000
OCR_ITEM = '{"dt_boxes": [[0, 0]], "rec_txt": %s, "score": 0.9}'


def mixed_text(choose: random.Random, words: list[str], pieces: int) -> str:
    """English, Chinese, digits, punctuation, white space of all kinds, rare and astral characters."""
    text = []
    for _ in range(choose.randint(0, pieces)):
        kind = choose.randrange(7)
        if kind == 0:
            text.append("".join(choose.choices(words, k=choose.randint(1, 8))))
        elif kind == 1:
            text.append("".join(chr(choose.randint(0x4E00, 0x9FFF)) for _ in range(choose.randint(1, 6))))
        elif kind == 2:
            text.append("".join(choose.choices("abcxyzABCXYZ0123456789+#&._%-", k=choose.randint(1, 12))))
        elif kind == 3:
            text.append("".join(choose.choices(" \t\r\n\u3000\u2028\x0b\x1c\x85", k=choose.randint(1, 4))))
        elif kind == 4:
            text.append("".join(choose.choices(",;:!?。，、“”()[]{}<>/\\|'\"", k=choose.randint(1, 3))))
        elif kind == 5:
            text.append(choose.choice(["T恤", "AA制", "C++", "3.14%", "user@example.com", "\r\n", "B超", "卡拉OK"]))
        else:
            text.append(chr(choose.choice([choose.randint(1, 0xD7FF), choose.randint(0xE000, 0x10FFFF)])))
    return "".join(text)


def awkward() -> list[Given]:
    """Values at the edges of Pensieve's function."""
    values = [
        "[]", "{}", "null", "true", "17", "1e400", "-0", "NaN", '"text"', '"\\ud83d\\ude00"', "", " ", "no json {",
        "[1, 2]", '[{"dt_boxes": 1, "score": 2}]', f"[{OCR_ITEM % json.dumps('中文 text')}]",
        f"[{OCR_ITEM % json.dumps('')}, {OCR_ITEM % json.dumps('第二 行')}]", '{"a": {"b": [1, "中文", null]}}',
        "\ufeff[]", f"[{', '.join([OCR_ITEM % json.dumps('行 7')] * 4100)}]", '"\\u4e2d\\u6587"', "[[[[]]]]",
    ]  # fmt: skip
    entries: list[Given] = [("/a/b_c-d.e.webp", ["x"], [("ocr_result", value)]) for value in values]
    paths = [
        "", "/", ".hidden", "...", "a/.b", "a.b/", "C:\\Users\\me\\shot-1_2.png", "no extension", "x.tar.gz", "a..",
        "..a.b", "/中文/截图_2025-07-01.webp", "a/....c", "-_-.-_-",
    ]  # fmt: skip
    entries += [(path, [], []) for path in paths]
    entries += [("/p", tags, []) for tags in ([], [""], ["工作", "work"], ["a b", "a b"], ["c++", "\n"])]
    return entries


@pytest.mark.pensieve
def test_equals_pensieve_on_plain_values(pensieve: Pensieve, empty: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    choose = random.Random(20250701)
    words = [line.split(" ")[0] for line in tokenizer.plain.get_dict_file().read().decode().splitlines()]
    entries = awkward()
    for _ in range(TEXTS):
        tags = [mixed_text(choose, words, 3) for _ in range(choose.randint(0, 3))]
        metadata = [(choose.choice(["ocr_result", "active_app", "键"]), mixed_text(choose, words, 25)) for _ in "abc"]
        entries.append((mixed_text(choose, words, 6), tags, metadata))
    (tmp_path / "given.json").write_text(json.dumps(entries))
    expected = pensieve.words(empty, "given", str(tmp_path / "given.json"))
    assert len(expected) == len(entries) > TEXTS
    for entry, theirs in zip(entries, expected):
        assert list(tokenizer.prepare(*entry)) == [storable(part) for part in theirs], entry
        raw = raw_entry(*entry)
        assert raw[0] == theirs[0], "the verifier's own path"
        assert [held(" ".join(jieba.cut(text))) for text in raw[1:]] == [storable(part) for part in theirs[1:]]


@pytest.mark.pensieve
@pytest.mark.parametrize(
    "value",
    [f"[{OCR_ITEM % '5'}]", f"[{OCR_ITEM % 'null'}]", "[" * 100_000, "1" * 5_000],
    ids=["number", "null", "nested", "digits"],
)
def test_indexes_what_pensieve_fails_on(
    value: str, pensieve: Pensieve, empty: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Where Pensieve's function raises, there is nothing to equal: ours takes the text as it stands."""
    (tmp_path / "given.json").write_text(json.dumps([("/p", [], [("ocr_result", value)])]))
    theirs = pensieve.words(empty, "given", str(tmp_path / "given.json"))[0]
    ours = tokenizer.prepare("/p", [], [("ocr_result", value)])
    if isinstance(theirs, str):
        assert ours[2].replace(" ", "") == f"ocr_result:{value}".replace(" ", "")
    else:
        assert list(ours) == theirs


@pytest.mark.pensieve
def test_equals_pensieve_on_every_entity(
    pensieve: Pensieve, filled: Path, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    """With several tags per entity, one of them twice, and two tags of the same name."""
    source = Path(shutil.copy(filled, tmp_path / "database.db"))
    connection = sqlite3.connect(source)
    now = "2025-07-01 00:00:00"
    connection.execute(
        "INSERT INTO tags(id, name, created_at, updated_at) SELECT 900, name, ?, ? FROM tags WHERE id = 1", (now, now)
    )
    for entity, tags in {1: [3, 1, 3, 2], 2: [900, 1], 3: [5, 4]}.items():
        for tag in tags:
            connection.execute(
                "INSERT INTO entity_tags(entity_id, tag_id, source, created_at, updated_at)"
                " VALUES (?, ?, 'USER_GENERATED', ?, ?)",
                (entity, tag, now, now),
            )
    connection.commit()
    theirs = pensieve.words(source, "entities")
    assert len(theirs) == 300
    for entity, filepath in connection.execute("SELECT id, filepath FROM entities"):
        rows = connection.execute(
            "SELECT t.id, t.name FROM entity_tags e JOIN tags t ON t.id = e.tag_id WHERE entity_id = ? ORDER BY e.id",
            (entity,),
        )
        own: dict[int, str] = dict(rows)
        metadata = connection.execute(
            "SELECT key, value FROM metadata_entries WHERE entity_id = ? ORDER BY id", (entity,)
        ).fetchall()
        path, words, text = tokenizer.prepare(filepath, list(own.values()), metadata)
        expected = theirs[str(entity)]
        assert [path, text] == [expected[0], expected[2]]
        # Pensieve orders tags as its query happens to give them.
        assert sorted(words.split()) == sorted(expected[1].split())
    connection.close()


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=60))
def test_equals_jieba_on_any_text(text: str) -> None:
    assert MEMOISED.tokenize(text) == " ".join(MEMOISED.plain.cut(text))


MEMOISED = Tokenizer(memo_entries=50).load()


def test_full_memo_changes_nothing(tokenizer: Tokenizer) -> None:
    """With memos that overflow all the time."""
    choose = random.Random(7)
    small = Tokenizer(memo_entries=3).load()
    words = ["中华人民共和国", "软件", "工程师", "的", "Chrome", "数据库"]
    for _ in range(300):
        text = mixed_text(choose, words, 20)
        assert small.tokenize(text) == tokenizer.tokenize(text) == " ".join(small.plain.cut(text))
        assert all(len(memo) <= 3 for memo in (small._blocks, small._gaps, small._unknown))


def test_dictionary_is_that_of_jieba(tokenizer: Tokenizer) -> None:
    theirs = jieba.Tokenizer()
    assert (tokenizer.plain.FREQ, tokenizer.plain.total) == theirs.gen_pfdict(theirs.get_dict_file())


def test_pickled_tokenizer_loads_again() -> None:
    again = pickle.loads(pickle.dumps(MEMOISED))
    assert again.tokenize("我来到北京清华大学") == "我 来到 北京 清华大学"


def test_unstorable_characters_have_stand_ins(tokenizer: Tokenizer) -> None:
    value = f"[{OCR_ITEM % json.dumps('a' + chr(0) + 'b' + chr(0xD800))}]"
    assert tokenizer.prepare("/p", [], [("ocr_result", value)])[2].endswith("a \u2400 b \ufffd")


def test_other_jieba_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jieba, "__version__", "0.41")
    with pytest.raises(ImportError, match=r"found jieba 0\.41, expected 0\.42\.1.*Nothing was changed"):
        Tokenizer().load()
