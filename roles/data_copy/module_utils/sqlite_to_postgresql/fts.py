"""The full-text entry that Pensieve's own PostgreSQL indexer would write, several times faster.

Pensieve's `PostgreSQLSearchProvider.prepare_fts_data` runs jieba over the metadata of every entity.
`jieba.cut` first splits a text into blocks by a regular expression and then segments each block without
looking at the others, so it is a pure function per block: a block that was seen before need not be
segmented again, and screenshots repeat themselves. Three memos are kept, each bounded: joined blocks,
joined separators, and the segments that the hidden Markov model gives for runs of single characters.  The
search for the most probable path is done here, with the same floating-point operations in the same order as
in jieba, so that ties and near-ties fall the same way.

Needs jieba 0.42.1 (pinned: its dictionary is part of the result).  Equality with Pensieve's function is
proven in tests/engine/test_fts.py.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterable, Sequence
from functools import cache
from math import log
from typing import Any

JIEBA_VERSION = "0.42.1"
OCR_KEY = "ocr_result"
OCR_ITEMS = 4096  # Pensieve reads no more boxes of one screenshot
MEMO_ENTRIES = 60_000  # per memo; about 10 MB each when full
MEMO_LEAST = 20_000
MEMO_CHARACTERS = 200  # longer blocks hardly ever come again

_SEPARATORS = re.compile(r"\r\n|.", re.DOTALL)
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


def memo_for(workers: int) -> int:
    """Entries that each of some processes remembers, so that together they remember about as much as one would."""
    return max(MEMO_LEAST, MEMO_ENTRIES // workers)


def storable(text: str) -> str:
    """What PostgreSQL can hold of `text`: NUL becomes U+2400, a lone surrogate U+FFFD, all else stays.

    Both can come out of an escape in OCR JSON (`"\\u0000"`).  Pensieve's indexer fails on such an entity;
    ours indexes it.
    """
    return _UNSTORABLE.sub(lambda match: "\u2400" if match.group() == "\0" else "\ufffd", text)


def ocr_text(value: Any) -> Any:
    """Text of an OCR result: the recognised lines, indented JSON if it is no OCR result, `value` itself if
    no JSON.

    Pensieve lets errors other than a JSON syntax error escape, and then has no entry at all for the entity
    (`rec_txt` that is no text, an integer of thousands of digits, nesting too deep).  Here these too give
    `value` itself.
    """
    try:
        data = json.loads(value)
        if isinstance(data, list) and all(
            isinstance(item, dict) and "dt_boxes" in item and "rec_txt" in item and "score" in item for item in data
        ):
            return " ".join(item["rec_txt"] for item in data[:OCR_ITEMS])
        return json.dumps(data, indent=2)
    except (ValueError, TypeError, RecursionError):
        return value


def searchable_path(filepath: str) -> str:
    """The path with forward slashes, followed by the words of its file name without extension."""
    path = filepath.replace("\\", "/")
    stem = posixpath.splitext(posixpath.basename(path))[0]
    return f"{path} {stem.replace('-', ' ').replace('_', ' ')}"


def read_dictionary(lines: Iterable[bytes]) -> tuple[dict[str, int], int]:
    """Frequencies of all words and (as 0) of all beginnings of words, and their sum: what jieba's own `gen_pfdict`
    gives, in less memory. Equal numbers are one object, so that forked workers, which count references, write to few
    of the pages that they share.
    """
    frequencies: dict[str, int] = {}
    same: dict[int, int] = {}
    total = 0
    for line in lines:
        word, text = line.decode("utf-8").split(" ", 2)[:2]
        frequency = int(text)
        frequencies[word] = same.setdefault(frequency, frequency)
        total += frequency
        for stop in range(1, len(word)):
            frequencies.setdefault(word[:stop], 0)
    return frequencies, total


@cache
def _with_dictionary(jieba: Any) -> Any:
    """jieba's own tokenizer with its dictionary, once for all tokenizers of a process."""
    plain = jieba.Tokenizer()
    with plain.get_dict_file() as lines:
        plain.FREQ, plain.total = read_dictionary(lines)
    plain.initialized = True
    return plain


class Tokenizer:
    """`prepare_fts_data` of Pensieve for plain values.

    Loads jieba's dictionary at the first use (about 1 s, 80 MB), never jieba's cache file in the shared
    temporary folder.  Make one before forking workers and call `load()`: they then share the dictionary.  A
    pickled instance carries no dictionary and loads it again.
    """

    def __init__(self, memo_entries: int = MEMO_ENTRIES) -> None:
        self.memo_entries = memo_entries
        self._frequencies: dict[str, int] = {}
        self._log_total = 0.0
        self._split_blocks: Any = None
        self._segment_unknown: Any = None
        self.plain: Any = None  # jieba's own tokenizer with the same dictionary, once loaded
        self._weights: dict[int, float] = {}
        self._blocks: dict[str, str] = {}
        self._gaps: dict[str, str] = {}
        self._unknown: dict[str, str] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"memo_entries": self.memo_entries}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def load(self) -> Tokenizer:
        """Load the dictionary now. Raises ImportError if jieba is missing or another version than the
        pinned one.
        """
        if self._frequencies:
            return self
        import jieba  # type: ignore[import-untyped,unused-ignore]
        from jieba import finalseg

        if jieba.__version__ != JIEBA_VERSION:
            raise ImportError(
                f"found jieba {jieba.__version__}, expected {JIEBA_VERSION}, whose dictionary decides the "
                f"full text. Nothing was changed. Next: pip install jieba=={JIEBA_VERSION}"
            )
        self.plain = _with_dictionary(jieba)
        self._log_total = log(self.plain.total)
        self._split_blocks = jieba.re_han_default.split
        self._segment_unknown = finalseg.cut
        self._frequencies = self.plain.FREQ
        return self

    def prepare(self, filepath: str, tags: Sequence[str], metadata: Sequence[tuple[str, str]]) -> tuple[str, str, str]:
        """(filepath, tags, metadata) of the row in `entities_fts` of PostgreSQL.

        `tags`: names in the order of entity_tags.id, each tag once.  `metadata`: (key, value) in the order of
        metadata_entries.id.  Equal to Pensieve's function wherever that returns text that PostgreSQL can
        hold.
        """
        lines = [f"{key}: {ocr_text(value) if key == OCR_KEY else value}" for key, value in metadata]
        return (
            storable(searchable_path(filepath)),
            storable(self.tokenize(" ".join(tags))),
            storable(self.tokenize("\n".join(lines))),
        )

    def tokenize(self, text: str) -> str:
        """`" ".join(jieba.cut(text))`."""
        if not text:
            return ""
        if not self._frequencies:
            self.load()
        parts = self._split_blocks(text)  # gap, block, gap, block, …, gap
        blocks, gaps = self._blocks, self._gaps
        words = []
        for position, part in enumerate(parts):
            if not part:
                continue
            if position & 1:
                joined = blocks.get(part)
                if joined is None:
                    joined = self._remember(blocks, part, " ".join(self._cut_block(part)))
            else:
                joined = gaps.get(part)
                if joined is None:
                    joined = self._remember(gaps, part, " ".join(_SEPARATORS.findall(part)))
            words.append(joined)
        return " ".join(words)

    def _remember(self, memo: dict[str, str], text: str, joined: str) -> str:
        if len(text) <= MEMO_CHARACTERS:
            if len(memo) >= self.memo_entries:
                memo.clear()
            memo[text] = joined
        return joined

    def _cut_block(self, block: str) -> list[str]:
        """Words of one block: the most probable path, where runs of single characters go through the Markov
        model.
        """
        words: list[str] = []
        start = 0
        single = ""
        for stop in self._path(block):
            if stop - start == 1:
                single += block[start]
            else:
                if single:
                    words.append(self._resolve(single))
                    single = ""
                words.append(block[start:stop])
            start = stop
        if single:
            words.append(self._resolve(single))
        return words

    def _resolve(self, single: str) -> str:
        """Words (joined by spaces) of a run of characters that no dictionary word covers."""
        if len(single) == 1:
            return single
        if self._frequencies.get(single):
            return " ".join(single)
        joined = self._unknown.get(single)
        if joined is None:
            joined = self._remember(self._unknown, single, " ".join(self._segment_unknown(single)))
        return joined

    def _path(self, block: str) -> list[int]:
        """Ends of the words on the most probable path through `block`, in order."""
        frequencies, weights, log_total = self._frequencies, self._weights, self._log_total
        length = len(block)
        best = [0.0] * (length + 1)
        following = [0] * length
        for start in range(length - 1, -1, -1):
            # A single character is always a way on; a word of frequency 0 is only the beginning of longer
            # ones.
            stop = start + 1
            frequency = frequencies.get(block[start])
            top = None
            top_stop = stop
            while frequency is not None:
                if frequency:
                    weight = weights.get(frequency)
                    if weight is None:
                        weight = weights[frequency] = log(frequency) - log_total
                    score = weight + best[stop]
                    if top is None or score >= top:
                        top, top_stop = score, stop
                stop += 1
                if stop > length:
                    break
                frequency = frequencies.get(block[start:stop])
            if top is None:
                top, top_stop = log(1) - log_total + best[start + 1], start + 1
            best[start] = top
            following[start] = top_stop
        stops = []
        start = 0
        while start < length:
            start = following[start]
            stops.append(start)
        return stops
