"""``split``: wide alphabets for codecs of narrow ones: high parts, rare extremes, low bits.

A fine grid without bounds, or 8 bits, has more levels than ``adaptive`` takes. Their high parts
hold all structure; the low bits of symbols that are spread over many levels are noise.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..errors import CorruptFileError
from .adaptive import LEAST, MAX_ALPHABET, measure_bits
from .choose import decode_stream, name_of
from .codec import CODECS, MAX_SYMBOL, MIN_SYMBOL, Symbols
from .raw import raw_bits
from .static import static_bits
from .varint import Cursor, signed_varint, varint

__all__ = ["MAX_BITS", "Split", "split_bits"]

MAX_BITS = 24  # low bits
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

    def decode(self, data: bytes, rows: int, columns: int) -> Symbols:
        """Return the matrix; each part must fit the others."""
        cursor = Cursor(data)
        first, bits = cursor.symbol(), cursor.byte()
        if bits > MAX_BITS:
            raise CorruptFileError(f"{bits} low bits: at most {MAX_BITS} are allowed")
        places = _part(cursor, rows, columns).astype(np.int64)
        if places.min() < 0 or places.max() >= MAX_ALPHABET:
            raise CorruptFileError("a high part outside its alphabet")
        high = places + first
        ends = (places == 0) | (places == MAX_ALPHABET - 1)
        count = int(ends.sum())
        if count:
            beyond = _part(cursor, count, 1).astype(np.int64)
            if beyond.min() < 0:
                raise CorruptFileError("a high part beyond an end points back")
            high[ends] += np.where(places[ends], 1, -1) * beyond[:, 0]
        if bits:
            low = _part(cursor, rows, columns).astype(np.int64)
            if low.min() < 0 or low.max() >> bits:
                raise CorruptFileError("low bits that are too many")
            high = (high << bits) + low
        cursor.finish()
        if high.min() < MIN_SYMBOL or high.max() > MAX_SYMBOL:
            raise CorruptFileError("its parts make symbols of more than 32 bits")
        return high.astype(np.int32)


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


def _part(cursor: Cursor, rows: int, columns: int) -> Symbols:
    length, number = divmod(cursor.varint(), 16)
    name = name_of(number)
    if name not in NESTED:
        raise CorruptFileError(f"a part of a split coded by {name!r}")
    return decode_stream(name, cursor.take(length), rows, columns)


CODECS.register("split")(Split())
