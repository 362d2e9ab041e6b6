"""What befalls a run: a fault comes at a task, or a moment later, and is taken back when the run has ended."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from sample_installation.environment import Refusal

from .playbooks_place import run, wait
from .playbooks_play import Play, Task
from .playbooks_world import World

LOCK = "import sqlite3, sys, time; c = sqlite3.connect(sys.argv[1], timeout=20, isolation_level=None)"
LOCK += "; c.execute('BEGIN IMMEDIATE'); print('held', flush=True); time.sleep(20)"
LEFT = (0, 4096, 65_536, 262_144, 1_048_576, 4_194_304)  # bytes on a disk that is nearly full
PAUSE = 40.0
LONGEST_DELAY = 1.5


class Missed(Exception):
    """There was nothing to do it to."""


@dataclass
class Scene:
    """What a fault can lay hands on. ``over`` is set when the run has ended; ``undo`` is called then."""

    world: World
    variables: dict[str, str]
    chance: random.Random
    play: Play | None = None
    over: threading.Event = field(default_factory=threading.Event)
    undo: list[Callable[[], object]] = field(default_factory=list)
    edits: list[Callable[[bytes], bytes]] = field(default_factory=list)
    second: Play | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def run(self) -> Play:
        """The run that the fault comes to."""
        assert self.play
        return self.play

    def until_over(self, done: Callable[[], bool]) -> None:
        """Wait for something while the run goes on. Raises Missed when it has ended without."""
        if not wait(lambda: done() or self.over.is_set(), 900, 0.03) or self.over.is_set():
            raise Missed


def kill_tree(scene: Scene) -> None:
    """The machine's reset button, but for Pensieve and the server: all processes of the run die at once."""
    scene.run.kill()


def kill_controller(scene: Scene) -> None:
    """Whoever waits for modules and records what they did is gone; a module that runs goes on."""
    scene.run.process.kill()


def terminate(scene: Scene) -> None:
    """As `kill` does."""
    scene.run.process.terminate()


def kill_module(scene: Scene) -> None:
    """What works on the managed host dies, and the controller sees it."""
    place = scene.world.place

    def modules() -> list[int]:
        spared = place.holder()
        return [
            pid
            for pid, command in place.ours().items()
            if "ansible-playbook" not in command and pid not in spared and not command.startswith("docker")
        ]

    found: list[int] = []

    def killed() -> bool:
        found.extend(modules())
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        return bool(found)

    scene.until_over(killed)


def _container(scene: Scene, *command: str) -> None:
    place = scene.world.place

    def there() -> bool:
        return run("docker", "inspect", "--format={{.State.Running}}", place.container, check=False) == "true"

    if not there():
        scene.until_over(there)
    run("docker", *command, place.container)


def kill_container(scene: Scene) -> None:
    """The server is gone, and stays so until somebody starts it."""
    _container(scene, "kill")


def pause_container(scene: Scene) -> None:
    """The server hangs for 40 seconds."""
    _container(scene, "pause")
    time.sleep(PAUSE)
    run("docker", "unpause", scene.world.place.container)


def restart_container(scene: Scene) -> None:
    """The server's connections end; it is back after a second or two."""
    _container(scene, "restart")


def _fill(scene: Scene, disk: str) -> None:
    left = scene.chance.choice(LEFT)
    scene.notes.append(f"{left} bytes left")
    scene.world.place.fill(disk, left)
    scene.undo.append(lambda: scene.world.place.empty(disk))


def fill_home(scene: Scene) -> None:
    """The disk of the home, with settings and SQLite, is full."""
    _fill(scene, "home")


def fill_state(scene: Scene) -> None:
    """The disk of the state directory is full."""
    _fill(scene, "state")


def fill_server(scene: Scene) -> None:
    """The disk of the server's volume is full."""
    _fill(scene, "server")


def make_read_only(scene: Scene) -> None:
    """The state directory cannot be written to any more."""
    if not scene.world.place.make_read_only():
        raise Missed
    scene.undo.append(scene.world.place.make_writable)


def lock_database(scene: Scene) -> None:
    """Another program writes to SQLite for 20 seconds."""
    command = [sys.executable, "-c", LOCK, str(scene.world.place.database)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    scene.undo.append(holder.wait)
    assert holder.stdout
    if not holder.stdout.readline():
        raise Missed


def start_pensieve(scene: Scene) -> None:
    """Somebody sees that Pensieve is stopped, and starts it."""
    scene.until_over(lambda: not scene.world.place.serving())
    try:
        scene.world.place.installation.start()
    except Refusal as refusal:
        scene.notes.append(str(refusal).splitlines()[0])


def edit_settings(scene: Scene) -> None:
    """Somebody changes a line of config.yaml in an editor, or adds one."""
    number = scene.chance.randrange(1000)
    edits: list[Callable[[bytes], bytes]] = [
        lambda content: content + f"\n# edited by hand {number}".encode(),
        lambda content: content + f"\nx_by_hand: {number}".encode(),
        lambda content: re.sub(rb"(?m)^record_interval: \d+", f"record_interval: {number + 5}".encode(), content),
    ]
    edit = scene.chance.choice(edits)
    config = scene.world.place.config
    before = config.read_bytes()
    if edit(before) == before:
        raise Missed
    config.write_bytes(edit(before))
    scene.edits.append(edit)


def start_second(scene: Scene) -> None:
    """Somebody else runs a playbook at the same time."""
    books = ["rollback.yml", "carry-back.yml" if scene.run.book == "carry-back.yml" else "migrate.yml"]
    scene.second = Play(scene.world.place, scene.chance.choice(books), scene.variables)
    scene.notes.append(scene.second.book)


Act = Callable[[Scene], None]
FAULTS: dict[str, Act] = {
    "tree killed": kill_tree,
    "controller killed": kill_controller,
    "terminated": terminate,
    "module killed": kill_module,
    "container killed": kill_container,
    "container paused": pause_container,
    "container restarted": restart_container,
    "home full": fill_home,
    "state full": fill_state,
    "volume full": fill_server,
    "state read-only": make_read_only,
    "SQLite locked": lock_database,
    "Pensieve started": start_pensieve,
    "settings edited": edit_settings,
    "second playbook": start_second,
}
ENDS_THE_RUN = ("tree killed", "controller killed", "terminated")
OF_THE_SERVER = ("container killed", "container paused", "container restarted", "volume full")


class Cut:
    """Brings a fault when its task begins, after a delay."""

    def __init__(self, scene: Scene, fault: str, task: Task, delay: float) -> None:
        self._scene, self._fault, self._task, self._delay = scene, fault, task, delay
        self._thread: threading.Thread | None = None
        self.reached = self.happened = False
        self.error = ""

    def on_task(self, task: Task) -> None:
        """Called for each task that begins."""
        if task == self._task and not self.reached:
            self.reached = True
            self._thread = threading.Thread(target=self._strike, daemon=True)
            self._thread.start()

    def _strike(self) -> None:
        # The run may end meanwhile, and faults of what it leaves behind make no sense then.
        if self._scene.over.wait(self._delay):
            return
        try:
            FAULTS[self._fault](self._scene)
            self.happened = True
        except Missed:
            return
        except Exception as error:  # An error of the campaign: it must not look like a fault that did no harm.
            self.error = f"{type(error).__name__}: {error}"

    def end(self) -> None:
        """The run has ended: wait for the fault's own end, and take it back."""
        self._scene.over.set()
        if self._thread:
            self._thread.join(120)
        for undo in reversed(self._scene.undo):
            undo()
