"""The trellis that columns of integers can follow: each says whether the next one is even or odd.

Trellis-coded quantization in the form of JPEG 2000 part 2 (Marcellin and Fischer 1990, with the
union codebooks of Fischer and Wang 1992): numbers fall into four subsets by their remainder modulo
4, of which a state allows two, the even or the odd ones. The code is Ungerboeck's of 8 states
(parity checks 13 and 4, octal).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .kernels import inlined

__all__ = ["STATES", "follows", "next_state", "transitions"]

STATES = 8


@inlined
def next_state(state: int, number: int) -> int:
    """Return the state after ``number`` (even in even states, odd in odd ones)."""
    return (state >> 1) ^ (5 * (state & 1)) ^ (number & 2)


def follows(symbols: NDArray[np.integer]) -> bool:
    """Return whether every column of a matrix (rows, columns), from state 0, is a path."""
    state = np.zeros(symbols.shape[1], np.int64)
    for row in symbols:
        number = row.astype(np.int64)
        if not np.array_equal(number & 1, state & 1):
            return False
        state = (state >> 1) ^ (5 * (state & 1)) ^ (number & 2)
    return True


def transitions() -> NDArray[np.int64]:
    """Return the next state of each state (8, 2), by bit 1 of the number."""
    numbers = [[(state & 1) + 2 * branch for branch in (0, 1)] for state in range(STATES)]
    after = [[next_state(state, m) for m in row] for state, row in enumerate(numbers)]
    return np.array(after, np.int64)
