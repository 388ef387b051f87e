"""Matrices whose columns follow the trellis."""

from __future__ import annotations

import numpy as np

from fewbits.coding.trellis import transitions

__all__ = ["path"]


def path(halves):
    """Integers that follow the trellis, from their halves."""
    out, state, after = np.empty_like(halves), np.zeros(halves.shape[1], np.int64), transitions()
    for row, numbers in enumerate(halves):
        out[row] = 2 * numbers + state % 2
        state = after[state, out[row] // 2 % 2]
    return out
