"""``static``: one frequency table for the whole matrix, and an asymmetric numeral system.

Within a few bytes of the entropy of order 0, at tens of millions of symbols per second. The
arithmetic is that of ``constriction`` with ``perfect=False``; the format's specification defines
it without the library.
"""

from __future__ import annotations

from typing import Any

import constriction
import numpy as np
from numpy.typing import NDArray

from ..errors import CorruptFileError
from .codec import CODECS, MAX_SYMBOL, Symbols
from .table import decode_table, encode_table
from .varint import Cursor, signed_varint, varint
from .work import UNLIMITED, Work, are_bytes

__all__ = ["CHUNK", "MAX_ALPHABET", "Static", "static_bits"]

AnsCoder = constriction.stream.stack.AnsCoder
Categorical = constriction.stream.model.Categorical

CHUNK = 1 << 20  # symbols per call: the library allocates for as many as it is asked for
MAX_ALPHABET = 1 << 16


class Static:
    """One table, coded in chunks."""

    number = 2
    summary = "one frequency table, asymmetric numeral system"

    def encode(self, symbols: Symbols) -> bytes | None:
        """Return lowest symbol, alphabet, table and chunks; None for 1 or over 65,536 symbols."""
        flat = symbols.reshape(-1)
        lowest = int(flat.min())
        size = int(flat.max()) - lowest + 1
        if not 2 <= size <= MAX_ALPHABET:
            return None
        pieces = [flat[start : start + CHUNK] for start in range(0, flat.size, CHUNK)]
        counts = np.zeros(size, np.int64)
        for piece in pieces:
            counts += np.bincount(piece.astype(np.int64) - lowest, minlength=size)
        table, table_weights = encode_table(counts)
        model = Categorical(table_weights, perfect=False)
        chunks = [_encode_chunk((piece.astype(np.int64) - lowest), model) for piece in pieces]
        body = b"".join(varint(len(chunk)) + chunk for chunk in chunks[:-1]) + chunks[-1]
        return signed_varint(lowest) + varint(size - 2) + table + body

    def work(self, data: bytes, rows: int, columns: int) -> Work:
        """Return the time of the table, and for each symbol of a search in it."""
        lowest, size = _head(Cursor(data))
        table = size + 100 * min(size, 8 * len(data))
        search = (size - 1).bit_length() // 2
        wide = 0 if are_bytes(lowest, lowest + size - 1) else rows * columns
        return Work(table + rows * columns * (1 + search), wide=wide)

    def decode(
        self, data: bytes, rows: int, columns: int, flags_per_byte: int = UNLIMITED
    ) -> Symbols:
        """Return the matrix; the words must be used up exactly."""
        cursor = Cursor(data)
        lowest, size = _head(cursor)
        table_weights, used = decode_table(data[cursor.position :], size)
        cursor.take(used)
        model = Categorical(table_weights, perfect=False)
        total = rows * columns
        narrow = are_bytes(lowest, lowest + size - 1)
        out: Symbols = np.empty(total, np.uint8 if narrow else np.int32)
        for start in range(0, total, CHUNK):
            last = start + CHUNK >= total
            chunk = cursor.rest() if last else cursor.take(cursor.varint())
            count = min(CHUNK, total - start)
            out[start : start + count] = _decode_chunk(chunk, model, count) + np.int32(lowest)
        return out.reshape(rows, columns)


def static_bits(symbols: Symbols) -> float | None:
    """Return about how many bits ``encode`` would give; None where it gives nothing."""
    lowest, highest = int(symbols.min()), int(symbols.max())
    if not 1 <= highest - lowest < MAX_ALPHABET:
        return None
    counts = np.bincount(symbols.reshape(-1).astype(np.int64) - lowest)
    table, weights = encode_table(counts)
    used = counts > 0
    shares = np.log2(weights.sum()) - np.log2(weights[used])
    head = len(signed_varint(lowest)) + len(varint(counts.size - 2)) + len(table)
    return 8.0 * head + float((counts[used] * shares).sum())


def _head(cursor: Cursor) -> tuple[int, int]:
    """Return lowest symbol and size of the alphabet."""
    lowest, size = cursor.symbol(), cursor.varint() + 2
    if size > MAX_ALPHABET or lowest + size - 1 > MAX_SYMBOL:
        raise CorruptFileError(f"an alphabet of {size} symbols from {lowest}")
    return lowest, size


def _encode_chunk(values: NDArray[np.int64], model: Any) -> bytes:
    coder = AnsCoder()
    coder.encode_reverse(values.astype(np.int32), model)
    words = np.asarray(coder.get_compressed(), dtype="<u4")
    return words.tobytes().rstrip(b"\0")


def _decode_chunk(chunk: bytes, model: Any, count: int) -> NDArray[np.int32]:
    if chunk.endswith(b"\0"):
        raise CorruptFileError("a chunk ends with a zero byte")
    words = np.frombuffer(chunk + bytes(-len(chunk) % 4), "<u4").astype(np.uint32)
    coder = AnsCoder(words) if words.size else AnsCoder()
    values: NDArray[np.int32] = coder.decode(model, count)
    if not coder.is_empty():
        raise CorruptFileError("coded symbols are left over")
    return values


CODECS.register("static")(Static())
