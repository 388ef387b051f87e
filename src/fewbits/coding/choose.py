"""Choose the codec by the bytes that it gives, and find it again by its number."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..errors import CorruptFileError
from ..registry import Registry
from .binary import encode_below
from .codec import CODECS, MAX_SYMBOL, MIN_SYMBOL, Symbols

__all__ = ["EFFORTS", "Effort", "decode_stream", "encode_stream", "name_of"]

FIRST = ("constant", "raw", "static", "planes")  # those of format 1.0
SLOW = ("adaptive", "context")  # they learn while decoding
SLOWEST = ("binary",)  # a flag at a time
PER_GAIN = 1 << 14  # symbols


@dataclass(frozen=True)
class Effort:
    """How much time bytes are worth.

    Attributes:
        codecs: names of those that are tried, in this order: the slow ones last.
        largest_adaptive: symbols of a stream up to which the codecs are tried that learn while
            decoding: 1 to 15 million symbols a second, the others 20 to 70.
        largest_binary: the same for ``binary``: 0.1 to 0.5 million symbols a second.
        least_gain: share of the bytes that a slow codec must save over all faster ones; of
            ``binary``, which is slowest, as often as 16,384 symbols go into the stream.
    """

    codecs: tuple[str, ...]
    largest_adaptive: int = 0
    largest_binary: int = 0
    least_gain: float = 0.0

    def tries(self, codec: str, symbols: int) -> bool:
        """Return whether a stream of so many symbols is worth the time of ``codec``."""
        limits = dict.fromkeys(SLOW, self.largest_adaptive)
        limits |= dict.fromkeys(SLOWEST, self.largest_binary)
        return codec in self.codecs and symbols <= limits.get(codec, symbols)

    def limit(self, codec: str, least: float, symbols: int) -> float:
        """Return what ``codec`` must stay below if those before it take ``least`` bytes or bits."""
        gain = self.least_gain if codec in SLOW + SLOWEST else 0.0
        if codec in SLOWEST:
            gain *= max(1.0, symbols / PER_GAIN)
        return least * (1 - min(gain, 1.0))


ALL = (*FIRST, "tuple", *SLOW, *SLOWEST)
EFFORTS: Registry[Effort] = Registry("effort")
EFFORTS.register("fast")(Effort(FIRST))
EFFORTS.register("balanced")(Effort(ALL, 1 << 18, 1 << 18, 0.005))
EFFORTS.register("smallest")(Effort(ALL, 1 << 62, 1 << 62))


def encode_stream(symbols: Symbols, effort: str = "balanced") -> tuple[str, bytes]:
    """Return the codec's name and the bytes of ``symbols`` (rows, columns): the fewest of all.

    ``effort`` names one of ``EFFORTS``; else ConfigError. Never more than raw packing, which is
    one of the candidates. A slow codec is taken where it saves at least the effort's
    ``least_gain`` over the best before it. Symbols are integers of 32 bits; among equals the
    codec tried first wins, so the choice is the same every time.
    """
    profile = EFFORTS[effort]
    if symbols.size == 0:
        return "constant", b""
    if symbols.min() < MIN_SYMBOL or symbols.max() > MAX_SYMBOL:
        raise ValueError("symbols must fit 32 bits")
    found: tuple[str, bytes] | None = None
    for name in profile.codecs:
        if not profile.tries(name, symbols.size):
            continue
        limit = profile.limit(name, len(found[1]), symbols.size) if found else math.inf
        slowest = name in SLOWEST
        data = encode_below(symbols, limit) if slowest else CODECS[name].encode(symbols)
        if data is not None and len(data) < limit:
            found = name, data
    if found is None:
        raise ValueError(f"the effort {effort!r} has no codec that codes everything")
    return found


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
