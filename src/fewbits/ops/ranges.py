"""Where to clip activations: by least squared error of rounding, or by a percentile."""

from __future__ import annotations

import torch
from torch import Tensor

from .quantizers import bounds

__all__ = ["fit_percentile", "fit_range"]

_SHARES = 96  # clips that are tried, of the largest magnitude


def fit_range(values: Tensor, bits: int, *, signed: bool) -> float:
    """Return the clip (value of the highest level) of least squared rounding error.

    Tries 96 shares of the largest magnitude, from a hundredth up, in even ratios. Cost: 96 passes
    over ``values``, any shape. 1.0 where all values are zero.
    """
    values = values.detach().float().reshape(-1)
    largest = float(values.abs().max()) if values.numel() else 0.0
    low, high = bounds(bits, signed)
    if not largest:
        return 1.0
    best, least = largest, float("inf")
    for number in range(_SHARES):
        clip = largest * 0.01 ** (number / (_SHARES - 1))
        step = clip / max(1, high)
        kept = (values / step).round_().clamp_(low, high).mul_(step)
        error = float(torch.mean(kept.sub_(values).square_()))
        if error < least:
            best, least = clip, error
    return best


def fit_percentile(values: Tensor, percentile: float) -> float:
    """Return the magnitude below which ``percentile`` percent of ``values`` lie; 1.0 for zero."""
    sizes = values.detach().float().reshape(-1).abs().sort().values
    place = min(len(sizes) - 1, round(percentile / 100 * (len(sizes) - 1)))
    return float(sizes[place]) or float(sizes[-1]) or 1.0
