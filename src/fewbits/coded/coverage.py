"""How much of a network is quantized, and what is the largest of the rest."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from .shown import shortened
from .tensors import WEIGHT_DTYPES, CodedTensor, RawTensor

__all__ = ["Coverage"]


@dataclass(frozen=True)
class Coverage:
    """The share of a network's weights that are quantized.

    Weights are all floating-point and complex values here, of parameters and buffers, whether a
    method takes their dtype or not; tied ones are counted once.

    Attributes:
        quantized: how many of them have an index.
        weights: how many there are.
        largest: name of the largest tensor left in float; "" where there is none.
        largest_weights: its number of values.
        reason: why it is left; "" where nobody knows.
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
        """Return it by the number of values of each floating-point or complex tensor.

        Args:
            sizes: name to number of values.
            quantized: names of those that are.
            reasons: name to why it is not.
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
        """Return it of coded tensors."""
        floats = {n: t for n, t in tensors.items() if t.dtype in WEIGHT_DTYPES}
        sizes = {name: math.prod(tensor.shape) for name, tensor in floats.items()}
        coded = {name for name, tensor in floats.items() if not isinstance(tensor, RawTensor)}
        return cls.of(sizes, coded, reasons)

    @property
    def share(self) -> float:
        """Share of the weights that are quantized; 1 of none."""
        return self.quantized / self.weights if self.weights else 1.0

    @property
    def low(self) -> bool:
        """Whether that is less than half."""
        return 2 * self.quantized < self.weights

    @property
    def warning(self) -> str:
        """What to tell where it is less than half; "" where it is not."""
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
        """Return what :meth:`to_dict` told."""
        left = values["largest_left"] or {"name": "", "weights": 0, "reason": ""}
        counts = (values["quantized"], values["weights"])
        return cls(*counts, left["name"], left["weights"], left["reason"])

    @property
    def percent(self) -> str:
        """The share in percent, rounded down: 100 % are all of them, and 50 % at least half."""
        return f"{math.floor(1000 * self.share) / 10}%"

    def __str__(self) -> str:
        told = f"{self.percent} of {self.weights:,} weights quantized"
        if not self.largest_weights:
            return told
        why = f": {shortened(self.reason, 120)}" if self.reason else ""
        name = shortened(self.largest)
        return f"{told}, largest left in float {name} ({self.largest_weights:,}){why}"
