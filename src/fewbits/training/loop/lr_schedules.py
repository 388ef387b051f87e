"""Learning rates as functions of the share of the training that is done: nothing to restore."""

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
    """Return 1: the learning rate stays."""
    return 1.0


@dataclass(frozen=True, kw_only=True)
class WarmCosine:
    """Factor on the learning rate: a linear rise to 1, then half a cosine down to ``floor``.

    Attributes:
        warm_up: share of the training that the rise takes, in [0, 1).
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
    """A learning rate that starts over at every stage of a method, as separate runs would.

    Attributes:
        schedule: of one stage, a function of the share of it that is done.
        ends: shares of the training at which stages end, increasing, the last of them 1.
    """

    schedule: LRSchedule
    ends: tuple[float, ...]

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in pairwise((0.0, *self.ends)))
        sound = bool(self.ends) and rising and self.ends[-1] == 1
        require(sound, "ends", "shares that rise to 1", self.ends)

    def __call__(self, progress: float) -> float:
        """Return the factor at ``progress`` in [0, 1]."""
        begins = (0.0, *self.ends[:-1])
        begin, end = next(
            (pair for pair in zip(begins, self.ends, strict=True) if progress < pair[1]),
            (begins[-1], 1.0),
        )
        return self.schedule((progress - begin) / (end - begin))
