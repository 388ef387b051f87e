"""Scalar codebooks: Lloyd-Max and uniform fits to weights, and assignment to levels.

Both fits include an exact zero, without which pruned weights would be lost (HEMP, Tartaglione et
al. 2021; Lloyd, Least squares quantization in PCM, 1982). Levels are rounded to bfloat16, so that
each costs two bytes in a file and moves by less than half a percent.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["assign", "even_step", "lloyd_max", "offset_grid", "thresholds"]


def lloyd_max(
    values: Tensor, count: int, start: Tensor | None = None, iterations: int = 100
) -> Tensor:
    """Return at most ``count`` increasing levels of locally least squared error, one of them 0.

    Args:
        values: any shape, finite.
        count: number of levels; fewer are returned if there are fewer distinct values.
        start: initial levels, one of them zero; None for equally spaced ones between the extremes.
        iterations: most alternations; they stop when no level moves.

    Exact in one dimension: values are sorted once, cells are runs, and means come from prefix sums
    in float64. The level at zero stays; an empty cell keeps its level. Cost: a sort, and ``count``
    binary searches per iteration.
    """
    ordered = values.detach().reshape(-1).double().sort().values
    distinct = torch.unique_consecutive(ordered)
    if len(distinct) + int(not bool((distinct == 0).any())) <= count:
        return _short(torch.cat([distinct, distinct.new_zeros(1)]))
    sums = torch.cat([ordered.new_zeros(1), ordered.cumsum(0)])
    centres = _even(ordered, count) if start is None else start.detach().double().clone()
    zero = int(centres.abs().argmin())
    for _ in range(iterations):
        edges = torch.searchsorted(ordered, thresholds(centres))
        edges = torch.cat([edges.new_zeros(1), edges, edges.new_full((1,), len(ordered))])
        sizes = edges.diff()
        means = sums[edges].diff() / sizes.clamp_min(1)
        moved = torch.where(sizes > 0, means, centres)
        moved[zero] = 0
        if torch.equal(moved, centres):
            break
        centres = moved.sort().values
        zero = int(centres.abs().argmin())
    return _short(centres)


def even_step(values: Tensor, count: int) -> float:
    """Return the bfloat16 step at which ``count`` (odd) uniform levels about zero fit best.

    The best by squared error of 33 fractions of the largest magnitude as clip. Cost: 33 passes.
    """
    flat = values.detach().reshape(-1).double()
    top, largest = (count - 1) // 2, float(flat.abs().max()) if flat.numel() else 0.0
    if not largest or not top:
        return 1.0

    def error(step: float) -> float:
        return float((flat - (flat / step).round_().clamp_(-top, top) * step).square().sum())

    steps = [float(_bfloat16(torch.tensor(largest * k / 40 / top))) for k in range(8, 41)]
    return min(steps, key=error)


def offset_grid(values: Tensor, count: int, cost: Tensor | None = None) -> tuple[float, int]:
    """Fit a grid of ``count`` neighbouring multiples to values far from zero, such as gains.

    Args:
        values: any shape, finite.
        count: number of levels, at least 2.
        cost: weight of each value's squared error, in their shape; None for 1.

    Returns:
        The step, a bfloat16, and the lowest multiple: levels are ``step * (lowest + k)``. The best
        of 37 steps, each with the levels at the lower end, the middle and the upper end.
    """
    flat = values.detach().reshape(-1).double()
    weight = torch.ones_like(flat) if cost is None else cost.detach().reshape(-1).double()
    low, high = (float(end) for end in flat.aminmax())
    least = max(abs(low), abs(high)) * 2.0**-16  # indices stay exact in float32
    span = max((high - low) / (count - 1), least)
    if not span:
        return 1.0, 0
    best, result = float("inf"), (1.0, 0)
    for k in range(8, 45):
        step = float(_bfloat16(torch.tensor(span * k / 40)))
        nearest = (flat / step).round()
        first, last = int(nearest.min()), int(nearest.max()) - count + 1
        for lowest in dict.fromkeys((first, (first + last) // 2, last)):
            levels = nearest.clamp(lowest, lowest + count - 1) * step
            error = float(((flat - levels).square() * weight).sum())
            if error < best:
                best, result = error, (step, lowest)
    return result


def thresholds(levels: Tensor) -> Tensor:
    """Return the midpoints between neighbouring levels."""
    middles: Tensor = (levels[1:] + levels[:-1]) / 2
    return middles


def assign(values: Tensor, levels: Tensor) -> Tensor:
    """Return the int64 position of the nearest level; the lower one on a threshold."""
    return torch.searchsorted(thresholds(levels), values.contiguous())


def _even(ordered: Tensor, count: int) -> Tensor:
    low, high = ordered[0], ordered[-1]
    middles = (torch.arange(count, dtype=torch.float64, device=ordered.device) + 0.5) / count
    centres = low + (high - low) * middles
    if bool(low > 0) or bool(high < 0):
        centres[0 if low > 0 else -1] = 0
        return centres.sort().values
    centres[int(centres.abs().argmin())] = 0
    return centres


def _short(levels: Tensor) -> Tensor:
    rounded = _bfloat16(levels.sort().values)
    return rounded[torch.cat([rounded.new_ones(1), rounded.diff()]) > 0]


def _bfloat16(values: Tensor) -> Tensor:
    return values.to(torch.bfloat16).float()
