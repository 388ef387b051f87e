"""``binary``: symbols as flags, each with a chance mixed from five contexts; a range coder.

For small, sparse and structured index matrices: pruned layers, first layers that see pictures,
embeddings, depthwise kernels. On a pruned LeNet-300-100 it takes a sixth less than any other
codec. Slow: 2 microseconds a flag, and a symbol has one flag at least. The model is in
``flags.py`` and ``mixing.py``; settings are tried on a part.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..errors import CorruptFileError
from .codec import CODECS, MAX_SYMBOL, Symbols
from .flags import CELLS, MOST_PACE, Shape, walk
from .queue import FlagDecoder, FlagEncoder, FlagMeter
from .varint import Cursor, signed_varint, varint
from .work import FLAG, UNLIMITED, Work

__all__ = [
    "MAX_ALPHABET",
    "MAX_COLUMNS",
    "MAX_PER_BYTE",
    "MAX_SYMBOLS",
    "Binary",
    "encode_below",
    "flags_of",
    "measure_below",
]

MAX_ALPHABET = 64
MAX_SYMBOLS = 1 << 20  # of a stream: some seconds
MAX_COLUMNS = 1 << 16  # bounds the states to 8 MiB
MAX_PER_BYTE = 1 << 12  # symbols for each byte: what a short stream can ask for is bounded
ROW, STATES = 300, 16  # units of work of a row, and of each column and cell of contexts
MAX_FLAGS = 8  # for each symbol: above, time is spent on what other codecs do as well
KERNELS = (3, 5, 7)
SAMPLE = 1 << 13  # symbols that walks are tried on
LONG_SAMPLE = 1 << 15  # and paces, which matter late
PACE, FASTER, SLOWER = 3, 7, 1
HOPE = 0.01  # by which a part may exceed its share of the limit and the trial go on
MORE_HOPE = 0.03  # for the first walk, and again for a part that is nothing of the whole


class Binary:
    """Flags, logistic mixing, range coder."""

    number = 7
    summary = "flags with chances mixed from five contexts, range coder"

    def encode(self, symbols: Symbols) -> bytes | None:
        """Return settings and words; None for what it does not suit.

        That is: one symbol or over 64, over 2**20 of them, rows and columns both over 2**16, or
        magnitudes so large that a symbol has over 8 flags.
        """
        return encode_below(symbols, math.inf)

    def work(self, data: bytes, rows: int, columns: int) -> Work:
        """Return the time of one flag for each symbol; of more, only decoding tells."""
        _, _, shape = _head(Cursor(data), rows, columns, len(data))
        states = STATES * (shape.columns + CELLS)
        return Work(FLAG * rows * columns + ROW * shape.rows + states, len(data))

    def decode(
        self, data: bytes, rows: int, columns: int, flags_per_byte: int = UNLIMITED
    ) -> Symbols:
        """Return the matrix; every word must have been reached."""
        cursor = Cursor(data)
        lowest, turned, shape = _head(cursor, rows, columns, len(data))
        coder = FlagDecoder(cursor.rest(), rows * columns + flags_per_byte * len(data))
        found = walk([0] * (rows * columns), shape, coder.take_flag)
        coder.finish()
        places = np.array(found, np.int32).reshape(shape.rows, shape.columns)
        places += np.int32(lowest)
        return np.ascontiguousarray(places.T) if turned else places


def encode_below(symbols: Symbols, limit: float) -> bytes | None:
    """Return what ``encode`` does, or None as soon as a part shows that ``limit`` bytes are fewer.

    A part is judged against its share of the limit: that of its symbols, or of their information
    if it is larger. Cost: up to 6 walks over 8,192 symbols; where they are promising, two or three
    over 32,768, and one over all.
    """
    start = _start(symbols, limit)
    if start is None:
        return None
    head, known, shape = start
    coder = FlagEncoder()
    walk(known, shape, coder.take_flag)
    data = head + coder.to_bytes()
    return data if symbols.size <= MAX_PER_BYTE * len(data) else None


def flags_of(symbols: Symbols, data: bytes) -> int:
    """Return how many flags the stream ``data`` has, which codes ``symbols``."""
    rows, columns = symbols.shape
    lowest, _, shape = _head(Cursor(data), rows, columns, len(data))
    values = symbols.astype(np.int64) - (lowest + shape.centre)
    below, above = shape.centre, shape.size - 1 - shape.centre
    # The flag after the last magnitude is not coded: nothing else is left.
    magnitudes = np.minimum(np.abs(values), np.where(values > 0, above, below) - 1)
    away = int((values != 0).sum())
    signs = away if below and above else 0
    return symbols.size + signs + int(magnitudes[values != 0].sum())


def measure_below(symbols: Symbols, limit: float) -> float | None:
    """Return about how many bits ``encode_below`` would give; None where it gives nothing."""
    start = _start(symbols, limit)
    if start is None:
        return None
    head, known, shape = start
    return 8 * len(head) + _bits(known, shape) + 16  # the last word is half full


def _start(symbols: Symbols, limit: float) -> tuple[bytes, list[int], Shape] | None:
    """Return the stream's head, the places in the order of coding, and how they are walked."""
    lowest = int(symbols.min())
    size = int(symbols.max()) - lowest + 1
    if not 2 <= size <= MAX_ALPHABET or symbols.size > MAX_SYMBOLS:
        return None
    places = (symbols.astype(np.int64) - lowest).astype(np.int32)
    counts = np.bincount(places.reshape(-1))
    centre = int(counts.argmax())
    flags = 1 + int(counts @ np.abs(np.arange(size) - centre)) / places.size
    found = _best(places, counts, limit) if flags <= MAX_FLAGS else None
    if found is None:
        return None
    turned, shape = found
    head = signed_varint(lowest) + bytes([size - 2 + 64 * turned, centre])
    return head + varint(16 * shape.width + shape.pace), _known(places, turned), shape


def _best(
    places: NDArray[np.int32], counts: NDArray[np.int64], limit: float
) -> tuple[bool, Shape] | None:
    """Return whether to turn ``places``, and the shape with the fewest bits on its first rows."""
    part = _part(places, SAMPLE)
    information = np.log2(places.size / np.maximum(counts, 1))
    size = part.size / places.size
    share = 8 * limit * max(size, float(information[part].sum() / (information @ counts)))
    hope = 1 + HOPE + MORE_HOPE * (1 - size)
    tried: list[tuple[float, bool, Shape]] = []
    for turned, shape in _walks(places.shape, counts.size, int(counts.argmax())):
        tried.append((_bits(_known(part, turned), _cut(shape, part, turned)), turned, shape))
        if tried[0][0] > (hope + MORE_HOPE) * share:
            return None
    if not tried or min(tried, key=lambda item: item[0])[0] > hope * share:
        return None
    _, turned, shape = min(tried, key=lambda item: item[0])
    part = _part(places, LONG_SAMPLE)
    known, sample = _known(part, turned), _cut(shape, part, turned)
    bits = {pace: _bits(known, replace(sample, pace=pace)) for pace in (PACE, FASTER)}
    if bits[FASTER] >= bits[PACE]:
        bits[SLOWER] = _bits(known, replace(sample, pace=SLOWER))
    return turned, replace(shape, pace=min(bits, key=lambda pace: bits[pace]))


def _part(places: NDArray[np.int32], symbols: int) -> NDArray[np.int32]:
    """Return the first rows, of about so many symbols."""
    return places[: max(1, symbols // places.shape[1])]


def _known(places: NDArray[np.int32], turned: bool) -> list[int]:
    """Return the places in the order that they are coded in: by rows, or by columns."""
    found: list[int] = (places.T if turned else places).reshape(-1).tolist()
    return found


def _cut(shape: Shape, part: NDArray[np.int32], turned: bool) -> Shape:
    rows, columns = reversed(part.shape) if turned else part.shape
    return replace(shape, rows=rows, columns=columns)


def _bits(known: list[int], shape: Shape) -> float:
    meter = FlagMeter()
    walk(known, shape, meter.take_flag)
    return meter.bits


def _walks(shape: tuple[int, ...], size: int, centre: int) -> Iterator[tuple[bool, Shape]]:
    """Yield every way to walk a matrix that is worth a try and allowed."""
    rows, columns = shape
    side = math.isqrt(columns)
    widths = {0} | {kernel for kernel in KERNELS if columns % kernel**2 == 0}
    widths |= {side} if side > 2 and side**2 == columns else set()
    if columns <= MAX_COLUMNS:
        for width in sorted(widths):
            yield False, Shape(rows, columns, size, centre, width, PACE)
    if rows <= MAX_COLUMNS:
        yield True, Shape(columns, rows, size, centre, 0, PACE)


def _head(cursor: Cursor, rows: int, columns: int, length: int) -> tuple[int, bool, Shape]:
    """Return lowest symbol, whether the matrix is turned, and its shape."""
    lowest = cursor.symbol()
    turned, shape = _parse(cursor, rows, columns, length)
    if lowest + shape.size - 1 > MAX_SYMBOL:
        raise CorruptFileError(f"an alphabet of {shape.size} symbols from {lowest}")
    return lowest, turned, shape


def _parse(cursor: Cursor, rows: int, columns: int, length: int) -> tuple[bool, Shape]:
    """Return the settings, checked before anything is allocated."""
    turned, size = divmod(cursor.byte(), 64)
    centre = cursor.byte()
    width, pace = divmod(cursor.varint(), 16)
    size += 2
    if turned:
        rows, columns = columns, rows
    allowed = (
        turned <= 1
        and size <= MAX_ALPHABET
        and centre < size
        and rows * columns <= min(MAX_SYMBOLS, MAX_PER_BYTE * length)
        and columns <= MAX_COLUMNS
        and (width == 0 or 2 <= width <= columns)
        and 1 <= pace <= MOST_PACE
    )
    if not allowed:
        raise CorruptFileError(
            f"settings beyond their bounds: {size} symbols around {centre}, width {width}, pace "
            f"{pace} for {rows} rows of {columns} in {length} bytes"
        )
    return bool(turned), Shape(rows, columns, size, centre, width, pace)


CODECS.register("binary")(Binary())
