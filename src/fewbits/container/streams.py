"""Which streams a header implies, in order, and where in a file the bodies lie that code them.

The writer, the reader and the size report all follow this one list.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ..coded import RAW_DTYPES
from ..coding import TOGETHER, Layout
from ..errors import CorruptFileError
from .entries import Entry, MatrixEntry, RawEntry, leaves
from .header import Header

__all__ = [
    "CHECKSUM",
    "CHUNK",
    "Chunk",
    "Part",
    "Span",
    "Stream",
    "chunks",
    "own_streams",
    "plan_streams",
    "shared_streams",
    "spans",
]

CHECKSUM = 4
CHUNK = 1 << 21  # symbols that are coded on their own, at most, unless a single row has more


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


@dataclass(frozen=True, eq=False)
class Stream:
    """A matrix of symbols: its size, and the parts that its rows are made of.

    ``taps`` and ``width``: of the kernels in its rows, as :class:`fewbits.coding.Layout` has them.
    """

    label: str
    rows: int
    columns: int
    parts: tuple[Part, ...]
    taps: int = 1
    width: int = 0

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
    def symbol_bytes(self) -> int:
        """Bytes that a decoded symbol takes once the stream has been read."""
        return 4 if self.is_index else 1


@dataclass(frozen=True)
class Chunk:
    """Whole rows of a stream, coded on their own."""

    stream: Stream
    first: int
    stop: int

    @property
    def layout(self) -> Layout:
        """The chunk as codecs see it."""
        stream = self.stream
        return Layout(self.stop - self.first, stream.columns, stream.taps, stream.width)

    @property
    def is_whole(self) -> bool:
        """Whether the stream has no other chunk."""
        return self.stop - self.first == self.stream.rows

    @property
    def label(self) -> str:
        """What it is, for people."""
        rows = "" if self.is_whole else f", rows {self.first} to {self.stop}"
        return f"{self.stream.label}{rows}"


@dataclass(frozen=True)
class Span:
    """A body in a file: its bytes are ``[start, end)``, its checksum follows; what it codes."""

    chunks: tuple[Chunk, ...]
    codec: int
    start: int
    end: int

    @property
    def label(self) -> str:
        """What it is, for people."""
        first, last = self.chunks[0].label, self.chunks[-1].label
        shared = f", which shares a body with those up to {last}" if len(self.chunks) > 1 else ""
        return f"{first}{shared} (bytes {self.start} to {self.end})"


def chunks(stream: Stream) -> Iterator[Chunk]:
    """Cut a stream that has symbols into chunks."""
    step = _rows(stream)
    for first in range(0, stream.rows, step):
        yield Chunk(stream, first, min(first + step, stream.rows))


def _rows(stream: Stream) -> int:
    """Return how many rows its chunks have."""
    return max(1, CHUNK // stream.columns)


def plan_streams(header: Header) -> list[Stream]:
    """Return the streams of a file in order; those without symbols do not exist."""
    own = (own_streams(name, entry) for name, entry in header.entries.items())
    return [
        *(stream for found in own for stream in found if stream.rows * stream.columns),
        *shared_streams(header),
    ]


def shared_streams(header: Header) -> list[Stream]:
    """Return the streams that tensors share, in order: the side stream, groups of small ones."""
    return [stream for stream in (_side(header), *_groups(header)) if stream.rows]


def spans(header: Header, start: int, end: int) -> list[Span]:
    """Return every body with its place; they must fill ``[start, end)`` exactly."""
    streams = plan_streams(header)
    count = sum(-(-stream.rows // _rows(stream)) for stream in streams)
    if not count == len(header.lengths) == len(header.codecs):
        raise CorruptFileError(
            f"the header implies {count} chunks, gives {len(header.lengths)} lengths "
            f"and {len(header.codecs)} codecs"
        )
    last = start + sum(length + CHECKSUM for length in header.lengths if length)
    if last != end:
        raise CorruptFileError(f"the bodies end at byte {last}, the index begins at byte {end}")
    if header.lengths and not header.lengths[0]:
        raise CorruptFileError("the first chunk has no body, and none before it to share")
    planned = (chunk for stream in streams for chunk in chunks(stream))
    firsts = [at for at, length in enumerate(header.lengths) if length]
    found = []
    for first, following in pairwise([*firsts, count]):
        members = _members(planned, header.codecs[first:following])
        found.append(Span(members, header.codecs[first], start, start + header.lengths[first]))
        start += header.lengths[first] + CHECKSUM
    return found


def _members(planned: Iterator[Chunk], codecs: Sequence[int]) -> tuple[Chunk, ...]:
    """Return the chunks that come next and have one body."""
    found: list[Chunk] = []
    total = 0
    for codec, chunk in zip(codecs, planned, strict=False):
        total += chunk.layout.size
        alike = codec == codecs[0] and chunk.is_whole and chunk.stream.is_index
        if len(codecs) > 1 and not (alike and total <= TOGETHER):
            raise CorruptFileError(
                f"{chunk.label} cannot share a body with its neighbours: only whole index "
                f"matrices of one codec may, of {TOGETHER} symbols together"
            )
        found.append(chunk)
    return tuple(found)


def own_streams(name: str, entry: Entry) -> list[Stream]:
    """Return the streams that the tensor ``name`` has for itself; some may have no symbols."""
    found = []
    for role, leaf in leaves(entry):
        rows, columns = leaf.matrix
        part, kernel = Part(name, role, rows * columns), _kernel(leaf)
        found.append(Stream(f"the {role} of {name!r}", rows, columns, (part,), *kernel))
    if isinstance(entry, RawEntry) and not entry.grouped:
        part = Part(name, "raw", entry.values)
        found.append(Stream(f"the values of {name!r}", entry.values, entry.width, (part,)))
    return found


def _kernel(leaf: MatrixEntry) -> tuple[int, int]:
    """Return taps and width of the kernels in the rows of an index matrix; 1, 0 for none."""
    sizes = leaf.shape if leaf.layout is None else leaf.layout.split
    axes = tuple(range(len(sizes))) if leaf.layout is None else leaf.layout.axes
    first = len(sizes)  # of the trailing axes that stay where they are
    while first > 2 and axes[first - 1] == first - 1:
        first -= 1
    taps = math.prod(sizes[first:])
    return (taps, sizes[-1]) if taps > 1 and leaf.matrix[1] % taps == 0 else (1, 0)


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
