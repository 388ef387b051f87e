"""Learning rates as functions of the share of the training that is done: nothing to restore."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from ..errors import require

__all__ = ["Rate", "WarmCosine", "constant"]

Rate: TypeAlias = Callable[[float], float]


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
