"""Engines: where the points of a sweep are measured. A point never depends on another.

Plain Python only. An engine is given a function and a list of requests, and hands back each result
as it arrives, with the place of its request; the caller keeps it and puts the results in order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol, TypeAlias, TypeVar

from ..errors import require

__all__ = ["Engine", "FailedPoint", "Finished", "Serial", "check_whole"]

Request = TypeVar("Request")
Result = TypeVar("Result")
Finished: TypeAlias = Callable[[int, Result], Any]


@dataclass(frozen=True)
class FailedPoint:
    """A point that has no result.

    Attributes:
        place: place of its request, from 0.
        error: kind and message of the last error.
        tries: how often it was begun.
    """

    place: int
    error: str
    tries: int

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)


class Engine(Protocol):
    """Measures points, here or elsewhere."""

    @property
    def here(self) -> bool:
        """Whether points are measured in this process, one after the other."""

    @property
    def cpus(self) -> int | None:
        """Threads for each point; None leaves the number as it is."""

    def run(
        self,
        work: Callable[[Request], Result],
        requests: Sequence[Request],
        finished: Finished[Result],
    ) -> list[FailedPoint]:
        """Call ``work`` on every request, and ``finished(place, result)`` as results arrive.

        Returns the points that failed, in the order of the requests.
        """


@dataclass(frozen=True, kw_only=True)
class Serial:
    """One point after the other in this process; the first error ends the run.

    Attributes:
        cpus: threads for each point; None leaves the number as it is.
    """

    name: ClassVar[str] = "serial"
    here: ClassVar[bool] = True

    cpus: int | None = None

    def __post_init__(self) -> None:
        if self.cpus is not None:
            check_whole("cpus", self.cpus)

    def run(
        self,
        work: Callable[[Request], Result],
        requests: Sequence[Request],
        finished: Finished[Result],
    ) -> list[FailedPoint]:
        """Call ``work`` on every request in order; errors are not caught."""
        for place, request in enumerate(requests):
            finished(place, work(request))
        return []


def check_whole(name: str, value: object) -> None:
    """Refuse what is not an integer from 1 up.

    Raises:
        ConfigError: names the setting.
    """
    whole = isinstance(value, int) and not isinstance(value, bool)
    require(whole and value >= 1, name, "an integer >= 1", value)  # type: ignore[operator]
