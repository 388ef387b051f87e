"""Code one byte of every value: what ``floats`` and ``planes`` have in common."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..codec import NO_LIMIT, Codec, Layout
from ..raw import Constant, Raw
from .rans import Rans

__all__ = ["INNER", "entropy_of", "smallest"]

INNER = (Constant(), Raw(), Rans())
HEAD = 96  # bits besides those of values and tables, at least

Bytes = NDArray[np.uint8]


def smallest(plane: Bytes) -> tuple[int, bytes]:
    """Return codec number and bytes of a plane (values,), choosing the fewest bytes."""
    row = plane.reshape(1, -1)
    number, body = 0, b""
    for codec in _promising(plane):
        data = codec.encode(row, Layout(*row.shape), limit=len(body) if body else NO_LIMIT)
        if data is not None:
            number, body = codec.number, data
    return number, body


def _promising(plane: Bytes) -> tuple[Codec, ...]:
    """Return the codecs that may take the fewest bytes, in the order to try them in."""
    counts = np.bincount(plane, minlength=256)
    used = np.flatnonzero(counts)
    if used.size == 1:
        return (Constant(),)
    packed = int(used[-1] - used[0]).bit_length() * plane.size
    return (Raw(),) if entropy_of(counts) + HEAD + used.size >= packed else (Rans(), Raw())


def entropy_of(counts: NDArray[np.integer]) -> float:
    """Return the bits of symbols with these counts, which no table goes below."""
    own = counts[counts > 0]
    return float((own * np.log2(own.sum() / own)).sum())
