"""Nearest: round every weight to the nearest level, without data.

The baseline of every paper in the field ("round to nearest", memoryless scalar quantization), with
the usual rules for the range of the grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...engine.layers.layer import LayerMatrix, QuantizedMatrix
from ...errors import require
from ..base import METHODS, Capabilities
from ..path_inputs import expand_step
from ..uniform import DATA_FREE_RADII, UniformMethod, check_number, checked_weight, result

__all__ = ["Nearest"]


@METHODS.register("nearest")
@dataclass(frozen=True, kw_only=True)
class Nearest(UniformMethod):
    """Plain rounding on a uniform grid.

    Attributes:
        radius: also "percentile" (of the magnitudes).
        percentile: percentile of the magnitudes for ``radius="percentile"``, in (0, 100].
    """

    name: ClassVar[str] = "nearest"
    summary: ClassVar[str] = "rounding to the nearest level; the baseline: no data, no waiting"
    paper: ClassVar[str] = "folklore"
    capabilities: ClassVar[Capabilities] = Capabilities(has_levels=True, takes_levels=True)
    radii: ClassVar[tuple[str, ...]] = (*DATA_FREE_RADII, "percentile")

    percentile: float = 99.9

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("percentile", self.percentile, 0)
        require(self.percentile <= 100, "percentile", "at most 100", self.percentile)

    def encode(self, layer: LayerMatrix) -> QuantizedMatrix:
        """Quantize one weight. Cost: a few passes over it."""
        weight = checked_weight(layer)
        step = self.step_of(layer, self.percentile)
        alphabet = self.alphabet(layer, step)
        levels = weight / expand_step(step, weight)
        alphabet.project_(levels)
        return result(layer, levels, step, alphabet, info={})
