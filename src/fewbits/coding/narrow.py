"""Symbols in the narrowest integers that hold them: for what is kept or sent, not computed with."""

from __future__ import annotations

import numpy as np

from .codec import Symbols

__all__ = ["narrow"]


def narrow(symbols: Symbols) -> Symbols:
    """Return non-empty ``symbols`` in 8 or 16 bits where they fit, else as they are."""
    low, high = int(symbols.min()), int(symbols.max())
    for dtype in (np.int8, np.uint8, np.int16):
        limits = np.iinfo(dtype)
        if symbols.itemsize > limits.bits // 8 and limits.min <= low and high <= limits.max:
            return symbols.astype(dtype)
    return symbols
