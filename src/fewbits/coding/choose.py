"""Choose the codec by the bytes that it gives, and find it again by its number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..errors import CorruptFileError
from ..registry import Registry
from .codec import CODECS, MAX_SYMBOL, MIN_SYMBOL, Symbols
from .cut import block_rows

__all__ = [
    "EFFORTS",
    "SLOW",
    "Effort",
    "adaptive_is_tried",
    "decode_stream",
    "encode_stream",
    "is_cut",
    "name_of",
    "preferred",
]

FIRST = ("constant", "raw", "static", "planes")  # those of format 1.0
SLOW = ("adaptive", "context", "split")  # they learn while decoding
LONG = 1 << 16  # symbols of a stream that takes noticeable time


@dataclass(frozen=True)
class Effort:
    """How much time bytes are worth.

    Attributes:
        codecs: names of those that are tried.
        largest_adaptive: symbols of a stream up to which the codecs are tried that learn while
            decoding: 1 to 15 million symbols a second, the others 20 to 70.
        worth: part of the bytes that such a codec must save to be taken, for streams of up to
            2**16 symbols; for longer ones, whose decoding is waited for, in proportion more.
        joins: whether small index matrices of a file may share a stream.
    """

    codecs: tuple[str, ...]
    largest_adaptive: int = 0
    worth: float = 0.0
    joins: bool = False


EFFORTS: Registry[Effort] = Registry("effort")
EFFORTS.register("fast")(Effort(FIRST))
EFFORTS.register("balanced")(Effort((*FIRST, *SLOW, "tuple"), 1 << 18, worth=0.01, joins=True))
EFFORTS.register("smallest")(Effort((*FIRST, *SLOW, "tuple", "blocks"), 1 << 62, joins=True))


def is_cut(effort: Effort, rows: int, columns: int) -> bool:
    """Return whether so large a matrix is coded as blocks."""
    return "blocks" in effort.codecs and block_rows(rows, columns) < rows


def adaptive_is_tried(effort: Effort, rows: int, columns: int) -> bool:
    """Return whether a stream of such a matrix is worth the time of ``adaptive``, uncut."""
    small = rows * columns <= effort.largest_adaptive
    return "adaptive" in effort.codecs and small and not is_cut(effort, rows, columns)


def preferred(effort: Effort, symbols: int, sizes: Mapping[str, float]) -> str:
    """Return the codec to take for a stream of so many symbols, by what each would take.

    The smallest size, the first among equals; but of a slow codec only where it saves enough.
    """
    best = min(sizes, key=lambda name: sizes[name])
    quick = {name: size for name, size in sizes.items() if name not in SLOW}
    if best in quick or not quick:
        return best
    instead = min(quick, key=lambda name: quick[name])
    saved = 1 - effort.worth * max(1.0, symbols / LONG)
    return best if sizes[best] <= saved * quick[instead] else instead


def encode_stream(
    symbols: Symbols, effort: str = "balanced", *, quick: bool = False
) -> tuple[str, bytes]:
    """Return the codec's name and the bytes of ``symbols`` (rows, columns): the fewest of all.

    ``effort`` names one of ``EFFORTS``; else ConfigError. Never more than raw packing, which is
    one of the candidates. Symbols are integers of 32 bits; among equals the codec registered first
    wins, so the choice is the same every time. ``quick`` leaves out slow codecs and blocks.
    """
    profile = EFFORTS[effort]
    if symbols.size == 0:
        return "constant", b""
    if symbols.min() < MIN_SYMBOL or symbols.max() > MAX_SYMBOL:
        raise ValueError("symbols must fit 32 bits")
    slow = adaptive_is_tried(profile, *symbols.shape) and not quick
    found = {}
    for name in profile.codecs:
        if (name in SLOW and not slow) or (name == "blocks" and quick):
            continue
        data = CODECS[name].encode(symbols)
        if data is not None:
            found[name] = data
    sizes = {name: len(data) for name, data in found.items()}
    name = preferred(profile, symbols.size, sizes)
    return name, found[name]


def decode_stream(name: str, data: bytes, rows: int, columns: int) -> Symbols:
    """Return the (rows, columns) integer matrix that ``data`` codes with the codec ``name``.

    Raises CorruptFileError for anything but exactly that. The caller bounds ``rows * columns``.
    """
    if rows * columns == 0:
        if data:
            raise CorruptFileError("bytes for a matrix without symbols")
        return np.zeros((rows, columns), np.int32)
    return CODECS[name].decode(data, rows, columns)


def name_of(number: int) -> str:
    """Return the name of the codec with this number in files."""
    for name, codec in CODECS.items():
        if codec.number == number:
            return name
    raise CorruptFileError(
        f"it is coded by codec number {number}, unknown to this version. Install a newer fewbits."
    )
