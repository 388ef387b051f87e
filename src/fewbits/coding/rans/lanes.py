"""rANS in four interleaved lanes, with a frequency table per class of symbols.

Duda's rANS with 32-bit states, 16-bit words and frequencies in 1/4096. Symbol ``i`` of a matrix
belongs to lane ``i % 4``; lanes do not depend on each other, which makes them fast. The encoder
walks backwards and starts from states of ``1 << 16``, in which a decoder must end.
"""

# ruff: noqa: PLR0917 - compiled functions take no keywords
from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..kernels import inlined, kernel

__all__ = [
    "LANES",
    "LOWEST",
    "PRECISION",
    "TOTAL",
    "count_symbols",
    "pull_symbols",
    "push_symbols",
    "sum_sizes",
]

LANES = 4
PRECISION = 12
TOTAL = 1 << PRECISION
LOWEST = 1 << 16

Ints = NDArray[np.int64]
Bins = NDArray[np.uint8]
Words = NDArray[np.uint16]
Slots = NDArray[np.uint32]
Cells = NDArray[np.uint8]


@kernel
def sum_sizes(bins: Bins, centre: int, by_row: Ints, by_column: Ints) -> None:
    """Add distances of symbols from ``centre`` to sums by row and by column."""
    for row in range(bins.shape[0]):
        total = 0
        for column in range(bins.shape[1]):
            size = abs(int(bins[row, column]) - centre)
            by_column[column] += size
            total += size
        by_row[row] += total


@kernel
def count_symbols(bins: Bins, cells: Cells, levels: Bins, counts: Ints) -> None:
    """Add the counts of each symbol in each class to ``counts`` (classes, 256)."""
    for row in range(bins.shape[0]):
        level = int(levels[row])
        for column in range(bins.shape[1]):
            counts[cells[level, column], bins[row, column]] += 1


@inlined
def push_one(
    tables: Ints, table: int, symbol: int, words: Words, state: int, place: int
) -> tuple[int, int]:
    """Push a symbol onto a lane; return its state, and the position of the last word written."""
    size = int(tables[table, symbol, 1])
    full = 1 if state >= size << 20 else 0  # branches here would be mispredicted
    words[place - 1] = state & 0xFFFF
    place -= full
    state >>= full << 4
    quotient = (state * int(tables[table, symbol, 2])) >> 32  # of state and size, or 1 less
    rest = state - quotient * size
    short = 1 if rest >= size else 0
    start = int(tables[table, symbol, 0])
    return ((quotient + short) << PRECISION) + start + rest - short * size, place


@kernel
def push_symbols(
    bins: Bins, tables: Ints, cells: Cells, levels: Bins, words: Words, states: Ints
) -> int:
    """Encode all symbols into the end of ``words``; return the position where they start.

    Args:
        bins: (rows, columns) symbols.
        tables: (classes, 256, 3) start and size of each symbol's share of 4096, and 2**32 over
            the size.
        cells: (levels, columns) class of a symbol by the level of its row and by its column.
        levels: (rows,) level of each row.
        words: one word per symbol, and a spare one.
        states: (4,) final states of the lanes; written.
    """
    rows, columns = bins.shape
    place = words.size
    a = b = c = d = LOWEST
    for back in range(rows):
        row = rows - 1 - back
        level, column = int(levels[row]), columns - 1
        while column >= columns & -4:  # lanes take turns, the last one first
            symbol, table = int(bins[row, column]), int(cells[level, column])
            d, place = push_one(tables, table, symbol, words, d, place)
            a, b, c, d = d, a, b, c
            column -= 1
        while column >= 0:
            w, x = int(bins[row, column]), int(bins[row, column - 1])
            y, z = int(bins[row, column - 2]), int(bins[row, column - 3])
            d, place = push_one(tables, int(cells[level, column]), w, words, d, place)
            c, place = push_one(tables, int(cells[level, column - 1]), x, words, c, place)
            b, place = push_one(tables, int(cells[level, column - 2]), y, words, b, place)
            a, place = push_one(tables, int(cells[level, column - 3]), z, words, a, place)
            column -= 4
    states[0], states[1], states[2], states[3] = a, b, c, d
    return place


@inlined
def pull_one(
    slots: Slots, table: int, words: Words, state: int, place: int
) -> tuple[int, int, int]:
    """Pop a symbol from a lane; return it, the lane's new state and where the next word is."""
    entry = int(slots[(table << 12) + (state & 4095)])
    state = ((entry >> 8) & 4095) * (state >> PRECISION) + (entry >> 20)
    if state < LOWEST:
        return entry & 255, (state << 16) | int(words[place]), place + 1
    return entry & 255, state, place


@kernel
def pull_symbols(
    out: Bins, slots: Slots, cells: Cells, levels: Bins, words: Words, states: Ints
) -> int:
    """Decode all symbols; return the number of words used, or -1 if they do not suffice.

    Args:
        out: (rows, columns) symbols; written.
        slots: (classes * 4096,) symbol (8 bits), its share (12 bits), position in it (12 bits).
        cells, levels: as for ``push_symbols``.
        words: followed by ``LANES`` zeros, which may be read but do not count.
        states: (4,) states of the lanes; changed.
    """
    rows, columns = out.shape
    place, last = 0, words.size - LANES
    a, b, c, d = int(states[0]), int(states[1]), int(states[2]), int(states[3])
    for row in range(rows):
        level, column, quads = int(levels[row]), 0, columns & -4
        while column < quads:
            w = int(slots[(int(cells[level, column]) << 12) + (a & 4095)])
            x = int(slots[(int(cells[level, column + 1]) << 12) + (b & 4095)])
            y = int(slots[(int(cells[level, column + 2]) << 12) + (c & 4095)])
            z = int(slots[(int(cells[level, column + 3]) << 12) + (d & 4095)])
            a = ((w >> 8) & 4095) * (a >> 12) + (w >> 20)
            b = ((x >> 8) & 4095) * (b >> 12) + (x >> 20)
            c = ((y >> 8) & 4095) * (c >> 12) + (y >> 20)
            d = ((z >> 8) & 4095) * (d >> 12) + (z >> 20)
            out[row, column] = w & 255
            out[row, column + 1] = x & 255
            out[row, column + 2] = y & 255
            out[row, column + 3] = z & 255
            if a < LOWEST:
                a, place = (a << 16) | int(words[place]), place + 1
            if b < LOWEST:
                b, place = (b << 16) | int(words[place]), place + 1
            if c < LOWEST:
                c, place = (c << 16) | int(words[place]), place + 1
            if d < LOWEST:
                d, place = (d << 16) | int(words[place]), place + 1
            if place > last:
                return -1
            column += 4
        while column < columns:  # lanes rotate, so that the next symbol is always lane a's
            out[row, column], a, place = pull_one(slots, int(cells[level, column]), words, a, place)
            if place > last:
                return -1
            a, b, c, d = b, c, d, a
            column += 1
    states[0], states[1], states[2], states[3] = a, b, c, d
    return place
