"""Worker processes, forked early and fed over pipes.

Each holds a read transaction of its own on the source. ``Pool`` makes sure that all of them see the same moment: it
opens them, and opens them anew if the file has changed meanwhile. From then on Pensieve may write on.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe
from multiprocessing.connection import wait
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

from .model import EngineError
from .source import Source, fingerprint
from .watch import watched

_ATTEMPTS = 20

#: Tells rows and bytes that are done, while a job runs.
Report = Callable[[str, int, int], None]
Job = Callable[..., Any]


@dataclass
class Context:
    """What a worker has at hand."""

    source: Source
    shared: Any
    state: dict[str, Any]
    report: Report


@dataclass(frozen=True)
class Step:
    """A message of a worker: progress, or the result of its job."""

    name: str
    rows: int = 0
    bytes: int = 0
    done: bool = False
    result: Any = None


class Pool:
    """A few worker processes. Use as a context manager: they end with it."""

    def __init__(self, source: Path, jobs: int, shared: Any = None) -> None:
        """Fork ``jobs`` workers; ``shared`` (a loaded dictionary, say) is theirs without a copy."""
        self._source = source
        self._workers: list[tuple[ForkProcess, Pipe]] = []
        self._busy: dict[int, str] = {}
        # What is there now will not be collected, so that collecting does not copy the pages that workers share.
        gc.collect()
        gc.freeze()
        fork = multiprocessing.get_context("fork")
        for _ in range(max(1, jobs)):
            ours, theirs = fork.Pipe()
            others: list[Pipe] = [pipe for _, pipe in self._workers] + [ours]
            process = fork.Process(target=_serve, args=(theirs, others, source, shared), daemon=True)
            process.start()
            theirs.close()
            self._workers.append((process, ours))

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_problem: object) -> None:
        for process, pipe in self._workers:
            pipe.close()
            if process.is_alive():
                process.terminate()
        for process, _ in self._workers:
            process.join()

    def open(self) -> tuple[Source, str]:
        """Open the source here and in all workers at one and the same moment; give it and its fingerprint."""
        for _ in range(_ATTEMPTS):
            before = fingerprint(self._source)
            ours = Source(self._source)
            for place in range(len(self._workers)):
                self._send(place, "open", _open, ())
            list(self._finish())
            if fingerprint(self._source) == before:
                return ours, before
            ours.close()
        raise EngineError(
            f"{self._source} changed {_ATTEMPTS} times while it was being opened",
            "a moment without a commit, a few milliseconds long",
            "everything",
            "run again when Pensieve records less, or stop it first",
        )

    def idle(self) -> int:
        """How many workers have nothing to do."""
        return len(self._workers) - len(self._busy)

    def busy(self) -> bool:
        """Whether any worker works."""
        return bool(self._busy)

    def submit(self, name: str, job: Job, *arguments: Any) -> None:
        """Give a job to an idle worker."""
        place = next(place for place in range(len(self._workers)) if place not in self._busy)
        self._send(place, name, job, arguments)

    def _send(self, place: int, name: str, job: Job, arguments: tuple[Any, ...]) -> None:
        self._busy[place] = name
        self._workers[place][1].send((name, job, arguments))

    def _finish(self) -> Iterator[Step]:
        while self._busy:
            yield from self.steps(None)

    def steps(self, timeout: float | None) -> Iterator[Step]:
        """Give what the workers have to say, waiting up to ``timeout`` seconds for the first word."""
        pipes = {id(self._workers[place][1]): place for place in self._busy}
        ready = wait([self._workers[place][1] for place in self._busy], timeout) if self._busy else []
        for pipe in ready:
            place = pipes[id(pipe)]
            try:
                step = self._workers[place][1].recv()
            except (EOFError, ConnectionError) as error:
                name = self._busy[place]
                self._workers[place][0].join(5)
                raise EngineError(
                    f"the worker process for {name} ended with code {self._workers[place][0].exitcode}",
                    "workers that run to their end (out of memory, perhaps?)",
                    "the source was only read; the tables of the target are as they were",
                    "run again: it goes on from the ledger",
                ) from error
            if isinstance(step, BaseException):
                raise step
            if step.done:
                del self._busy[place]
            yield step


def _open(context: Context) -> None:
    context.source.close()
    context.source = Source(context.source.path)


class WorkerError(RuntimeError):
    """An error of a worker, with its traceback as text."""


def _serve(pipe: Pipe, others: list[Pipe], path: Path, shared: Any) -> None:
    """Run jobs until the pipe closes. Ends without Python's clean-up: what was inherited is not ours to close."""
    gc.disable()  # rows hold no cycles, and looking for them in every batch takes a tenth of the time
    try:
        for other in others:
            other.close()
        source = Source(path)
        name = ""
        context = Context(source, shared, {}, lambda item, rows, size: pipe.send(Step(item, rows, size)))
        while True:
            name, job, arguments = pipe.recv()
            try:
                with watched():
                    result = job(context, *arguments)
            except EngineError as error:
                pipe.send(_portable(error))
                continue
            except Exception as error:
                pipe.send(WorkerError(f"{name}: {error}\n{traceback.format_exc()}"))
                continue
            pipe.send(Step(name, done=True, result=result))
    except (EOFError, ConnectionError, KeyboardInterrupt):
        pass
    except EngineError as error:
        pipe.send(_portable(error))
    finally:
        os._exit(0)


def _portable(error: EngineError) -> BaseException:
    return PortableError(str(error))


class PortableError(EngineError):
    """An EngineError of a worker, as it was told there."""

    def __init__(self, told: str) -> None:
        Exception.__init__(self, told)
        self.found = told
