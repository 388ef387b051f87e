"""A stand-in for the package ray: one process, any order, workers that die, a cluster that goes.

What travels is pickled, as it would be. A task runs when it is waited for.
"""

from __future__ import annotations

import pickle
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

from fewbits.search import cluster

__all__ = ["FakeRay", "stand_in"]


class RayError(Exception):
    pass


class WorkerCrashedError(RayError):
    pass


class LocalRayletDiedError(RayError):
    pass


class Reference:
    """Where a result will be."""

    def __init__(self, request: bytes, tries: int, call: Callable[[], Any]) -> None:
        self.request, self.tries, self.call = request, tries, call


class FakeRay:
    """``ray`` with ``fate(request, tries)`` deciding what becomes of each task.

    The fate is "done", "killed" (the worker), "gone" (the machine of the driver), or "lost" (the
    task never ends). ``order`` picks the next of the pending tasks.
    """

    exceptions = SimpleNamespace(
        RayError=RayError,
        WorkerCrashedError=WorkerCrashedError,
        LocalRayletDiedError=LocalRayletDiedError,
    )

    def __init__(
        self,
        fate: Callable[[Any, int], str] = lambda request, tries: "done",
        order: Callable[[list[Any]], Any] = lambda pending: pending[-1],
        cpus: float = 2,
    ) -> None:
        self.fate, self.order, self.cpus = fate, order, cpus
        self.connected = False
        self.calls: list[str] = []
        self.begun: Counter[bytes] = Counter()
        self.begun_with: list[dict[str, Any]] = []
        self.unreachable: Exception | None = None
        self.head = socket.create_server(("127.0.0.1", 0))  # close it, and the cluster is silent
        self.address = f"127.0.0.1:{self.head.getsockname()[1]}"

    def is_initialized(self) -> bool:
        return self.connected

    def init(self, address: str | None = None, **settings: Any) -> None:
        self.calls.append(f"init {address}")
        if self.unreachable is not None:
            raise self.unreachable
        self.connected = True

    def shutdown(self) -> None:
        self.calls.append("shutdown")
        self.connected = False

    def get_runtime_context(self) -> Any:
        return SimpleNamespace(gcs_address=self.address)

    def nodes(self) -> list[dict[str, Any]]:
        return [
            {"Alive": True, "Resources": {"CPU": self.cpus}},
            {"Alive": False, "Resources": {"CPU": 64.0}},
        ]

    def put(self, value: Any) -> bytes:
        try:
            return pickle.dumps(value)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise TypeError(f"Could not serialize the put value:\n{error}") from error

    def remote(self, **settings: Any) -> Callable[[Callable[..., Any]], Any]:
        self.begun_with.append(settings)

        def decorated(function: Callable[..., Any]) -> Any:
            def begin(stored: bytes, request: Any, *others: Any) -> Reference:
                packed = pickle.dumps(request)
                self.begun[packed] += 1
                tries = self.begun[packed]
                run = partial(self._run, function, stored, packed, others, tries)
                return Reference(packed, tries, run)

            return SimpleNamespace(remote=begin)

        return decorated

    def _run(self, function: Any, stored: bytes, packed: bytes, others: Any, tries: int) -> Any:
        request = pickle.loads(packed)
        match self.fate(request, tries):
            case "killed":
                raise WorkerCrashedError("the worker died unexpectedly\nwith a lot of detail")
            case "gone":
                raise LocalRayletDiedError("the local raylet died")
        result = function(pickle.loads(stored), request, *others)
        return pickle.loads(pickle.dumps(result))

    def wait(self, pending: list[Reference], num_returns: int, timeout: float) -> Any:
        known = [one for one in pending if self._ends(one)]
        if not known:
            return [], pending
        ready = self.order(known)
        return [ready], [one for one in pending if one is not ready]

    def _ends(self, reference: Reference) -> bool:
        return self.fate(pickle.loads(reference.request), reference.tries) != "lost"

    def get(self, reference: Reference) -> Any:
        return reference.call()

    def cancel(self, reference: Reference, force: bool) -> None:
        self.calls.append("cancel")


@contextmanager
def stand_in(monkeypatch: Any) -> Iterator[Callable[..., FakeRay]]:
    """Yield a function that puts a :class:`FakeRay` with these settings in the place of ray."""
    with ExitStack() as stack:

        def install(**settings: Any) -> FakeRay:
            fake = FakeRay(**settings)
            stack.callback(fake.head.close)
            monkeypatch.setitem(sys.modules, "ray", fake)
            monkeypatch.setattr(cluster, "_PULSE", 0.01)
            return fake

        yield install
