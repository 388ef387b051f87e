"""``planes``: each column by the codec that suits it. For the bytes of floats: the exponents
of weights are few, their mantissas are noise, and mixing them would spoil both.
"""

from __future__ import annotations

import numpy as np

from ..errors import CorruptFileError
from .choose import decode_stream, encode_stream, name_of
from .codec import CODECS, Symbols
from .varint import Cursor, varint

__all__ = ["Planes"]


class Planes:
    """Two to eight columns of bytes, each a stream of its own."""

    number = 3
    summary = "each byte of a number on its own"

    def encode(self, symbols: Symbols) -> bytes | None:
        """Return the coded columns one after the other; None if they are not columns of bytes."""
        if not 2 <= symbols.shape[1] <= 8 or symbols.min() < 0 or symbols.max() > 255:
            return None
        out = bytearray()
        for column in range(symbols.shape[1]):
            name, body = encode_stream(symbols[:, column : column + 1], "fast")
            out += varint(16 * len(body) + CODECS[name].number) + body
        return bytes(out)

    def decode(self, data: bytes, rows: int, columns: int) -> Symbols:
        """Return the uint8 matrix."""
        if not 2 <= columns <= 8:
            raise CorruptFileError(f"planes of {columns} columns: 2 to 8 are allowed")
        cursor = Cursor(data)
        out = np.empty((rows, columns), np.uint8)
        for column in range(columns):
            length, number = divmod(cursor.varint(), 16)
            if number == self.number:
                raise CorruptFileError("planes inside planes")
            plane = decode_stream(name_of(number), cursor.take(length), rows, 1)
            if plane.min() < 0 or plane.max() > 255:
                raise CorruptFileError("a plane holds what is not a byte")
            out[:, column] = plane[:, 0]
        cursor.finish()
        return out


CODECS.register("planes")(Planes())
