"""Choose the epoch to keep, evaluated on held-out training data and never on test data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ...errors import require

__all__ = ["Candidate", "Selection"]


@dataclass(frozen=True)
class Candidate:
    """One epoch: its number (from 1), its score (higher is better), and its rate if known."""

    epoch: int
    score: float
    bits_per_weight: float = math.nan

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any] | None) -> Candidate | None:
        """Build a candidate from plain values; None for None."""
        return None if data is None else cls(**data)


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The rule for choosing an epoch.

    Attributes:
        start: share of the training, in [0, 1], after which an epoch may be chosen; earlier, the
            weights are far from their levels and the rate is still high. The last epoch may always
            be chosen.
        max_drop: if given, choose the epoch with the lowest rate among those whose score is at most
            this far below the score before training. If there is none, or without ``max_drop``,
            choose the epoch with the best score. Ties go to the later epoch.
    """

    start: float = 0.8
    max_drop: float | None = None

    def __post_init__(self) -> None:
        require(0 <= self.start <= 1, "select_from", "a share in [0, 1]", self.start)
        drop = self.max_drop
        require(drop is None or drop >= 0, "max_drop", "a number >= 0, or None", drop)

    def may(self, epoch: int, epochs: int) -> bool:
        """Return whether the epoch (from 1) may be chosen."""
        return epoch == epochs or epoch > self.start * epochs

    def better(self, new: Candidate, best: Candidate | None, reference: float) -> bool:
        """Return whether the later candidate ``new`` replaces ``best``."""
        if best is None:
            return True
        return self._rank(new, reference) >= self._rank(best, reference)

    def _rank(self, candidate: Candidate, reference: float) -> tuple[float, float]:
        score = -math.inf if math.isnan(candidate.score) else candidate.score
        if self.max_drop is None or score < reference - self.max_drop:
            return (0.0, score)
        rate = candidate.bits_per_weight
        return (1.0, -math.inf if math.isnan(rate) else -rate)
