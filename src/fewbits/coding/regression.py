"""Least squares in integers, while coding: sums of products, and sweeps towards their solution.

A sweep solves each equation for its own weight, once (Gauss and Seidel). A few sweeps as sums
grow follow the solution closely, and integers make it the same on every machine.

A row of a table holds one regression of n features: n * n sums of products, n of feature times
target, n weights, n weights to begin with, and how many observations the sums hold.
"""

# ruff: noqa: PLR0917 - compiled functions take no keywords
from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .kernels import inlined, kernel

__all__ = ["accumulate", "age", "new_table", "predict", "sweep"]

MOST_SEEN = 1 << 15  # observations before sums are halved: no product leaves 64 bits

Ints = NDArray[np.int64]


def new_table(prior: Ints) -> Ints:
    """Return a table of regressions that have seen nothing; ``prior``: (rows, n)."""
    rows, size = prior.shape
    sums = np.zeros((rows, size * size + size), np.int64)
    return np.concatenate([sums, prior, prior, np.zeros((rows, 1), np.int64)], axis=1)


def age(table: Ints, size: int, bits: int) -> None:
    """Turn to another matrix: what was seen counts ``2**bits`` times less."""
    table[:, : size * size + size] >>= bits
    table[:, -1] >>= bits


@inlined
def predict(table: Ints, row: int, desk: Ints, at: int, size: int) -> int:
    """Return the sum of the features from ``at`` on, by the weights of a row."""
    weights, total = size * size + size, 0
    for j in range(size):
        total += int(table[row, weights + j]) * int(desk[at + j])
    return total


@inlined
def accumulate(table: Ints, row: int, desk: Ints, at: int, size: int, target: int) -> None:
    """Add the features from ``at`` on, and their target, to a row."""
    for i in range(size):
        feature = int(desk[at + i])
        if feature != 0:
            table[row, size * size + i] += feature * target
            for j in range(size):
                table[row, i * size + j] += feature * int(desk[at + j])
    last = size * size + 3 * size
    table[row, last] += 1
    if table[row, last] >= MOST_SEEN:
        table[row, last] >>= 1
        for i in range(size * size + size):
            table[row, i] >>= 1


@kernel
def sweep(table: Ints, row: int, size: int, ridge: int, shift: int) -> None:
    """Move each weight of a row, in ``2**-shift``, to where its equation holds, within 8."""
    right = size * size
    weights, prior, bound = right + size, right + 2 * size, 8 << shift
    for i in range(size):
        rest = (int(table[row, right + i]) << shift) + ridge * int(table[row, prior + i])
        own = int(table[row, i * size + i])
        for j in range(size):
            rest -= int(table[row, i * size + j]) * int(table[row, weights + j])
        rest += own * int(table[row, weights + i])
        table[row, weights + i] = min(max(rest // (own + ridge), -bound), bound)
