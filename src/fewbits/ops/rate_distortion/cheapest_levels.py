"""Rate-aware projection: levels that minimize distortion plus the price of their bits.

Path following and coordinate descent visit columns one by one. Here the level chosen is not the
nearest one but ``argmin over q of energy (z - q)^2 + price bits(q)``, where ``energy`` is the cost
of an error in this column and ``price`` converts bits to the same unit (CERWU: Conzelmann and
Bamler, arXiv 2505.18758, does this with the rates of a CABAC within optimal brain surgery).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..compiled.kernels import arrays, compiled

__all__ = ["PricedLevels", "level_bits", "total_bits"]

_UNSEEN = 12.0  # bits, at least, of a level that does not occur
_FURTHER = 2.0  # additional bits per level beyond those that occur
_SHARE = 0.2  # pseudo-count of levels between those that occur


class PricedLevels:
    """A projection that is called once per column, in order, and uses that column's prices.

    It takes few operations per column, since there are thousands of calls. All levels are compared
    for each value, so pass only plausible ones.

    Args:
        levels: (levels,) any codebook, increasing; consecutive integers for a grid.
        energy: (groups, columns), in the order of the calls.
        price: (groups, neurons): squared error, in grid units, per bit.
        bits: (groups, levels) if all columns share a distribution, (groups, neurons, levels) if
            those of a neuron do, or (groups, neurons, columns, levels) with columns in the order of
            the calls; copied in its own dtype.
    """

    def __init__(self, levels: Tensor, energy: Tensor, price: Tensor, bits: Tensor) -> None:
        self._levels = levels.to(energy)
        self._given = energy, price, bits
        shape = (*price.shape, len(levels))
        self._squares = self._levels.square().expand(shape)
        self._slopes = (-2 * self._levels).expand(len(energy), 1, -1)
        self._energies = energy.mT[..., None, None].unbind()
        if bits.dim() < 4:
            wide = bits[:, None] if bits.dim() == 2 else bits
            self._paid: tuple[Tensor, ...] = (price[..., None] * wide,) * energy.shape[1]
        else:
            turned = bits.permute(2, 0, 1, 3).clone(memory_format=torch.contiguous_format)
            self._paid = turned.mul_(price[..., None]).unbind()
        self._column = 0
        whole = self._levels.round() == self._levels
        steady = len(levels) < 2 or bool((self._levels.diff() == 1).all())
        self._integers = bool(whole.all()) and steady
        self.settle_ = self._settle_ if bits.dim() < 4 else None

    def project_(self, values: Tensor) -> None:
        """Overwrite one column (groups, 1, neurons) with levels; after the last, start over."""
        column = self._column
        self._column = (column + 1) % len(self._paid)
        # (level - value)^2 without the square of the value, which does not change the choice
        cost = torch.baddbmm(self._squares, values.mT, self._slopes)
        cost.mul_(self._energies[column]).add_(self._paid[column])
        values.copy_(torch.take(self._levels, cost.argmin(2))[:, None])

    def _settle_(
        self, pending: Tensor, feedback: Tensor, levels: Tensor, begin: int, end: int
    ) -> None:
        """Do the same for columns ``begin`` to ``end`` of a block, compiled: ``Grid.settle_``."""
        energy, price, bits = self._given
        first = self._column - begin
        self._column = (self._column + end - begin) % len(self._paid)
        places = torch.arange(bits.shape[:-1].numel()).reshape(*bits.shape[:-1], -1)
        compiled().settle_priced(
            *arrays(pending, feedback, levels),
            begin,
            end,
            *arrays(
                energy[:, first : first + pending.shape[1]].to(pending).contiguous(),
                price.to(pending).contiguous(),
                bits.to(pending).reshape(-1, bits.shape[-1]).contiguous(),
                places.reshape(len(price), -1).expand(price.shape).contiguous(),
            ),
            int(self._levels[0]),
            *arrays((self._levels[:0] if self._integers else self._levels).to(pending)),
        )


def level_bits(levels: Tensor, top: int) -> Tensor:
    """Return bits (groups, 2 top + 1) of levels under the distribution of ``levels`` (groups, ...).

    Levels further and further from those that occur cost more and more, but are never excluded.
    """
    places, counts = _count_levels(levels, top)
    ramp = torch.arange(counts.shape[1], device=levels.device)
    low = places.min(1, keepdim=True).values
    high = places.max(1, keepdim=True).values
    inside = (ramp >= low) & (ramp <= high)
    frequency = (counts + _SHARE) * inside
    share = frequency / frequency.sum(1, keepdim=True)
    bits = -share.clamp_min(torch.finfo(torch.float64).tiny).log2()
    away = torch.maximum(low - ramp, ramp - high).clamp_min(0)
    edge = torch.where(ramp < low, bits.gather(1, low), bits.gather(1, high))
    beyond = edge.clamp_min(_UNSEEN - _FURTHER) + _FURTHER * away
    return torch.where(inside, bits, beyond)


def total_bits(levels: Tensor, top: int) -> Tensor:
    """Return (groups,) bits of all ``levels`` under their own distribution (order-0 entropy)."""
    _, counts = _count_levels(levels, top)
    share = counts.clamp_min(1) / counts.sum(1, keepdim=True)
    return -(counts * share.log2()).sum(1)


def _count_levels(levels: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Return the position of every level (groups, n), and counts of each (groups, levels)."""
    groups, size = len(levels), 2 * top + 1
    places = levels.reshape(groups, -1).long() + top
    first = torch.arange(groups, device=levels.device)[:, None] * size
    counts = torch.bincount((places + first).flatten(), minlength=groups * size)
    return places, counts.reshape(groups, size).double()
