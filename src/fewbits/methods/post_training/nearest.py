"""Nearest: round every weight to the nearest level, knowing nothing of the data.

The baseline of every paper in the field ("round to nearest", memoryless scalar quantization), with
the usual rules for how far the grid reaches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...engine.layers.layer import LayerMatrix, QuantizedMatrix
from ...errors import require
from ..base import METHODS
from ..path_inputs import per_row
from ..uniform import (
    DATA_FREE_RADII,
    Spacing,
    check_grid,
    check_number,
    checked_weight,
    grid_of,
    result,
)

__all__ = ["Nearest"]


@METHODS.register("nearest")
@dataclass(frozen=True, kw_only=True)
class Nearest:
    """Plain rounding on a uniform grid.

    Attributes:
        bits: 2 to 8; gives ``2**bits - 1`` levels with a zero (2 bits are ternary).
        levels: overrides ``bits``; an even number gives a symmetric grid without a zero.
        radius: where the top level lies: "absmax" (largest magnitude), "percentile" of magnitudes,
            "mse" (least rounding error), "median" (``clip`` times the layer's median magnitude:
            Lybrand and Saab 2021), "mean_max" (``clip`` times the mean of the rows' largest
            magnitudes: Zhang, Zhou and Saab 2023). The last two give one step per layer.
        clip: factor on the radius.
        percentile: of magnitudes, in (0, 100], for ``radius="percentile"``.
        per: "channel" (a step per output neuron) or "tensor" (one per layer).
    """

    name: ClassVar[str] = "nearest"
    summary: ClassVar[str] = "round to nearest; no data, no waiting; the baseline"
    paper: ClassVar[str] = "folklore"
    needs: ClassVar[str] = "nothing"

    bits: int = 4
    levels: int | None = None
    radius: str = "absmax"
    clip: float = 1.0
    percentile: float = 99.9
    per: str = "channel"

    def __post_init__(self) -> None:
        radii = (*DATA_FREE_RADII, "percentile")
        check_grid(self, radii)
        check_number("percentile", self.percentile, 0)
        require(self.percentile <= 100, "percentile", "at most 100", self.percentile)

    def encode(self, layer: LayerMatrix) -> QuantizedMatrix:
        """Quantize one weight. Cost: a few passes over it."""
        weight = checked_weight(layer)
        grid = grid_of(self.bits, self.levels)
        spacing = Spacing(grid, self.radius, self.clip, self.per, self.percentile, layer.limit)
        step = spacing.step(weight)
        levels = weight / per_row(step, weight)
        grid.project_(levels)
        return result(layer, levels, step, grid, info={})
