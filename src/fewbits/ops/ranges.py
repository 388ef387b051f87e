"""Where to clip activations: by least squared error of rounding, or by a percentile."""

from __future__ import annotations

import torch
from torch import Tensor

from .quantizers import bounds

__all__ = ["SHARES", "fit_percentile", "fit_range", "fit_shifted", "shifted_percentile"]

SHARES = 96  # clips that are tried, of the largest magnitude


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
    return _least_error(values, largest, (low, high), max(1, high), SHARES)


def fit_shifted(values: Tensor, bits: int, tries: int = SHARES) -> tuple[float, int]:
    """Return clip and zero of the unsigned grid of least squared rounding error; see SPEC.md, 2.4.

    The grid reaches from the least to the largest value, zero included, or to a smaller share of
    both; one of ``tries``, down to a hundredth in even ratios. Cost: ``tries`` passes over
    ``values``, any shape. (1.0, 0) where all values are zero.
    """
    values, top = values.detach().float().reshape(-1), (1 << bits) - 1
    reach, zero = _spanning(values, bits)
    return _least_error(values, reach, (-zero, top - zero), top, tries), zero


def _least_error(
    values: Tensor, reach: float, ends: tuple[int, int], steps: int, tries: int
) -> float:
    """Return the share of ``reach``, in ``steps`` steps, with which rounding errs least."""
    best, least = reach, float("inf")
    for number in range(tries):
        clip = reach * 0.01 ** (number / max(1, tries - 1))
        step = clip / steps
        kept = (values / step).round_().clamp_(*ends).mul_(step)
        error = float(torch.mean(kept.sub_(values).square_()))
        if error < least:
            best, least = clip, error
    return best


def fit_percentile(values: Tensor, percentile: float) -> float:
    """Return the magnitude below which ``percentile`` percent of ``values`` lie; 1.0 for zero."""
    sizes = values.detach().float().reshape(-1).abs().sort().values
    place = min(len(sizes) - 1, round(percentile / 100 * (len(sizes) - 1)))
    return float(sizes[place]) or float(sizes[-1]) or 1.0


def shifted_percentile(values: Tensor, bits: int, percentile: float) -> tuple[float, int]:
    """Return clip and zero of the unsigned grid between two values; see SPEC.md, 2.4.

    ``percentile`` percent of ``values``, any shape, lie below the one, and as many above the other;
    the grid holds zero too. (1.0, 0) where all values are zero.
    """
    ordered = values.detach().float().reshape(-1).sort().values
    place = round(percentile / 100 * max(0, len(ordered) - 1))
    ends = ordered[[place, len(ordered) - 1 - place]] if len(ordered) else ordered
    return _spanning(ends if bool(ends.any()) else ordered, bits)


def _spanning(values: Tensor, bits: int) -> tuple[float, int]:
    """Return clip and zero of the grid that reaches over all of ``values`` (n,), and zero."""
    low, high = (float(v) for v in values.aminmax()) if values.numel() else (0.0, 0.0)
    reach, top = max(high, 0.0) - min(low, 0.0), (1 << bits) - 1
    return (reach, round(-min(low, 0.0) / reach * top)) if reach else (1.0, 0)
