"""An asymmetric numeral system in four interleaved lanes, with a table for each symbol's class.

Duda's rANS: states of 32 bits, 16 bits at a time, chances in 1/4096. Symbol ``i`` of a matrix
belongs to lane ``i % 4``; lanes do not wait for each other, which is what makes them fast. The
encoder walks backwards and begins with states of ``1 << 16``, which a decoder must end with.
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
    """Add the distances of symbols from ``centre`` to sums by row and by column."""
    for row in range(bins.shape[0]):
        total = 0
        for column in range(bins.shape[1]):
            size = abs(int(bins[row, column]) - centre)
            by_column[column] += size
            total += size
        by_row[row] += total


@kernel
def count_symbols(bins: Bins, cells: Cells, levels: Bins, counts: Ints) -> None:
    """Add to ``counts`` (classes, 256) how often each class has each symbol."""
    for row in range(bins.shape[0]):
        level = int(levels[row])
        for column in range(bins.shape[1]):
            counts[cells[level, column], bins[row, column]] += 1


@inlined
def push_one(
    tables: Ints, table: int, symbol: int, words: Words, state: int, place: int
) -> tuple[int, int]:
    """Return a lane's state with one more symbol, and the place of the last word written."""
    size = int(tables[table, symbol, 1])
    full = 1 if state >= size << 20 else 0  # no branches: they would be guessed wrong
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
    """Encode all symbols into the end of ``words``; return where they begin.

    Args:
        bins: (rows, columns) symbols.
        tables: (classes, 256, 3) where each symbol's share of 4096 begins, how large it is, and
            2**32 over that.
        cells: (levels, columns) the class of a symbol by the level of its row and by its column.
        levels: (rows,) of rows.
        words: room: a word for each symbol, and one to spare.
        states: (4,) the lanes, written.
    """
    rows, columns = bins.shape
    place = words.size
    a = b = c = d = LOWEST
    for back in range(rows):
        row = rows - 1 - back
        level, column = int(levels[row]), columns - 1
        while column >= columns & -4:  # the lanes take turns, the last one first
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
    """Return a symbol, its lane's new state, and the place of the next word."""
    entry = int(slots[(table << 12) + (state & 4095)])
    state = ((entry >> 8) & 4095) * (state >> PRECISION) + (entry >> 20)
    if state < LOWEST:
        return entry & 255, (state << 16) | int(words[place]), place + 1
    return entry & 255, state, place


@kernel
def pull_symbols(
    out: Bins, slots: Slots, cells: Cells, levels: Bins, words: Words, states: Ints
) -> int:
    """Decode all symbols; return how many words they took, or -1 for too many.

    Args:
        out: (rows, columns) symbols, written.
        slots: (classes * 4096,) symbol in 8 bits, its share in 12, place in the share in 12.
        cells, levels: as for ``push_symbols``.
        words: with ``LANES`` zeros at the end, which are read but not counted.
        states: (4,) the lanes, changed.
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
        while column < columns:  # the lanes take turns: the next symbol is always the first one's
            out[row, column], a, place = pull_one(slots, int(cells[level, column]), words, a, place)
            if place > last:
                return -1
            a, b, c, d = b, c, d, a
            column += 1
    states[0], states[1], states[2], states[3] = a, b, c, d
    return place
