"""Tables of logarithms of odds and of chances, made from integers: the same on every machine.

A chance is in 1/65536, a logarithm of odds ("stretched" chance) in 1/256 of a natural unit.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .kernels import inlined

__all__ = [
    "COSTS",
    "ONE",
    "QUARTERS",
    "REACH",
    "RECIPROCALS",
    "SQUASH",
    "STRETCH",
    "interpolated",
    "octaves",
    "squash",
    "stretch",
]

ONE = 1 << 16
REACH = 3071  # beyond, a chance is as good as sure
LIMIT = 2047  # of what is mixed
# e**(1/256) * 2**64, from the series with exact fractions
STEP = 18518942588666869714
PARTS = 1 << 12  # chances told apart when stretched
CLASSES = 1 << 13

Table = NDArray[np.int64]


def _squash() -> list[int]:
    """Return ONE / (1 + exp(-x / 256)) for x from -REACH to REACH, rounded down."""
    one = 1 << 64
    powers = [one]
    for _ in range(REACH):
        powers.append(powers[-1] * STEP >> 64)
    upper = [min(ONE - 1, ONE * power // (one + power)) for power in powers]
    lower = [max(1, ONE * one // (one + power)) for power in powers[:0:-1]]
    return lower + upper


def _stretch(squashed: list[int]) -> list[int]:
    """Return the logarithm of odds of the middle of each of ``PARTS`` equal parts."""
    found, at = [], 0
    for part in range(PARTS):
        middle = (2 * part + 1) * (ONE // PARTS // 2)
        while at < len(squashed) - 1 and squashed[at] < middle:
            at += 1
        found.append(max(-LIMIT, min(LIMIT, at - REACH)))
    return found


def _classes() -> list[int]:
    """Return 4 * log2(x + 1), rounded, for x below ``CLASSES``: through exact powers."""
    return [((x + 1) ** 8).bit_length() // 2 for x in range(CLASSES)]


SQUASH: Table = np.array(_squash(), np.int64)
STRETCH: Table = np.array(_stretch(SQUASH.tolist()), np.int64)
RECIPROCALS: Table = np.array([2 * ONE // (2 * n + 3) for n in range(1024)], np.int64)
QUARTERS: Table = np.array(_classes(), np.int64)
# Bits in 1/65536 of what has the chance in the middle of each part: no decoder asks.
COSTS: Table = np.rint(ONE * np.log2(PARTS / (np.arange(PARTS) + 0.5))).astype(np.int64)


@inlined
def squash(odds: int) -> int:
    """Return the chance, in 1/65536, that has this logarithm of odds."""
    return int(SQUASH[min(max(odds, -REACH), REACH) + REACH])


@inlined
def stretch(chance: int) -> int:
    """Return the logarithm of the odds of a chance in [0, 65536)."""
    return int(STRETCH[chance >> 4])


@inlined
def octaves(size: int) -> int:
    """Return the class of a size: quarters of an octave, 0 to 52."""
    return int(QUARTERS[min(max(size, 0), CLASSES - 1)])


@inlined
def interpolated(maps: NDArray[np.int32], at: int, part: int) -> int:
    """Return the chance between two neighbours of a map, ``part`` in 1/4096 from the first."""
    return (int(maps[at]) * (4096 - part) + int(maps[at + 1]) * part) >> 12
