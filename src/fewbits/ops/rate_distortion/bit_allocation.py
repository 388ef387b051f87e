"""Bit allocation: distortion curves of blocks over bit depth, convex hulls, equal slopes.

Minimizing the total distortion under a budget of bits puts every block at the depth where its curve
has the same slope (Young et al. 2021, equation 8; Shoham and Gersho 1988). Curves are measured, not
modelled: at low depths, ``2^-2R`` is far from what a uniform quantizer does.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

__all__ = [
    "DEPTHS",
    "Curve",
    "allocate",
    "at_slope",
    "block_curve",
    "block_levels",
    "lower_hull",
]

DEPTHS = 9  # 0 to 8 bits
_STEPS = 33  # steps tried per depth: in eighths of an octave below the largest value's


@dataclass(frozen=True, eq=False)
class Curve:
    """Distortion of one block at each depth.

    Attributes:
        distortion: (depths,) float64, the least over all steps tried.
        step: (depths,) float64 step that reaches it; 0 at depth 0.
        offset: (depths,) 0 for a grid with a zero (2^R - 1 levels), 1/2 without (2^R levels).
        count: number of values in the block.
    """

    distortion: Tensor
    step: Tensor
    offset: Tensor
    count: int


def block_levels(values: Tensor, depth: int, step: Tensor | float, offset: float) -> Tensor:
    """Quantize ``values`` at a depth to at most 2^depth distinct levels, in steps.

    Half-integers without a zero if ``offset`` is 1/2, else integers, symmetric about zero.
    """
    top = (2**depth - 1) / 2 if offset else 2 ** (depth - 1) - 1
    return (torch.round(values / step + offset) - offset).clamp(-top, top)


def block_curve(values: Tensor, weight: Tensor) -> Curve:
    """Measure the curve of a block.

    Args:
        values: (rows, columns) float64.
        weight: (rows,) cost of a squared error in each row.

    Cost: 15 depths and kinds of grid times 33 steps passes over the values.
    """
    cost = values.square().sum(1) @ weight
    largest = values.abs().max() if values.numel() else values.new_zeros(())
    points = [(float(cost), 0.0, 0.0)]
    for depth in range(1, DEPTHS):
        best = points[-1]
        for offset in (0.5, 0.0) if depth > 1 else (0.5,):
            top = (2**depth - 1) / 2 if offset else 2 ** (depth - 1) - 1
            for eighths in range(_STEPS) if largest > 0 else ():
                step = _to_bfloat16(largest / top * 2 ** (-eighths / 8))
                error = values - block_levels(values, depth, step, offset) * step
                total = float(error.square().sum(1) @ weight)
                if total < best[0]:
                    best = (total, float(step), offset)
        points.append(best)
    table = torch.tensor(points, dtype=torch.float64)
    return Curve(table[:, 0], table[:, 1], table[:, 2], values.numel())


def _to_bfloat16(value: Tensor) -> Tensor:
    return value.float().bfloat16().double()


def lower_hull(distortion: Tensor) -> list[int]:
    """Return the depths on the lower convex hull of a falling curve, in increasing order."""
    values = distortion.tolist()
    hull = [0]
    for depth in range(1, len(values)):
        if values[depth] >= values[hull[-1]]:
            continue
        while len(hull) > 1:
            last, before = hull[-1], hull[-2]
            steep = (values[before] - values[last]) * (depth - last)
            if steep > (values[last] - values[depth]) * (last - before):
                break
            hull.pop()
        hull.append(depth)
    return hull


def at_slope(curve: Curve, slope: float) -> int:
    """Return the depth that minimizes ``distortion + slope * depth * count``; the least on ties.

    ``slope`` is distortion per bit.
    """
    hull = lower_hull(curve.distortion)
    chosen = hull[0]
    for before, after in pairwise(hull):
        fall = float(curve.distortion[before] - curve.distortion[after])
        if fall <= slope * (after - before) * curve.count:
            break
        chosen = after
    return chosen


def allocate(curves: list[Curve], budget: float) -> list[int]:
    """Return the depths of all blocks that use at most ``budget`` bits at equal slope.

    Bisection on the slope; the remaining bits go to the steepest hull segments that fit.
    """
    low, high = 0.0, 1.0
    while _bits_at(curves, high) > budget and high < 1e300:
        high *= 16
    if _bits_at(curves, low) <= budget:
        return [at_slope(curve, low) for curve in curves]
    for _ in range(200):
        middle = (low * high) ** 0.5 if low > 0 else high / 16
        if middle <= 1e-300 or high <= low * (1 + 1e-12):
            break
        low, high = (middle, high) if _bits_at(curves, middle) > budget else (low, middle)
    depths = [at_slope(curve, high) for curve in curves]
    return _spend_rest(curves, depths, budget)


def _bits_at(curves: list[Curve], slope: float) -> int:
    return sum(curve.count * at_slope(curve, slope) for curve in curves)


def _spend_rest(curves: list[Curve], depths: list[int], budget: float) -> list[int]:
    left = budget - sum(c.count * d for c, d in zip(curves, depths, strict=True))
    while True:
        best, choice = 0.0, (-1, 0)
        for place, curve in enumerate(curves):
            hull = lower_hull(curve.distortion)
            above = [depth for depth in hull if depth > depths[place]]
            bits = (above[0] - depths[place]) * curve.count if above else 0
            if bits and bits <= left:
                fall = float(curve.distortion[depths[place]] - curve.distortion[above[0]])
                if fall / bits > best:
                    best, choice = fall / bits, (place, above[0])
        if choice[0] < 0:
            return depths
        left -= (choice[1] - depths[choice[0]]) * curves[choice[0]].count
        depths[choice[0]] = choice[1]
