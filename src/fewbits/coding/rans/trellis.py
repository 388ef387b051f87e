"""``rans_trellis``: ``rans`` for columns that follow the trellis: fast, and small at equal error.

The bytes are those of ``rans``, but each table is split in two: the symbols of one parity only, in
the proportions that they have in it. Which one applies is told by the symbols above.
"""

# ruff: noqa: PLR0917 - compiled functions take no keywords
from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ...errors import CorruptFileError
from ..codec import CODECS, NO_LIMIT, Cursor, Layout, Symbols, check_bound, varint
from ..kernels import kernel, pick
from ..numbers import Numbers
from ..trellis import follows, next_state
from .classes import Classes, code_classes, fit, shares_of, single_class, slots_of, starts_of
from .lanes import LANES, LOWEST, Bins, Cells, Ints, Slots, Words
from .rans import ALPHABET, DECODE_STEPS, ENCODE_STEPS, Rans, Window

__all__ = ["RansTrellis", "pull_path"]


@kernel
def pull_path(
    out: Bins, slots: Slots, cells: Cells, levels: Bins, words: Words, states: Ints,
    paths: Bins, first: int,
) -> int:  # fmt: skip
    """Decode all symbols of a matrix that follows the trellis; see ``pull_symbols``.

    ``slots`` (classes, parities, 4096) are flat, ``paths`` (columns,) the states of the trellis, at
    first 0, and ``first`` the symbol of bin 0. Returns -1 also for a symbol of the wrong parity.
    """
    rows, columns = out.shape
    place, last, wrong = 0, words.size - LANES, 0
    a, b, c, d = int(states[0]), int(states[1]), int(states[2]), int(states[3])
    for row in range(rows):
        level = int(levels[row])
        for column in range(columns):  # lanes rotate, so that the next symbol is always lane a's
            path = int(paths[column])
            table = 2 * int(cells[level, column]) + (path & 1)
            entry = int(slots[(table << 12) + (a & 4095)])
            a = ((entry >> 8) & 4095) * (a >> 12) + (entry >> 20)
            if a < LOWEST:
                a, place = (a << 16) | int(words[place]), place + 1
                if place > last:
                    return -1
            number = (entry & 255) + first
            wrong |= number ^ path
            paths[column] = next_state(path, number)
            out[row, column] = entry & 255
            a, b, c, d = b, c, d, a
    states[0], states[1], states[2], states[3] = a, b, c, d
    return -1 if wrong & 1 else place


def shares_by_parity(roots: Ints, first: int) -> Ints:
    """Return the shares (tables, 2, A) of the even and of the odd symbols of each table."""
    odd = (np.arange(roots.shape[1]) + first) & 1
    out = []
    for row in roots:
        for parity in (0, 1):
            own = row * (odd == parity)
            out.append(shares_of(own if own.any() else (odd == parity).astype(np.int64)))
    return np.array(out).reshape(len(roots), 2, -1)


class RansTrellis(Rans):
    """Interleaved rANS of symbols whose parity the trellis tells."""

    name, number, since = "rans_trellis", 7, (2, 1)
    summary = "as rans, for columns that follow the trellis: fast, small at equal error"

    def encode(self, symbols: Symbols, layout: Layout, *, limit: int = NO_LIMIT) -> bytes | None:
        """Return window, classes with tables, and lanes; None for what is no path of few levels."""
        lowest, highest = int(symbols.min()), int(symbols.max())
        if not 0 < highest - lowest < ALPHABET or not follows(symbols):
            return None
        window = Window(lowest, highest - lowest + 1)
        bins = np.ascontiguousarray(symbols.astype(np.int64) - lowest).astype(np.uint8)
        classes, _ = fit(bins, layout, pick(ENCODE_STEPS * bins.size))
        short = window.alphabet - classes.roots.shape[1]
        classes = replace(classes, roots=np.pad(classes.roots, [(0, 0), (0, short)]))
        numbers = Numbers.writer(layout.rows + layout.columns + 600 * len(classes.roots) + 64)
        code_classes(numbers, classes, window.alphabet)
        side = numbers.to_bytes()
        if side is None:
            return None
        data = window.to_bytes() + varint(len(side)) + side + _push(bins, window, classes)
        return data if len(data) <= limit else None

    def decode(self, data: bytes, layout: Layout) -> Symbols:
        """Decode the matrix."""
        check_bound(self, len(data), layout)
        cursor = Cursor(data)
        window = Window.parse(cursor)
        if window.low or window.escape:
            raise CorruptFileError("a trellis has neither low bits nor escapes")
        numbers = Numbers.reader(cursor.take(cursor.varint()))
        classes = code_classes(numbers, single_class(layout), window.alphabet)
        numbers.finish()
        bins = np.empty((layout.rows, layout.columns), np.uint8)
        _pull(cursor, bins, window, classes)
        cursor.finish()
        return np.add(bins, window.first, dtype=np.int32)

    def measure(self, symbols: Symbols, layout: Layout) -> float | None:
        """Return the bits that ``encode`` gives."""
        data = self.encode(symbols, layout)
        return None if data is None else 8.0 * len(data)


def _push(bins: Bins, window: Window, classes: Classes) -> bytes:
    """Encode the lanes: the share of a bin is that in the table of its own parity."""
    shares = shares_by_parity(classes.roots, window.first)
    starts = [starts_of(shares[:, parity]) for parity in (0, 1)]
    odd = (np.arange(ALPHABET) + window.first) & 1
    tables = np.ascontiguousarray(np.where(odd[:, None] == 1, starts[1], starts[0]))
    words, states = np.zeros(bins.size + 1, np.uint16), np.zeros(LANES, np.int64)
    kernels = pick(ENCODE_STEPS * bins.size)
    at = kernels.push_symbols(bins, tables, *classes.cells(), words, states)
    return (
        varint(words.size - at)
        + states.astype("<u4").tobytes()
        + words[at:].astype("<u2").tobytes()
    )


def _pull(cursor: Cursor, bins: Bins, window: Window, classes: Classes) -> None:
    """Decode the lanes that follow into ``bins``."""
    count = cursor.varint()
    states = np.frombuffer(cursor.take(4 * LANES), "<u4").astype(np.int64)
    words = np.frombuffer(cursor.take(2 * count) + bytes(2 * LANES), "<u2").astype(np.uint16)
    if states.min() < LOWEST:
        raise CorruptFileError("a lane starts below the lowest state")
    slots: NDArray[np.uint32] = slots_of(
        shares_by_parity(classes.roots, window.first).reshape(-1, window.alphabet)
    )
    paths = np.zeros(bins.shape[1], np.uint8)
    kernels = pick(DECODE_STEPS * bins.size)
    taken = kernels.pull_path(bins, slots, *classes.cells(), words, states, paths, window.first)
    if taken != count or (states != LOWEST).any():
        raise CorruptFileError(f"the lanes do not end with their {count} words, or leave the path")


CODECS.register("rans_trellis")(RansTrellis())
