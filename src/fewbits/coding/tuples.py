"""``tuple``: pairs or triples of neighbouring symbols as one symbol of a larger alphabet.

For networks trained towards a low entropy of order 2 or 3, whose symbols tell each other. A tuple
is a number in base A, and all tuples are coded by ``static``: cells that never occur cost nearly
nothing in its table.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..errors import CorruptFileError
from .codec import CODECS, MAX_SYMBOL, Symbols
from .static import MAX_ALPHABET
from .varint import Cursor, signed_varint, varint
from .work import UNLIMITED, Work

__all__ = ["LENGTHS", "Tuples", "join"]

LENGTHS = (2, 3)


class Tuples:
    """Disjoint pairs or triples in row order, whichever takes fewer bytes."""

    number = 5
    summary = "one frequency table of pairs or triples"

    def encode(self, symbols: Symbols) -> bytes | None:
        """Return lowest symbol, alphabet, length and coded tuples; None where none fits."""
        lowest = int(symbols.min())
        size = int(symbols.max()) - lowest + 1
        found = []
        for length in LENGTHS:
            if size < 2 or size**length > MAX_ALPHABET or symbols.size < length:
                continue
            cells = join(symbols.reshape(-1).astype(np.int64) - lowest, size, length)
            body = CODECS["static"].encode(cells.reshape(1, -1))
            if body is not None:
                found.append(varint(size - 2) + bytes([length]) + body)
        return signed_varint(lowest) + min(found, key=len) if found else None

    def work(self, data: bytes, rows: int, columns: int) -> Work:
        """Return the work of the cells, and of taking them apart."""
        cursor = Cursor(data)
        _, _, length = _head(cursor)
        cells = CODECS["static"].work(cursor.rest(), 1, -(-rows * columns // length))
        return cells + Work(6 * rows * columns)

    def decode(
        self, data: bytes, rows: int, columns: int, flags_per_byte: int = UNLIMITED
    ) -> Symbols:
        """Return the matrix; what fills the last tuple must be zeros."""
        cursor = Cursor(data)
        lowest, size, length = _head(cursor)
        total = rows * columns
        cells = CODECS["static"].decode(cursor.rest(), 1, -(-total // length)).reshape(-1)
        if cells.min() < 0 or cells.max() >= size**length:
            raise CorruptFileError("a tuple outside its alphabet")
        out = np.empty((cells.size, length), np.int32)
        for place in range(length - 1, -1, -1):
            cells, out[:, place] = np.divmod(cells, np.int32(size))
        flat = out.reshape(-1)
        if flat[total:].any():
            raise CorruptFileError("the last tuple is not filled with zeros")
        flat += np.int32(lowest)
        return flat[:total].reshape(rows, columns)


def _head(cursor: Cursor) -> tuple[int, int, int]:
    """Return lowest symbol, size of the alphabet, and symbols of a tuple."""
    lowest, size, length = cursor.symbol(), cursor.varint() + 2, cursor.byte()
    # The size is looked at first: a huge one to the power of 255 would take long to know.
    narrow = size <= MAX_ALPHABET and length in LENGTHS and size**length <= MAX_ALPHABET
    if not narrow or lowest + size - 1 > MAX_SYMBOL:
        raise CorruptFileError(f"tuples of {length} out of {size} symbols from {lowest}")
    return lowest, size, length


def join(places: NDArray[np.int64], size: int, length: int) -> NDArray[np.int32]:
    """Return the number of each tuple of ``places`` in [0, ``size``), first symbol highest."""
    filled = np.concatenate([places, np.zeros(-places.size % length, np.int64)])
    cells = filled[0::length]
    for place in range(1, length):
        cells = cells * size + filled[place::length]
    return cells.astype(np.int32)


CODECS.register("tuple")(Tuples())
