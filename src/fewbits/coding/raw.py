"""``constant`` and ``raw``: a single value, and fixed-width fields, which bound all codecs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..errors import CorruptFileError
from .codec import (
    CODECS,
    MAX_SYMBOL,
    NO_LIMIT,
    Bound,
    Cursor,
    Layout,
    Symbols,
    check_bound,
    signed_varint,
)

__all__ = ["Constant", "Raw", "pack", "unpack"]

BLOCK = 1 << 18  # fields packed at a time (a multiple of 8, to end on bytes); bounds scratch memory

Wide = NDArray[np.int64]


class Constant:
    """One value for the whole matrix."""

    name, number, since, tier = "constant", 0, (2, 0), 0
    summary = "one value for all"
    bound = Bound(1 << 62, units_per_symbol=1, fixed_units=0, bytes_per_symbol=4)

    def encode(self, symbols: Symbols, layout: Layout, *, limit: int = NO_LIMIT) -> bytes | None:
        """Return the value, or None if there are several."""
        first = int(symbols.flat[0])
        data = signed_varint(first)
        return data if len(data) <= limit and (symbols == first).all() else None

    def decode(self, data: bytes, layout: Layout) -> Symbols:
        """Return the matrix filled with the value: int8 or uint8 if it fits, else int32."""
        cursor = Cursor(data)
        value = cursor.symbol()
        cursor.finish()
        dtype = np.uint8 if 0 <= value < 256 else np.int8 if -128 <= value < 0 else np.int32
        return np.full((layout.rows, layout.columns), value, dtype)

    def measure(self, symbols: Symbols, layout: Layout) -> float | None:
        """Return the bits of ``encode``."""
        data = self.encode(symbols, layout)
        return None if data is None else 8.0 * len(data)


class Raw:
    """Every symbol minus the lowest one, in as many bits as the range needs."""

    name, number, since, tier = "raw", 1, (2, 0), 0
    summary = "fixed-width fields: symbols without structure"
    bound = Bound(8, units_per_symbol=2, fixed_units=0, bytes_per_symbol=24)

    def encode(self, symbols: Symbols, layout: Layout, *, limit: int = NO_LIMIT) -> bytes | None:
        """Return lowest symbol, width and fields; None if all symbols are equal."""
        lowest, width = _range(symbols)
        head = signed_varint(lowest) + bytes([width])
        if width == 0 or len(head) + (symbols.size * width + 7) // 8 > limit:
            return None
        return head + pack(symbols.reshape(-1), lowest, width)

    def decode(self, data: bytes, layout: Layout) -> Symbols:
        """Decode the matrix: uint8 if it is bytes as they are, else int32.

        The number of bytes must be exact and padding bits zero.
        """
        check_bound(self, len(data), layout)
        cursor = Cursor(data)
        lowest, width = cursor.symbol(), cursor.byte()
        if not 1 <= width <= 32:
            raise CorruptFileError(f"fields of {width} bits: 1 to 32 are allowed")
        if (lowest, width) == (0, 8):  # bytes as they are
            plain = np.frombuffer(cursor.take(layout.size), np.uint8).copy()
            cursor.finish()
            return plain.reshape(layout.rows, layout.columns)
        fields = unpack(cursor, layout.size, width)
        fields += lowest
        if int(fields.max()) > MAX_SYMBOL:
            raise CorruptFileError("a symbol does not fit in 32 bits")
        cursor.finish()
        return fields.astype(np.int32).reshape(layout.rows, layout.columns)

    def measure(self, symbols: Symbols, layout: Layout) -> float | None:
        """Return the bits of ``encode``."""
        lowest, width = _range(symbols)
        return 8.0 * (len(signed_varint(lowest)) + 1) + symbols.size * width if width else None


def _range(symbols: Symbols) -> tuple[int, int]:
    """Return the lowest symbol and the number of bits that the range needs."""
    lowest = int(symbols.min())
    return lowest, (int(symbols.max()) - lowest).bit_length()


def pack(values: Symbols, lowest: int, width: int) -> bytes:
    """Pack each of ``values`` minus ``lowest`` into ``width`` bits, highest bit first."""
    if width == 8 and lowest == 0 and values.dtype == np.uint8:
        return values.tobytes()
    if width == 8:
        return b"".join(
            (values[start : start + BLOCK].astype(np.int64) - lowest).astype(np.uint8).tobytes()
            for start in range(0, values.size, BLOCK)
        )
    out = []
    for start in range(0, values.size, BLOCK):
        block = values[start : start + BLOCK].astype(np.int64) - lowest
        bits = np.empty((block.size, width), np.uint8)
        for place in range(width):
            bits[:, place] = (block >> (width - 1 - place)) & 1
        out.append(np.packbits(bits).tobytes())
    return b"".join(out)


def unpack(cursor: Cursor, count: int, width: int) -> Wide:
    """Unpack ``count`` fields of ``width`` bits; padding bits must be zero."""
    data = np.frombuffer(cursor.take((count * width + 7) // 8), np.uint8)
    out, step = np.zeros(count, np.int64), BLOCK * width // 8
    for block, start in enumerate(range(0, count if width else 0, BLOCK)):
        bits = np.unpackbits(data[block * step : (block + 1) * step])
        fields = out[start : start + BLOCK]
        for place in range(width):
            fields <<= 1
            fields |= bits[place : fields.size * width : width]
        if bits[fields.size * width :].any():
            raise CorruptFileError("the padding bits are not zero")
    return out


CODECS.register("constant")(Constant())
CODECS.register("raw")(Raw())
