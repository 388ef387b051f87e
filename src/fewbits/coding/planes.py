"""``planes``: each column by the codec that suits it. For the bytes of floats: the exponents
of weights are few, their mantissas are noise, and mixing them would spoil both.
"""

from __future__ import annotations

import numpy as np

from ..errors import CorruptFileError
from .choose import decode_stream, encode_stream, name_of, stream_work
from .codec import CODECS, Symbols
from .varint import Cursor, varint
from .work import UNLIMITED, Work, total

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

    def work(self, data: bytes, rows: int, columns: int) -> Work:
        """Return the work of all columns."""
        works = (stream_work(name, body, rows, 1) for name, body in _columns(data, columns))
        return total(works) + Work(rows * columns // 4)

    def decode(
        self, data: bytes, rows: int, columns: int, flags_per_byte: int = UNLIMITED
    ) -> Symbols:
        """Return the uint8 matrix."""
        planes = _columns(data, columns)
        out = np.empty((rows, columns), np.uint8)
        for column, (name, body) in enumerate(planes):
            plane = decode_stream(name, body, rows, 1, flags_per_byte)
            if plane.min() < 0 or plane.max() > 255:
                raise CorruptFileError("a plane holds what is not a byte")
            out[:, column] = plane[:, 0]
        return out


def _columns(data: bytes, columns: int) -> list[tuple[str, bytes]]:
    """Return codec and bytes of each column."""
    if not 2 <= columns <= 8:
        raise CorruptFileError(f"planes of {columns} columns: 2 to 8 are allowed")
    cursor = Cursor(data)
    found = []
    for _ in range(columns):
        length, number = divmod(cursor.varint(), 16)
        if number == Planes.number:
            raise CorruptFileError("planes inside planes")
        found.append((name_of(number), cursor.take(length)))
    cursor.finish()
    return found


CODECS.register("planes")(Planes())
