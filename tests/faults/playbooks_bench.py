"""One worker: brings a state back, lets a cell happen, and judges what has become of everything."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psycopg2
from online.writer import Known
from sqlite_to_postgresql.fts import Tokenizer

from . import playbooks_claims
from .playbooks_cells import STARTS, STOP, Cell, Tasks
from .playbooks_faults import ENDS_THE_RUN, OF_THE_SERVER, Cut, Scene
from .playbooks_place import FIRST, KEPT, Place, run, wait
from .playbooks_play import Play
from .playbooks_world import POSTGRESQL, SQLITE, View, World

VALUE = re.compile(rb"(?m)^(database_path:\s*)(\"[^\"\n]*\"|'[^'\n]*'|[^\s#]+)")
SERVICE_IS_BACK = "Pensieve is on SQLite again, healthy, but"
LATER = "ansible-playbook carry-back.yml carries them back"
SILENT = 20.0  # seconds without a line while Pensieve is stopped
BURST = 12


@dataclass
class Outcome:
    """What became of a cell: one line of the result."""

    cell: Cell
    outcome: str = "good"  # good, wrong, missed (the fault met nothing), broken (an error of the campaign)
    down: float = 0.0  # seconds without an answer, from the first run's start to the last one's end
    seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)
    lost: int = 0
    revived: int = 0
    false: int = 0  # messages
    unknown: list[str] = field(default_factory=list)  # claims that nobody can check
    runs: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    logs: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain data, the cell's own beside the rest."""
        told = asdict(self)
        return {**told.pop("cell"), "operation": self.cell.operation, **told}


class Bench:
    """What a worker keeps from cell to cell."""

    def __init__(self, folder: Path, port: int, venv: Path) -> None:
        self.place = Place(folder, port, venv)
        self.place.make()
        self.tokenizer = Tokenizer().load()
        self.clean: Tasks = {}

    # ---- states to begin from

    def have(self, name: str) -> None:
        """Make a saved state, and what it is made from."""
        if (self.place.saved / name).exists():
            return
        if name == "migrated":
            self.place.restore("sqlite", KEPT)
            with self.working(1) as world:
                self.clean["bare"] = self.play_well("migrate.yml", world)
        elif name == "again":
            self.have("migrated")
            self.place.restore("migrated", KEPT)
            with self.working(2) as world:
                self.clean["migrated"] = self.play_well("rollback.yml", world)
        else:
            self.have("migrated")
            self.place.restore("migrated", KEPT)
            with self.working(3) as world:
                world.burst(3 * BURST)
                known = world.all_known()
                run("docker", "kill", self.place.container)
                self.play_well("rollback.yml", world, 2)
            self.place.start_server()
            told = [{**asdict(each), "tags": sorted(each.tags)} for each in known]
            (self.place.saved / f"{name}.json").write_text(json.dumps(told))
        self.place.save(name)

    def learn(self, start: str) -> Tasks:
        """Tasks of a clean run from one of the starts (and of what was run for it)."""
        if start not in self.clean:
            operation, state, first = STARTS[start]
            if start == "first":
                self.have("migrated")
                bare = self.clean["bare"]
                self.clean[start] = [task for task in bare if not task[0].startswith("data_copy : runtime | Ma")]
            elif start == "bare":
                self.have("migrated")
            elif start == "migrated":
                self.have("again")
            else:
                with self.begun(start, 4) as world:
                    self.clean[start] = self.play_well(f"{operation}.yml", world, 0, **self.variables(start))
        return self.clean

    def play_well(self, book: str, world: World, code: int = 0, **variables: str) -> list[tuple[str, int]]:
        """A run that nothing befalls; its tasks."""
        play = Play(self.place, book, self.place.variables(**variables))
        if play.wait() != code:
            raise RuntimeError(
                f"{book} ended with {play.process.returncode} where nothing befell it:\n{play.said[-4000:]}"
            )
        return play.tasks()

    def variables(self, start: str) -> dict[str, str]:
        """Those of a start alone."""
        if start == "bare":
            return {"data_copy_venv": str(self.place.folder / "bare")}
        return {"migrate_online": "false"} if start == "stopped" else {}

    @contextmanager
    def working(self, seed: int) -> Iterator[World]:
        """Pensieve runs as it is set, with a writer that rests."""
        self.place.installation.start()
        world = World(self.place, seed)
        try:
            yield world
        finally:
            world.end()

    @contextmanager
    def begun(self, start: str, seed: int) -> Iterator[World]:
        """A state to begin from, with a writer that knows what was written before, and rests."""
        _, state, first = STARTS[start]
        if state != "sqlite" or not self.place.engine.exists():
            self.have("migrated" if state == "sqlite" else state)
        self.place.restore(state, FIRST if first else KEPT)
        shutil.rmtree(self.place.folder / "bare", ignore_errors=True)
        with self.working(seed) as world:
            if start == "left":
                there = json.loads((self.place.saved / "left.json").read_text())
                world.writer.former = [Known(**{**each, "tags": set(each["tags"])}) for each in there]
                paths = {known.path for known in world.writer.former}
                old = world.writer._old
                world.writer._old = {key: each for key, each in old.items() if each["filepath"] not in paths}
                world.seen |= {key for key, each in old.items() if each["filepath"] in paths}
            yield world

    # ---- a cell

    def happen(self, cell: Cell) -> Outcome:
        """Everything of one cell."""
        outcome = Outcome(cell)
        began = time.time()
        try:
            with self.begun(cell.start, random.Random(f"writer {cell.seed} {cell.number}").randrange(10**6)) as world:
                Story(self, world, cell, outcome).tell()
        except Exception as error:
            outcome.outcome = "broken"
            where = traceback.extract_tb(error.__traceback__)[-1]
            outcome.wrong.append(f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"[:2000])
        outcome.seconds = round(time.time() - began, 1)
        return outcome


class Story:
    """One cell from its begin to its end."""

    def __init__(self, bench: Bench, world: World, cell: Cell, outcome: Outcome) -> None:
        self.bench, self.place, self.world, self.cell, self.outcome = bench, bench.place, world, cell, outcome
        self.chance = cell.chance()
        self.variables = self.place.variables(**bench.variables(cell.start))
        self.scene = Scene(world, self.variables, self.chance)
        self.original = self.sqlite_settings()
        self.plays: list[Play] = []
        self.carried_later = cell.operation == "carry-back"

    def sqlite_settings(self) -> tuple[bytes, int, bytes]:
        """Settings of before the migration: bytes and mode, and AutoTaskTracker's."""
        saved = self.place.saved / "sqlite" / "home"
        config = saved / "home" / ".memos" / "config.yaml"
        return config.read_bytes(), config.stat().st_mode & 0o7777, (saved / "tracker/autotasktracker.env").read_bytes()

    def tell(self) -> None:
        """Let it happen, go on, and judge."""
        world, outcome = self.world, self.outcome
        delay = self.chance.uniform(0, 1.5)
        gives_up = self.cell.operation == "migrate" and self.chance.random() < 0.25
        at_once = self.chance.random() < 0.5
        helped = self.chance.random() < 0.5  # somebody starts a dead server before the next run
        began = time.time()
        world.burst(BURST)
        first = world.look()
        cut = Cut(self.scene, self.cell.fault, self.cell.task, delay)
        code = self.play(f"{self.cell.operation}.yml", cut)
        if cut.error:
            raise RuntimeError(cut.error)
        if not cut.happened:
            outcome.outcome = "missed"
            outcome.notes.append("the run never came to that task" if not cut.reached else "nothing to do it to")
        killed = cut.happened and self.cell.fault in ENDS_THE_RUN
        self.judge_second()
        self.observe(first, self.plays[-1] if not killed and not self.scene.second else None, code)
        # Half of those who see it fail run it again at once, when modules may still be at work.
        if not at_once and world.look(rows=False).backend:
            world.burst(BURST)
        elif not at_once and killed:
            self.ask_status()
        if helped and self.cell.operation != "migrate" and not self.place.alive():
            self.place.start_server()
        self.settle("rollback.yml" if gives_up else f"{self.cell.operation}.yml")
        world.rest()
        self.judge_end(first, began)
        outcome.down = round(world.monitor.down(began, time.time()), 1)
        outcome.notes += self.scene.notes
        if outcome.wrong:
            outcome.outcome = "wrong"
        if outcome.outcome != "good":
            self.keep_logs()

    # ---- runs

    def play(self, book: str, cut: Cut | None = None) -> int | None:
        """A run with the writer at work; its exit code."""
        world = self.world

        def on_task(task: tuple[str, int]) -> None:
            if cut:
                cut.on_task(task)
            # What is written to a side that is left behind, or that is not yet there, is the next run's.
            if task[0] == STOP and book != "migrate.yml" and self.cell.fault != "Pensieve started":
                world.rest()

        world.go_on()
        play = Play(self.place, book, self.variables, on_task)
        self.plays.append(play)
        self.scene.play = play
        code = play.wait()
        if cut:
            cut.end()
            if self.scene.second:
                self.scene.second.wait()
        world.rest()
        self.outcome.runs.append(f"{book} {code if code is not None else 'never ended'}")
        if code is None and not (cut and cut.happened and self.cell.fault == "tree killed"):
            self.blame(f"{book} did not end")
        return code

    def settle(self, book: str) -> None:
        """The next run: it completes, or says truly why not yet, and the one after that does."""
        alive, before = self.place.alive(), self.world.look()
        if book != "migrate.yml" and before.backend == POSTGRESQL:
            book = "rollback.yml"
        code = self.play(book)
        play = self.plays[-1]
        self.observe(before, play, code)
        message = " ".join(play.message().split())
        if book == "migrate.yml":
            self.require(code == 0, play)
            return
        if book == "carry-back.yml":
            if code != 0 and not alive:
                self.place.start_server()
                self.settle(book)
                return
            self.require(code == 0, play)
            return
        # A first migration that has not come to its manifest has nothing to roll back, and says so.
        nothing = "no manifest in" in message and self.world.look(rows=False).backend == SQLITE
        if nothing and not (self.place.state / "manifest.json").exists():
            return
        left = code == 2 and SERVICE_IS_BACK in message and not alive
        if left or (code == 0 and LATER in " ".join(play.said.split())):
            if not self.place.alive():
                self.place.start_server()
            self.carried_later = True
            self.world.leave_alone()
            self.settle("carry-back.yml")
            return
        self.require(code == 0, play)

    def require(self, good: bool, play: Play) -> None:
        """Blame a run that should have completed."""
        if not good:
            said = play.message() or play.said[-300:]
            self.blame(
                f"the next run, {play.book}, ended with {play.process.returncode}: {' '.join(said.split())[:700]}"
            )

    def ask_status(self) -> None:
        """Pensieve is down: the playbook that tells where things stand must see that."""
        play = Play(self.place, "status.yml", self.variables)
        play.wait()
        if "No problem found" in play.said:
            self.plays.append(play)
            self.blame("false message: Pensieve is down, and status.yml says: No problem found")
            self.outcome.false += 1

    # ---- judgement

    def blame(self, what: str) -> None:
        """Note what is wrong."""
        self.outcome.wrong.append(what)

    def blame_rows(self, found: list[str], when: str) -> None:
        """Note rows that are not as the last answer said."""
        self.outcome.revived += sum("revived" in each for each in found)
        self.outcome.lost += sum("revived" not in each for each in found)
        self.outcome.wrong += [f"{when}: {each}" for each in found[:10]]

    def settings(self, backend: str) -> bytes:
        """What config.yaml must be on a backend, a person's edits kept."""
        content = self.original[0]
        for edit in self.scene.edits:
            content = edit(content)
        if backend == POSTGRESQL:
            content = VALUE.sub(lambda found: found.group(1) + f"'{self.place.dsn}'".encode(), content, count=1)
        return content

    def observe(self, before: View, play: Play | None, code: int | None) -> None:
        """After a run that has ended by itself: where Pensieve is, and whether what was said is so."""
        world = self.world
        if play is None:
            return
        wait(lambda: world.backend(self.place.serving())[0], 5)
        after = world.look()
        message = play.message() if code else ""
        says_down = "DOWN" in message.partition("\n")[0]
        if not says_down and (not after.backend or after.odd):
            self.blame(f"after {play.book} ended with {code}, Pensieve is on {after.backend or 'nothing'}; {after.odd}")
        if code:
            touched = world.touched(before, after)
            seen = playbooks_claims.Seen(
                before,
                after,
                self.settings,
                lambda one, other: world.changed(one, other, touched),
                mended=bool(self.scene.undo),
            )
            wrong, unknown = playbooks_claims.judge(message, seen)
            self.outcome.false += len(wrong)
            self.outcome.wrong += [f"false message: {each}" for each in wrong]
            self.outcome.unknown += unknown
        silence = play.longest_silence(world.monitor.is_down)
        # On a busy machine everything takes longer.
        if silence > SILENT * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)):
            self.blame(f"{play.book} said nothing for {silence:.0f} s while Pensieve was stopped")
        if after.backend:
            found = world.astray(after.backend)
            if found and after.backend == SQLITE and self.may_be_elsewhere(message):
                world.leave_alone()
            elif found:
                self.blame_rows(found, f"after {play.book} ended with {code}")

    def may_be_elsewhere(self, message: str) -> bool:
        """Whether rows may still be in PostgreSQL alone: a server was away, and the next command brings them."""
        return self.carried_later or SERVICE_IS_BACK in " ".join(message.split()) or self.cell.fault in OF_THE_SERVER

    def judge_second(self) -> None:
        """Of two playbooks at once, one is refused within seconds, and is told which the other is."""
        second, first = self.scene.second, self.plays[-1]
        if second is None:
            return
        self.plays.append(second)
        code, other = second.process.returncode, first.process.returncode
        self.outcome.runs.append(f"{second.book} beside it {code}")
        overlap = min(first.ended, second.ended) - second.began
        took = second.ended - second.began
        for play, ended in ((second, code), (first, other)):
            named = re.search(r"Found: [^\n]*\b(migrate|rollback|carry-back)\b", play.message())
            if ended and named and re.search(r"\b\d+\b", play.message()) and play.ended - play.began < 30:
                self.outcome.notes.append(f"{play.book} was refused after {play.ended - play.began:.1f} s")
                beside = first if play is second else second
                if beside.process.returncode:
                    self.blame(f"{beside.book}, beside one that was refused, ended with {beside.process.returncode}")
                return
        if overlap > 8:
            said = " ".join(second.message().split())[:200]
            self.blame(
                f"two playbooks ran at once for {overlap:.0f} s; the second ended with {code} after {took:.0f} s {said}"
            )

    def judge_end(self, first: View, began: float) -> None:
        """All has come to its end: one backend, exact settings, every row, nothing left over."""
        world = self.world
        last = world.look()
        wanted = POSTGRESQL if self.plays[-1].book == "migrate.yml" else SQLITE
        if last.backend != wanted or last.odd:
            self.blame(f"in the end Pensieve is on {last.backend or 'nothing'}, not on {wanted}; {last.odd}")
        if last.backend:
            if last.config != self.settings(last.backend) and not self.same_settings(last):
                self.blame(f"in the end config.yaml is not as it must be on {last.backend}: {self.different(last)}")
            if last.mode != self.original[1]:
                self.blame(f"in the end config.yaml has mode {last.mode:o}, not {self.original[1]:o}")
            if last.backend == SQLITE and last.others["autotasktracker.env"] != self.original[2]:
                self.blame("in the end autotasktracker.env is not as before")
            self.blame_rows(world.astray(last.backend), "in the end")
            touched = world.touched(first, last)
            changed = world.changed(first.sqlite, last.sqlite, touched)
            self.outcome.wrong += [f"in the end, in SQLite, untouched by anybody, {each}" for each in changed[:5]]
        since = world.monitor.since(last.backend or "")
        if last.backend and since and not self.carried_later:
            if not self.place.alive():
                self.place.start_server()
            try:
                with world.monitor.turn:  # The verifier forks.
                    differing = world.differing(self.bench.tokenizer, since)
            except psycopg2.Error as error:
                differing = [f"cannot be compared: {error}"]
            self.outcome.wrong += [f"both databases differ: {each}" for each in differing[:5]]
        elif self.carried_later and last.backend == SQLITE and self.place.alive():
            self.outcome.wrong += [f"in the end, {each}" for each in world.indexes_differ()[:5]]
        if not wait(lambda: not self.place.ours(), 5):
            self.blame(f"left over: {'; '.join(command[:150] for command in self.place.ours().values())}")
        strangers = self.place.has_database_open() - set(self.place.serving())
        if strangers:
            self.blame(f"processes {sorted(strangers)} have SQLite open")

    def same_settings(self, view: View) -> bool:
        """On PostgreSQL, the value may be quoted in any way."""
        if view.backend != POSTGRESQL:
            return False
        masked = [VALUE.sub(rb"\1?", content, count=1) for content in (view.config, self.settings(POSTGRESQL))]
        return masked[0] == masked[1] and self.world.set_to() == self.place.dsn

    def different(self, view: View) -> str:
        """Lines that one of both alone has."""
        have, want = (
            set(content.decode().splitlines()) for content in (view.config, self.settings(view.backend or ""))
        )
        return f"has {sorted(have - want)}, lacks {sorted(want - have)}"

    def keep_logs(self) -> None:
        """What was said, for whoever looks into it."""
        folder = self.place.folder.parent / "logs" / f"{self.cell.seed}-{self.cell.number}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for number, play in enumerate(self.plays):
            text = "\n".join(f"{time.strftime('%H:%M:%S', time.localtime(at))} {line}" for at, line in play.lines)
            (folder / f"{number}-{play.book}.log").write_text(text)
        serve = self.place.base / "logs" / "serve.log"
        if serve.exists():
            (folder / "serve.log").write_text(serve.read_text(errors="replace")[-50_000:])
        (folder / "manifest.json").write_bytes(self.world.look(rows=False).manifest)
        for file in self.place.database.parent.glob(f"{self.place.database.name}*"):
            shutil.copy(file, folder)
        self.outcome.logs = str(folder)
