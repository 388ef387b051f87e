"""``raw``: fixed-width fields. The bound that no other codec may exceed."""

from __future__ import annotations

import numpy as np

from ..errors import CorruptFileError
from .codec import CODECS, MAX_SYMBOL, Symbols
from .varint import Cursor, signed_varint
from .work import UNLIMITED, Work, are_bytes

__all__ = ["Raw", "raw_bits"]

BLOCK = 1 << 18  # symbols packed at a time (a multiple of 8: blocks end on bytes); bounds scratch


class Raw:
    """Every symbol less the lowest one, in as many bits as the range needs."""

    number = 1
    summary = "fixed-width fields"

    def encode(self, symbols: Symbols) -> bytes:
        """Return lowest symbol, width and fields. Cost: width operations per symbol."""
        flat = symbols.reshape(-1)
        lowest, highest = int(flat.min()), int(flat.max())
        width = (highest - lowest).bit_length()
        head = signed_varint(lowest) + bytes([width])
        if width == 0:
            return head
        blocks = (flat[start : start + BLOCK] for start in range(0, flat.size, BLOCK))
        return head + b"".join(_pack(block.astype(np.int64) - lowest, width) for block in blocks)

    def work(self, data: bytes, rows: int, columns: int) -> Work:
        """Return the time of fields, wide ones more."""
        lowest, width = _head(Cursor(data))
        wide = 0 if are_bytes(lowest, lowest + (1 << width) - 1) else rows * columns
        return Work(rows * columns * (1 + width // 8), wide=wide)

    def decode(
        self, data: bytes, rows: int, columns: int, flags_per_byte: int = UNLIMITED
    ) -> Symbols:
        """Return the matrix; the number of bytes must be exact and the last bits zero."""
        cursor = Cursor(data)
        lowest, width = _head(cursor)
        total = rows * columns
        fields = cursor.take((total * width + 7) // 8)
        cursor.finish()
        narrow = are_bytes(lowest, lowest + (1 << width) - 1)
        out: Symbols = np.full(total, lowest, np.uint8 if narrow else np.int32)
        step = BLOCK * width // 8
        for block, start in enumerate(range(0, total if width else 0, BLOCK)):
            count = min(BLOCK, total - start)
            values = _unpack(fields[block * step : (block + 1) * step], count, width) + lowest
            if int(values.max()) > MAX_SYMBOL:
                raise CorruptFileError("a symbol does not fit 32 bits")
            out[start : start + count] = values
        return out.reshape(rows, columns)


def _head(cursor: Cursor) -> tuple[int, int]:
    """Return lowest symbol and width."""
    lowest, width = cursor.symbol(), cursor.byte()
    if width > 32:
        raise CorruptFileError(f"fields of {width} bits: at most 32 are allowed")
    return lowest, width


def _pack(values: np.ndarray[tuple[int, ...], np.dtype[np.int64]], width: int) -> bytes:
    if width == 8:
        return values.astype(np.uint8).tobytes()
    bits = np.empty((values.size, width), np.uint8)
    for place in range(width):
        bits[:, place] = (values >> (width - 1 - place)) & 1
    return np.packbits(bits).tobytes()


def _unpack(data: bytes, count: int, width: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    if width == 8:
        return np.frombuffer(data, np.uint8).astype(np.int64)
    bits = np.unpackbits(np.frombuffer(data, np.uint8))
    if bits[count * width :].any():
        raise CorruptFileError("the last bits are not zero")
    values = np.zeros(count, np.int64)
    for place in range(width):
        values = (values << 1) | bits[place : count * width : width]
    return values


def raw_bits(symbols: Symbols) -> float:
    """Return about how many bits ``encode`` gives."""
    lowest, highest = int(symbols.min()), int(symbols.max())
    head = 8.0 * (len(signed_varint(lowest)) + 1)
    return head + symbols.size * (highest - lowest).bit_length()


CODECS.register("raw")(Raw())
