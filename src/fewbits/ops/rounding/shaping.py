"""Steps at a slope, and rounding with errors shaped by their effect on the output.

Coefficients form a matrix (groups, rows, columns) whose error e costs
``sum over rows of weight * e H e'``. With H = R R' and R upper triangular, feedback along the
columns turns that into ``weight * sum of (R_tt e_t)^2`` of plain rounding errors; without feedback,
the diagonal of H counts. At a slope (distortion per bit), the step of an entropy-coded coefficient
whose squared error costs a is ``sqrt(6 slope / (a ln 2))``, because at high rates the slope of a
uniform quantizer is ``2 ln 2 a step^2 / 12`` for any distribution.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .path_following import follow_gram
from .second_order import Factor, backward_cholesky

__all__ = ["factor_of", "round_shaped", "step_at_slope"]

_DAMPING = 0.01  # relative to the mean of H's diagonal
_LARGEST = 2**20  # largest index


def factor_of(second: Tensor) -> Factor:
    """Return R with ``H + damping I = R R'`` for H (groups, columns, columns)."""
    mean = second.diagonal(dim1=1, dim2=2).mean(1)
    return backward_cholesky(second, _DAMPING * torch.where(mean > 0, mean, 1))


def step_at_slope(cost: Tensor, largest: Tensor, slope: float) -> Tensor:
    """Return the steps of coefficients: powers of ``2^(1/4)``, in the 8 bits of a bfloat16.

    Args:
        cost: mean cost of a squared error in each set of coefficients that shares a step.
        largest: largest magnitude in each set; bounds the step, so that indices stay small and so
            does the step if errors cost nothing.
        slope: distortion per bit.

    Coarse steps are cheap to code: at most 9 % off, they cost 0.004 bits per coefficient.
    """
    tiny = torch.finfo(torch.float32).tiny
    step = (6 * slope / math.log(2) / cost.clamp_min(1e-300)).sqrt()
    size = largest.clamp_min(tiny)
    step = torch.maximum(torch.minimum(step, 4 * size), size / _LARGEST).clamp(tiny, 1e37)
    coarse = torch.exp2((4 * step.log2()).round() / 4)
    return torch.where(largest > 0, coarse, 1.0).float().bfloat16().double()


def round_shaped(values: Tensor, step: Tensor, upper: Tensor | None, offset: float = 0.5) -> Tensor:
    """Return the levels (integers) of ``values`` (groups, rows, columns), in steps.

    Args:
        values: float64.
        step: broadcasts over ``values``: one per row, or one per column.
        upper: R (groups, columns, columns), to feed errors back along the columns; None for plain
            rounding.
        offset: fraction of a step at which magnitudes round up; below 1/2 it favours zero.
    """
    units = values / step
    if upper is None:
        return units.sign() * (units.abs() + offset).floor()
    scaled = upper
    if step.shape[-1] > 1:
        scaled = upper * step.expand(len(upper), 1, -1).mT
    return follow_gram(units, scaled.mT, scaled.mT, _round)


def _round(values: Tensor) -> None:
    values.round_()
