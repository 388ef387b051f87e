"""A forward pass as a task that runs in a thread of its own and pauses before chosen calls.

The thread and its scheduler pass control back and forth, so exactly one of them runs at any time.
"""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, NoReturn

from torch import nn
from torch.utils.hooks import RemovableHandle

from ...errors import CalibrationError, ModelError
from ..network.batches import Call
from ..network.isolation import CallerState, Draws, preserved_draws

__all__ = ["PassTask", "stuck_message", "watch"]

_MOST_SWALLOWED = 10_000  # cancellations that a pass may catch before its thread is parked
_GRACE_SECONDS = 30.0  # time for a cancelled pass to reach its next target layer, or its end

_here = threading.local()


class _Cancelled(BaseException):
    """Unwinds a forward pass that is no longer needed; ``except Exception`` does not stop it."""


@dataclass(frozen=True)
class _Ended:
    error: BaseException | None = None


class _Parked:
    """The pass swallows every cancellation; its thread sleeps until the process ends."""


def watch(modules: Mapping[str, nn.Module]) -> list[RemovableHandle]:
    """Register hooks that tell the current thread's task which module it enters."""
    return [
        module.register_forward_pre_hook(_hook(name), with_kwargs=True)
        for name, module in modules.items()
    ]


def _hook(name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        task: PassTask | None = getattr(_here, "task", None)
        if task is not None:
            task.enter(name, Call(args, kwargs))

    return enter


class PassTask:
    """A forward pass that can be run up to the next call of a module.

    Attributes:
        title: batch and stream, for messages.
        counts: number of calls so far by module, ordered by the last call.
        passed: modules that ran before they were completed.
        last: the module entered last, "" before the first.
        ended: whether nothing is left to run.
    """

    def __init__(
        self,
        title: str,
        body: Callable[[], object],
        *,
        seed: int,
        completed: set[str],
        state: CallerState,
        probe: Callable[[str, Call], None] | None = None,
    ) -> None:
        self.counts: dict[str, int] = {}
        self.passed: set[str] = set()
        self.last = ""
        self.ended = False
        self.title = title
        self._body = body
        self._seed = seed
        self._completed = completed
        self._state = state
        self._probe = probe
        self._goal: str | None = None
        self._draws: Draws | None = None
        self._cancelled = False
        self._swallowed = 0
        self._inbox: SimpleQueue[str | None] = SimpleQueue()
        self._outbox: SimpleQueue[Call | _Ended | _Parked] = SimpleQueue()
        context = contextvars.copy_context()
        self._thread = threading.Thread(
            target=context.run, args=(self._main,), name=f"fewbits: {title}", daemon=True
        )

    def run_to(self, module: str | None) -> Call | None:
        """Run until the pass is about to call ``module``; return that call, or None at the end.

        Raises:
            CalibrationError: the forward pass raised.
        """
        if self.ended:
            return None
        with preserved_draws():
            if self._draws is None:
                Draws.seed(self._seed)  # the same draws in both streams and in every rerun
                self._goal = module
                self._thread.start()
            else:
                self._draws.write()
                self._inbox.put(module)
            message = self._outbox.get()
            self._draws = Draws.read()
        if isinstance(message, Call):
            return message
        self._close()
        if isinstance(message, _Ended) and message.error is not None:
            self._raise(message.error)
        return None

    def cancel(self) -> bool:
        """Unwind the pass and join its thread; return False if it does not stop."""
        if self.ended:
            return True
        self._cancelled = True
        if self._thread.ident is None:
            self.ended = True
            return True
        self._inbox.put(None)
        with preserved_draws():
            message = self._await_end()
        if isinstance(message, _Ended):
            self._close()
        return self.ended

    def enter(self, name: str, call: Call) -> None:
        """Record a call, in the task's thread; pause if the scheduler waits for it."""
        self._check_cancelled()
        self.counts[name] = self.counts.pop(name, 0) + 1  # re-inserted to order by last call
        self.last = name
        if self._probe is not None:
            self._probe(name, call)
        if name == self._goal:
            self._outbox.put(call)
            self._goal = self._inbox.get()
            self._check_cancelled()
        if name not in self._completed:
            self.passed.add(name)

    def _check_cancelled(self) -> None:
        if not self._cancelled:
            return
        self._swallowed += 1
        if self._swallowed > _MOST_SWALLOWED:
            self._outbox.put(_Parked())
            while True:
                self._inbox.get()
        raise _Cancelled

    def _main(self) -> None:
        _here.task = self
        error: BaseException | None = None
        try:
            with self._state.entered():
                self._body()
        except _Cancelled:
            pass
        except BaseException as raised:  # re-raised in the scheduler's thread
            error = raised
        self._outbox.put(_Ended(error))

    def _await_end(self) -> _Ended | _Parked | None:
        deadline = time.monotonic() + _GRACE_SECONDS
        while True:
            try:
                message = self._outbox.get(timeout=max(0.0, deadline - time.monotonic()))
            except Empty:
                return None
            if not isinstance(message, Call):
                return message

    def _close(self) -> None:
        self._thread.join()
        self.ended = True

    def _raise(self, error: BaseException) -> NoReturn:
        if not isinstance(error, Exception) or isinstance(error, ModelError):
            raise error  # a ModelError says itself what to do
        where = f"after entering layer {self.last!r}" if self.last else "before the first layer"
        hint = "Check the shape and dtype of this batch, and that forward= calls the network right."
        if isinstance(error, MemoryError) or "memory" in str(error):
            hint = "If memory ran out, lower max_live_bytes or use smaller batches."
        raise CalibrationError(
            f"the forward pass of {self.title} failed {where}: "
            f"{type(error).__name__}: {error}. {hint}"
        ) from error


def stuck_message(titles: Sequence[str]) -> str:
    """Return the message for passes that do not stop."""
    return (
        f"the forward pass of {', '.join(titles)} could not be stopped: the network catches "
        "BaseException around a layer, or runs for a long time without calling one. Its thread "
        "stays until the process ends. Catch Exception instead."
    )
