"""Choose the codec that takes the fewest bytes, using only what codecs declare."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, CorruptFileError
from .codec import CODECS, NO_LIMIT, OWN_NUMBERS, Codec, Layout, Symbols, check_bound

__all__ = [
    "EFFORTS",
    "MAX_SHARED_SYMBOLS",
    "Effort",
    "GroupCodec",
    "Stream",
    "codec_of",
    "decode_run",
    "decode_symbols",
    "encode_run",
    "encode_symbols",
    "entropy",
    "is_effort",
    "measure",
]


MAX_SHARED_SYMBOLS = 1 << 20  # symbols of all matrices that may share a stream
MEASURED = 1 << 15  # symbols from which a slow codec is measured before it encodes


@dataclass(frozen=True)
class Effort:
    """How much time to spend on saving bytes.

    Attributes:
        tiers: tiers of codecs to try.
        worth: fraction of the bytes that a slower tier must save.
        symbols: number of symbols, from the start of a file, that slower tiers may code.
    """

    tiers: tuple[int, ...]
    worth: float = 0.0
    symbols: int = NO_LIMIT


EFFORTS = {
    "fast": Effort((0,)),
    "balanced": Effort((0, 1), worth=0.02, symbols=14_000_000),  # about ten seconds
    "smallest": Effort((0, 1)),
}


def is_effort(value: object) -> bool:
    """Return whether ``value`` is the name of an effort."""
    return isinstance(value, str) and value in EFFORTS


@runtime_checkable
class GroupCodec(Protocol):
    """A codec that can code several matrices in one stream, adapting from each to the next."""

    def encode_group(self, matrices: Sequence[Symbols], layouts: Sequence[Layout]) -> bytes | None:
        """Return one stream for all matrices, or None if raw fields take less."""

    def decode_group(self, data: bytes, layouts: Sequence[Layout]) -> list[Symbols]:
        """Return the matrices of a stream."""


@dataclass(frozen=True)
class Stream:
    """One or more consecutive matrices of a run, as coded by one codec."""

    codec: str
    data: bytes
    members: range


def codec_of(number: int) -> Codec:
    """Return the codec with this number in files.

    Other packages are imported only for a number that fewbits does not use itself. A file cannot
    name a package: only those that are installed count.
    """
    for codecs in (CODECS.ready, CODECS.values):
        for codec in codecs():
            if codec.number == number:
                return codec
    raise CorruptFileError(
        f"it uses codec number {number}, unknown to this version. Install "
        + ("a newer fewbits." if number < OWN_NUMBERS else "the package that provides this codec.")
    )


def encode_symbols(symbols: Symbols, layout: Layout, effort: str = "balanced") -> tuple[str, bytes]:
    """Encode ``symbols`` (rows, columns) with the codec that takes the fewest bytes.

    Returns the codec's name and the bytes. Slower tiers are used only if they save the fraction
    that the effort asks for. Symbols are 32-bit integers. Raises ConfigError for an unknown effort.
    """
    profile = _effort(effort)
    if symbols.shape != (layout.rows, layout.columns):
        raise ValueError(f"symbols of shape {symbols.shape} do not match the layout {layout}")
    if symbols.size == 0:
        return "constant", b"\0"
    name, best = "", b""
    for codec in _by_cost(profile, symbols.size):
        limit = NO_LIMIT if not name else len(best) - 1
        if codec.tier:
            limit = min(limit, int(len(best) * (1 - profile.worth)))
        if limit > 0 and (not codec.tier or _promising(codec, symbols, layout, limit)):
            data = codec.encode(symbols, layout, limit=limit)
            if data is not None:
                name, best = codec.name, data
    return name, best


def measure(symbols: Symbols, layout: Layout, effort: str = "balanced") -> float:
    """Estimate the bits of :func:`encode_symbols` at a fraction of its cost.

    Accurate to 5 % and 24 bytes. Raises ConfigError for an unknown effort.
    """
    profile = _effort(effort)
    if symbols.size == 0:
        return 8.0
    best = math.inf
    for codec in _by_cost(profile, symbols.size):
        bits = codec.measure(symbols, layout)
        if bits is not None and bits < best * (1 - profile.worth if codec.tier else 1):
            best = bits
    return best


def _by_cost(profile: Effort, size: int) -> list[Codec]:
    """Return the codecs of an effort, fastest decoders first for this number of symbols."""
    usable = [codec for codec in CODECS.values() if codec.tier in profile.tiers]
    return sorted(usable, key=lambda codec: (codec.tier, codec.bound.work(size)))


def _promising(codec: Codec, symbols: Symbols, layout: Layout, limit: int) -> bool:
    """Return whether a codec may stay below ``limit``; measures it on large matrices.

    Matrices of bytes with several columns are float values, which slow codecs do not help.
    """
    if symbols.size < MEASURED:
        return True
    if symbols.dtype == np.uint8 and layout.columns > 1:
        return False
    bits = codec.measure(symbols, layout)
    return bits is not None and bits <= 8.16 * limit


def encode_run(
    matrices: Sequence[Symbols], layouts: Sequence[Layout], effort: str = "balanced"
) -> list[Stream]:
    """Encode consecutive matrices, in one shared stream if that saves bytes.

    Sharing is tried if most of their symbols chose a codec that supports it.
    """
    profile = _effort(effort)
    alone = [
        Stream(*encode_symbols(symbols, layout, effort), range(at, at + 1))
        for at, (symbols, layout) in enumerate(zip(matrices, layouts, strict=True))
    ]
    if len(matrices) < 2:
        return alone
    limit, best = sum(len(stream.data) for stream in alone), alone
    total = sum(layout.size for layout in layouts)
    for codec in CODECS.values():
        chosen = sum(layouts[at].size for at, s in enumerate(alone) if s.codec == codec.name)
        if codec.tier in profile.tiers and isinstance(codec, GroupCodec) and 2 * chosen >= total:
            data = codec.encode_group(matrices, layouts)
            if data is not None and len(data) < limit:
                best, limit = [Stream(codec.name, data, range(len(matrices)))], len(data)
    return best


def decode_run(number: int, data: bytes, layouts: Sequence[Layout]) -> list[Symbols]:
    """Decode the matrices that share the stream ``data`` of codec ``number``.

    See :func:`decode_symbols`.
    """
    codec = codec_of(number)
    if not isinstance(codec, GroupCodec) or any(layout.size == 0 for layout in layouts):
        raise CorruptFileError(f"matrices cannot share a stream of {codec.name!r}")
    check_bound(codec, len(data), Layout(1, sum(layout.size for layout in layouts)))
    return codec.decode_group(data, layouts)


def decode_symbols(number: int, data: bytes, layout: Layout) -> Symbols:
    """Decode the matrix that ``data`` encodes with codec ``number``.

    Raises CorruptFileError unless ``data`` is exactly that, before doing more work than its length
    allows. The caller bounds ``codec_of(number).bound.memory(layout)``.
    """
    codec = codec_of(number)
    if layout.size == 0:
        if data != b"\0":
            raise CorruptFileError("an empty matrix has bytes")
        return np.zeros((layout.rows, layout.columns), np.int32)
    check_bound(codec, len(data), layout)
    return codec.decode(data, layout)


def _effort(name: str) -> Effort:
    if not is_effort(name):
        raise ConfigError(f"effort must be one of {', '.join(EFFORTS)}. Got {name!r} instead.")
    return EFFORTS[name]


def entropy(symbols: Symbols, order: int = 0) -> float:
    """Return the empirical entropy of symbols given the ``order`` symbols before, in bits.

    Symbols are taken row by row. For high orders or few symbols the value is far below what any
    coder can reach, because it assumes known statistics. Cost: a sort per order.
    """
    flat = symbols.reshape(-1)
    if flat.size <= order:
        return 0.0
    _, labels = np.unique(flat, return_inverse=True)
    longer = shorter = np.zeros(flat.size - order, np.int64)
    for back in range(order, -1, -1):
        shorter = longer
        part = labels[order - back : flat.size - back]
        _, longer = np.unique(longer * (int(labels.max()) + 1) + part, return_inverse=True)
    return max(0.0, (_information(longer) - _information(shorter)) / longer.size)


def _information(labels: NDArray[np.int64]) -> float:
    """Return the total bits of ``labels`` under their own empirical distribution."""
    counts = np.bincount(labels)
    counts = counts[counts > 0]
    return float((counts * (np.log2(labels.size) - np.log2(counts))).sum())
