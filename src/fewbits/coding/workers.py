"""Processes that encode and decode side by side: the same results, in order, for any number.

Threads would not do: the coder's library keeps the interpreter's lock. Workers are plain child
processes with pipes, so scripts need no ``__main__`` guard, and nothing is pickled.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from ..errors import ConfigError, CorruptFileError, WorkerError, require
from .worker import receive, send

__all__ = ["Result", "Task", "Workers", "check_workers", "usable_workers"]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

MAX_WORKERS = 256
AHEAD = 1 << 24  # symbols of the tasks that are begun before their results are asked for
WORTH = 1 << 23  # cost of decoding, as `tasks.cost` counts it, from which processes pay
START = "import sys; sys.path[:] = sys.argv[1:]; from fewbits.coding.worker import serve; serve()"
ALONE = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
KNOWN = {
    error.__name__: error
    for error in (CorruptFileError, ConfigError, ValueError, TypeError, MemoryError, OverflowError)
}


class Task(Protocol[T_co]):
    """What can be done here, or asked of a worker; see ``tasks.py``."""

    @property
    def kind(self) -> bytes:
        """What the worker looks it up by."""

    @property
    def label(self) -> str:
        """What it is about, for errors."""

    @property
    def size(self) -> int:
        """Symbols in it."""

    def run(self) -> T_co:
        """Do it here."""

    def request(self) -> list[bytes]:
        """Return what the worker needs to know."""

    def result(self, fields: Sequence[bytes]) -> T_co:
        """Return what the worker answered."""


class Result(Protocol[T_co]):
    """A result to come; asking for it waits, and raises what the task raised."""

    def result(self) -> T_co:
        """Return it."""


@dataclass(frozen=True)
class _Here(Generic[T]):
    task: Task[T]

    def result(self) -> T:
        return self.task.run()


def check_workers(wanted: int) -> None:
    """Raise ConfigError for what is no number of workers."""
    allowed = isinstance(wanted, int) and 0 <= wanted <= MAX_WORKERS
    require(allowed, "workers", f"an integer in [0, {MAX_WORKERS}]", wanted)


def usable_workers(wanted: int, cost: int) -> int:
    """Return how many workers to have: ``wanted``, or for 0 as many as there are usable cores.

    0 gives 1, none but this process, where the cost is so small that starting them takes longer.
    Raises ConfigError for what is no number of workers.
    """
    check_workers(wanted)
    if wanted:
        return int(wanted)
    if cost < WORTH:
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(cores or 1, MAX_WORKERS)


class Workers:
    """Up to ``count`` worker processes, started when needed; with 1, this process does it all.

    A context manager: on leaving it, and be it by an interrupt, all processes are killed.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._threads = ThreadPoolExecutor(count) if count > 1 else None
        self._lock = threading.Lock()
        self._all: list[subprocess.Popen[bytes]] = []
        self._idle: list[subprocess.Popen[bytes]] = []
        self._closed = False

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *raised: object) -> None:
        with self._lock:
            self._closed = True
        for process in self._all:
            process.kill()
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
        for process in self._all:
            _bury(process)

    def run(self, jobs: Iterable[Sequence[Task[T]]]) -> Iterator[list[Result[T]]]:
        """Yield the results of every job, a sequence of tasks, in order.

        Tasks of jobs to come are begun as long as they have few symbols in all, or workers would
        be idle. Without workers a task is done when its result is asked for.
        """
        if self._threads is None:
            for tasks in jobs:
                yield [_Here(task) for task in tasks]
            return
        begun: deque[tuple[int, list[Result[T]]]] = deque()
        symbols = 0
        for tasks in jobs:
            size = sum(task.size for task in tasks)
            while begun and symbols + size > AHEAD and _count(begun) >= self.count:
                symbols -= begun[0][0]
                yield begun.popleft()[1]
            begun.append((size, [self._threads.submit(self._ask, task) for task in tasks]))
            symbols += size
        while begun:
            yield begun.popleft()[1]

    def _ask(self, task: Task[T]) -> T:
        process = self._take()
        try:
            answer = _converse(process, task.kind, task.request())
        except (EOFError, OSError) as error:
            process.kill()
            raise WorkerError(
                f"{task.label}: the worker process ended (exit code {process.wait()}) before it "
                "was done. Did memory run out? With workers=1 no process is started."
            ) from error
        with self._lock:
            self._idle.append(process)
        state, *fields = answer
        if state != b"ok":
            raise _raised(*(field.decode() for field in fields))
        return task.result(fields)

    def _take(self) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._closed:
                raise WorkerError("the worker processes have been stopped.")
            if not self._idle:
                self._all.append(_start())
                return self._all[-1]
            return self._idle.pop()


def _count(begun: Iterable[tuple[int, list[Any]]]) -> int:
    return sum(len(results) for _, results in begun)


def _start() -> subprocess.Popen[bytes]:
    """Start a worker that imports what this process would, and is deaf to its terminal."""
    if not sys.executable or getattr(sys, "frozen", False):
        raise WorkerError("there is no Python interpreter to start workers with. Use workers=1.")
    paths = [os.path.abspath(path) for path in sys.path]  # noqa: PTH100
    return subprocess.Popen(
        [sys.executable, "-I", "-c", START, *paths],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **ALONE},
        start_new_session=True,
        creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
    )


def _converse(process: subprocess.Popen[bytes], kind: bytes, fields: list[bytes]) -> list[bytes]:
    if process.stdin is None or process.stdout is None:
        raise EOFError
    send(process.stdin, [kind, *fields])
    return receive(process.stdout)


def _raised(name: str, message: str) -> Exception:
    """Return the error that a worker told of."""
    return KNOWN[name](message) if name in KNOWN else type(name, (Exception,), {})(message)


def _bury(process: subprocess.Popen[bytes]) -> None:
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()
