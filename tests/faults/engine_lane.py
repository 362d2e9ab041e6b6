"""A lane: a process of Pensieve's interpreter that has all of the engine imported, and forks for each point.

Started by ``engine.py`` with the shim preloaded. Reads a request as a line of JSON, writes the answer as another.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from faults.engine_imports import provide
from faults.engine_place import Outcome, Place, Refused, World, await_silence, tokenizer
from faults.engine_shim import VARIABLE, Control, Kind

provide()
operations = importlib.import_module("faults.engine_operations")

SECONDS = 120.0
_SUBREAPER = 36


def children() -> list[int]:
    """Processes that are this one's, those that were orphaned included."""
    found = []
    for thread in Path("/proc/self/task").iterdir():
        found += [int(pid) for pid in (thread / "children").read_text().split()]
    return found


def forked(work: Callable[[], Any], log: Path) -> Any:
    """Run work in a process of its own; give its result, or None when it was killed. Raises TimeoutError."""
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(ours)
            output = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
            os.dup2(output, 1)
            os.dup2(output, 2)
            result = work()
            with os.fdopen(theirs, "w") as stream:
                json.dump({"result": result}, stream)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(theirs)
    deadline = time.monotonic() + SECONDS
    chunks = []
    os.set_blocking(ours, False)
    try:
        while True:
            ended, status = os.waitpid(child, os.WNOHANG)
            try:
                while chunk := os.read(ours, 1 << 20):
                    chunks.append(chunk)
            except BlockingIOError:
                pass
            if ended:
                break
            if time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                raise TimeoutError(f"it did not end within {SECONDS:g} s; {log}: {log.read_text()[-2000:]}")
            time.sleep(0.002)
    finally:
        os.close(ours)
    if chunks:
        return json.loads(b"".join(chunks))["result"]
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return None
    raise RuntimeError(f"it ended without a result; {log}: {log.read_text()[-2000:]}")


class Lane:
    """Answers requests, one after the other."""

    def __init__(self, world: World, root: Path) -> None:
        self._world, self._root = world, root
        self._control = Control(Path(os.environ[VARIABLE]))
        self._kept: set[int] = set()  # processes that all points need

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do what is asked."""
        if request["do"] == "list":
            bases = {name: operation.base for name, operation in operations.OPERATIONS.items()}
            return {
                "operations": bases,
                "bases": [[name, template] for name, (template, _) in operations.BASES.items()],
            }
        if request["do"] == "make":
            dsn = self._world.dsn(request["dsn"])
            forked(lambda: operations.BASES[request["base"]][1](self._world, dsn), self._root / "make.log")
            self._kept |= set(children())
            return {}
        return self._point(request)

    def _point(self, request: dict[str, Any]) -> dict[str, Any]:
        began = time.monotonic()
        operation, kind, wanted = (
            operations.OPERATIONS[request["operation"]],
            Kind(request["kind"]),
            int(request["wanted"]),
        )
        place = Place(self._world, self._root / "point", self._world.dsn(request["dsn"]))
        place.fresh()
        answer: dict[str, Any] = {"wrong": [], "outcome": "", "message": "", "told": "", "count": 0, "calls": []}
        try:
            forked(lambda: self._prepare(operation, place), self._root / "prepare.log")
            self._control.arm(place.disk, self._world.port, kind, wanted)
            try:
                found = forked(lambda: asdict(self._act(operation, place)), self._root / "act.log")
            finally:
                self._control.disarm()
            outcome = Outcome(**found) if found else Outcome("killed")
            told = self._control.told or ("its end" if kind is Kind.POWER and outcome.how == "done" else "")
            answer.update(outcome=outcome.how, message=outcome.told, told=told, count=self._control.count)
            if kind is Kind.NONE:
                answer["calls"] = [[call.number, call.told, [int(k) for k in operation.kinds if call.takes(k)]]
                                   for call in self._control.calls()]  # fmt: skip
            if kind is Kind.POWER:
                self._end()
                self._control.take_back(place.disk)
            answer["wrong"] = forked(
                lambda: self._judge(operation, place, outcome, kind is Kind.POWER), self._root / "judge.log"
            )
        except (TimeoutError, RuntimeError) as error:
            answer["wrong"] = [str(error)]
        finally:
            self._control.disarm()
            self._end()
        answer["seconds"] = round(time.monotonic() - began, 3)
        return answer

    def _prepare(self, operation: Any, place: Place) -> None:
        place.use()
        operation.prepare(place)
        place.keep("before", operation.state(place))

    def _act(self, operation: Any, place: Place) -> Outcome:
        place.use()
        try:
            return Outcome("done", "", operation.act(place))
        except Refused as error:
            return Outcome("refused", str(error))
        except BaseException:
            return Outcome("raised", traceback.format_exc())

    def _judge(self, operation: Any, place: Place, outcome: Outcome, power: bool) -> list[str]:
        place.use()
        wrong = list(await_silence(place.dsn)) if operation.base else []
        return wrong + list(operation.judge(place, outcome, place.kept("before"), power))

    def _end(self) -> None:
        """End what a point has left running."""
        while left := set(children()) - self._kept:
            for pid in left:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def main() -> None:
    """Answer until there is nothing more to be read."""
    ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)
    said = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    given = json.loads(sys.argv[1])
    world = World(Path(given["root"]), Path(given["venv"]), given["port"])
    tokenizer()
    assert world.catalog
    gc.collect()
    gc.freeze()  # or each child looks at all that was imported
    lane = Lane(world, Path(given["lane"]))
    for line in sys.stdin:
        print(json.dumps(lane.answer(json.loads(line))), file=said, flush=True)
    operations.release(world)


if __name__ == "__main__":
    main()
