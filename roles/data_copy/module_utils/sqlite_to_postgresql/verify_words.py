"""entities_fts: what the target's own rows must give, by jieba."""

from __future__ import annotations

import itertools
import json
import random
import sqlite3
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .verify_sides import (
    BOOKKEEPING,
    FTS_TABLE,
    Differences,
    Outcome,
    Quarantine,
    Row,
    Run,
    TableVerdict,
    Task,
    among,
    groups,
    kept_bytes,
)
from .verify_values import kept_form

_COLUMNS = ("id", "filepath", "tags", "metadata")
_PAIR = np.dtype([("entity", np.int64), ("rowid", np.int64)])
_MOST_JOINTS = 1 << 12  # ways to read the tags of one entry
_ENTRY = "SELECT c0, c1, c2, c3 FROM entities_fts_content"


def raw_entry(filepath: str, tags: Sequence[str], metadata: Sequence[tuple[str, str]]) -> tuple[str, str, str]:
    """What Pensieve's PostgreSQL indexer stores as path, and segments as tags and as metadata (before
    segmentation).
    """
    path = filepath.replace("\\", "/")
    name = path[path.rfind("/") + 1 :]
    dot = name.rfind(".")
    stem = name[:dot] if dot > 0 and name[:dot].strip(".") else name
    lines = [f"{key}: {_recognised(value) if key == 'ocr_result' else value}" for key, value in metadata]
    return f"{path} {stem.translate({45: 32, 95: 32})}", " ".join(tags), "\n".join(lines)


def _recognised(value: str) -> str:
    """Lines of an OCR result; other JSON is laid out, other text stays."""
    try:
        parsed = json.loads(value)
        if not isinstance(parsed, list):
            return json.dumps(parsed, indent=2)
        for item in parsed:
            if not (isinstance(item, dict) and {"dt_boxes", "rec_txt", "score"} <= item.keys()):
                return json.dumps(parsed, indent=2)
        return " ".join([item["rec_txt"] for item in parsed][:4096])
    except (ValueError, TypeError, RecursionError):
        return value


_HELD = {0: 0x2400, **dict.fromkeys(range(0xD800, 0xE000), 0xFFFD)}


def held(text: str) -> str:
    """Text as PostgreSQL holds it: NUL as U+2400, lone surrogates as U+FFFD."""
    try:
        plain = "\0" not in text and text.encode("utf-8") is not None
    except UnicodeEncodeError:
        plain = False
    return text if plain else text.translate(_HELD)


def _characters(text: str) -> str:
    """A text without its blanks, which words are joined by."""
    return text.replace(" ", "")


def read_entries(source: sqlite3.Connection) -> npt.NDArray[np.void]:
    """Entity and rowid of each full-text entry, sorted; in one pass, since no index leads from one to the other."""
    pairs = np.fromiter(source.execute("SELECT c0, id FROM entities_fts_content WHERE typeof(c0) = 'integer'"), _PAIR)
    return pairs[np.lexsort((pairs["rowid"], pairs["entity"]))]


def _indexed(run: Run, source: sqlite3.Connection, task: Task) -> dict[int, int]:
    """Entities of a task that the source's index holds, with the newest entry of each."""
    if task.entries is None:
        pairs = run.entries
        assert pairs is not None
        if task.keys is None:
            assert task.low is not None
            assert task.high is not None
            first, last = np.searchsorted(pairs["entity"], [task.low, task.high])
            return dict(pairs[first:last].tolist())
        return dict(pairs[np.isin(pairs["entity"], [key[0] for key in task.keys])].tolist())
    ids = {key[0] for key in task.keys or ()}
    integer = "SELECT c0, id FROM entities_fts_content WHERE typeof(c0) = 'integer'"
    found: dict[int, int] = {}
    for some in groups(sorted(task.entries)):
        where, values = among(("id",), [(entry,) for entry in some], "?")
        found.update(row for row in source.execute(f"{integer} AND {where} ORDER BY id", values) if row[0] in ids)
    return found


def _listed(tags: str, words: str) -> str:
    """Tags that a comma and a blank separate, separated by blanks; the words tell which comma is one of a tag's own."""
    parts = tags.split(", ")
    for joints in itertools.islice(itertools.product((" ", ", "), repeat=len(parts) - 1), _MOST_JOINTS):
        text = parts[0] + "".join(joint + part for joint, part in zip(joints, parts[1:]))
        if _characters(held(text)) == _characters(words):
            return text
    return " ".join(parts)


def _entries(source: sqlite3.Connection, task: Task) -> dict[int, tuple[str, str, str]]:
    """The source's own entries whose rowids a task names: what its index says, in the form of ``raw_entry``."""
    found: dict[int, tuple[str, str, str]] = {}
    for some in groups(task.entries or ()):
        where, values = among(("id",), [(entry,) for entry in some], "?")
        for entity, path, tags, metadata in source.execute(f"{_ENTRY} WHERE {where} ORDER BY id", values):
            if all(isinstance(part, str) for part in (path, tags, metadata)):
                found[entity] = (raw_entry(path, (), ())[0], tags, metadata)
    return found


def compare_words(run: Run, task: Task) -> Outcome:
    """Compare the entries of entities in [low, high) with what their rows in the target give.

    Where a task names the source's entries, one that says just what the target's says is as good: on either side
    Pensieve may have changed rows and not have indexed them anew.
    """
    started = time.monotonic()
    source, target = run.open()
    verdict, findings = TableVerdict(), Differences(run.limit)
    tokenizer = run.tokenizer
    if tokenizer is None:
        raise RuntimeError("full text needs a tokenizer")
    sampled = random.Random(f"{run.seed} {task.low}")
    quarantine = Quarantine(run, FTS_TABLE, ("id",), True)
    ids = [key[0] for key in task.keys or ()]
    bounds: list[Any]
    if task.keys is None:
        quarantine.keep_range(task.low, task.high)
        within, bounds = "BETWEEN %s AND %s - 1", [task.low, task.high]
    else:
        quarantine.keep_keys(task.keys)
        within, bounds = "= ANY(%s::bigint[])", [ids]

    def ask(query: str) -> list[Row]:
        with target.cursor() as cursor:
            cursor.execute(query.replace("RANGE", within), bounds)
            return cursor.fetchall()

    def differs(entity: int, column: str | None, expected: Any, found: Any, what: str) -> None:
        findings.add(FTS_TABLE, {"id": entity}, column, expected, found, what)

    indexed, entries = _indexed(run, source, task), _entries(source, task)
    stored = {
        row[0]: row[1:] for row in ask("SELECT id, filepath, tags, metadata FROM public.entities_fts WHERE id RANGE")
    }
    paths: dict[int, str] = dict(ask("SELECT id, filepath FROM public.entities WHERE id RANGE"))
    tags: dict[int, dict[int, str]] = {}
    for entity, tag, name in ask(
        "SELECT e.entity_id, t.id, t.name FROM public.entity_tags e JOIN public.tags t ON t.id = e.tag_id"
        " WHERE e.entity_id RANGE ORDER BY e.id"
    ):
        tags.setdefault(entity, {}).setdefault(tag, name)
    metadata: dict[int, list[tuple[str, str]]] = {}
    for entity, key, value in ask(
        "SELECT entity_id, key, value FROM public.metadata_entries WHERE entity_id RANGE ORDER BY id"
    ):
        metadata.setdefault(entity, []).append((key, value))
    verdict.source = len(indexed)
    for entity, newest in indexed.items():
        found = stored.get(entity)
        if found is None:
            row = source.execute(f"{_ENTRY} WHERE id = ?", (newest,)).fetchone()
            same = quarantine.take_row((entity,), _COLUMNS, row)
            if same is None:
                differs(entity, None, "an entry", None, "row is missing in the target")
                continue
            verdict.quarantined += 1
            if not same:
                differs(entity, None, repr(row), None, "the original in quarantine is not the source's row")
            continue
        verdict.target += 1
        if entity not in paths:
            differs(entity, None, None, found[0], "entry of an entity that the target does not have")
            continue
        raw = raw_entry(paths[entity], list(tags.get(entity, {}).values()), metadata.get(entity, []))
        own = entries.get(entity)
        if own:
            own = (own[0], _listed(own[1], found[1] or ""), own[2])
        if own and all(_characters(held(text)) == _characters(words or "") for text, words in zip(own, found)):
            raw = own
        plainly = sampled.random() < run.sample
        verdict.compared_cells += 3
        if found[0] != held(raw[0]):
            differs(entity, "filepath", held(raw[0]), found[0], "cell differs")
        for column, text, words in zip(("tags", "metadata"), raw[1:], found[1:]):
            if words is None or _characters(words) != _characters(held(text)):
                differs(entity, column, held(text), words, "characters differ (words apart)")
            elif words != held(tokenizer.tokenize(text)):
                differs(entity, column, held(tokenizer.tokenize(text)), words, "words differ")
            elif plainly and words != held(" ".join(tokenizer.plain.cut(text))):
                differs(
                    entity,
                    column,
                    held(" ".join(tokenizer.plain.cut(text))),
                    words,
                    "words differ from jieba's",
                )
    for entity in sorted((stored.keys() - indexed.keys()) if task.keys is not None else ()):
        verdict.target += 1
        differs(entity, None, None, entity, "row is not in the source")
    for key in quarantine.rows:
        if key[0] != "rowid" and type(key[0]) is int:
            differs(key[0], None, None, None, "row in quarantine, but not missing in the target, or not in the source")
    verdict.differences = findings.count
    verdict.seconds = time.monotonic() - started
    return Outcome(task, verdict, findings)


def compare_odd_entries(run: Run, task: Task) -> Outcome:
    """Entries of the source without an entity's id: no target can have them, so all must be in quarantine."""
    started = time.monotonic()
    source, target = run.open()
    verdict, findings = TableVerdict(), Differences(run.limit)
    originals: Counter[tuple[tuple[str, bytes], ...]] = Counter()
    if run.quarantine:
        with target.cursor() as cursor:
            cursor.execute(
                f"SELECT original FROM {BOOKKEEPING}.quarantine WHERE source_table = %s AND source_column IS NULL"
                " AND jsonb_typeof(source_key -> 'id') <> 'number'",
                (FTS_TABLE,),
            )
            for (original,) in cursor:
                cells = json.loads(bytes(original))
                originals[tuple((cells[name]["class"], kept_bytes(cells[name])) for name in _COLUMNS)] += 1
    for row in source.execute(f"{_ENTRY} WHERE typeof(c0) <> 'integer'"):
        verdict.source += 1
        form = tuple(map(kept_form, row))
        if originals[form]:
            originals[form] -= 1
            verdict.quarantined += 1
        else:
            findings.add(FTS_TABLE, {"id": row[0]}, None, repr(row), None, "row is missing in target and quarantine")
    for form, count in originals.items():
        if count:
            findings.add(FTS_TABLE, {"id": None}, None, None, repr(form), "row in quarantine that the source lacks")
    verdict.differences = findings.count
    verdict.seconds = time.monotonic() - started
    return Outcome(task, verdict, findings)
