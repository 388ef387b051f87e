"""How much a symbol tells, by counting: for reports; no codec asks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .codec import Symbols

__all__ = ["entropy"]


def entropy(symbols: Symbols, order: int = 0) -> float:
    """Return the empirical entropy of a symbol given the ``order`` before it, in bits.

    Symbols are taken row by row. With many symbols of context, or few in all, it is far below
    what any coder can reach: it takes the law as known. Cost: a sort for each order.
    """
    flat = symbols.reshape(-1)
    if flat.size <= order:
        return 0.0
    _, labels = np.unique(flat, return_inverse=True)
    longer = shorter = np.zeros(flat.size - order, np.int64)
    for back in range(order, -1, -1):
        shorter = longer
        part = labels[order - back : flat.size - back]
        _, longer = np.unique(longer * (int(labels.max()) + 1) + part, return_inverse=True)
    return max(0.0, (_information(longer) - _information(shorter)) / longer.size)


def _information(labels: NDArray[np.int64]) -> float:
    """Return the bits of all ``labels`` together under their own frequencies."""
    counts = np.bincount(labels)
    counts = counts[counts > 0]
    return float((counts * (np.log2(labels.size) - np.log2(counts))).sum())
