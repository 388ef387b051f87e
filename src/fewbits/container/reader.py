"""Read coded contents from bytes, trusting nothing in the file before it is checked."""

from __future__ import annotations

from collections import ChainMap, OrderedDict, defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from itertools import pairwise
from threading import Lock, RLock

import numpy as np

from ..coded import (
    ActivationGrid,
    Codebook,
    CodedTensor,
    Contents,
    JSONValue,
    RawTensor,
    TransformTensor,
)
from ..coding import Symbols
from ..errors import ConfigError
from .assemble import (
    Key,
    SymbolMap,
    as_bytes,
    build_activations,
    build_codebooks,
    build_tensor,
    distribute,
    guard,
)
from .entries import Entry, MatrixEntry, RawEntry, leaves, rows_entry
from .frame import undelta
from .limits import default_limit
from .open_file import OpenFile, open_source
from .streams import Chunk, Span, Stream
from .threads import OrderedCalls, usable_threads

__all__ = ["LazyTensors", "decode", "decode_activations", "open_delta", "open_file"]
VALUE = 4  # bytes of a step, scale or offset
HELD = 1 << 25  # bytes of decoded symbols that are cached


def decode(data: bytes, *, max_decoded_bytes: int | None = None, threads: int = 0) -> Contents:
    """Decode the file ``data``; raise :class:`CorruptFileError` if it is not valid.

    ``max_decoded_bytes`` bounds the decoded size (4 bytes per index and per value of a transform, 1
    per byte of the rest) before anything is decoded, and thereby also the working memory, a few
    times as much, and the time. The default, 64 MiB + 256 times the file's size, is far above what
    networks compress to (SPEC.md, section 5.1). ``threads``: as in :class:`FileWriter`.
    """
    count = usable_threads(threads)
    with guard("the file"), OrderedCalls[list[Symbols]](count) as calls:
        opened = open_file(data, max_decoded_bytes)
        opened.admit(opened.spans, opened.header.entries.values())
        lazy = LazyTensors(opened, calls)
        tensors = dict(lazy)
        lazy.codebooks()
        header = opened.header
        return Contents(tensors, header.aliases, lazy.activations(), header.metadata)


@contextmanager
def open_delta(
    data: bytes, max_decoded_bytes: int | None, spare: int, threads: int
) -> Iterator[tuple[LazyTensors, Mapping[str, str], Mapping[str, JSONValue]]]:
    """Open a delta; yield its tensors, decoded on access, its aliases and its metadata.

    The default of ``max_decoded_bytes`` is that of :func:`decode` and ``spare`` more.
    """
    limit = default_limit(len(data)) + spare if max_decoded_bytes is None else max_decoded_bytes
    with OrderedCalls[list[Symbols]](usable_threads(threads)) as calls:
        with guard("the delta"):
            fetch = undelta(lambda start, end: data[start:end], len(data))
            opened = open_source(fetch, len(data), limit)
            opened.admit(opened.spans, opened.header.entries.values())
        yield LazyTensors(opened, calls), opened.header.aliases, opened.header.metadata


def open_file(data: bytes, limit: int | None = None) -> OpenFile:
    """Verify frame, header (within ``limit`` bytes), coverage and checksums; decode nothing."""
    opened = open_source(lambda start, end: data[start:end], len(data), limit)
    opened.verify()
    return opened


def decode_activations(opened: OpenFile) -> dict[str, ActivationGrid]:
    """Return the activation grids; decodes the side stream only if it contains clips."""
    clips = [span for span in opened.spans if any(c.stream.holds("clips") for c in span.chunks)]
    opened.admit(clips, ())
    return LazyTensors(opened).activations()


class _Decoder:
    """Decodes bodies of single tensors, prefetching the next ones on other threads.

    Works best if bodies are requested in the order of the file.
    """

    def __init__(self, opened: OpenFile, calls: OrderedCalls[list[Symbols]]) -> None:
        self._opened = opened
        self._calls = calls
        self._submitted: deque[Span] = deque()
        own = [span for span in opened.spans if span.chunks[0].stream.is_own]
        self._next = {a.start: b for a, b in pairwise(own)}

    def decode(self, span: Span) -> list[Symbols]:
        """Return the matrices of a body, and start decoding the ones after it."""
        if not self._submitted or self._submitted[0].start != span.start:
            self._submitted.clear()
            self._calls.clear()
            self._submit(span)
        while not self._calls.is_full and self._submitted[-1].start in self._next:
            self._submit(self._next[self._submitted[-1].start])
        self._submitted.popleft()
        return self._calls.take()

    def _submit(self, span: Span) -> None:
        self._submitted.append(span)
        self._calls.submit(self._opened.decode, span)


class LazyTensors(Mapping[str, CodedTensor]):
    """Name to coded tensor; each lookup reads and decodes the bodies of that tensor.

    Parts shared by many tensors are decoded once and kept: steps, scales, codebooks, and tensors of
    at most 64 KiB. A lookup raises :class:`CorruptFileError` if bodies of the tensor are damaged.
    If ``calls`` has several threads, they decode ahead in the order of the file. Without ``calls``,
    several threads may look up tensors at once.

    Attributes:
        shapes: name to shape, from the header alone.
        dtypes: name to dtype when restored, from the header alone.
        is_concurrent: whether several threads may look up tensors at once: without ``calls``.
    """

    def __init__(self, opened: OpenFile, calls: OrderedCalls[list[Symbols]] | None = None) -> None:
        self._opened = opened
        self._entries = opened.header.entries
        self.shapes = {name: entry.shape for name, entry in self._entries.items()}
        self.dtypes = {name: entry.dtype for name, entry in self._entries.items()}
        self.is_concurrent = calls is None
        self._decoder = None if calls is None else _Decoder(opened, calls)
        self._streams: defaultdict[str, list[Stream]] = defaultdict(list)
        self._bodies: defaultdict[Stream, list[Span]] = defaultdict(list)
        self._place: dict[Stream, int] = {}  # position within a shared body
        self._side: list[Stream] = []
        self._shared: SymbolMap = {}
        self._shared_seen: set[Stream] = set()
        self._books: list[Codebook] | None = None
        self._held: OrderedDict[Chunk, Symbols] = OrderedDict()
        self._held_bytes = 0
        self._checked: dict[str, CodedTensor] = {}
        self._lock = RLock()  # for what lookups share: parts of several tensors, cached matrices
        self._turns: dict[int, Lock] = {}  # by the start of a body
        self._index_spans()

    def _index_spans(self) -> None:
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
        return self._build(name, self._entries[name])

    def entry(self, name: str, rows: tuple[int, int] | None = None) -> Entry:
        """Return the header's entry of a tensor, or the entry that some of its rows would have.

        Raises ConfigError for rows that it lacks, or if rows of its matrix are not its rows.
        """
        whole = self._entries[name]
        entry = whole if rows is None else rows_entry(whole, *rows)
        if entry is None:
            raise ConfigError(
                f"cannot read rows {rows} of {name!r} ({whole.kind} of shape {whole.shape}): they "
                "must be rows of its first dimension and of its coded matrix. Read the whole "
                "tensor."
            )
        return entry

    def part(self, name: str, rows: tuple[int, int]) -> CodedTensor:
        """Return rows [first, stop) of a tensor's first dimension; see :meth:`entry`.

        Decodes only the chunks that contain them.
        """
        return self._build(name, self.entry(name, rows), rows)

    def places(self, name: str) -> list[slice]:
        """Return places among a tensor's values that :meth:`piece` can read alone, in order.

        Each is a chunk, so that decoding a large tensor takes the memory of one. There is a single
        place, ``slice(None)``, if the tensor is a single chunk, or if its values are not in the
        order of its chunks (a transform, a transposed convolution).
        """
        entry = self._entries[name]
        own = [stream for stream in self._streams[name] if stream.is_own]
        spans = self._bodies[own[0]] if len(own) == 1 else []
        raw = isinstance(entry, RawEntry)
        whole = entry.shape and rows_entry(entry, 0, entry.shape[0])
        if len(spans) < 2 or not (raw or (whole and own[0].rows == entry.shape[0])):
            return [slice(None)]
        width = 1 if raw else own[0].columns
        chunks = [span.chunks[0] for span in spans]
        return [slice(width * chunk.first, width * chunk.stop) for chunk in chunks]

    def piece(self, name: str, place: slice) -> CodedTensor:
        """Return the part of a tensor at one of its :meth:`places`; of any shape but the whole."""
        entry = self._entries[name]
        if place == slice(None):
            return self[name]
        if isinstance(entry, RawEntry):
            return self._raw_part(name, place.start, place.stop)
        columns = entry.matrix[1] if isinstance(entry, MatrixEntry) else 1
        return self.part(name, (place.start // columns, place.stop // columns))

    def _raw_part(self, name: str, first: int, stop: int) -> CodedTensor:
        """Return values [first, stop) of a raw tensor that has streams of its own."""
        own: dict[Key, Symbols] = {}
        (stream,) = self._streams[name]
        distribute(stream, self._matrix(stream, first, stop), own)
        entry = replace(self._entries[name], shape=(stop - first,))
        with guard(f"the tensor {name!r}"):
            return build_tensor(name, entry, own, [])

    def _build(self, name: str, entry: Entry, rows: tuple[int, int] | None = None) -> CodedTensor:
        own: dict[Key, Symbols] = {}
        for stream in self._streams[name]:
            if stream.is_own:
                distribute(stream, self._matrix(stream, *self._span_rows(stream, rows)), own)
            else:
                self._share(stream)
        if rows is not None:
            own |= self._values_of_rows(name, *rows)
        books = self.codebooks() if self._uses_codebook(name) else []
        with guard(f"the tensor {name!r}"):
            return build_tensor(name, entry, ChainMap(own, self._shared), books)

    def _values_of_rows(self, name: str, first: int, stop: int) -> dict[Key, Symbols]:
        """Return steps, scales and offsets of some rows, if each row has its own."""
        keys = [(name, "index", role) for role in ("factors", "offsets")]
        known = {key: self._shared[key] for key in keys if key in self._shared}
        return {k: v[VALUE * first : VALUE * stop] for k, v in known.items() if v.size > VALUE}

    def _span_rows(self, stream: Stream, rows: tuple[int, int] | None) -> tuple[int, int]:
        """Return the rows of a tensor's own stream that hold the given rows of the tensor.

        A row of a stream is a row of the tensor, or one of its values if the tensor is raw.
        """
        if rows is None:
            return 0, stream.rows
        size = stream.rows // self._entries[stream.parts[0].name].shape[0]
        return rows[0] * size, rows[1] * size

    def spans(self, name: str, rows: tuple[int, int] | None = None) -> list[Span]:
        """Return the bodies that a lookup of ``name``, or of some of its rows, decodes."""
        streams = [*self._streams[name], *(self._side if self._uses_codebook(name) else [])]
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
        with self._lock:
            if self._books is None:
                for stream in self._side:
                    self._share(stream)
                self._books = build_codebooks(self._opened.header, self._shared)
            return self._books

    def activations(self) -> dict[str, ActivationGrid]:
        """Return the activation grids; decodes the side stream only if it contains clips."""
        for stream in self._bodies:
            if stream.holds("clips"):
                self._share(stream)
        return build_activations(self._opened.header, self._shared)

    def check(self) -> None:
        """Decode everything once, so that later lookups cannot fail because of damage.

        The first small tensors are kept until they are looked up.
        """
        self.codebooks()
        room = HELD
        for name in self:
            places = self.places(name)
            for place in places:
                tensor = self.piece(name, place)
            if len(places) == 1:
                room -= _nbytes(tensor)
                if room > 0:
                    self._checked[name] = tensor

    def _uses_codebook(self, name: str) -> bool:
        return any(leaf.codebook is not None for _, leaf in leaves(self._entries[name]))

    def _share(self, stream: Stream) -> None:
        with self._lock:
            if stream not in self._shared_seen:
                distribute(stream, self._matrix(stream, 0, stream.rows), self._shared)
                self._shared_seen.add(stream)

    def _matrix(self, stream: Stream, first: int, stop: int) -> Symbols:
        """Return rows of a stream: indices as decoded, bytes as uint8."""
        spans = self._bodies[stream]
        if len(spans) == 1:
            return self._chunk(spans[0], stream)[first:stop]
        dtype = np.int32 if stream.is_index else np.uint8
        result = np.empty((stop - first, stream.columns), dtype)
        for span in spans:
            (chunk,) = span.chunks
            begin, end = max(first, chunk.first), min(stop, chunk.stop)
            if begin < end:
                rows = self._decode(span)[0][begin - chunk.first : end - chunk.first]
                result[begin - first : end - first] = rows
        return result

    def _chunk(self, span: Span, stream: Stream) -> Symbols:
        """Return the only chunk of a stream; cache the other chunks of its body."""
        place = self._place[stream]
        with self._turn(span):
            held = self._take_held(span.chunks[place])
            if held is not None:
                return held
            matrices = self._decode(span)
            self._hold(
                (chunk, matrix)
                for at, (chunk, matrix) in enumerate(zip(span.chunks, matrices, strict=True))
                if at != place
            )
            return matrices[place]

    def _turn(self, span: Span) -> AbstractContextManager[object]:
        """Let one thread at a time decode a body of several chunks: the others find theirs held."""
        if len(span.chunks) == 1:
            return nullcontext()
        with self._lock:
            return self._turns.setdefault(span.start, Lock())

    def _take_held(self, chunk: Chunk) -> Symbols | None:
        with self._lock:
            held = self._held.pop(chunk, None)
            if held is not None:
                self._held_bytes -= held.nbytes
            return held

    def _hold(self, pairs: Iterator[tuple[Chunk, Symbols]]) -> None:
        with self._lock:
            for chunk, matrix in pairs:
                old = self._held.pop(chunk, None)
                self._held[chunk] = matrix
                self._held_bytes += matrix.nbytes - (0 if old is None else old.nbytes)
            while self._held_bytes > HELD:
                self._held_bytes -= self._held.popitem(last=False)[1].nbytes

    def _decode(self, span: Span) -> Sequence[Symbols]:
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
