"""Coverage: how much of a network is quantized, and the largest tensor that is not."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from .described import facts_of
from .display import shortened
from .tensors import WEIGHT_DTYPES, CodedTensor

__all__ = ["Coverage"]


@dataclass(frozen=True)
class Coverage:
    """The share of a network's weights that is quantized.

    Weights are all floating-point and complex values of parameters and buffers here, whether or not
    a method supports their dtype; tied ones count once.

    Attributes:
        quantized: number of weights that have an index.
        weights: number of all weights.
        largest: name of the largest tensor left in float; "" if there is none.
        largest_weights: its number of values.
        reason: why it is left; "" if unknown.
    """

    quantized: int
    weights: int
    largest: str = ""
    largest_weights: int = 0
    reason: str = ""

    @classmethod
    def of(
        cls,
        sizes: Mapping[str, int],
        quantized: Collection[str],
        reasons: Mapping[str, str] | None = None,
    ) -> Coverage:
        """Return the coverage, given the sizes of all floating-point and complex tensors.

        Args:
            sizes: tensor name to number of values.
            quantized: names of the quantized tensors.
            reasons: name to why a tensor is not quantized.
        """
        left = {name: size for name, size in sizes.items() if name not in quantized}
        total, rest = sum(sizes.values()), sum(left.values())
        if not rest:
            return cls(total, total)
        largest = max(left, key=lambda name: left[name])
        return cls(total - rest, total, largest, left[largest], (reasons or {}).get(largest, ""))

    @classmethod
    def of_tensors(
        cls, tensors: Mapping[str, CodedTensor], reasons: Mapping[str, str] | None = None
    ) -> Coverage:
        """Return the coverage of coded tensors."""
        known = facts_of(tensors)
        floats = {name: fact for name, fact in known.items() if fact.dtype in WEIGHT_DTYPES}
        sizes = {name: math.prod(fact.shape) for name, fact in floats.items()}
        coded = {name for name, fact in floats.items() if fact.kind != "raw"}
        return cls.of(sizes, coded, reasons)

    @property
    def share(self) -> float:
        """Share of the weights that is quantized; 1 if there are none."""
        return self.quantized / self.weights if self.weights else 1.0

    @property
    def low(self) -> bool:
        """Whether less than half of the weights are quantized."""
        return 2 * self.quantized < self.weights

    @property
    def warning(self) -> str:
        """Text of the warning if less than half is quantized; "" otherwise."""
        return f"less than half of the network is compressed: {self}." if self.low else ""

    def to_dict(self) -> dict[str, object]:
        """Return JSON-ready values."""
        largest = {"name": self.largest, "weights": self.largest_weights, "reason": self.reason}
        return {
            "share": self.share,
            "quantized": self.quantized,
            "weights": self.weights,
            "largest_left": largest if self.largest_weights else None,
        }

    @classmethod
    def of_dict(cls, values: Mapping[str, Any]) -> Coverage:
        """Return the coverage from the values of :meth:`to_dict`."""
        left = values["largest_left"] or {"name": "", "weights": 0, "reason": ""}
        counts = (values["quantized"], values["weights"])
        return cls(*counts, left["name"], left["weights"], left["reason"])

    @property
    def percent(self) -> str:
        """The share in percent, rounded down, so that 100% means all and 50% at least half."""
        return f"{math.floor(1000 * self.share) / 10}%"

    def __str__(self) -> str:
        text = f"{self.percent} of {self.weights:,} weights quantized"
        if not self.largest_weights:
            return text
        why = f": {shortened(self.reason, 120)}" if self.reason else ""
        name = shortened(self.largest)
        return f"{text}, largest left in float {name} ({self.largest_weights:,}){why}"
