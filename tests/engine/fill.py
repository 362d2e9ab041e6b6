"""Fill Pensieve's SQLite database with screenshots. Runs in Pensieve's interpreter: fill.py SCREENSHOTS SEED.

Per screenshot: one entity, eight metadata entries (one of them OCR JSON of 40 boxes and 1,400
characters, English and Chinese), one plugin status, one vector, one full-text entry; every fifth has a tag.
As on a real desktop, a window stays for some screenshots and its text scrolls: most lines of a screenshot
were on the one before, and one character in 500 is read differently each time.

Rows go in by plain SQL through the connection that Pensieve's own code opens (tokenizer and vec0 loaded).
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import jieba
import numpy
from memos.config import settings
from memos.databases.initializers import create_db_initializer

START = datetime(2025, 7, 1, 6, 30, 0, 123456)
LINES = 40
SHOTS_PER_WINDOW = 12
SCROLL = 4
BATCH = 500
MISREAD = 0.002
TAGS = ["work", "私人", "invoice", "会议", "travel", "bug", "review", "学习", "shopping", "music"]
APPS = [
    "Google Chrome",
    "Code",
    "微信",
    "Terminal",
    "Finder",
    "Microsoft Outlook",
    "Slack",
    "预览",
    "Preview",
]
LABELS = [
    "File",
    "Edit",
    "View",
    "History",
    "Bookmarks",
    "Window",
    "Help",
    "文件",
    "编辑",
    "显示",
    "窗口",
    "帮助",
]
LABELS += [
    "Search or type URL",
    "New Tab",
    "Reload",
    "设置",
    "搜索",
    "消息 (3)",
    "100%",
    "Downloads",
    "未读邮件",
]
SYLLABLES = re.findall("..?.?", "tarmionconproderingmentlyexcompertionarblevernosyslogfieldchartsum")
INSERTS = {
    "entities": (
        "INSERT INTO entities(id, filepath, filename, size, file_created_at, file_last_modified_at,"
        " file_type, file_type_group, last_scan_at, library_id, folder_id, created_at, updated_at)"
        " VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)"
    ),
    "metadata_entries": (
        "INSERT INTO metadata_entries(entity_id, key, value, source_type, source, data_type, created_at,"
        " updated_at) VALUES (?,?,?,?,?,?,?,?)"
    ),
    "entity_plugin_status": ("INSERT INTO entity_plugin_status(entity_id, plugin_id, processed_at) VALUES (?,?,?)"),
    "entity_tags": ("INSERT INTO entity_tags(entity_id, tag_id, source, created_at, updated_at) VALUES (?,?,?,?,?)"),
    "entities_fts": "INSERT INTO entities_fts(id, filepath, tags, metadata) VALUES (?,?,?,?)",
    "entities_vec_v2": (
        "INSERT INTO entities_vec_v2(rowid, embedding, app_name, file_type_group, created_at_timestamp,"
        " file_created_at_timestamp, file_created_at_date, library_id) VALUES (?,?,?,?,?,?,?,?)"
    ),
}


class Desktop:
    """Text on a screen, as a sequence of screenshots of windows that scroll."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        dictionary = Path(jieba.__file__).with_name("dict.txt").read_text(encoding="utf-8").splitlines()
        entries = [line.split(" ") for line in dictionary]
        self.chinese = [entry[0] for entry in entries]
        self.chinese_weights = list(_running(int(entry[1]) for entry in entries))
        self.english = ["".join(self.random.choices(SYLLABLES, k=self.random.randint(1, 4))) for _ in range(8000)]
        self.english_weights = list(_running(10_000 // (rank + 1) + 1 for rank in range(len(self.english))))

    def line(self) -> str:
        """One line of a document or of a dialogue: words of English or Chinese, now and then a number."""
        if self.random.random() < 0.5:
            words = self.random.choices(self.chinese, cum_weights=self.chinese_weights, k=self.random.randint(6, 20))
            return "".join(words) + self.random.choice(["", "。", "，", "：", " 2025", "？"])
        words = self.random.choices(self.english, cum_weights=self.english_weights, k=self.random.randint(3, 10))
        if self.random.random() < 0.2:
            words.append(f"{self.random.randint(1, 99999)}.{self.random.randint(0, 99)}")
        return " ".join(words).capitalize() + self.random.choice(["", ".", ",", ":", " -", "%"])

    def misread(self, line: str) -> str:
        """As a recogniser does: mostly right."""
        return "".join(
            self.random.choice("l1O0|、—口") if self.random.random() < MISREAD else character for character in line
        )

    def screenshots(self) -> Iterator[tuple[str, str, list[str]]]:
        """Endless (application, window title, lines)."""
        while True:
            application = self.random.choice(APPS)
            title = f"{self.line()} - {application}"
            labels = self.random.sample(LABELS, 10)
            document = [self.line() for _ in range(LINES - 10 + SCROLL * SHOTS_PER_WINDOW)]
            for shot in range(self.random.randint(1, SHOTS_PER_WINDOW)):
                visible = document[shot * SCROLL : shot * SCROLL + LINES - 10]
                yield application, title, [self.misread(line) for line in labels + visible]


def _running(numbers: Iterator[int]) -> Iterator[int]:
    total = 0
    for number in numbers:
        total += number
        yield total


def ocr_json(random_: random.Random, lines: list[str]) -> str:
    """As Pensieve's OCR plugin stores it."""
    items = []
    for row, text in enumerate(lines):
        left, top = round(random_.random() * 400, 1), 20.0 * row
        right, bottom = round(left + 9.5 * len(text), 1), top + 18.0
        boxes = [[left, top], [right, top], [right, bottom], [left, bottom]]
        items.append({"dt_boxes": boxes, "rec_txt": text, "score": round(0.8 + random_.random() / 5, 2)})
    return json.dumps(items, ensure_ascii=False)


def main(screenshots: int, seed: int) -> None:
    """Add the rows, then move the write-ahead log into the file."""
    engine, _initializer = create_db_initializer(settings)
    connection = engine.raw_connection().driver_connection
    connection.execute("PRAGMA synchronous = OFF")
    desktop = Desktop(seed)
    shots = desktop.screenshots()
    vectors = numpy.random.default_rng(seed)
    now = START.strftime("%Y-%m-%d %H:%M:%S")
    first = connection.execute("SELECT coalesce(max(id), 0) + 1 FROM entities").fetchone()[0]
    library = connection.execute("SELECT min(id) FROM libraries").fetchone()[0]
    plugin = connection.execute("SELECT min(id) FROM plugins").fetchone()[0]
    folder = connection.execute(
        "INSERT INTO folders(path, library_id, type, last_modified_at, created_at, updated_at)"
        " VALUES ('/home/user/.memos/screenshots', ?, 'DEFAULT', ?, ?, ?) RETURNING id",
        (library, START.isoformat(" "), now, now),
    ).fetchone()[0]
    tags = {
        name: connection.execute(
            "INSERT INTO tags(name, description, color, created_at, updated_at) VALUES (?,?,NULL,?,?) RETURNING id",
            (name, None if len(name) % 2 else f"about {name}", now, now),
        ).fetchone()[0]
        for name in TAGS
    }
    rows: dict[str, list[tuple[object, ...]]] = {table: [] for table in INSERTS}
    for entity in range(first, first + screenshots):
        application, title, lines = next(shots)
        taken = START + timedelta(seconds=7 * entity, microseconds=desktop.random.randint(0, 999_999))
        stamp = taken.strftime("%Y-%m-%d %H:%M:%S")
        name = f"screenshot-{taken:%Y%m%d-%H%M%S}-of-Built-in_Display-{entity}.webp"
        path = f"/home/user/.memos/screenshots/{taken:%Y%m%d}/{name}"
        rows["entities"].append(
            (
                entity, path, name, desktop.random.randint(20_000, 900_000),
                taken.strftime("%Y-%m-%d %H:%M:%S.%f"), taken.strftime("%Y-%m-%d %H:%M:%S.%f"),
                "webp", "image", stamp if entity % 50 else None, library, folder, stamp, stamp,
            )
        )  # fmt: skip
        metadata = [
            ("timestamp", taken.strftime("%Y%m%d-%H%M%S"), "SYSTEM_GENERATED", "system_generated", "TEXT_DATA"),
            ("active_app", application, "SYSTEM_GENERATED", "system_generated", "TEXT_DATA"),
            ("active_window", title, "SYSTEM_GENERATED", "system_generated", "TEXT_DATA"),
            ("screen_name", "Built-in Display", "SYSTEM_GENERATED", "system_generated", "TEXT_DATA"),
            ("sequence", str(entity), "SYSTEM_GENERATED", "system_generated", "NUMBER_DATA"),
            ("width", "2560", "SYSTEM_GENERATED", "system_generated", "NUMBER_DATA"),
            ("height", "1600", "SYSTEM_GENERATED", "system_generated", "NUMBER_DATA"),
            ("ocr_result", ocr_json(desktop.random, lines), "PLUGIN_GENERATED", "ocr", "JSON_DATA"),
        ]
        for key, value, source_type, source, data_type in metadata:
            rows["metadata_entries"].append((entity, key, value, source_type, source, data_type, stamp, stamp))
        rows["entity_plugin_status"].append((entity, plugin, stamp))
        tagged = [desktop.random.choice(TAGS)] if entity % 5 == 0 else []
        for tag in tagged:
            rows["entity_tags"].append((entity, tags[tag], "USER_GENERATED", stamp, stamp))
        indexed = "\n".join(
            f"{key}: {' '.join(lines) if key == 'ocr_result' else value}" for key, value, *_ in metadata
        )
        rows["entities_fts"].append((entity, path, ", ".join(tagged), indexed))
        vector = vectors.standard_normal(settings.embedding.num_dim, dtype=numpy.float32)
        vector /= numpy.linalg.norm(vector)
        rows["entities_vec_v2"].append(
            (
                entity, vector.tobytes(), application, "image", int(taken.timestamp()) + 60,
                int(taken.timestamp()), taken.strftime("%Y-%m-%d"), library,
            )
        )  # fmt: skip
        if len(rows["entities"]) >= BATCH or entity == first + screenshots - 1:
            for table, batch in rows.items():
                connection.executemany(INSERTS[table], batch)
                batch.clear()
            connection.commit()
    connection.commit()
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
