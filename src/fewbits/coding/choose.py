"""Choose the codec by the bytes that it gives, and find it again by its number."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import CorruptFileError
from ..registry import Registry
from .codec import CODECS, MAX_SYMBOL, MIN_SYMBOL, Symbols

__all__ = ["EFFORTS", "Effort", "adaptive_is_tried", "decode_stream", "encode_stream", "name_of"]

FIRST = ("constant", "raw", "static", "planes")  # those of format 1.0
SLOW = ("adaptive", "context", "split")  # they learn while decoding


@dataclass(frozen=True)
class Effort:
    """How much time bytes are worth.

    Attributes:
        codecs: names of those that are tried.
        largest_adaptive: symbols of a stream up to which the codecs are tried that learn while
            decoding: 1 to 15 million symbols a second, the others 20 to 70.
        joins: whether small index matrices of a file may share a stream.
    """

    codecs: tuple[str, ...]
    largest_adaptive: int = 0
    joins: bool = False


EFFORTS: Registry[Effort] = Registry("effort")
EFFORTS.register("fast")(Effort(FIRST))
EFFORTS.register("balanced")(Effort((*FIRST, *SLOW, "tuple"), 1 << 18, joins=True))
EFFORTS.register("smallest")(Effort((*FIRST, *SLOW, "tuple"), 1 << 62, joins=True))


def adaptive_is_tried(effort: Effort, symbols: int) -> bool:
    """Return whether a stream of so many symbols is worth the time of ``adaptive``."""
    return "adaptive" in effort.codecs and symbols <= effort.largest_adaptive


def encode_stream(symbols: Symbols, effort: str = "balanced") -> tuple[str, bytes]:
    """Return the codec's name and the bytes of ``symbols`` (rows, columns): the fewest of all.

    ``effort`` names one of ``EFFORTS``; else ConfigError. Never more than raw packing, which is
    one of the candidates. Symbols are integers of 32 bits; among equals the codec registered first
    wins, so the choice is the same every time.
    """
    profile = EFFORTS[effort]
    if symbols.size == 0:
        return "constant", b""
    if symbols.min() < MIN_SYMBOL or symbols.max() > MAX_SYMBOL:
        raise ValueError("symbols must fit 32 bits")
    found = []
    for name in profile.codecs:
        if name in SLOW and not adaptive_is_tried(profile, symbols.size):
            continue
        data = CODECS[name].encode(symbols)
        if data is not None:
            found.append((name, data))
    return min(found, key=lambda item: len(item[1]))


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
