"""The streams that a header implies, in order, and where the bodies that code them are.

Writer, reader and size report all follow this one list.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ..coded import RAW_DTYPES
from ..coding import MAX_SHARED_SYMBOLS, Layout
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
CHUNK = 1 << 21  # symbols per chunk at most, unless a single row has more


@dataclass(frozen=True)
class Part:
    """A run of values in a stream: its owner (``name``) and its purpose (``role``).

    Roles: index, coefficients and basis (index matrices); raw; levels (``name`` is the position of
    the codebook); factors and offsets (``name`` is the tensor, ``leaf`` the part of a transform);
    clips.
    """

    name: str
    role: str
    values: int
    leaf: str = ""


@dataclass(frozen=True, eq=False)
class Stream:
    """A matrix of symbols and the parts that its rows consist of.

    ``taps`` and ``width`` describe the kernels in its rows, see :class:`fewbits.coding.Layout`.
    """

    label: str
    rows: int
    columns: int
    parts: tuple[Part, ...]
    taps: int = 1
    width: int = 0

    @property
    def is_index(self) -> bool:
        """Whether the symbols are indices rather than bytes."""
        return self.parts[0].role in ("index", "coefficients", "basis")

    @property
    def is_own(self) -> bool:
        """Whether the stream belongs to one tensor alone; steps and scales always share one."""
        return len(self.parts) == 1 and (self.is_index or self.parts[0].role == "raw")

    def holds(self, role: str) -> bool:
        """Return whether a part has this role."""
        return any(part.role == role for part in self.parts)

    @property
    def symbol_bytes(self) -> int:
        """Memory of a decoded symbol, in bytes."""
        return 4 if self.is_index else 1


@dataclass(frozen=True)
class Chunk:
    """Whole rows of a stream, coded independently."""

    stream: Stream
    first: int
    stop: int

    @property
    def layout(self) -> Layout:
        """The chunk's layout for codecs."""
        stream = self.stream
        return Layout(self.stop - self.first, stream.columns, stream.taps, stream.width)

    @property
    def is_whole(self) -> bool:
        """Whether the chunk is the whole stream."""
        return self.stop - self.first == self.stream.rows

    @property
    def label(self) -> str:
        """Description for messages."""
        rows = "" if self.is_whole else f", rows {self.first} to {self.stop}"
        return f"{self.stream.label}{rows}"


@dataclass(frozen=True)
class Span:
    """A body in a file: its chunks, codec and bytes ``[start, end)``; its checksum follows."""

    chunks: tuple[Chunk, ...]
    codec: int
    start: int
    end: int

    @property
    def label(self) -> str:
        """Description for messages."""
        first, last = self.chunks[0].label, self.chunks[-1].label
        shared = f", in a body with the matrices up to {last}" if len(self.chunks) > 1 else ""
        return f"{first}{shared} (bytes {self.start} to {self.end})"


def chunks(stream: Stream) -> Iterator[Chunk]:
    """Split a non-empty stream into chunks."""
    step = _rows(stream)
    for first in range(0, stream.rows, step):
        yield Chunk(stream, first, min(first + step, stream.rows))


def _rows(stream: Stream) -> int:
    """Return the number of rows per chunk."""
    return max(1, CHUNK // stream.columns)


def plan_streams(header: Header) -> list[Stream]:
    """Return the streams of a file in order, leaving out empty ones."""
    own = (own_streams(name, entry) for name, entry in header.entries.items())
    return [
        *(stream for streams in own for stream in streams if stream.rows * stream.columns),
        *shared_streams(header),
    ]


def shared_streams(header: Header) -> list[Stream]:
    """Return the shared streams in order: the side stream, then groups of small raw tensors."""
    return [stream for stream in (_side(header), *_groups(header)) if stream.rows]


def spans(header: Header, start: int, end: int) -> list[Span]:
    """Locate all bodies; they must fill ``[start, end)`` exactly."""
    streams = plan_streams(header)
    count = sum(-(-stream.rows // _rows(stream)) for stream in streams)
    if not count == len(header.lengths) == len(header.codecs):
        raise CorruptFileError(
            f"the header implies {count} chunks, but has {len(header.lengths)} lengths "
            f"and {len(header.codecs)} codecs"
        )
    last = start + sum(length + CHECKSUM for length in header.lengths if length)
    if last != end:
        raise CorruptFileError(f"the bodies end at byte {last}, but the index begins at {end}")
    if header.lengths and not header.lengths[0]:
        raise CorruptFileError(
            "the first chunk has no body, and no earlier chunk to share one with"
        )
    planned = (chunk for stream in streams for chunk in chunks(stream))
    firsts = [at for at, length in enumerate(header.lengths) if length]
    located = []
    for first, following in pairwise([*firsts, count]):
        members = _members(planned, header.codecs[first:following])
        located.append(Span(members, header.codecs[first], start, start + header.lengths[first]))
        start += header.lengths[first] + CHECKSUM
    return located


def _members(planned: Iterator[Chunk], codecs: Sequence[int]) -> tuple[Chunk, ...]:
    """Take the next chunks, which share one body."""
    members: list[Chunk] = []
    total = 0
    for codec, chunk in zip(codecs, planned, strict=False):
        total += chunk.layout.size
        alike = codec == codecs[0] and chunk.is_whole and chunk.stream.is_index
        if len(codecs) > 1 and not (alike and total <= MAX_SHARED_SYMBOLS):
            raise CorruptFileError(
                f"{chunk.label} cannot share a body: only whole index matrices with the same codec "
                f"and at most {MAX_SHARED_SYMBOLS} symbols together may"
            )
        members.append(chunk)
    return tuple(members)


def own_streams(name: str, entry: Entry) -> list[Stream]:
    """Return the streams that belong to the tensor ``name`` alone; some may be empty."""
    streams = []
    for role, leaf in leaves(entry):
        rows, columns = leaf.matrix
        part, kernel = Part(name, role, rows * columns), _kernel(leaf)
        streams.append(Stream(f"the {role} of {name!r}", rows, columns, (part,), *kernel))
    if isinstance(entry, RawEntry) and not entry.grouped:
        part = Part(name, "raw", entry.values)
        streams.append(Stream(f"the values of {name!r}", entry.values, entry.width, (part,)))
    return streams


def _kernel(leaf: MatrixEntry) -> tuple[int, int]:
    """Return taps and width of the kernels in the rows of an index matrix; (1, 0) if none."""
    sizes = leaf.shape if leaf.layout is None else leaf.layout.split
    axes = tuple(range(len(sizes))) if leaf.layout is None else leaf.layout.axes
    first = len(sizes)  # of the trailing axes that are not permuted
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
