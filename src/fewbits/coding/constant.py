"""``constant``: a matrix of one value, in no byte for 0 and a few for any other."""

from __future__ import annotations

import numpy as np

from ..errors import CorruptFileError
from .codec import CODECS, Symbols
from .varint import Cursor, signed_varint
from .work import UNLIMITED, Work

__all__ = ["Constant"]


class Constant:
    """One value for the whole matrix."""

    number = 0
    summary = "one value for all"

    def encode(self, symbols: Symbols) -> bytes | None:
        """Return the value, or None where there are two."""
        first = int(symbols[0, 0])
        if not (symbols == first).all():
            return None
        return signed_varint(first) if first else b""

    def work(self, data: bytes, rows: int, columns: int) -> Work:
        """Return none: the matrix takes neither time nor memory."""
        _value(data)
        return Work(0)

    def decode(
        self, data: bytes, rows: int, columns: int, flags_per_byte: int = UNLIMITED
    ) -> Symbols:
        """Return a matrix of the value, which takes no memory and cannot be written to."""
        return np.broadcast_to(np.int32(_value(data)), (rows, columns))


def _value(data: bytes) -> int:
    cursor = Cursor(data)
    value = cursor.symbol() if data else 0
    cursor.finish()
    if data and value == 0:
        raise CorruptFileError("a zero takes no bytes")
    return value


CODECS.register("constant")(Constant())
