"""Clipping ranges of activations: by least squared rounding error, or by a percentile."""

from __future__ import annotations

import torch
from torch import Tensor

from .quantizers import bounds

__all__ = ["SHARES", "fit_percentile", "fit_range", "fit_rows", "fit_shifted", "shifted_percentile"]

SHARES = 96  # candidate clips, as shares of the largest magnitude
_AT_ONCE = 1 << 16  # values processed at once


def fit_range(values: Tensor, bits: int, *, signed: bool) -> float:
    """Return the clip of :func:`fit_rows` for ``values``, of any shape, taken together."""
    return float(fit_rows(values.reshape(1, -1), bits, signed=signed))


def fit_rows(rows: Tensor, bits: int, *, signed: bool) -> Tensor:
    """Return each row's clip (value of the highest level) with the least squared rounding error.

    Tries 96 shares of a row's largest magnitude, down to a hundredth, in a geometric progression.
    Cost: 96 passes over ``rows`` (rows, columns), in blocks of rows that fit a cache. The result
    (rows,) is float64 on the CPU; 1.0 if all values are zero.
    """
    rows, (low, high) = rows.detach().float(), bounds(bits, signed)
    clips = torch.ones(len(rows), dtype=torch.float64)
    if not rows.numel():
        return clips
    count = max(1, _AT_ONCE // rows.shape[1])
    for first in range(0, len(rows), count):
        part = rows[first : first + count]
        reach = part.abs().amax(1).cpu().double()
        reach[reach == 0] = 1.0
        clips[first : first + count] = _least_error(part, reach, (low, high), max(1, high), SHARES)
    return clips


def fit_shifted(values: Tensor, bits: int, tries: int = SHARES) -> tuple[float, int]:
    """Return clip and zero of the unsigned grid of least squared rounding error (SPEC.md, 2.4).

    The grid spans the values and zero, or a smaller share of that range: one of ``tries``, down to
    a hundredth, in a geometric progression. Cost: ``tries`` passes over ``values``, of any shape.
    (1.0, 0) if all values are zero.
    """
    values, top = values.detach().float().reshape(-1), (1 << bits) - 1
    reach, zero = _spanning(values, bits)
    whole, ends = torch.tensor([reach], dtype=torch.float64), (-zero, top - zero)
    return float(_least_error(values[None], whole, ends, top, tries)), zero


def _least_error(
    rows: Tensor, reach: Tensor, ends: tuple[int, int], steps: int, tries: int
) -> Tensor:
    """Return the share of each row's ``reach`` at which ``steps`` steps give the least error.

    ``rows`` is (rows, columns) float32; ``reach`` and the result are (rows,) float64 on the CPU.
    """
    shares = [0.01 ** (number / max(1, tries - 1)) for number in range(tries)]
    best = torch.zeros(len(rows), dtype=torch.long, device=rows.device)
    least = torch.full((len(rows),), float("inf"), device=rows.device)
    for number, share in enumerate(shares):
        step = (reach * share / steps).to(rows)[:, None]
        kept = (rows / step).round_().clamp_(*ends).mul_(step)
        error = kept.sub_(rows).square_().mean(1)
        better = error < least
        best.masked_fill_(better, number)
        least = torch.where(better, error, least)
    return reach * torch.tensor(shares, dtype=torch.float64)[best.cpu()]


def fit_percentile(values: Tensor, percentile: float) -> float:
    """Return the ``percentile`` of the magnitudes of ``values``; 1.0 if all are zero."""
    sizes = values.detach().float().reshape(-1).abs().sort().values
    place = min(len(sizes) - 1, round(percentile / 100 * (len(sizes) - 1)))
    return float(sizes[place]) or float(sizes[-1]) or 1.0


def shifted_percentile(values: Tensor, bits: int, percentile: float) -> tuple[float, int]:
    """Return clip and zero of the unsigned grid between two percentiles (SPEC.md, 2.4).

    ``percentile`` percent of ``values``, of any shape, lie below the upper one, and as many above
    the lower one; the grid includes zero. (1.0, 0) if all values are zero.
    """
    ordered = values.detach().float().reshape(-1).sort().values
    place = round(percentile / 100 * max(0, len(ordered) - 1))
    ends = ordered[[place, len(ordered) - 1 - place]] if len(ordered) else ordered
    return _spanning(ends if bool(ends.any()) else ordered, bits)


def _spanning(values: Tensor, bits: int) -> tuple[float, int]:
    """Return clip and zero of the grid that spans all of ``values`` (n,) and zero."""
    low, high = (float(v) for v in values.aminmax()) if values.numel() else (0.0, 0.0)
    reach, top = max(high, 0.0) - min(low, 0.0), (1 << bits) - 1
    return (reach, round(-min(low, 0.0) / reach * top)) if reach else (1.0, 0)
