"""Learning rate schedules as functions of training progress, which have no state to restore."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

from ...errors import require

__all__ = ["LRSchedule", "PerStage", "WarmCosine", "constant"]

LRSchedule: TypeAlias = Callable[[float], float]


def constant(progress: float) -> float:
    """Return 1: the learning rate is constant."""
    return 1.0


@dataclass(frozen=True, kw_only=True)
class WarmCosine:
    """Factor on the learning rate: a linear rise to 1, then half a cosine down to ``floor``.

    Attributes:
        warm_up: share of the training during which the factor rises, in [0, 1).
        floor: factor at the end, in [0, 1].
    """

    warm_up: float = 0.0
    floor: float = 0.0

    def __post_init__(self) -> None:
        require(0 <= self.warm_up < 1, "warm_up", "a share in [0, 1)", self.warm_up)
        require(0 <= self.floor <= 1, "floor", "a share in [0, 1]", self.floor)

    def __call__(self, progress: float) -> float:
        """Return the factor at ``progress`` in [0, 1]."""
        if progress < self.warm_up:
            return progress / self.warm_up
        along = (progress - self.warm_up) / (1 - self.warm_up)
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * along)) / 2


@dataclass(frozen=True)
class PerStage:
    """A schedule that restarts at every stage of a method, as in separate runs.

    Attributes:
        schedule: schedule of one stage, as a function of its progress.
        ends: shares of the training at which stages end, in increasing order; the last one is 1.
    """

    schedule: LRSchedule
    ends: tuple[float, ...]

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in pairwise((0.0, *self.ends)))
        valid = bool(self.ends) and rising and self.ends[-1] == 1
        require(valid, "ends", "increasing shares that end with 1", self.ends)

    def __call__(self, progress: float) -> float:
        """Return the factor at ``progress`` in [0, 1]."""
        begins = (0.0, *self.ends[:-1])
        begin, end = next(
            (pair for pair in zip(begins, self.ends, strict=True) if progress < pair[1]),
            (begins[-1], 1.0),
        )
        return self.schedule((progress - begin) / (end - begin))
