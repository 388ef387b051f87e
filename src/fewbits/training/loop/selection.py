"""Which epoch's network is kept: judged on held-out training data, never on what is reported."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ...errors import require

__all__ = ["Candidate", "Selection"]


@dataclass(frozen=True)
class Candidate:
    """One epoch: its number from 1, its score (higher is better), and its rate where known."""

    epoch: int
    score: float
    bits_per_weight: float = math.nan

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any] | None) -> Candidate | None:
        """Return the candidate of plain values; None for None."""
        return None if data is None else cls(**data)


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The rule of choice among epochs.

    Attributes:
        start: share of the training, in [0, 1], after which an epoch may be chosen: before that
            the weights are far from their levels, and the rate has not come down. The last epoch
            always may.
        max_drop: where given, the epoch of the lowest rate is chosen among those whose score is
            at most this far below the score before training; where none is, or without it, the
            epoch of the best score. Of equals the later one.
    """

    start: float = 0.8
    max_drop: float | None = None

    def __post_init__(self) -> None:
        require(0 <= self.start <= 1, "select_from", "a share in [0, 1]", self.start)
        drop = self.max_drop
        require(drop is None or drop >= 0, "max_drop", "a number >= 0, or None", drop)

    def may(self, epoch: int, epochs: int) -> bool:
        """Tell whether the epoch, counted from 1, may be chosen."""
        return epoch == epochs or epoch > self.start * epochs

    def better(self, new: Candidate, best: Candidate | None, reference: float) -> bool:
        """Tell whether ``new``, which is later, takes the place of ``best``."""
        if best is None:
            return True
        return self._worth(new, reference) >= self._worth(best, reference)

    def _worth(self, candidate: Candidate, reference: float) -> tuple[float, float]:
        score = -math.inf if math.isnan(candidate.score) else candidate.score
        if self.max_drop is None or score < reference - self.max_drop:
            return (0.0, score)
        rate = candidate.bits_per_weight
        return (1.0, -math.inf if math.isnan(rate) else -rate)
