"""Which columns are neighbours, what they are worth at first, and where symbols come in tuples."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from . import desk as on
from .codec import Layout
from .walk import DISTANCE_SHIFT, MEAN_SHIFT

__all__ = ["distances_prior", "means_prior", "neighbours", "period_of"]

Ints = NDArray[np.int64]

WORTH, CORNER = 90, -26  # in 1/256: a tap beside or above, and the one between them
MOST_TAPS = 49  # larger kernels are walked as rows
SYMBOLS = 32  # of an alphabet, up to which tuples are looked for
SAMPLE = 1 << 17


def _is_kernel(layout: Layout) -> bool:
    return 1 < layout.taps <= MOST_TAPS and layout.width > 0 and layout.taps % layout.width == 0


def neighbours(layout: Layout) -> Ints:
    """Return columns back to ``NEAR`` neighbours, nearest first, then to left, upper, both corners.

    One row for each tap of a kernel, whose neighbours are in the same filter; else one for all.
    """
    return _neighbours(layout.taps if _is_kernel(layout) else 1, layout.width)


@lru_cache(maxsize=256)
def _neighbours(taps: int, width: int) -> Ints:
    if taps == 1:
        far = [width, width - 1, width + 1, 2 * width] if width > 1 else [4, 5, 0, 0]
        around = [1, width, width + 1, width - 1] if width > 1 else [1, 2, 3, 4]
        return np.array([[1, 2, 3, *far, 0, *around]], np.int64)
    rows = []
    for tap in range(taps):
        y, x = divmod(tap, width)
        steps = [(up, left) for up in range(y + 1) for left in range(x - width + 1, x + 1)]
        ranked = sorted((up * up + left * left, up * width + left) for up, left in steps)
        near = [distance for _, distance in ranked if distance > 0][: on.NEAR]
        over = width if y else 0
        around = [
            min(x, 1),
            over,
            over + 1 if y and x else 0,
            over - 1 if y > 0 and x < width - 1 else 0,
        ]
        rows.append(near + [0] * (on.NEAR - len(near)) + around)
    return np.array(rows, np.int64)


def means_prior(layout: Layout, near: Ints) -> Ints:
    """Return the weights of the features of a mean before anything is seen."""
    prior = np.zeros((len(near), on.MEANS), np.int64)
    if len(near) > 1:
        for tap, row in enumerate(near[:, : on.NEAR].tolist()):
            y, x = divmod(tap, layout.width)
            worth = {1: WORTH} if x else {}
            worth |= {layout.width: WORTH} if y else {}
            worth |= {layout.width + 1: CORNER} if x and y else {}
            for place, distance in enumerate(row):
                prior[tap, place] = worth.get(distance, 0) << (MEAN_SHIFT - 8)
    return prior


def distances_prior() -> Ints:
    """Return those of a distance, for the first tap and for later ones: row times input, filter."""
    prior = np.zeros((2, on.DISTANCES), np.int64)
    prior[:, [0, 4]] = 1 << (DISTANCE_SHIFT - 1)
    return prior


def period_of(values: NDArray[np.int32], layout: Layout) -> int:
    """Return 2 or 3 if symbols tell each other in disjoint tuples of so many, else 1."""
    lowest, flat = int(values.min()), values.reshape(-1)[:SAMPLE]
    size = int(values.max()) - lowest + 1
    if size > SYMBOLS or flat.size < 4 * size * size:
        return 1
    pairs = (flat[:-1].astype(np.int64) - lowest) * size + (flat[1:] - lowest)
    best, most = 1, 0.02  # bits by which pairs inside and between tuples must differ
    for period in (2, 3):
        if layout.taps > 1 and layout.taps % period == 0:
            continue  # the rows of kernels would seem to be tuples
        told = [_told(pairs[phase::period], size) for phase in range(period)]
        if max(told) - min(told) > most:
            best, most = period, 2 * (max(told) - min(told))
    return best


def _told(pairs: Ints, size: int) -> float:
    """Return the bits that the first symbols of ``pairs`` tell about the second."""
    joint = np.bincount(pairs, minlength=size * size).reshape(size, size) / max(pairs.size, 1)
    apart = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0)
    some = joint > 0
    return float((joint[some] * np.log2(joint[some] / apart[some])).sum())
