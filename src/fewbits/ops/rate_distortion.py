"""Levels that cost the least in distortion and bits together.

Path following and coordinate descent visit columns one by one; here the level of each is not the
nearest one but ``argmin over q of energy (z - q)^2 + price bits(q)``, where ``energy`` is what an
error of this column costs and ``price`` turns bits into the same unit (CERWU: Conzelmann and
Bamler, arXiv 2505.18758, does so with a CABAC's rates in the loop of optimal brain surgery).
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["PricedLevels", "law_bits", "law_total"]

_REACH = 2  # levels to either side of the nearest that are weighed
_UNSEEN = 12.0  # bits, at least, of a level that no index has
_FURTHER = 2.0  # bits more for each level beyond those seen
_SHARE = 0.2  # of an occurrence, for levels between those seen


class PricedLevels:
    """A projection that knows which column it is called for: the columns come in order.

    Args:
        levels: (levels,) any codebook, increasing; the integers from -top to top for a grid.
        energy: (groups, columns), in the order of the calls.
        price: (groups, neurons): bits to squared error in grid units.
        bits: (groups, levels) for one law for all, or (groups, neurons, columns, levels), columns
            in the order of the calls.
    """

    def __init__(self, levels: Tensor, energy: Tensor, price: Tensor, bits: Tensor) -> None:
        self._levels = levels.to(energy)
        self._middles = (self._levels[1:] + self._levels[:-1]) / 2
        self._zero = int(self._levels.abs().argmin())
        self._energy = energy
        self._price = price[..., None]
        self._bits = bits
        self._column = 0
        self._near = torch.arange(-_REACH, _REACH + 2, device=energy.device)  # the last: zero

    def project_(self, values: Tensor) -> None:
        """Overwrite one column (groups, 1, neurons) by levels; after the last, begin anew."""
        column, groups = self._column, len(values)
        self._column = (column + 1) % self._energy.shape[1]
        wanted = values.reshape(groups, -1, 1)
        nearest = torch.bucketize(wanted.contiguous(), self._middles)
        places = (nearest + self._near).clamp_(0, len(self._levels) - 1)
        places[..., -1] = self._zero
        levels = self._levels[places]
        if self._bits.dim() == 2:
            bits = self._bits.gather(1, places.flatten(1)).view_as(levels)
        else:
            bits = self._bits[:, :, column].gather(2, places)
        energy = self._energy[:, column].reshape(-1, 1, 1)
        cost = (levels - wanted).square_().mul_(energy).add_(self._price * bits)
        best = cost.argmin(2, keepdim=True)
        values.copy_(levels.gather(2, best).view_as(values))


def law_bits(levels: Tensor, top: int) -> Tensor:
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


def law_total(levels: Tensor, top: int) -> Tensor:
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
