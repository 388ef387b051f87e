"""The goal of a search: a size, or the smallest size within a drop of the score."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError, is_number, require
from .quantities import as_bytes, as_drop
from .trace import Trial

__all__ = ["TOLERANCE", "Goal"]

TOLERANCE = 0.01
_UNITS = {"target_bytes": "bytes", "target_bits": "bits per weight", "max_drop": "drop"}
_ROUNDING = 1e-9  # relative to the score, so that 0.98 - 0.005 equals 0.975


@dataclass(frozen=True)
class Goal:
    """One budget.

    Attributes:
        kind: "target_bytes", "target_bits" (all bits of the file per quantized weight) or
            "max_drop" (in the unit of the score; higher scores are better).
        limit: the file must not exceed it.
        tolerance: stop the search this close below a target size, as a fraction of the limit.
    """

    kind: str
    limit: float
    tolerance: float = TOLERANCE

    @classmethod
    def of(
        cls,
        target_bytes: float | str | None = None,
        target_bits: float | None = None,
        max_drop: float | str | None = None,
    ) -> Goal | None:
        """Return the goal that was set, or None; texts are as in "100KB" and "0.5%".

        Raises:
            ConfigError: more than one goal is set, or a value is out of range.
        """
        asked = {"target_bytes": target_bytes, "target_bits": target_bits, "max_drop": max_drop}
        given = {kind: value for kind, value in asked.items() if value is not None}
        if len(given) > 1:
            raise ConfigError(
                f"{' and '.join(given)} are given together. A search has one goal: leave out "
                "all but one."
            )
        if target_bytes is not None:
            return cls("target_bytes", as_bytes(target_bytes))
        if max_drop is not None:
            return cls("max_drop", as_drop(max_drop))
        if target_bits is not None:
            sound = is_number(target_bits) and target_bits > 0
            require(sound, "target_bits", "a number > 0", target_bits)
            return cls("target_bits", float(target_bits))
        return None

    @property
    def is_size(self) -> bool:
        """Whether the budget limits the size rather than the drop of the score."""
        return self.kind != "max_drop"

    def size(self, trial: Trial) -> float:
        """Return the trial's size in the unit of the limit."""
        return trial.bits_per_weight if self.kind == "target_bits" else float(trial.bytes)

    def drop(self, trial: Trial, reference: float | None) -> float:
        """Return how far the score is below the reference; infinite if either is missing."""
        if trial.score is None or reference is None or not math.isfinite(trial.score):
            return math.inf
        return reference - trial.score

    def fits(self, trial: Trial, reference: float | None) -> bool:
        """Return whether the trial is within the budget."""
        if self.is_size:
            return self.size(trial) <= self.limit
        slack = _ROUNDING * max(1.0, abs(reference or 0.0))
        return self.drop(trial, reference) <= self.limit + slack

    def is_close(self, trial: Trial) -> bool:
        """Return whether the size is within the budget and near enough to end the search."""
        low = self.limit * (1 - self.tolerance)
        return self.is_size and low <= self.size(trial) <= self.limit

    def best(self, trials: Iterable[Trial], reference: float | None) -> Trial | None:
        """Return the best trial within the budget, or None.

        With a size budget that is the largest file that fits; with a drop, the smallest file.
        """
        fitting = [trial for trial in trials if self.fits(trial, reference)]
        if self.is_size:
            return max(fitting, key=lambda t: (self.size(t), -t.slope), default=None)
        return min(fitting, key=lambda t: (t.bytes, self.drop(t, reference)), default=None)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {"kind": self.kind, "limit": self.limit, "tolerance": self.tolerance}

    def __str__(self) -> str:
        number = f"{self.limit:,.0f}" if self.kind == "target_bytes" else f"{self.limit:g}"
        return f"at most {number} {_UNITS[self.kind]}"
