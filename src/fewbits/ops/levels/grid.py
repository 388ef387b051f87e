"""Uniform grids (alphabets), their steps, and rules for their range.

Everything downstream works in *grid units*: weights divided by their step. A grid of M levels has
the values ``-(M-1)/2 ... (M-1)/2``, spaced by one: integers including zero if M is odd (midtread),
half-integers without zero if M is even (midrise). Ties round half to even, as in IEEE 754.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from ..compiled.kernels import arrays, compiled

__all__ = [
    "FLOAT32_MAX",
    "Grid",
    "Project",
    "all_finite",
    "best_clip",
    "mean_max_radius",
    "median_radius",
    "percentile_radius",
    "round_up_to_bfloat16",
    "row_radius",
    "steps",
]

FLOAT32_MAX: float = torch.finfo(torch.float32).max

Project: TypeAlias = Callable[[Tensor], None]
"""Overwrites values in grid units, of any shape, with the levels chosen for them, elementwise."""


@dataclass(frozen=True)
class Grid:
    """M evenly spaced levels, symmetric about zero, one unit apart."""

    levels: int

    @property
    def top(self) -> float:
        """The largest level."""
        return (self.levels - 1) / 2

    @property
    def ends(self) -> tuple[float, float]:
        """The lowest and the highest level."""
        return -self.top, self.top

    @property
    def offset(self) -> float:
        """``level = index - offset``: 0 if zero is a level, else 1/2."""
        return 0.0 if self.levels % 2 else 0.5

    def project_(self, values: Tensor) -> None:
        """Overwrite ``values`` with the nearest levels; ties go to the even index."""
        if self.offset:
            values.add_(self.offset)
        values.round_().clamp_(self.offset - self.top, self.offset + self.top)
        if self.offset:
            values.sub_(self.offset)

    def settle_(
        self, pending: Tensor, feedback: Tensor, levels: Tensor, begin: int, end: int
    ) -> None:
        """Round columns ``begin`` to ``end`` of (groups, columns, neurons) in order, compiled.

        Every level changes the later columns by ``feedback`` (groups, columns, columns); all
        tensors are contiguous, in main memory and of one float dtype.
        """
        number = np.float32 if pending.dtype == torch.float32 else np.float64
        low, high = self.offset - self.top, self.offset + self.top
        compiled().settle_grid(
            *arrays(pending, feedback, levels),
            begin,
            end,
            number(self.offset),
            number(low),
            number(high),
        )

    def settle_steps_(
        self,
        pending: Tensor,
        feedback: Tensor,
        levels: Tensor,
        begin: int,
        end: int,
        *,
        steps: Tensor,
    ) -> None:
        """Do the same where each value has a step: ``levels`` become levels times steps.

        ``steps`` has the shape of ``pending``.
        """
        number = np.float32 if pending.dtype == torch.float32 else np.float64
        low, high = self.offset - self.top, self.offset + self.top
        compiled().settle_steps(
            *arrays(pending, feedback, levels, steps.to(pending)),
            begin,
            end,
            number(self.offset),
            number(low),
            number(high),
        )

    def index(self, levels: Tensor) -> Tensor:
        """Return the int32 indices of levels, contiguous."""
        shifted = levels + self.offset if self.offset else levels
        return shifted.to(torch.int32, memory_format=torch.contiguous_format)


def all_finite(values: Tensor) -> bool:
    """Return whether no value is NaN or infinite, without a temporary of their size."""
    return values.numel() == 0 or bool(torch.stack(values.aminmax()).isfinite().all())


def row_radius(weight: Tensor) -> Tensor:
    """Return ``max |w|`` of each row: (..., columns) -> (...); zero for rows without columns."""
    if weight.shape[-1] == 0:
        return weight.new_zeros(weight.shape[:-1])
    return torch.maximum(weight.amax(-1), -weight.amin(-1))  # no copy, unlike abs()


def percentile_radius(weight: Tensor, percentile: float) -> Tensor:
    """Return the nearest-rank percentile (in (0, 100]) of ``|w|`` of each row."""
    columns = weight.shape[-1]
    if columns == 0:
        return weight.new_zeros(weight.shape[:-1])
    rank = min(columns, max(1, math.ceil(percentile / 100 * columns)))
    return weight.abs().kthvalue(rank, -1).values


def median_radius(weight: Tensor) -> Tensor:
    """Return the median of all ``|w|``, a scalar (Lybrand and Saab 2021, experiments)."""
    return weight.abs().median() if weight.numel() else weight.new_zeros(())


def mean_max_radius(weight: Tensor) -> Tensor:
    """Return the mean over rows of ``max |w|``, a scalar (Zhang, Zhou and Saab 2023)."""
    return row_radius(weight).mean() if weight.numel() else weight.new_zeros(())


def round_up_to_bfloat16(values: Tensor) -> Tensor:
    """Return the smallest bfloat16 not below each positive float32, as float32.

    A step with 8 significant bits costs two bytes in a file, and rounding up keeps the largest
    weight within the grid.
    """
    bits = values.contiguous().view(torch.int32)
    return ((bits + 0xFFFF) & -0x10000).view(torch.float32)


def steps(radius: Tensor, fallback: Tensor, grid: Grid, limit: float = FLOAT32_MAX) -> Tensor:
    """Return the step that puts the top level at ``radius`` (float32, same shape).

    If the radius is zero (under the median rule: if over half the weights are zero), the
    ``fallback`` radius is used; if that is zero too, all weights are zero and the step is 1.
    No level exceeds ``limit``, the largest finite value of the weight's dtype: the step is rounded
    down there. With two levels, half a step from zero, they reach at most half the largest float32.
    """
    radius = torch.where(radius > 0, radius, fallback).float()
    highest = _round_down_to_bfloat16(limit / grid.top)
    step = (radius / grid.top).clamp(torch.finfo(torch.float32).tiny, highest)
    return torch.where(radius > 0, round_up_to_bfloat16(step), torch.ones_like(step))


def _round_down_to_bfloat16(value: float) -> float:
    mantissa, exponent = math.frexp(value)
    below = math.ldexp(math.floor(mantissa * 256), exponent - 8)
    return min(below, torch.finfo(torch.bfloat16).max)


def best_clip(
    error: Callable[[float], Tensor], candidates: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Return elementwise the candidate with the least error (the first on ties), and that error.

    ``error(candidate)`` returns one error per row, or one for the layer; always the same shape.
    """
    best, chosen = None, None
    for candidate in candidates:
        now = error(candidate)
        if best is None or chosen is None:
            best, chosen = now, torch.full_like(now, candidate)
            continue
        chosen = torch.where(now < best, candidate, chosen)
        best = torch.minimum(best, now)
    if best is None or chosen is None:
        raise ValueError("best_clip needs at least one candidate")
    return chosen, best
