"""Points on a Ray cluster (extra ``ray``): Ray places them, this module counts tries.

The package ray is imported when an engine runs, so that the rest of fewbits does without it.
"""

from __future__ import annotations

import os
import socket
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ..errors import (
    ClusterError,
    ConfigError,
    FewbitsWarning,
    MissingExtraError,
    is_number,
    require,
)
from .engine import FailedPoint, Finished, Request, Result, check_whole

__all__ = ["Ray"]

_PULSE = 2.0  # seconds between two looks at the cluster
_SILENCE = 20.0  # seconds without its head; Ray ends the whole process after 60


@dataclass(frozen=True, kw_only=True)
class Ray:
    """Points on the machines of a Ray cluster, in any order.

    A point that fails, or whose worker process dies, begins again until it has had ``tries``; the
    others go on.

    Attributes:
        address: "host:port" of a cluster, "auto" for the one on this machine, or "local" to start
            one here that ends with the run. None: what RAY_ADDRESS says, else the one that runs on
            this machine, else one of its own.
        cpus: CPUs reserved for each point, and its threads.
        tries: how often a point is begun at most.
        patience: seconds to wait for a machine that has so many CPUs.
    """

    name: ClassVar[str] = "ray"
    here: ClassVar[bool] = False

    address: str | None = None
    cpus: int = 1
    tries: int = 2
    patience: float = 120.0

    def __post_init__(self) -> None:
        check_whole("cpus", self.cpus)
        check_whole("tries", self.tries)
        sound = is_number(self.patience) and self.patience > 0
        require(sound, "patience", "a number of seconds > 0", self.patience)

    def run(
        self,
        work: Callable[[Request], Result],
        requests: Sequence[Request],
        finished: Finished[Result],
    ) -> list[FailedPoint]:
        """Call ``work`` on every request, and ``finished(place, result)`` as results arrive.

        ``work``, requests and results travel between processes, as pickles. Connects to the cluster
        unless this process is connected already.

        Raises:
            MissingExtraError: ray is not installed.
            ConfigError: ``work`` cannot be pickled; the address is one of a Ray Client.
            ClusterError: the cluster cannot be reached, goes away, or has no machine with so many
                CPUs; ``finished`` has been called for all that had arrived.
        """
        if not requests:
            return []
        ray = _package()
        with _connected(ray, self.address):
            return _Run(self, ray, requests, finished).all_of(work)


class _Run:
    """The points of one run: which are under way, how often they were begun, which failed."""

    def __init__(
        self, engine: Ray, ray: Any, requests: Sequence[Any], finished: Finished[Any]
    ) -> None:
        self.engine, self.ray, self.requests, self.finished = engine, ray, requests, finished
        self.task = ray.remote(num_cpus=engine.cpus, max_retries=0)(_attempt)
        self.work: Any = None  # where the cluster keeps it
        self.folder = str(Path.cwd())
        self.tries = [0] * len(requests)
        self.pending: dict[Any, int] = {}
        self.failed: dict[int, FailedPoint] = {}
        self.arrived = 0
        self.heard = self.fitting = time.monotonic()

    def all_of(self, work: Callable[[Any], Any]) -> list[FailedPoint]:
        """Run all points; return those that failed."""
        try:
            self.work = self.ray.put(work)
        except TypeError as error:
            raise ConfigError(
                f"the work cannot be sent to other processes: {_told(error)}. Use networks, data "
                "and functions that can be pickled, or the engine 'serial'."
            ) from error
        try:
            for place in range(len(self.requests)):
                self._submit(place)
            self._await_all()
        finally:
            self._cancel()
        return [self.failed[place] for place in sorted(self.failed)]

    def _submit(self, place: int) -> None:
        self.tries[place] += 1
        with self._watched():
            began = self.task.remote(self.work, self.requests[place], self.folder)
        self.pending[began] = place

    def _await_all(self) -> None:
        looked = time.monotonic()
        while self.pending:
            with self._watched():
                ready, _ = self.ray.wait(list(self.pending), num_returns=1, timeout=_PULSE)
            for reference in ready:
                self._take(reference)
            if time.monotonic() - looked >= _PULSE:
                self._look()
                looked = time.monotonic()

    def _take(self, reference: Any) -> None:
        """Hand on the result of a point, or begin it again."""
        place, errors = self.pending.pop(reference), self.ray.exceptions
        try:
            answer = self.ray.get(reference)
        except errors.LocalRayletDiedError as error:
            raise self._gone(_told(error)) from error
        except errors.RayError as error:  # a worker or its machine died, or the answer is no pickle
            answer = _Answer(error=_told(error))
        if answer.error is None:
            self.arrived += 1
            for category, text in answer.warnings:
                warnings.warn(text, category, stacklevel=2)
            self.finished(place, answer.result)
        elif self.tries[place] < self.engine.tries:
            self._submit(place)
        else:
            self.failed[place] = FailedPoint(place, answer.error, self.tries[place])

    def _look(self) -> None:
        """Check that the cluster answers, and that a machine of it can take a point."""
        now = time.monotonic()
        if not _answers(self.ray.get_runtime_context().gcs_address, _PULSE):
            if now - self.heard > _SILENCE:
                raise self._gone(f"its head has not answered for {now - self.heard:.0f} seconds")
            return
        self.heard = now
        with self._watched():
            alive = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        largest = max((node.get("CPU", 0) for node in alive), default=0)
        if largest >= self.engine.cpus:
            self.fitting = now
        elif now - self.fitting > self.engine.patience:
            raise self._gone(
                f"none of its {len(alive)} machines has the {self.engine.cpus} CPUs of a point "
                f"(the largest has {largest:g})"
            )

    @contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            yield
        except (self.ray.exceptions.RayError, OSError) as error:
            raise self._gone(_told(error)) from error

    def _gone(self, why: str) -> ClusterError:
        return ClusterError(
            f"the Ray cluster went away: {why}. {self.arrived} of {len(self.requests)} points had "
            "arrived."
        )

    def _cancel(self) -> None:
        """Stop what is under way if the run ends early; the cluster may be someone else's."""
        for reference in self.pending:
            with suppress(Exception):
                self.ray.cancel(reference, force=True)


@dataclass(frozen=True)
class _Answer:
    """What became of one try; errors travel as text, because not every exception can be pickled."""

    result: Any = None
    error: str | None = None
    warnings: tuple[tuple[type[Warning], str], ...] = ()


def _attempt(work: Callable[[Any], Any], request: Any, folder: str) -> _Answer:
    """Do the work of one point in a worker, in the folder of the run if the machine has it."""
    if Path(folder).is_dir():
        os.chdir(folder)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always", FewbitsWarning)
        try:
            result = work(request)
        except Exception as error:
            return _Answer(error=f"{type(error).__name__}: {error}")
    ours = [(one.category, str(one.message)) for one in seen]
    return _Answer(result, None, tuple(one for one in ours if issubclass(one[0], FewbitsWarning)))


@contextmanager
def _connected(ray: Any, address: str | None) -> Iterator[None]:
    """Connect for the length of the block; leave a connection that exists as it is."""
    if ray.is_initialized():
        yield
        return
    asked = address or os.environ.get("RAY_ADDRESS") or "local"
    if asked.startswith("ray://"):
        raise ConfigError(
            f"{asked!r} is the address of a Ray Client, which cannot tell whether the cluster is "
            "there. Run on a machine of the cluster, or with 'ray job submit'."
        )
    if asked not in ("auto", "local") and not _answers(asked, _SILENCE):
        raise ClusterError(
            f"no Ray cluster at {asked!r}: nothing answers there. Name HOST:PORT of its head, "
            "start one with 'ray start --head', or name the address 'local'."
        )
    # A cluster that is only ours reports its use to nobody, unless the person says otherwise.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray.init(
            address=address, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
        )
    except (ray.exceptions.RayError, OSError, RuntimeError, ValueError) as error:
        raise ClusterError(
            f"no Ray cluster at {asked!r}: {_told(error)}. Start one with 'ray start --head', or "
            "name the address 'local'."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _package() -> Any:
    try:
        import ray  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError("ray", "ray", "the engine 'ray'") from error
    return ray


def _answers(address: str, patience: float) -> bool:
    """Return whether something listens at "host:port"; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), patience):
            return True
    except (OSError, ValueError, OverflowError):
        return False


def _told(error: BaseException) -> str:
    """Return the kind and the first line of an error; Ray's have many."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0].rstrip(' .')}"
