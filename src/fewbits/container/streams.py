"""Which streams a header implies, in order, and what each part of them is for.

The writer, the reader and the size report all follow this one list.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..coded import RAW_DTYPES
from ..coding import CODECS
from ..errors import CorruptFileError
from .entries import RawEntry, leaves
from .header import Header

__all__ = ["CHECKSUM", "Part", "Span", "Stream", "plan_streams", "spans"]

CHECKSUM = 4
JOINED = CODECS["joined"].number


@dataclass(frozen=True)
class Part:
    """A run of values of one stream: whose (``name``) and what for (``role``).

    Roles: index, coefficients and basis (index matrices), raw, levels (of the codebook whose
    position is ``name``), factors and offsets (``name`` is the tensor's, ``leaf`` the part of
    a transform), clips.
    """

    name: str
    role: str
    values: int
    leaf: str = ""


@dataclass(frozen=True)
class Stream:
    """A matrix of symbols: its size, and the parts that its rows are made of.

    ``joined``: the shapes of the matrices where they are several, one for each part; the rows
    are then all their symbols.
    """

    label: str
    rows: int
    columns: int
    parts: tuple[Part, ...]
    joined: tuple[tuple[int, int], ...] = ()

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """Rows and columns of the matrices that the stream codes."""
        return self.joined or ((self.rows, self.columns),)

    @property
    def is_index(self) -> bool:
        """Whether the symbols are indices; else they are bytes."""
        return self.parts[0].role in ("index", "coefficients", "basis")

    @property
    def is_own(self) -> bool:
        """Whether one tensor has the stream for itself; steps and scales never do."""
        return len(self.parts) == 1 and (self.is_index or self.parts[0].role == "raw")

    def holds(self, role: str) -> bool:
        """Tell whether a part is for ``role``."""
        return any(part.role == role for part in self.parts)

    @property
    def width(self) -> int:
        """Bytes that a decoded symbol takes once the stream has been read."""
        return 4 if self.is_index else 1


@dataclass(frozen=True)
class Span:
    """A stream's place in a file: its bytes are ``[start, end)``, its checksum follows."""

    stream: Stream
    codec: int
    start: int
    end: int


def plan_streams(header: Header) -> list[Stream]:
    """Return the streams of a file in order; those without symbols do not exist."""
    streams = [*_own(header), _side(header), *_groups(header)]
    return [stream for stream in streams if stream.rows * stream.columns]


def spans(header: Header, start: int, end: int) -> list[Span]:
    """Return every stream with its place; they must fill ``[start, end)`` exactly."""
    streams = plan_streams(header)
    if not len(streams) == len(header.lengths) == len(header.codecs):
        raise CorruptFileError(
            f"the header implies {len(streams)} streams, gives {len(header.lengths)} lengths "
            f"and {len(header.codecs)} codecs"
        )
    found: list[Span] = []
    waiting: list[Stream] = []
    for stream, codec, length in zip(streams, header.codecs, header.lengths, strict=True):
        if codec == JOINED and not length:
            waiting.append(stream)
            continue
        if codec == JOINED and waiting:
            stream = _join([*waiting, stream])  # noqa: PLW2901
            waiting.clear()
        found.append(Span(stream, codec, start, start + length))
        start += length + CHECKSUM
    if waiting:
        raise CorruptFileError(f"{waiting[0].label} is joined to none that follows it")
    if start != end:
        raise CorruptFileError(f"the streams end at byte {start}, the file at byte {end}")
    return found


def _join(streams: list[Stream]) -> Stream:
    """Return the one stream that codes the matrices of ``streams``."""
    for stream in streams:
        if not stream.is_index:
            raise CorruptFileError(f"{stream.label} is joined, but only index matrices may be")
    label = f"{streams[0].label}, joined with those up to {streams[-1].label}"
    shapes = tuple((stream.rows, stream.columns) for stream in streams)
    parts = tuple(stream.parts[0] for stream in streams)
    return Stream(label, sum(part.values for part in parts), 1, parts, shapes)


def _own(header: Header) -> Iterator[Stream]:
    for name, entry in header.entries.items():
        for role, leaf in leaves(entry):
            rows, columns = leaf.matrix
            part = Part(name, role, rows * columns)
            yield Stream(f"the {role} of {name!r}", rows, columns, (part,))
        if isinstance(entry, RawEntry) and not entry.grouped:
            part = Part(name, "raw", entry.values)
            yield Stream(f"the values of {name!r}", entry.values, entry.width, (part,))


def _side(header: Header) -> Stream:
    parts = [Part(str(place), "levels", levels) for place, levels in enumerate(header.codebooks)]
    for name, entry in header.entries.items():
        for role, leaf in leaves(entry):
            parts.append(Part(name, "factors", leaf.factors, role))
            parts.append(Part(name, "offsets", leaf.offsets, role))
    if header.clips is None:
        parts.append(Part("", "clips", len(header.activations)))
    parts = [part for part in parts if part.values]
    rows = sum(part.values for part in parts)
    return Stream("the side stream (steps, scales, codebooks)", rows, 4, tuple(parts))


def _groups(header: Header) -> Iterator[Stream]:
    groups: dict[tuple[str, str], list[Part]] = {}
    for name, entry in header.entries.items():
        if isinstance(entry, RawEntry) and entry.grouped and entry.values:
            key = (entry.stored, name.rpartition(".")[2])
            groups.setdefault(key, []).append(Part(name, "raw", entry.values))
    for (stored, _), parts in groups.items():
        label = f"the {stored} values of the small tensors {parts[0].name!r} to {parts[-1].name!r}"
        yield Stream(label, sum(part.values for part in parts), RAW_DTYPES[stored], tuple(parts))
