"""Entropy-constrained assignment: least squared distance plus price times bits.

If all values share a distribution, the cost of a level is linear in the value, so cells are runs
that a binary search finds (Chou, Lookabaugh and Gray 1989). With a distribution of n-tuples, the
values of a tuple are updated in turn, each given the others.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..levels.codebook import assign

__all__ = ["assign_priced", "envelope"]

_CHUNK = 1 << 18  # values at a time
_TURNS = 2


def envelope(levels: Tensor, bits: Tensor, price: float) -> tuple[Tensor, Tensor]:
    """Return the levels that are best for some value, and the thresholds between them.

    Args:
        levels: (levels,) increasing.
        bits: (levels,) cost of each level.
        price: squared distance that a bit is worth, >= 0.

    Returns:
        (kept,) int64 positions, and (kept - 1,) thresholds in the dtype of ``levels``. Cost: a few
        operations per level, on the host.
    """
    places = levels.double().tolist()
    costs = [c * c + price * b for c, b in zip(places, bits.double().tolist(), strict=True)]
    kept: list[int] = []
    edges: list[float] = []
    for k, place in enumerate(places):
        edge = 0.0
        while kept:
            edge = (costs[k] - costs[kept[-1]]) / (2 * (place - places[kept[-1]]))
            if not edges or edge > edges[-1]:
                break
            kept.pop()
            edges.pop()
        if kept:
            edges.append(edge)
        kept.append(k)
    device = levels.device
    return torch.tensor(kept, device=device), torch.tensor(edges, device=device).to(levels)


def assign_priced(values: Tensor, levels: Tensor, lengths: Tensor, price: float) -> Tensor:
    """Return positions, in the shape of ``values``, of least squared distance plus price * bits.

    Args:
        values: any shape, taken in row order as disjoint tuples; leftovers go to the nearest level.
        levels: (levels,) increasing.
        lengths: (levels,) * order, bits of every tuple.
        price: squared distance that a bit is worth.

    Cost: a binary search per value at order 1; otherwise 2 * levels operations.
    """
    if lengths.dim() == 1:
        kept, edges = envelope(levels, lengths, price)
        return kept[torch.searchsorted(edges, values.contiguous())]
    order, flat = lengths.dim(), values.reshape(-1)
    positions = assign(flat, levels)
    whole = flat.numel() // order * order
    for start in range(0, whole, _CHUNK * order):
        part = slice(start, min(start + _CHUNK * order, whole))
        tuples = positions[part].reshape(-1, order)
        costs = (flat[part].reshape(-1, order)[..., None] - levels).square()
        for _ in range(_TURNS):
            for k in range(order):
                others = [tuples[:, j] for j in range(order) if j != k]
                bits = lengths.movedim(k, -1)[tuple(others)]
                tuples[:, k] = (costs[:, k] + price * bits.to(costs)).argmin(1)
        positions[part] = tuples.reshape(-1)
    return positions.reshape(values.shape)
