"""Bytes to contents: nothing in the file is believed before it is checked."""

from __future__ import annotations

from collections import ChainMap, OrderedDict, defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np

from ..coded import ActivationGrid, Codebook, CodedTensor, Contents, RawTensor, TransformTensor
from ..coding import Symbols
from ..errors import ConfigError
from .assemble import (
    Found,
    Key,
    as_bytes,
    build_activations,
    build_codebooks,
    build_tensor,
    distribute,
    guard,
)
from .entries import Entry, leaves, part_of
from .open_file import Opened, open_source
from .streams import Chunk, Span, Stream
from .threads import Ordered, usable_threads

__all__ = ["LazyTensors", "decode", "decode_activations", "open_file"]
VALUE = 4  # bytes of a step, a scale or an offset
HELD = 1 << 25  # bytes of symbols that are kept, so that they need not be decoded again


def decode(data: bytes, *, max_decoded_bytes: int | None = None, threads: int = 0) -> Contents:
    """Return what the file ``data`` holds; :class:`CorruptFileError` for anything else.

    ``max_decoded_bytes`` bounds what is kept of the file (4 bytes for each index and each value of
    a transform, 1 for each byte of the rest) before any of it is taken, and with it the working
    memory, which is a few times as much, and the time; by default 64 MiB + 256 times the file's
    size, far above what networks compress to (SPEC.md, section 5.1). ``threads``: that decode, as
    in :class:`FileWriter`.
    """
    count = usable_threads(threads)
    with guard("the file"), Ordered[list[Symbols]](count) as calls:
        opened = open_file(data, max_decoded_bytes)
        opened.admit(opened.spans, opened.header.entries.values())
        lazy = LazyTensors(opened, calls)
        tensors = dict(lazy)
        lazy.codebooks()
        header = opened.header
        return Contents(tensors, header.aliases, lazy.activations(), header.metadata)


def open_file(data: bytes, limit: int | None = None) -> Opened:
    """Check frame, header (within ``limit`` bytes), coverage and checksums; decode nothing."""
    opened = open_source(lambda start, end: data[start:end], len(data), limit)
    opened.verify()
    return opened


def decode_activations(opened: Opened) -> dict[str, ActivationGrid]:
    """Return the activation grids; decodes the side stream, and only where it holds clips."""
    clips = [span for span in opened.spans if any(c.stream.holds("clips") for c in span.chunks)]
    opened.admit(clips, ())
    return LazyTensors(opened).activations()


class _Decoder:
    """Decodes bodies that tensors have for themselves, those to come while one is used.

    Best asked in the order of the file.
    """

    def __init__(self, opened: Opened, calls: Ordered[list[Symbols]]) -> None:
        self._opened = opened
        self._calls = calls
        self._begun: deque[Span] = deque()
        own = [span for span in opened.spans if span.chunks[0].stream.is_own]
        self._next = {a.start: b for a, b in pairwise(own)}

    def decode(self, span: Span) -> list[Symbols]:
        """Return the matrices of a body, and begin to decode those that follow."""
        if not self._begun or self._begun[0].start != span.start:
            self._begun.clear()
            self._calls.clear()
            self._submit(span)
        while not self._calls.is_full and self._begun[-1].start in self._next:
            self._submit(self._next[self._begun[-1].start])
        self._begun.popleft()
        return self._calls.take()

    def _submit(self, span: Span) -> None:
        self._begun.append(span)
        self._calls.submit(self._opened.decode, span)


class LazyTensors(Mapping[str, CodedTensor]):
    """Name to coded tensor; each look-up reads and decodes the bodies of that tensor.

    What many tensors share is decoded once and kept: steps, scales and codebooks, and tensors of at
    most 64 KiB. :class:`CorruptFileError` for a tensor whose bodies are wrong. Bodies to come are
    decoded by other threads, where ``calls`` has them, while one is used: look tensors up in order.

    Attributes:
        shapes: name to shape, from the header alone.
        dtypes: name to dtype when restored, likewise.
    """

    def __init__(self, opened: Opened, calls: Ordered[list[Symbols]] | None = None) -> None:
        self._opened = opened
        self._entries = opened.header.entries
        self.shapes = {name: entry.shape for name, entry in self._entries.items()}
        self.dtypes = {name: entry.dtype for name, entry in self._entries.items()}
        self._decoder = None if calls is None else _Decoder(opened, calls)
        self._streams: defaultdict[str, list[Stream]] = defaultdict(list)
        self._bodies: defaultdict[Stream, list[Span]] = defaultdict(list)
        self._place: dict[Stream, int] = {}  # in the one body that it shares
        self._side: list[Stream] = []
        self._shared: Found = {}
        self._shared_seen: set[Stream] = set()
        self._books: list[Codebook] | None = None
        self._held: OrderedDict[Chunk, Symbols] = OrderedDict()
        self._held_bytes = 0
        self._checked: dict[str, CodedTensor] = {}
        self._file_spans()

    def _file_spans(self) -> None:
        for span in self._opened.spans:
            for place, chunk in enumerate(span.chunks):
                self._bodies[chunk.stream].append(span)
                self._place[chunk.stream] = place
        for stream in self._bodies:
            if stream.holds("levels"):
                self._side.append(stream)
            for name in {p.name for p in stream.parts if p.role not in ("levels", "clips")}:
                self._streams[name].append(stream)

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __getitem__(self, name: str) -> CodedTensor:
        if name in self._checked:
            return self._checked.pop(name)
        return self._built(name, self._entries[name])

    def entry(self, name: str, rows: tuple[int, int] | None = None) -> Entry:
        """Return what the header says of a tensor, or would say of some of its rows.

        ConfigError for rows that it does not have, and for a tensor whose matrix has other rows.
        """
        whole = self._entries[name]
        found = whole if rows is None else part_of(whole, *rows)
        if found is None:
            raise ConfigError(
                f"rows {rows} of {name!r}, {whole.kind} of shape {whole.shape}: only rows of its "
                "first dimension are read alone, and only where the coded matrix has the same "
                "ones. Read the whole tensor."
            )
        return found

    def part(self, name: str, rows: tuple[int, int]) -> CodedTensor:
        """Return rows [first, stop) of a tensor, along its first dimension; see :meth:`entry`.

        Decodes the chunks that have some of them.
        """
        return self._built(name, self.entry(name, rows), rows)

    def _built(self, name: str, entry: Entry, rows: tuple[int, int] | None = None) -> CodedTensor:
        found: dict[Key, Symbols] = {}
        for stream in self._streams[name]:
            if stream.is_own:
                distribute(stream, self._matrix(stream, *self._span_rows(stream, rows)), found)
            else:
                self._share(stream)
        if rows is not None:
            found |= self._values_of_rows(name, *rows)
        books = self.codebooks() if self._in_codebook(name) else []
        with guard(f"the tensor {name!r}"):
            return build_tensor(name, entry, ChainMap(found, self._shared), books)

    def _values_of_rows(self, name: str, first: int, stop: int) -> dict[Key, Symbols]:
        """Return the steps, scales and offsets of some rows, where each has its own."""
        keys = [(name, "index", role) for role in ("factors", "offsets")]
        known = {key: self._shared[key] for key in keys if key in self._shared}
        return {k: v[VALUE * first : VALUE * stop] for k, v in known.items() if v.size > VALUE}

    def _span_rows(self, stream: Stream, rows: tuple[int, int] | None) -> tuple[int, int]:
        """Return the rows of a tensor's own stream that hold its rows, or all.

        A row of a stream is one of the tensor, or one of its values if it is raw.
        """
        if rows is None:
            return 0, stream.rows
        size = stream.rows // self._entries[stream.parts[0].name].shape[0]
        return rows[0] * size, rows[1] * size

    def spans(self, name: str, rows: tuple[int, int] | None = None) -> list[Span]:
        """Return the bodies that a look-up of ``name``, or of a part of it, decodes."""
        streams = [*self._streams[name], *(self._side if self._in_codebook(name) else [])]
        spans = {}
        for stream in streams:
            first, stop = self._span_rows(stream, rows if stream.is_own else None)
            for span in self._bodies[stream]:
                chunk = span.chunks[0]
                if len(span.chunks) > 1 or (chunk.first < stop and first < chunk.stop):
                    spans[span.start] = span
        return [spans[start] for start in sorted(spans)]

    def codebooks(self) -> list[Codebook]:
        """Return the codebooks of the file; tensors that share one get the same object."""
        if self._books is None:
            for stream in self._side:
                self._share(stream)
            self._books = build_codebooks(self._opened.header, self._shared)
        return self._books

    def activations(self) -> dict[str, ActivationGrid]:
        """Return the activation grids; decodes the side stream, and only where it holds clips."""
        for stream in self._bodies:
            if stream.holds("clips"):
                self._share(stream)
        return build_activations(self._opened.header, self._shared)

    def check(self) -> None:
        """Decode everything once, so that no later look-up finds the file damaged.

        The first tensors are kept, as far as they are small, until they are looked up.
        """
        self.codebooks()
        room = HELD
        for name in self:
            tensor = self[name]
            room -= _nbytes(tensor)
            if room > 0:
                self._checked[name] = tensor

    def _in_codebook(self, name: str) -> bool:
        return any(leaf.codebook is not None for _, leaf in leaves(self._entries[name]))

    def _share(self, stream: Stream) -> None:
        if stream not in self._shared_seen:
            distribute(stream, self._matrix(stream, 0, stream.rows), self._shared)
            self._shared_seen.add(stream)

    def _matrix(self, stream: Stream, first: int, stop: int) -> Symbols:
        """Return rows of what a stream holds: indices as they are decoded, bytes as uint8."""
        spans = self._bodies[stream]
        if len(spans) == 1:
            return self._chunk(spans[0], stream)[first:stop]
        dtype = np.int32 if stream.is_index else np.uint8
        found = np.empty((stop - first, stream.columns), dtype)
        for span in spans:
            (chunk,) = span.chunks
            begin, end = max(first, chunk.first), min(stop, chunk.stop)
            if begin < end:
                rows = self._decoded(span)[0][begin - chunk.first : end - chunk.first]
                found[begin - first : end - first] = rows
        return found

    def _chunk(self, span: Span, stream: Stream) -> Symbols:
        """Return the one chunk of a stream; others of its body are held for a while."""
        place = self._place[stream]
        if span.chunks[place] in self._held:
            found = self._held.pop(span.chunks[place])
            self._held_bytes -= found.nbytes
            return found
        matrices = self._decoded(span)
        self._hold(
            (chunk, matrix)
            for at, (chunk, matrix) in enumerate(zip(span.chunks, matrices, strict=True))
            if at != place
        )
        return matrices[place]

    def _hold(self, pairs: Iterator[tuple[Chunk, Symbols]]) -> None:
        for chunk, matrix in pairs:
            old = self._held.pop(chunk, None)
            self._held[chunk] = matrix
            self._held_bytes += matrix.nbytes - (0 if old is None else old.nbytes)
        while self._held_bytes > HELD:
            self._held_bytes -= self._held.popitem(last=False)[1].nbytes

    def _decoded(self, span: Span) -> Sequence[Symbols]:
        stream = span.chunks[0].stream
        ahead = self._decoder if stream.is_own else None
        matrices = ahead.decode(span) if ahead else self._opened.decode(span)
        if stream.is_index:
            return matrices
        return [as_bytes(matrix, span.label) for matrix in matrices]


def _nbytes(tensor: CodedTensor) -> int:
    """Return the bytes of a tensor's symbols."""
    if isinstance(tensor, TransformTensor):
        return tensor.coefficients.index.nbytes + tensor.basis.index.nbytes
    return tensor.data.nbytes if isinstance(tensor, RawTensor) else tensor.index.nbytes
