"""``split``: wide alphabets for codecs of narrow ones: high parts, rare extremes, low bits.

A fine grid without bounds, or 8 bits, has more levels than ``adaptive`` takes. Their high parts
hold all structure; the low bits of symbols that are spread over many levels are noise.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ..errors import CorruptFileError
from .adaptive import LEAST, MAX_ALPHABET, measure_bits
from .choose import decode_stream, name_of, stream_work
from .codec import CODECS, MAX_SYMBOL, MIN_SYMBOL, Symbols
from .raw import raw_bits
from .static import static_bits
from .varint import Cursor, signed_varint, varint
from .work import UNLIMITED, Work, total

__all__ = ["MAX_BITS", "Split", "split_bits"]

MAX_BITS = 24  # low bits
PIECE = 1 << 16  # symbols joined at a time
FRAMES = 64  # bits of lengths and settings, about
RARE = 64  # one symbol in so many may lie outside the range of high parts
PLAIN = ("constant", "raw", "static")
NESTED = (*PLAIN, "adaptive")


class Split:
    """High parts by ``adaptive`` or ``static``, the rest by what needs no learning."""

    number = 10
    summary = "high parts, extremes and low bits of a wide alphabet, each on its own"

    def encode(self, symbols: Symbols) -> bytes | None:
        """Return the three parts; None for an alphabet that ``adaptive`` takes whole."""
        cut = _cut(symbols)
        if cut is None:
            return None
        bits, first, high, beyond, low = cut
        out = signed_varint(first) + bytes([bits]) + _framed(high, NESTED)
        if beyond.size:
            out += _framed(beyond, PLAIN)
        if bits:
            out += _framed(low, PLAIN)
        return out

    def work(self, data: bytes, rows: int, columns: int) -> Work:
        """Return the work of all parts, as if every place were an end, and of joining them."""
        cursor = Cursor(data)
        _, bits = _head(cursor)
        works = [_part_work(cursor, NESTED, rows, columns)]
        while cursor.position < len(data) and len(works) <= 1 + bool(bits):
            works.append(_part_work(cursor, PLAIN, rows, columns))
        return total(works) + Work(20 * rows * columns)

    def decode(
        self, data: bytes, rows: int, columns: int, flags_per_byte: int = UNLIMITED
    ) -> Symbols:
        """Return the matrix; each part must fit the others."""
        cursor = Cursor(data)
        first, bits = _head(cursor)
        places = _part(cursor, NESTED, rows, columns).reshape(-1)
        if places.min() < 0 or places.max() >= MAX_ALPHABET:
            raise CorruptFileError("a high part outside its alphabet")
        places = places.astype(np.uint8, copy=False)
        count = sum(int(_ends(places[part]).sum()) for part in _slices(places.size))
        beyond = _part(cursor, PLAIN, count, 1).reshape(-1)
        if count and beyond.min() < 0:
            raise CorruptFileError("a high part beyond an end points back")
        low = _part(cursor, PLAIN, rows, columns).reshape(-1) if bits else None
        if low is not None and (low.min() < 0 or int(low.max()) >> bits):
            raise CorruptFileError("low bits that are too many")
        cursor.finish()
        return _joined(first, bits, places, beyond, low).reshape(rows, columns)


def _joined(
    first: int, bits: int, places: Symbols, beyond: Symbols, low: Symbols | None
) -> NDArray[np.int32]:
    """Return the symbols of flat parts; scratch memory does not grow with them."""
    out = np.empty(places.size, np.int32)
    used = 0
    for part in _slices(places.size):
        high = places[part].astype(np.int64) + first
        ends = _ends(places[part])
        count = int(ends.sum())
        signs = np.where(places[part][ends], 1, -1)
        high[ends] += signs * beyond[used : used + count]
        used += count
        if low is not None:
            high = (high << bits) + low[part]
        if high.min() < MIN_SYMBOL or high.max() > MAX_SYMBOL:
            raise CorruptFileError("its parts make symbols of more than 32 bits")
        out[part] = high
    return out


def _ends(places: Symbols) -> NDArray[np.bool_]:
    """Return which places are the first or the last."""
    ends: NDArray[np.bool_] = (places == 0) | (places == MAX_ALPHABET - 1)
    return ends


def _slices(size: int) -> Iterator[slice]:
    return (slice(start, start + PIECE) for start in range(0, size, PIECE))


def _head(cursor: Cursor) -> tuple[int, int]:
    """Return the first high part and the number of low bits."""
    first, bits = cursor.symbol(), cursor.byte()
    if bits > MAX_BITS:
        raise CorruptFileError(f"{bits} low bits: at most {MAX_BITS} are allowed")
    return first, bits


def split_bits(symbols: Symbols) -> float | None:
    """Return about how many bits ``encode`` would give; None where it gives nothing."""
    cut = _cut(symbols)
    if cut is None:
        return None
    _, _, high, beyond, low = cut
    return (
        _fewest(measure_bits(high), static_bits(high), raw_bits(high))
        + sum(_fewest(static_bits(part), raw_bits(part)) for part in (beyond, low) if part.size)
        + FRAMES
    )


def _cut(
    symbols: Symbols,
) -> tuple[int, int, NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]] | None:
    """Return low bits, first high part, places of high parts, what lies beyond, low parts."""
    lowest, highest = int(symbols.min()), int(symbols.max())
    if highest - lowest < MAX_ALPHABET or symbols.size < LEAST or symbols.shape[1] < 2:
        return None
    wide = symbols.astype(np.int64)
    for bits in range(MAX_BITS + 1):
        values, counts = np.unique(wide >> bits, return_counts=True)
        first, inside = _window(values, counts)
        if inside * RARE >= symbols.size * (RARE - 1):
            break
    else:
        return None
    high = (wide >> bits) - first
    places = high.clip(0, MAX_ALPHABET - 1)
    ends = (places == 0) | (places == MAX_ALPHABET - 1)
    beyond = np.abs(high - places)[ends].reshape(-1, 1)
    low = wide & ((1 << bits) - 1) if bits else np.zeros((0, 0), np.int64)
    return bits, first, places, beyond, low


def _fewest(*bits: float | None) -> float:
    return min(found for found in bits if found is not None)


def _window(values: NDArray[np.int64], counts: NDArray[np.int64]) -> tuple[int, int]:
    """Return the first of MAX_ALPHABET values in a row, and how many symbols lie within its ends.

    Those that hold the most symbols; the ends stand for what lies at them and beyond.
    """
    below = np.concatenate([[0], np.cumsum(counts)])
    last = np.searchsorted(values, values + MAX_ALPHABET - 3, side="right")
    held = below[last] - below[:-1]
    best = int(np.argmax(held))
    return int(values[best]) - 1, int(held[best])


def _framed(symbols: Symbols, names: tuple[str, ...]) -> bytes:
    """Return a part by the codec of ``names`` that takes the fewest bytes."""
    tried = [(CODECS[name].encode(symbols), CODECS[name].number) for name in names]
    body, number = min(
        ((body, number) for body, number in tried if body is not None),
        key=lambda item: len(item[0]),
    )
    return varint(16 * len(body) + number) + body


def _frame(cursor: Cursor, names: tuple[str, ...]) -> tuple[str, bytes]:
    """Return codec and bytes of the next part, which may be coded by ``names``."""
    length, number = divmod(cursor.varint(), 16)
    name = name_of(number)
    if name not in names:
        raise CorruptFileError(f"a part of a split coded by {name!r}")
    return name, cursor.take(length)


def _part(cursor: Cursor, names: tuple[str, ...], rows: int, columns: int) -> Symbols:
    """Return the next part; one without symbols does not exist."""
    if not rows:
        return np.zeros((0, columns), np.int32)
    return decode_stream(*_frame(cursor, names), rows, columns)


def _part_work(cursor: Cursor, names: tuple[str, ...], rows: int, columns: int) -> Work:
    return stream_work(*_frame(cursor, names), rows, columns)


CODECS.register("split")(Split())
