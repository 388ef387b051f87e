"""Write coded contents to bytes in one pass, deterministically."""

from __future__ import annotations

import io
import zlib
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..coded import (
    ActivationGrid,
    AffineTensor,
    Codebook,
    CodebookTensor,
    CodedTensor,
    Contents,
    GridTensor,
    JSONValue,
    RawTensor,
    TransformTensor,
)
from ..coding import CODECS, EFFORTS, MAX_SHARED_SYMBOLS, Layout, Symbols, encode_run, is_effort
from ..coding import Stream as Body
from ..errors import ConfigError, require
from .entries import Entry, RawEntry, describe, leaves
from .frame import DELTA_MAGIC, MAGIC, MAX_HEADER, PREFIX, pack_index
from .header import Header, check_name, dump_header, make_header
from .limits import Limits, body_work, entry_work
from .streams import CHECKSUM, Chunk, Part, chunks, own_streams, shared_streams
from .threads import OrderedCalls, usable_threads

__all__ = ["FileWriter", "encode", "write_contents"]

Run: TypeAlias = list[tuple[Symbols, Layout]]

RESERVE = 1 << 24  # units of work reserved for the header
SINCE = {"affine": 1}  # minor versions that brought kinds of tensors
DELTA_MINOR = 1  # the one that brought deltas


def encode(contents: Contents, effort: str = "balanced", threads: int = 0) -> bytes:
    """Return the bytes of a file with ``contents``; see :class:`FileWriter`."""
    file = io.BytesIO()
    write_contents(contents, file, effort, threads)
    return file.getvalue()


def write_contents(
    contents: Contents, file: BinaryIO, effort: str = "balanced", threads: int = 0
) -> int:
    """Write a file with ``contents``, and return its length; see :class:`FileWriter`."""
    with FileWriter(file, effort, threads, delta=contents.is_delta) as writer:
        for name, tensor in contents.tensors.items():
            writer.add(name, tensor)
        return writer.finish(contents.aliases, contents.activations, contents.metadata)


class FileWriter:
    """Writes a file tensor by tensor, without seeking; the index comes last.

    Keeps the small tensors, steps and scales in memory until :meth:`finish`, and a few chunks of 2
    million symbols per thread.

    Bodies that would exceed a reader's default limit on work are coded by faster codecs.

    Args:
        file: open for writing bytes.
        effort: "fast", "balanced" or "smallest"; the decoded content is the same.
        threads: number of threads that encode; 0 for one per core. The bytes do not depend on it.
        delta: whether the file is a delta (SPEC.md, section 9), which begins otherwise.

    Raises ConfigError for an unknown effort, and for names, metadata or shapes beyond the bounds of
    the format (SPEC.md). Cost: about 0.02 microseconds per weight for "fast", 0.5 for the others.
    """

    def __init__(
        self, file: BinaryIO, effort: str = "balanced", threads: int = 0, *, delta: bool = False
    ) -> None:
        require(is_effort(effort), "effort", f"one of {', '.join(EFFORTS)}", effort)
        self._file = file
        self._effort = effort
        self._calls: OrderedCalls[tuple[Run, list[Body]]] = OrderedCalls(usable_threads(threads))
        self._entries: dict[str, Entry] = {}
        self._codebooks: dict[bytes, Codebook] = {}
        self._kept: dict[tuple[str, str, str], NDArray[np.uint8]] = {}
        self._run: Run = []
        self._run_size = 0  # symbols in the current run
        self._seen = 0  # symbols in all runs
        self._units = 0  # units of work so far
        self._length = 0  # bytes written
        self._codecs: list[int] = []
        self._lengths: list[int] = []
        self._least = DELTA_MINOR if delta else 0  # minor version of the file
        self._write((DELTA_MAGIC if delta else MAGIC) + PREFIX[len(MAGIC) :])

    def __enter__(self) -> FileWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._calls.__exit__(kind, error, trace)

    def add(self, name: str, tensor: CodedTensor) -> None:
        """Write a tensor under a new name."""
        require(name not in self._entries, "name", "a new one", name)
        check_name(name)
        entry = self._entries[name] = describe(name, tensor, self._codebooks)
        self._units += entry_work(entry)
        self._keep(name, entry, tensor)
        for stream in own_streams(name, entry):
            if not stream.rows * stream.columns:
                continue
            symbols = _symbols(tensor, stream.parts[0].role).reshape(stream.rows, stream.columns)
            for chunk in chunks(stream):
                self._add_chunk(symbols[chunk.first : chunk.stop], chunk)

    def finish(
        self,
        aliases: Mapping[str, str],
        activations: Mapping[str, ActivationGrid],
        metadata: Mapping[str, JSONValue],
    ) -> int:
        """Write the kept parts and the index; return the file's length in bytes."""
        books = tuple(self._codebooks.values())
        header = make_header(self._entries, books, aliases, activations, metadata)
        for place, book in enumerate(books):
            self._kept[str(place), "", "levels"] = _bytes_of(book.values)
        clips = [grid.clip for grid in activations.values()]
        with np.errstate(over="ignore", under="ignore"):
            self._kept["", "", "clips"] = _bytes_of(np.array(clips, np.float32))
        for stream in shared_streams(header):
            parts = [self._kept[_key(part)] for part in stream.parts]
            symbols = np.concatenate(parts).reshape(stream.rows, stream.columns)
            for chunk in chunks(stream):
                self._add_chunk(symbols[chunk.first : chunk.stop], chunk)
        self._flush()
        while len(self._calls):
            self._write_run()
        return self._write_index(header.with_bodies(self._codecs, self._lengths))

    def _keep(self, name: str, entry: Entry, tensor: CodedTensor) -> None:
        """Keep what is written at the end: steps, scales, offsets and small raw tensors."""
        for role, leaf in leaves(entry):
            part = _leaf(tensor, role)
            if leaf.factors:
                values = part.scale if isinstance(part, CodebookTensor) else part.step
                self._kept[name, role, "factors"] = _bytes_of(values)
            if leaf.offsets and isinstance(part, GridTensor):
                self._kept[name, role, "offsets"] = _bytes_of(part.offset)
            if isinstance(part, AffineTensor):
                self._kept[name, role, "offsets"] = _bytes_of(part.minimum)
        if isinstance(entry, RawEntry) and entry.grouped and isinstance(tensor, RawTensor):
            self._kept[name, "", "raw"] = tensor.data

    def _add_chunk(self, symbols: Symbols, chunk: Chunk) -> None:
        """Add a chunk to the current run, whose chunks may share a body, or code it alone."""
        layout, joins = chunk.layout, chunk.is_whole and chunk.stream.is_index
        if not joins or self._run_size + layout.size > MAX_SHARED_SYMBOLS:
            self._flush()
        self._run.append((symbols, layout))
        self._run_size += layout.size
        if not joins:
            self._flush()

    def _flush(self) -> None:
        """Submit the current run for encoding."""
        if not self._run:
            return
        self._seen += self._run_size
        run, self._run, self._run_size = self._run, [], 0
        effort = self._effort if self._seen <= EFFORTS[self._effort].symbols else "fast"
        while self._calls.is_full:
            self._write_run()
        self._calls.submit(_encode, run, effort)

    def _write_run(self) -> None:
        """Write the bodies of the first run that was submitted."""
        run, bodies = self._calls.take()
        units = _reading_work(bodies, run)
        length = self._length + sum(len(body.data) + CHECKSUM for body in bodies)
        if self._units + units > Limits(length).work - RESERVE:
            fast = _encode(run, "fast")[1]
            bodies = min(bodies, fast, key=lambda candidate: _reading_work(candidate, run))
            units = _reading_work(bodies, run)
        self._units += units
        for body in bodies:
            checksum = zlib.crc32(body.data).to_bytes(CHECKSUM, "little")
            self._write(body.data + checksum)
            self._codecs += [CODECS[body.codec].number] * len(body.members)
            self._lengths += [len(body.data), *[0] * (len(body.members) - 1)]

    def _write_index(self, header: Header) -> int:
        text = dump_header(header)
        if len(text) > MAX_HEADER:
            raise ConfigError(
                f"the header takes {len(text)} bytes for {len(header.entries)} tensors and the "
                f"metadata; the limit is {MAX_HEADER}. Shorten the metadata."
            )
        used = {codec.since[1] for codec in CODECS.values() if codec.number in self._codecs}
        used |= {SINCE[entry.kind] for entry in header.entries.values() if entry.kind in SINCE}
        minor = max(used, default=0)
        index = pack_index(text, self._length - len(PREFIX), max(minor, self._least))
        self._write(index)
        return self._length

    def _write(self, data: bytes) -> None:
        """Write all of ``data``; an unbuffered file may accept only part of it at a time."""
        left = memoryview(data)
        while left:
            written = self._file.write(left)
            if not written:
                raise OSError(f"the file accepts none of {len(left)} bytes: use blocking mode")
            left = left[written:]
        self._length += len(data)


def _encode(run: Run, effort: str) -> tuple[Run, list[Body]]:
    """Encode a run; return it with its bodies."""
    matrices, layouts = zip(*run, strict=True)
    return run, encode_run(matrices, layouts, effort)


def _reading_work(bodies: Sequence[Body], run: Run) -> int:
    """Return the units of work for reading the bodies of a run."""
    return sum(
        body_work(CODECS[body.codec], [run[at][1].size for at in body.members]) for body in bodies
    )


def _key(part: Part) -> tuple[str, str, str]:
    return part.name, part.leaf, part.role


def _symbols(tensor: CodedTensor, role: str) -> Symbols:
    return tensor.data if isinstance(tensor, RawTensor) else _leaf(tensor, role).index


def _leaf(tensor: CodedTensor, role: str) -> GridTensor | AffineTensor | CodebookTensor:
    if isinstance(tensor, TransformTensor):
        return tensor.coefficients if role == "coefficients" else tensor.basis
    if isinstance(tensor, RawTensor):
        raise TypeError("a raw tensor has no index")
    return tensor


def _bytes_of(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(values, "<f4").view(np.uint8)
