"""A writer that never rests: adds, changes and deletes entities through Pensieve's REST API, and remembers the answers.

A prober beside it asks for the libraries all the time, and knows from when to when nobody answered.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: Words of the texts; each is in no path, so that it is found in metadata alone.
WORDS = ["quokka", "invoice", "会议", "sprint", "购物", "garden", "review", "报告", "sanctuary", "budget"]
OLD = 120  # ids that are tried
SECONDS = 60  # that an answer may take


class Refused(Exception):
    """Nobody answered."""


class Api:
    """Pensieve's REST API at an endpoint like ``http://127.0.0.1:8839``."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def ask(self, method: str, path: str, body: Any = None, timeout: float = SECONDS) -> tuple[int, Any]:
        """Status and content of an answer. Raises Refused when there is none."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"{self._endpoint}/api{path}", data, {"Content-Type": "application/json"}, method=method
        )
        try:
            with self._opener.open(request, timeout=timeout) as answer:
                content = answer.read()
                return answer.status, json.loads(content) if content else None
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode(errors="replace")
        except (OSError, ValueError) as error:
            raise Refused(str(error)) from error


@dataclass
class Known:
    """What must be true of an entity: its size, values of its metadata, names of its tags; None: it is deleted.

    ``sure`` is False while a request about it got no answer, or an error of the server: it may have been done or not.
    """

    size: int | None
    metadata: dict[str, str] = field(default_factory=dict)
    tags: set[str] = field(default_factory=set)
    sure: bool = True
    touched: float = 0.0  # when it was last asked for, in seconds since 1970
    path: str = ""  # of its file, which it keeps when it gets another id


class Prober(threading.Thread):
    """Asks without pause, and notes each gap: from the first refusal to the first good answer after it.

    A disk that is busy makes gaps too.
    """

    def __init__(self, api: Api) -> None:
        super().__init__(daemon=True)
        self._api, self._ended = api, threading.Event()
        self.gaps: list[tuple[float, float]] = []
        self.asked = 0

    def gap(self, moment: float | None = None) -> tuple[float, float]:
        """The gap in which a moment lies, or the longest; ValueError when there is none."""
        gaps = [gap for gap in self.gaps if moment is None or gap[0] <= moment <= gap[1]]
        return max(gaps, key=lambda gap: gap[1] - gap[0])

    def run(self) -> None:
        refused: float | None = None
        while not self._ended.wait(0.05):
            began = time.time()
            try:
                good = self._api.ask("GET", "/libraries", timeout=10)[0] == 200
            except Refused:
                good = False
            self.asked += 1
            if not good and refused is None:
                refused = began
            if good and refused is not None:
                self.gaps.append((refused, time.time()))
                refused = None

    def end(self) -> None:
        self._ended.set()
        self.join()


class Writer(threading.Thread):
    """Changes one thing after the other, seeded."""

    def __init__(self, api: Api, seed: int, pause: float) -> None:
        super().__init__(daemon=True)
        self._api, self._ended, self._pause = api, threading.Event(), pause
        self._random = random.Random(seed)
        self._seed = seed
        self.known: dict[int, Known] = {}
        #: Deleted ones whose ids were given again.
        self.former: list[Known] = []
        #: Held by whoever wants the writer to rest.
        self.turn = threading.Lock()
        self.done: dict[str, int] = {}
        self.refusals = 0
        self.errors: list[str] = []
        self._number = 0
        libraries = api.ask("GET", "/libraries")[1]
        self._library = next(found for found in libraries if found["name"] == "screenshots")
        #: Entities that were there before: they are changed and deleted as well. Some cannot be read by Pensieve
        #: itself, since they hold labels of AutoTaskTracker.
        self._old: dict[int, Any] = {}
        for key in range(1, OLD + 1):
            status, found = api.ask("GET", f"/entities/{key}")
            if status == 200 and found["library_id"] == self._library["id"]:
                self._old[key] = found

    def run(self) -> None:
        while not self._ended.wait(self._pause):
            with self.turn:
                good = self.once()
            if not good:
                self._ended.wait(0.2)

    def once(self) -> bool:
        """Change one thing; False when nobody answered."""
        kinds = [self._add, self._add, self._add, self._update, self._patch, self._tag, self._delete, self._index]
        kind = self._random.choice(kinds)
        try:
            if kind():
                self.done[kind.__name__[1:]] = self.done.get(kind.__name__[1:], 0) + 1
        except Refused:
            self.refusals += 1
            return False
        return True

    def end(self) -> None:
        self._ended.set()
        self.join()

    def _text(self) -> str:
        words = self._random.choices(WORDS, k=self._random.choice([2, 30, 700]))
        return f"{self._seed} {self._number} {' '.join(words)}"

    def _entry(self, key: str) -> dict[str, str]:
        return {"key": key, "value": self._text(), "source": "system_generated", "data_type": "text"}

    def _add(self) -> bool:
        self._number += 1
        folder = self._library["folders"][0]
        name = f"online-{self._seed}-{self._number}.webp"
        entries = [self._entry(key) for key in ("active_window", "note")[: self._random.randint(0, 2)]]
        tags = [f"online {self._number % 5}"] if self._random.random() < 0.3 else []
        body = {
            "filename": name,
            "filepath": f"{folder['path']}/{name}",
            "size": self._number,
            "file_created_at": "2025-08-01T08:00:00",
            "file_last_modified_at": "2025-08-01T08:00:00",
            "file_type": "webp",
            "file_type_group": "image",
            "folder_id": folder["id"],
            "tags": tags,
            "metadata_entries": entries,
        }
        began = time.time()
        path = f"/libraries/{self._library['id']}/entities?update_index={'true' if self._number % 2 else 'false'}"
        status, made = self._ask("POST", path, body)
        if not 200 <= status < 300:
            return False
        metadata = {entry["key"]: entry["value"] for entry in entries}
        key = int(made["id"])
        if key in self.known:
            self.former.append(self.known[key])
        self.known[key] = Known(self._number, metadata, set(tags), touched=began, path=body["filepath"])
        return True

    def _choose(self, tagged: bool = True) -> int | None:
        """An entity that exists, of the writer's own or an old one."""
        mine = [key for key, known in self.known.items() if known.size is not None and known.sure]
        mine = [key for key in mine if tagged or not self.known[key].tags]
        if self._old and self._random.random() < 0.3:
            key = self._random.choice(sorted(self._old))
            found = self._old.pop(key)
            tags = {tag["name"] for tag in found["tags"]}
            self.known[key] = Known(found["size"], {}, tags, path=found["filepath"])
            return key if tagged or not tags else None
        return self._random.choice(mine) if mine else None

    def _change(self, method: str, path: str, body: Any, key: int) -> bool:
        """Ask for a change; what is known of the entity is unsure unless there is an answer."""
        known = self.known[key]
        known.touched, known.sure = time.time(), False
        status, _ = self._ask(method, path, body)
        known.sure = status < 500
        return 200 <= status < 300

    def _ask(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        status, content = self._api.ask(method, path, body)
        if not 200 <= status < 300:
            self.errors.append(f"{method} {path}: {status} {str(content)[:200]}")
        return status, content

    def _update(self) -> bool:
        key = self._choose()
        if key is None:
            return False
        self._number += 1
        if not self._change("PUT", f"/entities/{key}", {"size": self._number}, key):
            return False
        self.known[key].size = self._number
        return True

    def _patch(self) -> bool:
        key = self._choose()
        if key is None:
            return False
        self._number += 1
        entry = self._entry(self._random.choice(["note", "active_window"]))
        if not self._change("PATCH", f"/entities/{key}/metadata", {"metadata_entries": [entry]}, key):
            return False
        self.known[key].metadata[entry["key"]] = entry["value"]
        return True

    def _tag(self) -> bool:
        key = self._choose()
        if key is None:
            return False
        tags = [f"online {number}" for number in self._random.sample(range(5), 2)]
        if not self._change("PUT", f"/entities/{key}/tags", {"tags": tags}, key):
            return False
        self.known[key].tags = set(tags)
        return True

    def _delete(self) -> bool:
        """Only without tags: with a shared tag, Pensieve's own deletion fails on PostgreSQL."""
        key = self._choose(tagged=False)
        if key is None:
            return False
        if not self._change("DELETE", f"/libraries/{self._library['id']}/entities/{key}", None, key):
            return False
        self.known[key].size = None
        return True

    def _index(self) -> bool:
        key = self._choose()
        return key is not None and self._change("POST", f"/entities/{key}/index", None, key)


def wrong(api: Api, known: dict[int, Known]) -> list[str]:
    """What the server says otherwise than it was told; entities of an unsure state are left out."""
    found = []
    for key, state in known.items():
        if not state.sure:
            continue
        status, entity = api.ask("GET", f"/entities/{key}")
        if state.size is None:
            if status != 404:
                found.append(f"entity {key} was deleted, and is there ({status})")
            continue
        if status != 200:
            found.append(f"entity {key} is lost ({status})")
            continue
        metadata = {entry["key"]: entry["value"] for entry in entity["metadata_entries"]}
        if entity["size"] != state.size:
            found.append(f"entity {key} has size {entity['size']}, not {state.size}")
        found += [
            f"entity {key}: {name} is stale" for name, value in state.metadata.items() if metadata.get(name) != value
        ]
        if {tag["name"] for tag in entity["tags"]} != state.tags:
            found.append(f"entity {key} has other tags than {sorted(state.tags)}")
    return found


def main() -> None:
    """Write until SIGTERM comes; then write down what must be true, and from when to when nobody answered."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--endpoint", required=True, help="like http://127.0.0.1:8839")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pause", type=float, default=0.1, help="seconds between two requests; 0.1")
    parser.add_argument("--result", type=Path, required=True, help="JSON file that appears in the end")
    arguments = parser.parse_args()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    api = Api(arguments.endpoint)
    writer, prober = Writer(api, arguments.seed, arguments.pause), Prober(api)
    arguments.result.with_suffix(".pid").write_text(str(os.getpid()))
    writer.start()
    prober.start()
    signal.sigwait({signal.SIGTERM})
    writer.end()
    prober.end()
    refused, back = prober.gap() if prober.gaps else (None, None)
    told = {
        "refused": refused,
        "back": back,
        "requests": writer.done,
        "errors": writer.errors,
        "entities": len(writer.known),
        "wrong": wrong(api, writer.known),
    }
    part = arguments.result.with_suffix(".part")
    part.write_text(json.dumps(told))
    part.replace(arguments.result)


if __name__ == "__main__":
    main()
