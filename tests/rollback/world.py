"""A real Pensieve that is migrated, served on PostgreSQL, written to by REST, and carried back; by the engine alone."""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.server import Server, run
from sample_installation.installation import Installation
from sqlite_to_postgresql.copier import copy
from sqlite_to_postgresql.verify import VerifyResult, verify

ROOT = Path(__file__).parents[2]
ENGINE = ROOT / "roles" / "data_copy" / "module_utils"
SEARCH = Path(__file__).with_name("search.py")
SECONDS = 60.0
WORDS = [
    "invoice",
    "meeting",
    "travel",
    "review",
    "budget",
    "会议",
    "学习",
    "发票",
    "工作 计划",
    "naïve",
    "Ünïcode",
    "𝔘𝔫𝔦",
]
TAGS = ["work", "私人", "to do", "red, urgent", "nightly", "会议 记录"]


@dataclass
class Answer:
    """What Pensieve's server said."""

    status: int
    body: Any


@dataclass
class World:
    """The sample that all runs start from, stopped; a server; Pensieve's interpreter.

    Attributes:
        sample: a made installation whose database is copied for each run, never written to.
        server: PostgreSQL with a database ``template`` that has Pensieve's schema.
        catalog: definitions of that schema.
    """

    sample: Installation
    server: Server
    template: str
    numbers: Iterator[int]
    made: list[str] = field(default_factory=list)

    @property
    def python(self) -> str:
        """Pensieve's interpreter."""
        return str(self.sample.settings.venv / "bin" / "python")

    def environment(self, database: str = "") -> dict[str, str]:
        """The variables of this user, with the database chosen as in the plan's own recipe."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MEMOS_", "PYTHON"))}
        local = {"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}
        chosen = {"MEMOS_DATABASE_PATH": database} if database else {}
        return {**kept, **local, **chosen, "HOME": str(self.sample.settings.home), "LOGFIRE_SEND_TO_LOGFIRE": "false"}

    def migrate(self, folder: Path, database: Path | None = None) -> Run:
        """Copy the sample's database (or another one) into ``folder`` and on to PostgreSQL; begin the change log."""
        source = Path(shutil.copy(database or self.sample.base / "database.db", folder / "database.db"))
        name = f"run_{os.getpid()}_{next(self.numbers)}"
        dsn = self.server.create_database(name, self.template)
        self.made.append(name)
        copied = copy(source, dsn)
        assert copied.changed
        run = Run(self, source, dsn)
        assert run.engine("changes")["begun"]
        return run


@dataclass
class Run:
    """One migration."""

    world: World
    source: Path
    dsn: str

    def engine(self, action: str, *options: str, check: bool = True) -> Any:
        """Run an action of the engine in Pensieve's interpreter."""
        process = self.begin(action, *options)
        errors, said = process.communicate()[1], self._result.read_text()
        if check and process.returncode:
            raise AssertionError(f"{action}: {process.returncode}\n{said}\n{errors}")
        return json.loads(said) if said.strip() else {"failed": errors, "rc": process.returncode}

    def begin(self, action: str, *options: str) -> subprocess.Popen[str]:
        """Begin an action; what it tells meanwhile is its stderr. Its result goes to a file: nobody need read it."""
        command = [self.world.python, "-m", "sqlite_to_postgresql", action, "--source", str(self.source)]
        with self._result.open("w") as result:
            return subprocess.Popen(
                [*command, "--target", self.dsn, *options],
                env={**self.world.environment(), "PYTHONPATH": str(ENGINE), "PYTHONDONTWRITEBYTECODE": "1"},
                stdout=result,
                stderr=subprocess.PIPE,
                text=True,
            )

    @property
    def _result(self) -> Path:
        return self.source.with_name("result.json")

    @contextmanager
    def serving(self, database: str = "") -> Iterator[Callable[..., Answer]]:
        """Pensieve's server on PostgreSQL (or another database); gives what sends a request to it."""
        endpoint = self.world.sample.endpoint
        log = self.source.with_name("serve.log")
        with log.open("ab") as output:
            process = subprocess.Popen(
                [self.world.python, "-m", "memos.commands", "serve"],
                env=self.world.environment(database or self.dsn),
                cwd=self.world.sample.settings.home,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            deadline = time.monotonic() + SECONDS
            while not ready(endpoint):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError(log.read_text(errors="replace")[-3000:])
                time.sleep(0.05)
            yield lambda method, path, body=None: request(endpoint, method, path, body)
        finally:
            process.terminate()
            process.wait(SECONDS)

    def sql(self, *statements: str) -> list[tuple[Any, ...]]:
        """Run statements as the applications' role; rows of the last one."""
        return run(self.dsn, *statements)

    def lite(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """Read SQLite."""
        connection = sqlite3.connect(f"{self.source.absolute().as_uri()}?mode=ro", uri=True)
        connection.text_factory = bytes
        try:
            return connection.execute(sql, values).fetchall()
        finally:
            connection.close()

    def verify(self) -> VerifyResult:
        """Compare every cell. An entry of full text may also be what SQLite's own entry gives.

        Pensieve changes tags and metadata without indexing them anew, so that its index lags behind its own rows, on
        either database alike. An entry that was touched since the cutover must be right in one of both ways; one that
        was not is as the copy has made and verified it, and so is SQLite's.
        """
        result = verify(self.source, self.dsn, jobs=1, limit=1_000_000)
        apart = ("characters differ", "words differ", "cell differs")
        lagging = {d.key["id"] for d in result.differences if d.table == "entities_fts" and d.what.startswith(apart)}
        others = [d for d in result.differences if not (d.table == "entities_fts" and d.key.get("id") in lagging)]
        noted = "SELECT (key ->> 0)::int FROM data_copy.change WHERE table_name = 'entities_fts' AND key IS NOT NULL"
        touched = lagging & {number for (number,) in self.sql(noted)}
        if touched:
            marks = ", ".join("?" * len(touched))
            newest = f"SELECT max(id) FROM entities_fts_content WHERE c0 IN ({marks}) GROUP BY c0"
            rowids = self.lite(newest, *sorted(touched))
            only = {"entities_fts": [(number,) for number in touched], "entities_fts_content": rowids}
            others += verify(self.source, self.dsn, jobs=1, only=only).differences
        result.differences, result.equal = others, not others
        return result

    def search(self, database: str, words: list[str]) -> dict[str, list[int]]:
        """Ids that Pensieve's own full-text search finds."""
        done = subprocess.run(
            [self.world.python, str(SEARCH), *words],
            env=self.world.environment(database),
            capture_output=True,
            text=True,
            check=True,
        )
        found: dict[str, list[int]] = json.loads(done.stdout.splitlines()[-1])
        return found


def request(endpoint: str, method: str, path: str, body: Any = None) -> Answer:
    """Send one request, past any proxy."""
    data = None if body is None else json.dumps(body).encode()
    asked = urllib.request.Request(
        f"{endpoint}/api{path}", data=data, method=method, headers={"Content-Type": "application/json"}
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(asked, timeout=SECONDS) as response:
            text = response.read().decode()
            return Answer(response.status, json.loads(text) if text else None)
    except urllib.error.HTTPError as error:
        return Answer(error.code, error.read().decode(errors="replace"))


def ready(endpoint: str) -> bool:
    """Whether the server answers, and its database does."""
    try:
        return request(endpoint, "GET", "/libraries").status == 200
    except OSError:
        return False


def screenshot(chance: random.Random, number: str, folder: int) -> dict[str, Any]:
    """A new screenshot as `memos scan` sends it."""
    moment = f"2025-0{chance.randint(1, 9)}-{chance.randint(10, 28)}T10:{chance.randint(10, 59)}:00"
    fraction = chance.choice(["", ".5", ".123456"])
    lines = [{"dt_boxes": [[0, 0]], "rec_txt": " ".join(chance.choices(WORDS, k=4)), "score": 0.9} for _ in range(3)]
    metadata = [
        {"key": "active_app", "value": chance.choice(["Terminal", "微信", "a name longer than twelve bytes"]),
         "source": "system", "data_type": "text"},
        {"key": "ocr_result", "value": json.dumps(lines, ensure_ascii=False), "source": "ocr", "data_type": "json"},
        {"key": "note", "value": chance.choice(["  two  blanks ", "line\nline", "tab\there", "'quoted' %s"]),
         "source": "me", "data_type": "text"},
    ]  # fmt: skip
    return {
        "filename": f"new-{number}.webp",
        "filepath": f"/srv/new shots/new-{number}_{chance.choice(['a', 'b.c', '文件'])}.webp",
        "size": chance.randint(1, 2_000_000_000),
        "file_created_at": f"{moment}{fraction}",
        "file_last_modified_at": f"{moment}{fraction}",
        "file_type": "webp",
        "file_type_group": "image",
        "folder_id": folder,
        "tags": chance.sample(TAGS, chance.randint(0, 3)),
        "metadata_entries": metadata,
    }


class Writer:
    """Random writes through the REST API, the same ones for the same seed."""

    def __init__(self, send: Callable[..., Answer], seed: int) -> None:
        self.send, self.seed, self.chance = send, seed, random.Random(seed)
        library = send("GET", "/libraries").body[0]
        self.library, self.folder = library["id"], library["folders"][0]["id"]
        listed = send("GET", f"/libraries/{self.library}/folders/{self.folder}/entities?limit=400").body
        self.ids: list[int] = [entity["id"] for entity in listed]
        self.done: dict[str, int] = {}
        self.refused: dict[str, int] = {}

    def write(self, count: int) -> None:
        """Do that many things."""
        things = [
            self.add, self.add, self.add, self.replace, self.retag, self.add_tags, self.remark, self.delete,
            self.touch, self.index, self.index_some, self.new_library, self.new_folder, self.new_plugin,
        ]  # fmt: skip
        for number in range(count):
            thing = self.chance.choice(things)
            answer = thing(number)
            known = self.done if answer.status < 400 else self.refused
            known[thing.__name__] = known.get(thing.__name__, 0) + 1
            assert answer.status < 400 or thing.__name__ in ("delete", "index", "index_some"), (thing, answer)

    def any(self) -> int:
        """Some entity."""
        return self.chance.choice(self.ids)

    def add(self, number: int) -> Answer:
        """A new entity, indexed at once or not."""
        index = self.chance.choice(["true", "true", "false"])
        path = f"/libraries/{self.library}/entities?trigger_webhooks_flag=false&update_index={index}"
        answer = self.send("POST", path, screenshot(self.chance, f"{self.seed}-{number}", self.folder))
        self.ids.append(answer.body["id"])
        return answer

    def replace(self, number: int) -> Answer:
        """New tags and metadata for an entity."""
        new = screenshot(self.chance, f"{self.seed}-{number}", self.folder)
        body = {"tags": new["tags"], "metadata_entries": new["metadata_entries"]}
        return self.send("PUT", f"/entities/{self.any()}?update_index={self.chance.choice(['true', 'false'])}", body)

    def retag(self, _number: int) -> Answer:
        """Other tags, without indexing."""
        return self.send("PUT", f"/entities/{self.any()}/tags", {"tags": self.chance.sample(TAGS, 2)})

    def add_tags(self, number: int) -> Answer:
        """One more tag, sometimes a new one."""
        return self.send("PATCH", f"/entities/{self.any()}/tags", {"tags": [self.chance.choice([*TAGS, f"t{number}"])]})

    def remark(self, number: int) -> Answer:
        """Changed metadata, without indexing."""
        entry = {"key": self.chance.choice(["note", "active_app", "ocr_result"]), "value": f"changed {number} 更改",
                 "source": "me", "data_type": "text"}  # fmt: skip
        return self.send("PATCH", f"/entities/{self.any()}/metadata", {"metadata_entries": [entry]})

    def delete(self, _number: int) -> Answer:
        """An entity less; Pensieve itself refuses some on PostgreSQL, those with shared tags."""
        entity = self.any()
        answer = self.send("DELETE", f"/libraries/{self.library}/entities/{entity}")
        if answer.status < 400:
            self.ids.remove(entity)
        return answer

    def touch(self, _number: int) -> Answer:
        """Seen by a scan."""
        return self.send("POST", f"/entities/{self.any()}/last-scan-at")

    def index(self, _number: int) -> Answer:
        """Indexed anew."""
        return self.send("POST", f"/entities/{self.any()}/index")

    def index_some(self, _number: int) -> Answer:
        """Several indexed anew, where the server finds that needed."""
        return self.send("POST", "/entities/batch-index", {"entity_ids": self.chance.sample(self.ids, 3)})

    def new_library(self, number: int) -> Answer:
        """A library."""
        return self.send("POST", "/libraries", {"name": f"library {self.seed}-{number} 库", "folders": []})

    def new_folder(self, number: int) -> Answer:
        """A folder, which must exist on disk."""
        path = Path(f"/tmp/pensieve-carry-back-{os.getpid()}")
        (path / str(number)).mkdir(parents=True, exist_ok=True)
        folder = {"path": str(path / str(number)), "last_modified_at": "2025-07-01T08:09:10.000001"}
        answer = self.send("POST", f"/libraries/{self.library}/folders", {"folders": [folder]})
        shutil.rmtree(path)
        return answer

    def new_plugin(self, number: int) -> Answer:
        """A plugin."""
        body = {"name": f"plugin {self.seed}-{number}", "description": None, "webhook_url": "http://127.0.0.1:9/none"}
        return self.send("POST", "/plugins", body)
