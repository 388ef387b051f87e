"""Weights in training with HEMP, by what they share: a histogram of their levels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ....ops.rate_distortion.soft_entropy import (
    Histogram,
    joint_histogram,
    largest_order,
    soft_brackets,
)
from ..base import TunedWeight
from .levels import Levels
from .rounding import Rounding

__all__ = ["Line", "Pool", "allowed_order", "histogram_of", "own_lengths"]


@dataclass(eq=False)
class Line:
    """One weight with its levels, and what the last refresh found.

    Attributes:
        cell: the mean distance of its first levels, in units: what the crossing rule goes by.
        slant: (rows, columns), bits of the whole network by which a unit more costs more.
        most: (rows, columns), how far the entropy term may move a weight in a step, in units.
        target: (rows, columns), the units of the weights' levels.
        calm: how insensitive each weight is, until the step is done.
    """

    weight: TunedWeight
    rounding: Rounding
    cell: float
    slant: Tensor
    most: Tensor
    target: Tensor
    calm: Tensor | None = None

    @property
    def levels(self) -> Levels:
        """Its levels, with steps as trained so far."""
        return self.rounding.levels

    def units(self) -> Tensor:
        """Return its values in steps, (rows, columns)."""
        return self.levels.units(self.weight.matrix())

    def nearest(self, units: Tensor) -> Tensor:
        """Return the levels of these values, bits counted where they have a price."""
        return self.levels.values[self.rounding.positions(units)]


@dataclass(frozen=True, eq=False)
class Pool:
    """Weights that share a histogram, of tuples of ``order``."""

    lines: list[Line]
    order: int


def allowed_order(lines: Sequence[Line], order: int) -> int:
    """Return the order, or the largest for which there are tuples enough."""
    levels = max(len(line.levels.values) for line in lines)
    return min(order, largest_order(levels, sum(line.target.numel() for line in lines)))


def own_lengths(histogram: Histogram, levels: Levels) -> Tensor:
    """Return the bits of tuples of one levels's levels, out of a histogram over all."""
    first = histogram.shift - levels.zero
    part = slice(first, first + len(levels.values))
    return histogram.lengths()[(part,) * histogram.order]


def histogram_of(pool: Pool, on: Sequence[Tensor]) -> Histogram:
    """Return the histogram of levels that the weights are on, none of them out of reach."""
    groups = [
        soft_brackets(values, line.levels.values, line.levels.zero)
        for line, values in zip(pool.lines, on, strict=True)
    ]
    return joint_histogram(groups, pool.order).smoothed()
