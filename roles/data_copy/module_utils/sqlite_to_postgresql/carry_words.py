"""Full-text entries on their way back: the raw text of which Pensieve's PostgreSQL indexer made its words.

On PostgreSQL an entry holds words joined by blanks, on SQLite the raw text, which its own tokenizer splits. The raw
text is what Pensieve would index of the entity now, if the words are of that; else, where Pensieve has changed rows
and not indexed them anew, the text of which the words were made: every word is a piece of it, in its order.
"""

from __future__ import annotations

from collections.abc import Sequence

from .fts import JIEBA_VERSION, Tokenizer, ocr_text, searchable_path, storable

OCR_KEY = "ocr_result"


def squeezed(text: str) -> str:
    """A text without blanks; words joined by blanks and the text that they were made of give the same."""
    return text.replace(" ", "")


def untokenized(words: str) -> str | None:
    """Give the text whose words these are, or None if they are not words joined by single blanks."""
    pieces = []
    at = 0
    while at < len(words):
        stop = at + 1 if words[at] == " " else words.find(" ", at)
        piece = words[at:] if stop < 0 else words[at:stop]
        pieces.append(piece)
        at += len(piece)
        if at == len(words):
            break
        if words[at] != " " or at + 1 == len(words):
            return None
        at += 1
    return "".join(pieces)


def ordered(names: Sequence[str], words: str) -> list[str] | None:
    """Give the tags in the order in which their words stand, or None if these are words of other tags."""
    wanted = squeezed(words)

    def place(left: list[str], at: int) -> list[str] | None:
        if not left:
            return [] if at == len(wanted) else None
        for name in dict.fromkeys(left):
            piece = squeezed(name)
            if wanted.startswith(piece, at):
                others = list(left)
                others.remove(name)
                rest = place(others, at + len(piece))
                if rest is not None:
                    return [name, *rest]
        return None

    return place(list(names), 0)


class WordsBack:
    """Makes raw entries. jieba is loaded only for entries that are not of their entity's present rows."""

    def __init__(self) -> None:
        self._tokenizer: Tokenizer | None = None
        self._loaded = False

    def raw(
        self,
        entry: tuple[str | None, str | None, str | None],
        filepath: str | None,
        tags: Sequence[str],
        metadata: Sequence[tuple[str, str]],
    ) -> tuple[str, str, str]:
        """(filepath, tags, metadata) as Pensieve's SQLite indexer writes them.

        ``entry``: that of PostgreSQL. ``filepath``, ``tags``, ``metadata``: of the entity's present rows, as for
        ``Tokenizer.prepare``; filepath None: there is no such entity.
        """
        path, words, text = (part or "" for part in entry)
        own = filepath if filepath is not None and storable(searchable_path(filepath)) == path else _path_of(path)
        names = ordered([storable(name) for name in tags], words)
        raw_tags = ", ".join(names) if names is not None else self._text_of(words)
        lines = "\n".join(f"{key}: {ocr_text(value) if key == OCR_KEY else value}" for key, value in metadata)
        now = storable(lines)
        return own, raw_tags, now if squeezed(now) == squeezed(text) else self._text_of(text)

    def _text_of(self, words: str) -> str:
        """The text whose words these are, proven by making words of it again; else the words themselves."""
        text = untokenized(words)
        if not words or text is None or not self._load() or self._tokenizer is None:
            return words
        return text if self._tokenizer.tokenize(text) == words else words

    def _load(self) -> bool:
        if not self._loaded:
            self._loaded = True
            try:
                self._tokenizer = Tokenizer().load()
            except ImportError:
                self._tokenizer = None  # another jieba than JIEBA_VERSION made these words
        return self._tokenizer is not None


def _path_of(text: str) -> str:
    """The path that an entry's text begins with."""
    at = text.find(" ")
    while at >= 0:
        if storable(searchable_path(text[:at])) == text:
            return text[:at]
        at = text.find(" ", at + 1)
    return text


__all__ = ["JIEBA_VERSION", "WordsBack", "ordered", "squeezed", "untokenized"]
