"""Weights in training with HEMP, pooled by the histogram of levels that they share."""

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

__all__ = ["Pool", "WeightState", "allowed_order", "code_lengths", "histogram_of"]


@dataclass(eq=False)
class WeightState:
    """One weight with its levels, and the results of the last refresh.

    Attributes:
        weight: the weight.
        rounding: its parametrization, which holds the levels.
        cell: mean distance between its initial levels in units, the scale of prices.
        bit_gradient: (rows, columns), gradient of the network's bits with respect to the units, on
            the side on which they fall.
        width: (rows, columns), distance between the two levels on that side.
        goal: (rows, columns), the level at which that side ends, in units.
        target: (rows, columns), the level of each weight, in units.
        insensitivity: how insensitive the loss is to each weight; only set until the step is done.
    """

    weight: TunedWeight
    rounding: Rounding
    cell: float
    bit_gradient: Tensor
    width: Tensor
    goal: Tensor
    target: Tensor
    insensitivity: Tensor | None = None

    @property
    def levels(self) -> Levels:
        """The levels, with steps as trained so far."""
        return self.rounding.levels

    def units(self) -> Tensor:
        """Return the weight in units, (rows, columns)."""
        return self.levels.units(self.weight.matrix())

    def paced(self) -> Tensor:
        """Return the gradient of the bits, with weights in narrow cells of a codebook slowed down.

        There it is steep, so that a step of the optimizer would take them over several levels.
        Every weight moves in proportion to its cell instead; on a grid this is the gradient.
        """
        square = self.width.square()
        return self.bit_gradient * (square / square.mean().clamp_min(1e-30))

    def nearest(self, units: Tensor) -> Tensor:
        """Return the best levels for these units, including the price of bits if there is one."""
        return self.levels.values[self.rounding.positions(units)]


@dataclass(frozen=True, eq=False)
class Pool:
    """Weights that share a histogram of ``order``-tuples."""

    states: list[WeightState]
    order: int


def allowed_order(states: Sequence[WeightState], order: int) -> int:
    """Return the order, lowered to the largest for which there are enough tuples."""
    levels = max(len(state.levels.values) for state in states)
    return min(order, largest_order(levels, sum(state.target.numel() for state in states)))


def code_lengths(histogram: Histogram, levels: Levels) -> Tensor:
    """Return the code lengths, in bits, of tuples of one weight's levels."""
    first = histogram.shift - levels.zero
    part = slice(first, first + len(levels.values))
    return histogram.lengths()[(part,) * histogram.order]


def histogram_of(pool: Pool, on: Sequence[Tensor]) -> Histogram:
    """Return the smoothed histogram of the levels ``on`` which the weights are."""
    groups = [
        soft_brackets(values, state.levels.values, state.levels.zero)
        for state, values in zip(pool.states, on, strict=True)
    ]
    return joint_histogram(groups, pool.order).smoothed()
