"""Levels that cost the least in distortion and bits together.

Path following and coordinate descent visit columns one by one; here the level of each is not the
nearest one but ``argmin over q of energy (z - q)^2 + price bits(q)``, where ``energy`` is what an
error of this column costs and ``price`` turns bits into the same unit (CERWU: Conzelmann and
Bamler, arXiv 2505.18758, does so with a CABAC's rates in the loop of optimal brain surgery).
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["PricedLevels", "level_bits", "total_bits"]

_UNSEEN = 12.0  # bits, at least, of a level that no index has
_FURTHER = 2.0  # bits more for each level beyond those seen
_SHARE = 0.2  # of an occurrence, for levels between those seen


class PricedLevels:
    """A projection that knows which column it is called for: the columns come in order.

    Few operations for a column, since it is called for thousands; for each value all levels are
    weighed, so give those that may be wanted.

    Args:
        levels: (levels,) any codebook, increasing; consecutive integers for a grid.
        energy: (groups, columns), in the order of the calls.
        price: (groups, neurons): bits to squared error in grid units.
        bits: (groups, levels) for one law for all, or (groups, neurons, columns, levels), columns
            in the order of the calls; copied in its own dtype.
    """

    def __init__(self, levels: Tensor, energy: Tensor, price: Tensor, bits: Tensor) -> None:
        self._levels = levels.to(energy)
        shape = (*price.shape, len(levels))
        self._squares = self._levels.square().expand(shape)
        self._slopes = (-2 * self._levels).expand(len(energy), 1, -1)
        self._energies = energy.mT[..., None, None].unbind()
        if bits.dim() == 2:
            self._paid = (price[..., None] * bits[:, None],) * energy.shape[1]
        else:
            turned = bits.permute(2, 0, 1, 3).clone(memory_format=torch.contiguous_format)
            self._paid = turned.mul_(price[..., None]).unbind()
        self._column = 0

    def project_(self, values: Tensor) -> None:
        """Overwrite one column (groups, 1, neurons) by levels; after the last, begin anew."""
        column = self._column
        self._column = (column + 1) % len(self._paid)
        # (level - value)^2, but for the square of the value, which changes no choice
        cost = torch.baddbmm(self._squares, values.mT, self._slopes)
        cost.mul_(self._energies[column]).add_(self._paid[column])
        values.copy_(torch.take(self._levels, cost.argmin(2))[:, None])


def level_bits(levels: Tensor, top: int) -> Tensor:
    """Return (groups, 2 top + 1) bits of each level under the law of ``levels`` (groups, ...).

    Levels beyond those that occur cost more and more, so that a law does not lock itself in.
    """
    places, counts = _counted(levels, top)
    ramp = torch.arange(counts.shape[1], device=levels.device)
    low = places.min(1, keepdim=True).values
    high = places.max(1, keepdim=True).values
    inside = (ramp >= low) & (ramp <= high)
    law = (counts + _SHARE) * inside
    bits = -(law / law.sum(1, keepdim=True)).clamp_min(torch.finfo(torch.float64).tiny).log2()
    away = torch.maximum(low - ramp, ramp - high).clamp_min(0)
    edge = torch.where(ramp < low, bits.gather(1, low), bits.gather(1, high))
    beyond = edge.clamp_min(_UNSEEN - _FURTHER) + _FURTHER * away
    return torch.where(inside, bits, beyond)


def total_bits(levels: Tensor, top: int) -> Tensor:
    """Return (groups,) bits of all ``levels`` together under their own law: the order-0 entropy."""
    _, counts = _counted(levels, top)
    share = counts.clamp_min(1) / counts.sum(1, keepdim=True)
    return -(counts * share.log2()).sum(1)


def _counted(levels: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Return the place of every level (groups, n), and how often each occurs (groups, levels)."""
    groups = len(levels)
    places = levels.reshape(groups, -1).long() + top
    counts = torch.zeros(groups, 2 * top + 1, dtype=torch.float64, device=levels.device)
    return places, counts.scatter_add_(1, places, torch.ones_like(places, dtype=torch.float64))
