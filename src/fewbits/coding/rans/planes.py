"""``planes``: each byte of a float value coded as a separate plane.

Exponents of weights take few values and mantissas are noise; coding them together hurts both.
"""

from __future__ import annotations

import numpy as np

from ...errors import CorruptFileError
from ..choose import decode_symbols
from ..codec import CODECS, NO_LIMIT, Bound, Cursor, Layout, Symbols, varint
from .bytes_of_values import INNER, entropy_of, smallest

__all__ = ["Planes"]

WIDTHS = range(2, 9)


class Planes:
    """Two to eight columns of bytes, each coded by a fast codec."""

    name, number, since, tier = "planes", 4, (2, 0), 0
    summary = "each byte of a value separately: floats"
    bound = Bound(1 << 62, 2, fixed_units=1 << 18, bytes_per_symbol=24, fixed_bytes=1 << 22)

    def encode(self, symbols: Symbols, layout: Layout, *, limit: int = NO_LIMIT) -> bytes | None:
        """Return the coded columns one after the other; None if they are not columns of bytes."""
        if not _suits(symbols, layout) or _least(symbols) > limit:
            return None
        out = []
        for column in range(layout.columns):
            number, body = smallest(np.ascontiguousarray(symbols[:, column]))
            out += [varint(8 * len(body) + number), body]
        data = b"".join(out)
        return data if len(data) <= limit else None

    def decode(self, data: bytes, layout: Layout) -> Symbols:
        """Return the uint8 matrix."""
        if layout.columns not in WIDTHS:
            raise CorruptFileError(f"planes of {layout.columns} columns: 2 to 8 are allowed")
        cursor, out = Cursor(data), np.empty((layout.rows, layout.columns), np.uint8)
        for column in range(layout.columns):
            length, number = divmod(cursor.varint(), 8)
            if all(number != codec.number for codec in INNER):
                raise CorruptFileError(f"planes cannot use codec number {number}")
            part = cursor.take(length)
            plane = decode_symbols(number, part, Layout(1, layout.rows))
            if plane.min() < 0 or plane.max() > 255:
                raise CorruptFileError("a plane contains symbols that are not bytes")
            out[:, column] = plane[0]
        cursor.finish()
        return out

    def measure(self, symbols: Symbols, layout: Layout) -> float | None:
        """Return the bits of ``encode``; no estimate is needed, since methods never ask for it."""
        data = self.encode(symbols, layout)
        return None if data is None else 8.0 * len(data)


def _least(symbols: Symbols) -> float:
    """Return a bound of the bytes that the columns take."""
    counts = (np.bincount(symbols[:, k], minlength=256) for k in range(symbols.shape[1]))
    return sum(map(entropy_of, counts)) / 8


def _suits(symbols: Symbols, layout: Layout) -> bool:
    return symbols.dtype == np.uint8 and layout.columns in WIDTHS


CODECS.register("planes")(Planes())
