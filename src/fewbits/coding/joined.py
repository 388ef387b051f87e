"""``joined``: several small matrices in one stream, the model carried on from one to the next.

For networks of many small layers: one head instead of many, and what was learnt of symbols and
errors is not learnt again. The model is that of ``adaptive`` with three refinements (SPEC.md,
section 4.5). ``grouping.py`` chooses what is joined.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..errors import CorruptFileError
from .adaptive import (
    KERNELS,
    MAX_ALPHABET,
    MAX_BLOCKS,
    block_height,
    check_settings,
    dump_settings,
    law_work,
    parse_settings,
    walk_work,
)
from .codec import CODECS, Symbols
from .filters import Settings, centre_and_spread, run, walk_of
from .learners import Knowledge
from .queue import Decoder, Encoder, Taker
from .varint import Cursor, signed_varint
from .work import UNLIMITED, Work

__all__ = [
    "MAX_GROUP",
    "MAX_ROWS",
    "Group",
    "Joined",
    "decode_group",
    "group_work",
    "kernel_of",
    "walk_group",
]

MAX_GROUP = 1 << 20  # symbols of a stream
MAX_ROWS = 1 << 16  # of a stream, times taps: bounds the blocks, which take longer than symbols
MATRIX = 10_000  # units of work


class Group:
    """Matrices that one stream codes, with one alphabet and one way to walk them.

    Attributes:
        places: the matrices, symbols from 0.
        lowest: the symbol that 0 stands for.
        size: symbols of the alphabet.
        settings: of all, strength 0 until one is chosen.
    """

    def __init__(self, matrices: Sequence[Symbols], taps: int) -> None:
        self.lowest = min(int(matrix.min()) for matrix in matrices)
        self.size = max(int(matrix.max()) for matrix in matrices) - self.lowest + 1
        self.places = [
            (matrix.astype(np.int64) - self.lowest).astype(np.int32) for matrix in matrices
        ]
        joined = np.concatenate([places.reshape(-1) for places in self.places])
        largest = max(self.places, key=lambda places: places.size)
        most = max(len(places) for places in self.places)
        order, width = walk_of(taps)
        height = block_height(len(largest), largest.shape[1] // taps, order)
        height = max(height, -(-most // MAX_BLOCKS))
        self.settings = Settings(taps, order, width, 0, height, *centre_and_spread(joined))

    def encode(self, strength: int) -> bytes:
        """Return the stream."""
        settings = replace(self.settings, strength=strength)
        coder, knowledge = Encoder(), Knowledge(self.size, strength, refined=True)
        for places in self.places:
            walk_group(places, (places.shape[0], places.shape[1]), settings, coder, knowledge)
        return signed_varint(self.lowest) + dump_settings(settings, self.size) + coder.to_bytes()


def walk_group(
    places: NDArray[np.int32] | None,
    shape: tuple[int, int],
    settings: Settings,
    taker: Taker,
    knowledge: Knowledge,
) -> NDArray[np.int32]:
    """Walk the next matrix of a group, which begins with what is left of ``knowledge``."""
    settings = _fitted(settings, shape[0])
    found = run(places, shape, knowledge.law.size, settings, taker, knowledge=knowledge)
    knowledge.fade()
    return found


def kernel_of(columns: int) -> int:
    """Return the taps that a matrix with so many columns most likely has."""
    return next((taps for taps in KERNELS if columns % taps == 0), 1)


def decode_group(data: bytes, shapes: Sequence[tuple[int, int]]) -> list[NDArray[np.int32]]:
    """Return the matrices of ``shapes`` that ``data`` codes; CorruptFileError for all else.

    Everything is checked before anything is allocated; none of the shapes is empty.
    """
    cursor = Cursor(data)
    lowest, size, settings = _checked(cursor, shapes)
    coder = Decoder(cursor.rest())
    knowledge = Knowledge(size, settings.strength, refined=True)
    found = [walk_group(None, shape, settings, coder, knowledge) for shape in shapes]
    coder.finish()
    return [places + np.int32(lowest) for places in found]


def group_work(data: bytes, shapes: Sequence[tuple[int, int]]) -> Work:
    """Return what :func:`decode_group` costs at most."""
    _, size, settings = _checked(Cursor(data), shapes)
    walks = sum(walk_work(_fitted(settings, rows), size, rows, columns) for rows, columns in shapes)
    return Work(law_work(size) + MATRIX * len(shapes) + walks + walks // 4)


def _fitted(settings: Settings, rows: int) -> Settings:
    """Return the settings for a matrix of so many rows."""
    return replace(settings, height=min(settings.height, rows))


def _checked(cursor: Cursor, shapes: Sequence[tuple[int, int]]) -> tuple[int, int, Settings]:
    """Return lowest symbol, size of the alphabet and settings, which suit all matrices."""
    total = sum(rows * columns for rows, columns in shapes)
    if total > MAX_GROUP:
        raise CorruptFileError(f"{total} symbols are joined, at most {MAX_GROUP} are allowed")
    lowest = cursor.symbol()
    size, settings = parse_settings(cursor, lowest)
    if settings.taps * sum(rows for rows, _ in shapes) > MAX_ROWS:
        raise CorruptFileError(f"more than {MAX_ROWS} rows of taps are joined: beyond their bounds")
    for rows, columns in shapes:
        check_settings(_fitted(settings, rows), size, rows, columns)
    return lowest, size, settings


class Joined:
    """A group of matrices, or one: the container joins them, this codes a single one."""

    number = 8
    summary = "matrices in one stream, the model of adaptive refined and carried on"

    def encode(self, symbols: Symbols) -> bytes | None:
        """Return a group of one; None for what it does not suit: an alphabet of 1 or over 64.

        Or more than 2**20 symbols, or too many rows, or rows too long for a block.
        """
        size = int(symbols.max()) - int(symbols.min()) + 1
        taps = kernel_of(symbols.shape[1])
        if not 2 <= size <= MAX_ALPHABET or symbols.size > MAX_GROUP:
            return None
        if taps * symbols.shape[0] > MAX_ROWS:
            return None
        group = Group([symbols], taps)
        try:
            check_settings(group.settings, size, symbols.shape[0], symbols.shape[1])
        except CorruptFileError:
            return None
        return group.encode(1)

    def work(self, data: bytes, rows: int, columns: int) -> Work:
        """Return the work of a group of one."""
        return group_work(data, [(rows, columns)])

    def decode(
        self, data: bytes, rows: int, columns: int, flags_per_byte: int = UNLIMITED
    ) -> Symbols:
        """Return the one matrix of the group."""
        return decode_group(data, [(rows, columns)])[0]


CODECS.register("joined")(Joined())
