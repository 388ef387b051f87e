"""``adaptive``: symbols coded with laws that follow from the symbols before them.

For index matrices of layers. Trained filters are smooth, and their rows and columns differ in
size; both are worth bits. On a ResNet-20 at 3 and 4 bits the indices take nearly a tenth less
than their entropy of order 0. The model is in ``filters.py``; settings are tried on a part.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..errors import CorruptFileError
from .codec import CODECS, MAX_SYMBOL, Symbols
from .filters import UNIT, Settings, centre_and_spread, run, walk_of
from .learners import STRENGTHS
from .queue import Decoder, Encoder, Meter
from .varint import Cursor, signed_varint, varint
from .work import UNLIMITED, Work

__all__ = [
    "KERNELS",
    "LEAST",
    "MAX_ALPHABET",
    "MAX_BLOCKS",
    "MAX_SYMBOLS",
    "Adaptive",
    "best_settings",
    "block_height",
    "check_settings",
    "dump_settings",
    "law_work",
    "measure_bits",
    "parse_settings",
    "places_of",
    "walk_work",
]

MAX_ALPHABET = 64
MAX_SYMBOLS = 1 << 26  # of a stream: sums of squares stay exact
MAX_BLOCK = 1 << 16  # symbols per call: bounds scratch to 64 MiB
MAX_BLOCKS = 1 << 6  # of a tap
MAX_TAPS = 1 << 6
KERNELS = (9, 25, 49)  # taps of square kernels, tried where they divide the columns
PIECES = (16, 64)  # at most, without kernels: rows show what they are like from the second on
LEAST_PIECE = 8  # columns
LEAST_BLOCK = 128  # symbols of a block, without kernels
HEIGHT = 32  # blocks of a tap, about
SAMPLE = 1 << 16  # symbols that settings are tried on
LEAST = 64  # symbols: below, learning costs more than it gives


class Adaptive:
    """Predictions from earlier taps, magnitudes from filter, input and output; a range coder."""

    number = 4
    summary = "laws that follow from the symbols before, range coder"

    def encode(self, symbols: Symbols) -> bytes | None:
        """Return settings and words; None for what it does not suit.

        That is: a single column, fewer than 64 symbols, over 2**26, or an alphabet over 64.
        """
        start = _start(symbols)
        if start is None:
            return None
        head, places, size, settings = start
        coder = Encoder()
        run(places, (places.shape[0], places.shape[1]), size, settings, coder)
        return head + coder.to_bytes()

    def work(self, data: bytes, rows: int, columns: int) -> Work:
        """Return the time of laws, blocks and symbols."""
        _, size, settings = _checked(Cursor(data), rows, columns)
        return Work(law_work(size) + walk_work(settings, size, rows, columns))

    def decode(
        self, data: bytes, rows: int, columns: int, flags_per_byte: int = UNLIMITED
    ) -> Symbols:
        """Return the matrix; every word must have been reached."""
        cursor = Cursor(data)
        lowest, size, settings = _checked(cursor, rows, columns)
        coder = Decoder(cursor.rest())
        places = run(None, (rows, columns), size, settings, coder)
        coder.finish()
        places += np.int32(lowest)
        return places


def measure_bits(symbols: Symbols) -> float | None:
    """Return about how many bits ``encode`` would give; None where it gives nothing."""
    start = _start(symbols)
    if start is None:
        return None
    head, places, size, settings = start
    return 8 * len(head) + _bits(places, size, settings) + 16  # the last word is half full


def places_of(symbols: Symbols) -> tuple[int, int, NDArray[np.int32]] | None:
    """Return the lowest symbol, the alphabet's size and symbols from 0; None if unsuited."""
    if symbols.shape[1] < 2 or not LEAST <= symbols.size <= MAX_SYMBOLS:
        return None
    lowest = int(symbols.min())
    size = int(symbols.max()) - lowest + 1
    if not 2 <= size <= MAX_ALPHABET:
        return None
    return lowest, size, (symbols.astype(np.int64) - lowest).astype(np.int32)


def _start(symbols: Symbols) -> tuple[bytes, NDArray[np.int32], int, Settings] | None:
    """Return the stream's head, symbols from 0, alphabet and settings; None if unsuited."""
    found = places_of(symbols)
    if found is None:
        return None
    lowest, size, places = found
    settings = best_settings(places, size)
    if settings is None:
        return None
    return signed_varint(lowest) + dump_settings(settings, size), places, size, settings


def best_settings(places: NDArray[np.int32], size: int) -> Settings | None:
    """Return the settings with the fewest bits on the first rows of ``places`` in [0, ``size``).

    None where no division into blocks is allowed: a row is too long.
    """
    centre, spread = centre_and_spread(places)
    rows = max(1, min(len(places), SAMPLE // places.shape[1]))
    tried: list[tuple[float, Settings, Settings]] = []
    for base in _walks(places.shape[0], places.shape[1], centre, spread):
        if tried and not base.order and min(tried, key=lambda item: item[0])[1].order:
            break  # kernels are smooth here: pieces of rows would not do better
        inputs = places.shape[1] // base.taps
        sample = replace(base, height=block_height(rows, inputs, base.order))
        tried.append((_bits(places[:rows], size, sample), base, sample))
    if not tried:
        return None
    bits, base, sample = min(tried, key=lambda item: item[0])
    costs = [
        bits if k == base.strength else _bits(places[:rows], size, replace(sample, strength=k))
        for k in range(len(STRENGTHS))
    ]
    return replace(base, strength=costs.index(min(costs)))


def _walks(rows: int, columns: int, centre: int, spread: int) -> Iterator[Settings]:
    """Yield every way to walk a matrix that is worth a try and allowed."""
    walks = [(taps, *walk_of(taps)) for taps in (1, *KERNELS)]
    walks += [(pieces, 0, 0) for pieces in _pieces(columns)]
    for taps, order, width in walks:
        height = block_height(rows, columns // taps, order)
        if columns % taps == 0 and height * (columns // taps) <= MAX_BLOCK:
            yield Settings(taps, order, width, 1, height, centre, spread)


def block_height(rows: int, inputs: int, order: int) -> int:
    """Return outputs in a block: finer blocks learn sooner, which is worth most to kernels."""
    least = 1 if order else -(-LEAST_BLOCK // inputs)
    return min(rows, max(least, -(-rows // HEIGHT)))


def _pieces(columns: int) -> list[int]:
    """Return the largest divisors of ``columns`` up to each of ``PIECES``, if worth a try."""
    limits = [min(most, columns // LEAST_PIECE) for most in PIECES]
    found = {max((k for k in range(4, most + 1) if columns % k == 0), default=0) for most in limits}
    return sorted(found - {0})


def _bits(places: NDArray[np.int32], size: int, settings: Settings) -> float:
    meter = Meter()
    run(places, (places.shape[0], places.shape[1]), size, settings, meter)
    return meter.bits


def dump_settings(settings: Settings, size: int) -> bytes:
    """Return the settings as a stream begins with them, after the lowest symbol."""
    return (
        bytes([size - 2 + 64 * settings.strength, settings.order + 16 * settings.width])
        + varint(settings.taps)
        + varint(settings.height)
        + varint(settings.centre)
        + varint(settings.spread)
    )


def parse_settings(cursor: Cursor, lowest: int) -> tuple[int, Settings]:
    """Return the size of the alphabet and the settings; ``check_settings`` finds what is wrong."""
    strength, size = divmod(cursor.byte(), 64)
    width, order = divmod(cursor.byte(), 16)
    taps, height, centre, spread = (cursor.varint() for _ in range(4))
    size += 2
    if lowest + size - 1 > MAX_SYMBOL:
        raise CorruptFileError(f"an alphabet of {size} symbols from {lowest}")
    return size, Settings(taps, order, width, strength, height, centre, spread)


def law_work(size: int) -> int:
    """Return the units of work that the laws of an alphabet take, once for a stream."""
    return 10_000 + 300 * size**2


def walk_work(settings: Settings, size: int, rows: int, columns: int) -> int:
    """Return the units of work that walking a matrix takes, by its blocks and its symbols."""
    blocks = settings.taps * -(-rows // settings.height)
    block = 8000 + 50 * size + 250 * settings.order
    return blocks * block + rows * columns * (16 + size // 4)


def _checked(cursor: Cursor, rows: int, columns: int) -> tuple[int, int, Settings]:
    """Return lowest symbol, size of the alphabet and settings, which suit the matrix."""
    lowest = cursor.symbol()
    size, settings = parse_settings(cursor, lowest)
    check_settings(settings, size, rows, columns)
    return lowest, size, settings


def check_settings(settings: Settings, size: int, rows: int, columns: int) -> None:
    """Raise CorruptFileError unless the settings suit the matrix: before anything is allocated."""
    taps, height = settings.taps, settings.height
    allowed = (
        size <= MAX_ALPHABET
        and rows * columns <= MAX_SYMBOLS
        and 1 <= taps <= MAX_TAPS
        and columns % taps == 0
        and 1 <= height <= rows <= height * MAX_BLOCKS
        and height * (columns // taps) <= MAX_BLOCK
        and settings.centre <= UNIT * (size - 1)
        and 1 <= settings.spread <= UNIT * size
    )
    if not allowed:
        raise CorruptFileError(
            f"settings beyond their bounds: {size} symbols, {taps} taps, blocks of {height} rows, "
            f"centre {settings.centre}, spread {settings.spread} for a matrix of {rows} by "
            f"{columns}"
        )


CODECS.register("adaptive")(Adaptive())
