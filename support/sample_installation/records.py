"""Fill a running Pensieve with sample screenshots, through its REST API, as its own `record` and `watch` do.

Runs with Pensieve's interpreter (Pillow draws the images). The same number of records is the same on every
machine: text, times and order come from a seeded generator.

On top comes what the database of every real user holds and PostgreSQL refuses:

- `entity_tags` rows of a tag that an API delete took away,
- one NUL character in a metadata value, which the REST API accepts,
- rows of AutoTaskTracker, written straight into SQLite as it writes them: enum labels that Pensieve does not
  know (`source_type` 'vlm_processor', `data_type` 'text'), `source` NULL, and its indexes,
- the table of vectors that Pensieve used before 0.24 and then left where it was.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import sqlite3
import urllib.error
import urllib.request
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageDraw

from .old_vectors import add_old_vectors

SEED = 20250702
BEGIN = datetime(2025, 6, 2, 8, 30)
"""First screenshot, UTC; the last ones are two weeks later, as in the weeks before the plan was written."""


class Activity(NamedTuple):
    """What a person does: application, window title, task, category, and lines that OCR reads."""

    app: str
    window: str
    task: str
    category: str
    lines: tuple[str, ...]


ACTIVITIES = (
    Activity(
        "Visual Studio Code",
        "database.py - autotasktracker",
        "Refactor the connection pool",
        "Coding",
        (
            "def fetch_screenshots(self, limit: int = 100) -> list[Row]:",
            "raise DatabaseError('connection pool exhausted after 30 seconds')",
            "TERMINAL  pytest tests/unit -q   42 passed in 3.91s",
        ),
    ),
    Activity(
        "Firefox",
        "pgvector: open-source vector similarity search",
        "Read about vector indexes",
        "Research",
        (
            "HNSW index creates a multilayer graph with better query performance than IVFFlat",
            "CREATE INDEX ON items USING hnsw (embedding vector_cosine_ops);",
            "Supports exact and approximate nearest neighbor search",
        ),
    ),
    Activity(
        "Thunderbird",
        "Inbox - Quarterly invoice reminder",
        "Answer the invoice reminder",
        "Communication",
        (
            "Dear customer, invoice 2025-0713 of 1,284.50 EUR is due on 14 July",
            "Please find attached the purchase order and the delivery note",
            "Best regards, accounting department, Müller & Söhne GmbH",
        ),
    ),
    Activity(
        "Terminal",
        "ssh production — journalctl -f",
        "Watch the deployment",
        "Operations",
        (
            "systemd[1]: Started nightly backup of the warehouse database.",
            "kernel: EXT4-fs (sda1): mounted filesystem with ordered data mode",
            "nginx: 200 GET /api/health upstream_response_time=0.004",
        ),
    ),
    Activity(
        "LibreOffice Calc",
        "budget-2025.ods",
        "Plan the travel budget",
        "Finance",
        (
            "Quarter  Travel  Equipment  Training  Forecast",
            "Q3  4,200  11,850  2,400  overspent by 7%",
            '=SUMIFS(D2:D96;A2:A96;"Q3")',
        ),
    ),
    Activity(
        "Zoom",
        "Weekly planning meeting",
        "Weekly planning meeting",
        "Meeting",
        (
            "Agenda: migration rehearsal, rollback drill, open questions",
            "Ada is sharing the screen – 7 participants",
            "Decision: the cutover happens on Wednesday evening",
        ),
    ),
    Activity(
        "微信",
        "产品讨论群",
        "讨论搜索功能",
        "Communication",
        (
            "今天下午三点开会讨论数据库迁移的计划",
            "全文搜索需要支持中文分词和英文单词",
            "截图已经上传到共享文件夹，请大家检查一下",
        ),
    ),
    Activity(
        "Chrome",
        "PostgreSQL 中文文档 - 全文检索",
        "阅读全文检索文档",
        "Research",
        (
            "全文检索提供了识别满足一个查询的自然语言文档的能力",
            "向量数据库可以根据语义相似度查找最接近的截图",
            "SELECT to_tsvector('simple', '人工智能 改变 世界');",
        ),
    ),
    Activity(
        "WPS Office",
        "季度总结报告.docx",
        "撰写季度总结",
        "Writing",
        (
            "第二季度的销售额比去年同期增长了百分之十二",
            "北京和上海的办公室将在七月完成系统升级",
            "附录：项目进度表与预算说明",
        ),
    ),
    Activity(
        "Figma",
        "Dashboard redesign / 仪表盘",
        "Redesign the dashboard",
        "Design",
        (
            "Frame 1440 × 1024  Auto layout  Hug contents",
            "Daily activity heatmap  每日活动热力图",
            "Typeface Inter 14/20, contrast ratio 4.8:1",
        ),
    ),
)
TAGS = ("work", "review", "invoice", "会议", "research", "customer")
SHARED_TAG = "to-sort"
"""The tag that an API delete takes away, which orphans the rows of all other entities that carry it."""

AUTOTASKTRACKER_INDEXES = (
    "CREATE INDEX IF NOT EXISTS idx_metadata_entity_key ON metadata_entries(entity_id, key)",
    "CREATE INDEX IF NOT EXISTS idx_entities_created_at ON entities(created_at)",
    "CREATE INDEX IF NOT EXISTS idx_entities_file_type ON entities(file_type_group)",
    "CREATE INDEX IF NOT EXISTS idx_metadata_created_at ON metadata_entries(created_at)",
)


class Pensieve:
    """Pensieve's REST API."""

    def __init__(self, endpoint: str) -> None:
        """`endpoint` like `http://127.0.0.1:8839`."""
        self.endpoint = endpoint

    def request(self, method: str, path: str, body: Any = None) -> Any:
        """Send JSON, give back what comes back as JSON (None when empty); RuntimeError when refused."""
        request = urllib.request.Request(
            f"{self.endpoint}/api{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        # No proxy: the server is on this machine.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=60) as response:
                content = response.read()
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{method} {path}: {error.code} {error.read().decode()[:500]}") from error
        return json.loads(content) if content else None


def ocr_result(lines: tuple[str, ...], chance: random.Random) -> str:
    """JSON as Pensieve's OCR plugin stores it: boxes in pixels, text, score."""
    found = []
    for number, line in enumerate(lines):
        left, top = chance.randrange(20, 200), 60 + 40 * number
        right, bottom = left + 9 * len(line), top + 22
        found.append(
            {
                "dt_boxes": [[left, top], [right, top], [right, bottom], [left, bottom]],
                "rec_txt": line,
                "score": round(chance.uniform(0.85, 0.999), 4),
            }
        )
    return json.dumps(found, ensure_ascii=False)


def draw(path: Path, activity: Activity, number: int) -> None:
    """A small screenshot: a window with title bar and lines, as WebP or PNG by the suffix."""
    image = Image.new("RGB", (320, 200), (236, 239, 244))
    pen = ImageDraw.Draw(image)
    hue = (number * 47) % 360
    pen.rectangle((0, 0, 320, 18), fill=f"hsl({hue}, 45%, 40%)")
    pen.text((6, 4), f"{activity.app} {number}".encode("ascii", "replace").decode(), fill="white")
    for row, line in enumerate(activity.lines):
        text = line.encode("ascii", "replace").decode()[:48]
        pen.text((10, 36 + 24 * row), text, fill=(46, 52, 64))
    image.save(path)


def entity(
    path: Path, taken: datetime, folder: int, activity: Activity, number: int, chance: random.Random
) -> dict[str, Any]:
    """The body of `POST /libraries/…/entities` for the screenshot at `path`."""
    text = [
        ("timestamp", taken.strftime("%Y%m%d-%H%M%S"), "system_generated", "text"),
        ("active_app", activity.app, "system_generated", "text"),
        ("active_window", f"{activity.window} ({number})", "system_generated", "text"),
        ("screen_name", "eDP-1", "system_generated", "text"),
        ("sequence", str(number), "system_generated", "number"),
        ("ocr_result", ocr_result(activity.lines, chance), "ocr", "json"),
    ]
    if number % 6 == 0:
        text.append(("minicpm_v_result", f"Someone works in {activity.app}: {activity.task}", "vlm", "text"))
    return {
        "filename": path.name,
        "filepath": str(path),
        "size": path.stat().st_size,
        "file_created_at": taken.isoformat(),
        "file_last_modified_at": (taken + timedelta(seconds=1)).isoformat(),
        "file_type": path.suffix[1:],
        "file_type_group": "image",
        "folder_id": folder,
        "tags": sorted(chance.sample(TAGS, chance.randrange(3))) + ([SHARED_TAG] if number % 9 == 0 else []),
        "metadata_entries": [
            {"key": key, "value": value, "source": source, "data_type": kind} for key, value, source, kind in text
        ],
    }


def library(pensieve: Pensieve, name: str, folder: Path, hook: str) -> tuple[int, int]:
    """Make the library unless it is there, add the folder, bind the OCR plugin; both ids."""
    folder.mkdir(parents=True, exist_ok=True)
    made = next((found for found in pensieve.request("GET", "/libraries") if found["name"] == name), None)
    if made is None:
        made = pensieve.request("POST", "/libraries", {"name": name, "folders": []})
    place = {"path": str(folder), "last_modified_at": BEGIN.isoformat()}
    made = pensieve.request("POST", f"/libraries/{made['id']}/folders", {"folders": [place]})
    plugins = pensieve.request("GET", "/plugins")
    if not any(plugin["name"] == "sample_ocr" for plugin in plugins):
        pensieve.request(
            "POST",
            "/plugins",
            {"name": "sample_ocr", "description": "Accepts every image", "webhook_url": hook},
        )
    pensieve.request("POST", f"/libraries/{made['id']}/plugins", {"plugin_name": "sample_ocr"})
    return int(made["id"]), int(made["folders"][0]["id"])


def fill(pensieve: Pensieve, screenshots: Path, hook: str, count: int) -> list[int]:
    """Post `count` screenshots in two libraries, indexed as they come; ids of the entities."""
    chance = random.Random(SEED)
    folders = {"screenshots": screenshots, "Projects 项目": screenshots.parent / "projects"}
    places = [(*library(pensieve, name, folder, hook), folder) for name, folder in folders.items()]
    ids = []
    for number in range(count):
        taken = BEGIN + timedelta(minutes=number * 20160 / count)
        library_id, folder_id, folder = places[number % 10 == 7]
        suffix = ".png" if number % 5 == 4 else ".webp"
        path = folder / f"{taken:%Y%m%d}" / f"screenshot-{taken:%Y%m%d-%H%M%S}-of-eDP-1{suffix}"
        path.parent.mkdir(exist_ok=True)
        activity = ACTIVITIES[chance.randrange(len(ACTIVITIES))]
        draw(path, activity, number)
        body = entity(path, taken, folder_id, activity, number, chance)
        made = pensieve.request("POST", f"/libraries/{library_id}/entities?update_index=true", body)
        ids.append(int(made["id"]))
        if (number + 1) % 100 == 0:
            print(f"  {number + 1} of {count} screenshots recorded and indexed", flush=True)
    return ids


def delete_with_shared_tag(pensieve: Pensieve) -> int:
    """Delete one screenshot that carries the shared tag; its id. Pensieve deletes the tag with it."""
    libraries = pensieve.request("GET", "/libraries")
    for found in libraries:
        for folder in found["folders"]:
            path = f"/libraries/{found['id']}/folders/{folder['id']}/entities?limit=400&order_by=id:asc"
            for candidate in pensieve.request("GET", path):
                if any(tag["name"] == SHARED_TAG for tag in candidate["tags"]):
                    pensieve.request("DELETE", f"/libraries/{found['id']}/entities/{candidate['id']}")
                    return int(candidate["id"])
    raise LookupError(f"no screenshot carries the tag {SHARED_TAG}")


def add_nul(pensieve: Pensieve, entity_id: int) -> None:
    """A clipboard text that holds a NUL character, as the REST API takes it."""
    pensieve.request(
        "PATCH",
        f"/entities/{entity_id}/metadata",
        {
            "metadata_entries": [
                {"key": "clipboard", "value": "before\x00after \U0001f5a5", "source": "clipboard", "data_type": "text"}
            ]
        },
    )


def add_autotasktracker_rows(database: Path, ids: list[int]) -> int:
    """Tasks of every sixth screenshot and the indexes, as AutoTaskTracker writes them; number of rows."""
    rows: list[tuple[int, str, str, str, str]] = []
    for entity_id in ids[::6]:
        activity = ACTIVITIES[entity_id % len(ACTIVITIES)]
        description = json.dumps({"task": activity.task, "confidence": 0.87}, ensure_ascii=False)
        rows += [
            (entity_id, "tasks", activity.task, "task_processor", "text"),
            (entity_id, "category", activity.category, "auto_processor", "text"),
            (entity_id, "task_confidence", "0.87", "ai", "float"),
            (entity_id, "vlm_description", description, "vlm_processor", "json"),
        ]
    with contextlib.closing(sqlite3.connect(database, timeout=30)) as connection, connection:
        connection.executemany(
            "INSERT INTO metadata_entries"
            " (entity_id, key, value, source_type, data_type, created_at, updated_at)"
            " VALUES (?, ?, ?, ?, ?, datetime('now'), datetime('now'))",
            rows,
        )
        for statement in AUTOTASKTRACKER_INDEXES:
            connection.execute(statement)
    return len(rows)


def main() -> None:
    """Fill the Pensieve that was named, and say what it holds."""
    parser = argparse.ArgumentParser(description="Fill a running Pensieve with sample screenshots.")
    parser.add_argument("--endpoint", required=True, help="like http://127.0.0.1:8839")
    parser.add_argument("--hook", required=True, help="address of the OCR plugin's hook")
    parser.add_argument("--database", type=Path, required=True, help="the SQLite file of that Pensieve")
    parser.add_argument("--screenshots", type=Path, required=True)
    parser.add_argument("--count", type=int, required=True)
    arguments = parser.parse_args()
    pensieve = Pensieve(arguments.endpoint)
    ids = fill(pensieve, arguments.screenshots, arguments.hook, arguments.count)
    deleted = delete_with_shared_tag(pensieve)
    ids.remove(deleted)
    add_nul(pensieve, ids[1])
    rows = add_autotasktracker_rows(arguments.database, ids)
    # Of a screenshot that is deleted, later versions leave the old vector where it is.
    add_old_vectors([*ids[: len(ids) // 2], deleted])
    print(
        f"  {len(ids)} screenshots, {rows} rows of AutoTaskTracker, one NUL character, one deleted tag,"
        " vectors of an older version"
    )


if __name__ == "__main__":
    main()
