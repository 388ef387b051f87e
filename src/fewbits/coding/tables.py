"""Frequency tables: shares of 4096 from roots of counts, which are few bits and equally precise.

With counts n, an error of 1 in 2 * sqrt(n) costs the same for every symbol, so roots are what is
rounded; a step of about 1.7 halves what table and error cost together.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..errors import CorruptFileError
from .lanes import TOTAL
from .numbers import Numbers

__all__ = ["MOST_ROOT", "roots_of", "shares_of", "slots_of", "starts_of", "take_roots"]

MOST_ROOT = 255
STEP = 1.73
FIRST_KIND = 4  # of numbers: those before are levels
POWERS = 1 << np.arange(9)  # kinds by the bits of the root before

Ints = NDArray[np.int64]


def roots_of(counts: Ints) -> Ints:
    """Return the rounded roots (A,) of counts (A,): at least 1 where a symbol occurs."""
    roots = np.sqrt(counts)
    scale = min(1 / STEP, MOST_ROOT / max(float(roots.max()), 1.0))
    return np.maximum(np.rint(roots * scale), counts > 0).astype(np.int64)


def shares_of(roots: Ints) -> Ints:
    """Return shares of 4096 for roots, not all 0: who has one gets at least 1, none gets all."""
    squares = roots * roots
    total = int(squares.sum())
    shares: Ints = np.maximum((2 * squares * TOTAL + total) // (2 * total), roots > 0)
    largest = int(shares.argmax())
    if np.count_nonzero(roots) == 1:
        shares[largest ^ 1 if (largest ^ 1) < shares.size else largest - 1] = 1
    excess = int(shares.sum()) - TOTAL
    for place in np.argsort(-shares, kind="stable").tolist():
        taken = min(int(shares[place]) - 1, excess)
        shares[place] -= taken
        excess -= taken
        if excess <= 0:
            break
    return shares


def take_roots(numbers: Numbers, roots: Ints) -> Ints:
    """Write the roots of all tables (tables, A), or read them: each from the one before."""
    found = np.zeros_like(roots)
    before = np.zeros(roots.shape[1], np.int64)
    for table in range(len(roots)):
        kinds = FIRST_KIND + np.searchsorted(POWERS, before, side="right")
        before = before + numbers.take(roots[table] - before, kinds)
        if before.min() < 0 or before.max() > MOST_ROOT or not before.any():
            raise CorruptFileError(f"table {table} has roots of frequencies out of bounds")
        found[table] = before
    return found


def starts_of(shares: Ints) -> Ints:
    """Return (tables, 256, 3): where each symbol's share begins, the share, 2**32 over it."""
    out = np.zeros((len(shares), 256, 3), np.int64)
    out[:, : shares.shape[1], 0] = np.cumsum(shares, axis=1) - shares
    out[:, : shares.shape[1], 1] = shares
    out[:, : shares.shape[1], 2] = (1 << 32) // np.maximum(shares, 1)
    return out


def slots_of(shares: Ints) -> NDArray[np.uint32]:
    """Return (tables * 4096,): symbol, share and place in the share, for each of 4096 slots."""
    rows = []
    for row in shares:
        symbol = np.repeat(np.arange(row.size), row)
        place = np.arange(TOTAL) - np.repeat(np.cumsum(row) - row, row)
        rows.append(symbol | row[symbol] << 8 | place << 20)
    return np.concatenate(rows).astype(np.uint32)
