"""Choose the codec by the bytes that it gives, reading only what codecs declare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from ..errors import ConfigError, CorruptFileError
from .codec import CODECS, NO_LIMIT, Codec, Layout, Symbols, check_bound

__all__ = [
    "EFFORTS",
    "Effort",
    "Joins",
    "Stream",
    "codec_of",
    "decode_symbols",
    "encode_symbols",
    "encode_together",
]

TOGETHER = 1 << 20  # symbols of a stream of several matrices, about
MEASURED = 1 << 15  # symbols from which a slow codec is measured before it is tried


@dataclass(frozen=True)
class Effort:
    """How much time bytes are worth.

    Attributes:
        tiers: of codecs that are tried.
        worth: part of the bytes that a slower tier must save.
        seconds: that decoding with slower tiers may take, about, in all.
    """

    tiers: tuple[int, ...]
    worth: float = 0.0
    seconds: float = float("inf")


EFFORTS = {
    "fast": Effort((0,)),
    "balanced": Effort((0, 1), worth=0.02, seconds=10),
    "smallest": Effort((0, 1)),
}


@runtime_checkable
class Joins(Protocol):
    """A codec that codes several matrices in one stream, and learns from one for the next."""

    def encode_group(self, matrices: Sequence[Symbols], layouts: Sequence[Layout]) -> bytes | None:
        """Return one stream for all matrices; None where raw fields take less."""

    def decode_group(self, data: bytes, layouts: Sequence[Layout]) -> list[Symbols]:
        """Return the matrices."""


@dataclass(frozen=True)
class Stream:
    """Some consecutive matrices of a list: by which codec, and their bytes."""

    codec: str
    members: range
    data: bytes


def codec_of(number: int) -> Codec:
    """Return the codec with this number in files."""
    for codec in CODECS.values():
        if codec.number == number:
            return codec
    raise CorruptFileError(
        f"it is coded by codec number {number}, unknown to this version. Install a newer fewbits."
    )


def encode_symbols(
    symbols: Symbols, layout: Layout, effort: str = "balanced", *, threads: int = 1
) -> tuple[str, bytes]:
    """Return the codec's name and the bytes of ``symbols`` (rows, columns): the fewest of all.

    A codec of a slower tier is taken where it saves what the effort asks for. The choice does not
    depend on ``threads``. Symbols are integers of 32 bits.
    """
    profile = _effort(effort)
    if symbols.shape != (layout.rows, layout.columns):
        raise ValueError(f"symbols of shape {symbols.shape} do not have the layout {layout}")
    if symbols.size == 0:
        return "constant", b"\0"
    name, best = "", b""
    for codec in sorted(CODECS.values(), key=lambda c: (c.tier, c.bound.nanoseconds_per_symbol)):
        limit = NO_LIMIT if not name else len(best) - 1
        if codec.tier and codec.tier in profile.tiers:
            slow = codec.bound.nanoseconds_per_symbol * symbols.size > 1e9 * profile.seconds
            limit = min(limit, int(len(best) * (1 - profile.worth)))
            if slow or not _promising(codec, symbols, layout, limit):
                continue
        if codec.tier in profile.tiers and limit > 0:
            data = codec.encode(symbols, layout, limit=limit, threads=threads)
            if data is not None:
                name, best = codec.name, data
    return name, best


def _promising(codec: Codec, symbols: Symbols, layout: Layout, limit: int) -> bool:
    """Return whether a codec may stay below ``limit``: for large matrices, by its measure."""
    if symbols.size < MEASURED:
        return True
    bits = codec.measure(symbols, layout)
    return bits is not None and bits <= 8.16 * limit


def encode_together(
    matrices: Sequence[Symbols], layouts: Sequence[Layout], effort: str = "balanced"
) -> list[Stream]:
    """Return streams for all matrices, in order; neighbours share one where that saves bytes.

    That is tried where most of them chose a codec that joins.
    """
    profile = _effort(effort)
    alone = [
        Stream(*_first(encode_symbols(symbols, layout, effort), range(at, at + 1)))
        for at, (symbols, layout) in enumerate(zip(matrices, layouts, strict=True))
    ]
    joins = [c for c in CODECS.values() if c.tier in profile.tiers and isinstance(c, Joins)]
    out: list[Stream] = []
    for run in _runs(layouts):
        own, best = alone[run.start : run.stop], None
        limit = sum(len(stream.data) for stream in own)
        for codec in joins if len(run) > 1 else []:
            alike = sum(layouts[at].size for at in run if alone[at].codec == codec.name)
            if 2 * alike < sum(layouts[at].size for at in run):
                continue  # most was worth no such codec
            data = codec.encode_group([matrices[k] for k in run], [layouts[k] for k in run])
            if data is not None and len(data) < limit:
                best, limit = Stream(codec.name, run, data), len(data)
        out += [best] if best else own
    return out


def _first(coded: tuple[str, bytes], members: range) -> tuple[str, range, bytes]:
    return coded[0], members, coded[1]


def _runs(layouts: Sequence[Layout]) -> list[range]:
    """Cut a list of matrices into runs of about ``TOGETHER`` symbols; empty ones are alone."""
    runs, first, total = [], 0, 0
    for at, layout in enumerate(layouts):
        if at > first and (total + layout.size > TOGETHER or layout.size == 0 or total == 0):
            runs.append(range(first, at))
            first, total = at, 0
        total += layout.size
    return [*runs, range(first, len(layouts))] if layouts else []


def decode_symbols(number: int, data: bytes, layout: Layout, *, threads: int = 1) -> Symbols:
    """Return the matrix that ``data`` codes with codec ``number``.

    Raises CorruptFileError for anything but exactly that, before any work that the bytes do not
    pay for. The caller bounds ``codec_of(number).bound.memory(layout)``.
    """
    codec = codec_of(number)
    if layout.size == 0:
        if data != b"\0":
            raise CorruptFileError("bytes for a matrix without symbols")
        return np.zeros((layout.rows, layout.columns), np.int32)
    check_bound(codec, len(data), layout)
    return codec.decode(data, layout, threads=threads)


def _effort(name: str) -> Effort:
    if name not in EFFORTS:
        raise ConfigError(f"effort must be one of {', '.join(EFFORTS)}. Got {name!r} instead.")
    return EFFORTS[name]
