"""Choose the codec by the bytes that it gives, and find it again by its number."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from ..errors import CorruptFileError
from ..registry import Registry
from .binary import encode_below
from .codec import CODECS, MAX_SYMBOL, MIN_SYMBOL, Symbols
from .cut import block_rows
from .work import UNLIMITED, Work

__all__ = [
    "EFFORTS",
    "SLOW",
    "Effort",
    "decode_stream",
    "encode_stream",
    "is_cut",
    "name_of",
    "select",
    "stream_work",
]

Found = TypeVar("Found")

FIRST = ("constant", "raw", "static", "planes")  # those of format 1.0
QUICK = (*FIRST, "tuple", "blocks")
LEARNING = ("adaptive", "context", "split")  # they learn while decoding
SLOWEST = ("binary",)  # a flag at a time
SLOW = (*LEARNING, *SLOWEST)
TIERS = (QUICK, LEARNING, SLOWEST)
LONG = (math.inf, 1 << 16, 1 << 15)  # symbols of a stream that takes noticeable time, by tier


@dataclass(frozen=True)
class Effort:
    """How much time bytes are worth.

    Attributes:
        codecs: names of those that are tried.
        largest_learning: symbols of a stream up to which codecs are tried that learn while
            decoding: 1 to 15 million symbols a second, ``binary`` 0.1 to 0.5, the others 20 to 70.
        worth: parts of the bytes that codecs that learn, and ``binary``, must save over all faster
            ones; for streams of over 2**16 symbols (``binary``: 2**15), which are waited for, in
            proportion more.
        joins: whether small index matrices of a file may share a stream.
    """

    codecs: tuple[str, ...]
    largest_learning: int = 0
    worth: tuple[float, float] = (0.0, 0.0)
    joins: bool = False

    def limit(self, tier: int, least: float, symbols: int) -> float:
        """Return what a codec of ``tier`` must stay below if all faster ones take ``least``."""
        share = (0.0, *self.worth)[tier] * max(1.0, symbols / LONG[tier])
        return least * (1 - min(share, 1.0))


EFFORTS: Registry[Effort] = Registry("effort")
EFFORTS.register("fast")(Effort(FIRST))
EFFORTS.register("balanced")(
    Effort((*FIRST, "tuple", *SLOW), 1 << 18, worth=(0.01, 0.01), joins=True)
)
EFFORTS.register("smallest")(Effort((*QUICK, *SLOW), 1 << 62, worth=(0.0, 0.002), joins=True))


def is_cut(effort: Effort, rows: int, columns: int) -> bool:
    """Return whether so large a matrix is coded as blocks."""
    return "blocks" in effort.codecs and block_rows(rows, columns) < rows


def select(
    effort: Effort,
    shape: tuple[int, ...],
    attempt: Callable[[str, float], tuple[float, Found] | None],
    *,
    quick: bool = False,
) -> tuple[str, Found] | None:
    """Return the codec to take for a matrix of ``shape``, and what ``attempt`` found with it.

    Args:
        effort: what may be tried, and what a slow codec must save.
        shape: (rows, columns).
        attempt: takes a codec's name and the size that it must stay below, and returns the size and
            anything else; None where the codec is out of the question.
        quick: leave out slow codecs and blocks.

    Faster codecs are tried first; among equals the one tried first is taken.
    """
    rows, columns = shape
    learns = rows * columns <= effort.largest_learning and not is_cut(effort, rows, columns)
    name, least, best = "", math.inf, None
    for tier, names in enumerate(TIERS):
        if tier and (quick or not learns):
            break
        limit = effort.limit(tier, least, rows * columns)
        for tried in names:
            if tried not in effort.codecs or (quick and tried == "blocks"):
                continue
            found = attempt(tried, limit)
            if found is not None and found[0] < limit:
                name, (least, best) = tried, found
                limit = least
    return None if best is None else (name, best)


def encode_stream(
    symbols: Symbols, effort: str = "balanced", *, quick: bool = False
) -> tuple[str, bytes]:
    """Return the codec's name and the bytes of ``symbols`` (rows, columns): the fewest of all.

    ``effort`` names one of ``EFFORTS``; else ConfigError. Never more than raw packing, which is
    one of the candidates; a slow codec is taken where it saves what the effort asks for. Symbols
    are integers of 32 bits. The choice is the same every time. ``quick``: as in :func:`select`.
    """
    profile = EFFORTS[effort]
    if symbols.size == 0:
        return "constant", b""
    if symbols.min() < MIN_SYMBOL or symbols.max() > MAX_SYMBOL:
        raise ValueError("symbols must fit 32 bits")

    def attempt(name: str, limit: float) -> tuple[float, bytes] | None:
        slowest = name in SLOWEST
        data = encode_below(symbols, limit) if slowest else CODECS[name].encode(symbols)
        return None if data is None else (len(data), data)

    found = select(profile, symbols.shape, attempt, quick=quick)
    if found is None:
        raise ValueError(f"the effort {effort!r} has no codec that codes everything")
    return found


def stream_work(name: str, data: bytes, rows: int, columns: int) -> Work:
    """Return what :func:`decode_stream` costs at most; CorruptFileError for wrong settings."""
    return CODECS[name].work(data, rows, columns) if rows * columns else Work(0)


def decode_stream(
    name: str, data: bytes, rows: int, columns: int, flags_per_byte: int = UNLIMITED
) -> Symbols:
    """Return the (rows, columns) integer matrix that ``data`` codes with the codec ``name``.

    Raises CorruptFileError for anything but exactly that. The caller bounds ``rows * columns``, and
    the work (:func:`stream_work`, ``flags_per_byte``) where ``data`` may be hostile.
    """
    if rows * columns == 0:
        if data:
            raise CorruptFileError("bytes for a matrix without symbols")
        return np.zeros((rows, columns), np.int32)
    return CODECS[name].decode(data, rows, columns, flags_per_byte)


def name_of(number: int) -> str:
    """Return the name of the codec with this number in files."""
    for name, codec in CODECS.items():
        if codec.number == number:
            return name
    raise CorruptFileError(
        f"it is coded by codec number {number}, unknown to this version. Install a newer fewbits."
    )
