"""Run calls side by side on threads, and take their results in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import Any, Generic, TypeVar

from ..errors import ConfigError

__all__ = ["OrderedCalls", "usable_threads"]

T = TypeVar("T")

MAX_THREADS = 256


def usable_threads(wanted: int) -> int:
    """Return ``wanted``, or the number of cores available to this process if it is 0.

    Raises ConfigError for an invalid number of threads.
    """
    if isinstance(wanted, bool) or not isinstance(wanted, int) or not 0 <= wanted <= MAX_THREADS:
        raise ConfigError(
            f"threads must be an integer from 0 (as many as there are cores) to {MAX_THREADS}. "
            f"Got {wanted!r} instead."
        )
    if wanted:
        return wanted
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(cores or 1, MAX_THREADS)


class OrderedCalls(Generic[T]):
    """A queue of calls; with a single thread, each runs when its result is taken.

    A context manager: leaving it drops calls that have not started.
    """

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None
        self._room = 2 * threads if threads > 1 else 1
        self._waiting: deque[Callable[[], T]] = deque()
        self._futures: deque[Future[T]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def __enter__(self) -> OrderedCalls[T]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.clear()
        if self._pool:
            self._pool.shutdown()

    @property
    def is_full(self) -> bool:
        """Whether enough calls are queued to keep all threads busy: take a result first."""
        return len(self._waiting) >= self._room

    def submit(self, function: Callable[..., T], *args: Any) -> None:
        """Add a call at the end."""
        if self._pool is None:
            self._waiting.append(partial(function, *args))
            return
        future = self._pool.submit(function, *args)
        self._futures.append(future)
        self._waiting.append(future.result)

    def take(self) -> T:
        """Return the result of the first call, or raise the exception that it raised."""
        if self._futures:
            self._futures.popleft()
        return self._waiting.popleft()()

    def clear(self) -> None:
        """Drop all calls."""
        for future in self._futures:
            future.cancel()
        self._futures.clear()
        self._waiting.clear()
