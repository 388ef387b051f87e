"""Read files on disk within bounds, and inspect them without decoding weights.

A file may be the only tensor of a .safetensors file; every function here finds it there.
"""

from __future__ import annotations

import io
import math
import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import BinaryIO, TypeVar

from ..coded import (
    RAW_DTYPES,
    ActivationGrid,
    CodedTensor,
    Contents,
    JSONValue,
    SizeReport,
    SizeRow,
    html_table,
    shortened,
)
from ..coding import Symbols
from ..errors import ConfigError, CorruptFileError, did_you_mean
from .assemble import guard
from .entries import Entry
from .frame import DELTA_MAGIC, located, undelta
from .open_file import Fetch, OpenFile, codec_of_span, open_source
from .reader import LazyTensors, decode, decode_activations
from .streams import CHECKSUM, Part, Stream
from .threads import OrderedCalls, usable_threads

__all__ = [
    "FileInfo",
    "inspect",
    "keep_open",
    "measure",
    "measure_file",
    "read",
    "read_lazily",
    "read_tensor",
    "size_report",
]


T = TypeVar("T")
PAYLOAD = ("index", "coefficients", "raw")


@dataclass(frozen=True)
class FileInfo:
    """Verified facts about a file, obtained without decoding its weights.

    Attributes:
        path: the file.
        version: (major, minor) version of its format.
        report: itemised size.
        aliases: other names of tied tensors.
        activations: layer name to the grid of its quantized input.
        metadata: recipe, source and reasons, as the writer stored them.
    """

    path: str
    version: tuple[int, int]
    report: SizeReport
    aliases: Mapping[str, str]
    activations: Mapping[str, ActivationGrid]
    metadata: Mapping[str, JSONValue]

    def to_dict(self) -> dict[str, object]:
        """Return all fields as JSON-ready values."""
        return {
            "path": self.path,
            "version": list(self.version),
            "size": self.report.to_dict(),
            "aliases": dict(self.aliases),
            "activations": {name: asdict(grid) for name, grid in self.activations.items()},
            "metadata": dict(self.metadata),
        }

    def __repr__(self) -> str:
        version = ".".join(map(str, self.version))
        inputs = f", {len(self.activations)} quantized inputs" if self.activations else ""
        return (
            f"<FileInfo of {shortened(self.path)}, format {version}: {len(self.report.rows)} parts"
            f"{inputs}, {self.report.summary}>"
        )

    def _repr_html_(self) -> str:
        lines = (f"{key}: {shortened(str(value), 200)}" for key, value in self.metadata.items())
        rows = [(f"input {site}", f"{grid.bits} bits") for site, grid in self.activations.items()]
        rows += [(alias, f"same tensor as {name}") for alias, name in self.aliases.items()]
        more = html_table(("also", ""), rows) if rows else ""
        head = html_table((self.path,), [(line,) for line in lines])
        return f"{head}{self.report._repr_html_()}{more}"


def read(
    path: str | os.PathLike[str], *, max_decoded_bytes: int | None = None, threads: int = 0
) -> Contents:
    """Read the file at ``path``; see :func:`decode`."""
    limit = max_decoded_bytes
    return _read_whole(path, lambda data: decode(data, max_decoded_bytes=limit, threads=threads))


@contextmanager
def read_lazily(
    path: str | os.PathLike[str], *, max_decoded_bytes: int | None = None, threads: int = 0
) -> Iterator[tuple[LazyTensors, Mapping[str, str]]]:
    """Open the file at ``path``; yield its tensors, decoded on access, and its aliases.

    The tensors can be used only inside the block. See :func:`decode` for ``max_decoded_bytes`` and
    ``threads``.
    """
    count = usable_threads(threads)
    with _open(path, max_decoded_bytes) as opened, OrderedCalls[list[Symbols]](count) as calls:
        opened.admit(opened.spans, opened.header.entries.values())
        yield LazyTensors(opened, calls), opened.header.aliases


@contextmanager
def keep_open(
    path: str | os.PathLike[str], *, max_decoded_bytes: int | None = None
) -> Iterator[tuple[LazyTensors, Mapping[str, str]]]:
    """Open the file at ``path`` for lookups over a long time, by several threads at once.

    Verifies all checksums first, which reads the file once. Yields as :func:`read_lazily` does;
    the block may last as long as the tensors are needed. A lookup raises CorruptFileError if the
    file has been changed in place since; a file that replaces it, or its removal, does no harm
    where the system lets go of names only (all but Windows, which refuses both).
    """
    with _open(path, max_decoded_bytes, watched=True) as opened:
        opened.admit(opened.spans, opened.header.entries.values())
        opened.verify()
        yield LazyTensors(opened), opened.header.aliases


def read_tensor(
    path: str | os.PathLike[str],
    name: str,
    rows: tuple[int, int] | None = None,
    *,
    max_decoded_bytes: int | None = None,
) -> CodedTensor:
    """Read one tensor of the file at ``path``, by its name or an alias.

    Reads only the index, the tensor's own bodies and those it shares with others, and verifies only
    their checksums. ``rows``: (first, stop) of the first dimension; only chunks with these rows are
    read. Raises ConfigError for a name or rows that are not in the file.
    """
    with _open(path, max_decoded_bytes) as opened:
        aliases, tensors = opened.header.aliases, LazyTensors(opened)
        own = aliases.get(name, name)
        if own not in tensors:
            names = [*tensors, *aliases]
            raise ConfigError(
                f"{os.fspath(path)}: no tensor {name!r} among its {len(names)}."
                + did_you_mean(name, names)
            )
        wanted = tensors.entry(own, rows)
        opened.admit(tensors.spans(own, rows), [wanted])
        return tensors[own] if rows is None else tensors.part(own, rows)


def inspect(path: str | os.PathLike[str]) -> FileInfo:
    """Check header and checksums of the file at ``path``, and return what they say about it.

    Reads the whole file, but holds only its index and one body at a time. The file may be a delta.
    """
    with _open(path, None, deltas=True) as opened, guard("the file"):
        opened.verify()
        return FileInfo(
            path=os.fspath(path),
            version=opened.version,
            report=replace(size_report(opened), reasons=_skipped(opened.header.metadata)),
            aliases=opened.header.aliases,
            activations=decode_activations(opened),
            metadata=opened.header.metadata,
        )


def measure(data: bytes) -> SizeReport:
    """Itemise the bytes of the file or delta ``data``; the rows sum to ``len(data)``."""
    with guard("the file"):
        opened = open_source(*_whole(lambda start, end: data[start:end], len(data)))
        opened.verify()
        return size_report(opened)


def measure_file(file: BinaryIO) -> SizeReport:
    """Itemise the bytes of an open file, or delta, without reading its bodies."""
    file.flush()
    with guard("the file"):
        return size_report(open_source(*_whole(_fetch_from(file), file.seek(0, os.SEEK_END))))


def _whole(fetch: Fetch, size: int) -> tuple[Fetch, int]:
    """Return how to fetch the bytes of a file, which may be wrapped or a delta, and its size."""
    fetch, size = located(fetch, size)
    is_delta = fetch(0, min(size, len(DELTA_MAGIC))) == DELTA_MAGIC
    return (undelta(fetch, size) if is_delta else fetch), size


def _skipped(metadata: Mapping[str, JSONValue]) -> dict[str, str]:
    """Return why tensors were left in float, as far as the metadata says."""
    skipped = metadata.get("skipped")
    reasons = skipped.items() if isinstance(skipped, dict) else ()
    return {name: why for name, why in reasons if isinstance(why, str)}


@contextmanager
def _open(
    path: str | os.PathLike[str],
    limit: int | None,
    *,
    watched: bool = False,
    deltas: bool = False,
) -> Iterator[OpenFile]:
    # Unbuffered: only the requested bytes are read.
    with Path(path).open("rb", buffering=0) as raw, _name_in_errors(path):
        file: BinaryIO = raw if raw.seekable() else io.BytesIO(raw.read())
        fetch = _fetch_from(file)
        if watched:
            fetch = _while_unchanged(fetch, raw.fileno(), path)
        with guard("the file"):
            find = _whole if deltas else located
            fetch, size = find(fetch, file.seek(0, os.SEEK_END))
            opened = open_source(fetch, size, limit)
        yield opened


def _while_unchanged(fetch: Fetch, descriptor: int, path: str | os.PathLike[str]) -> Fetch:
    """Return ``fetch`` with a check that nobody has written to the file since now."""

    def state() -> tuple[int, int]:
        status = os.fstat(descriptor)
        return status.st_size, status.st_mtime_ns

    before = state()

    def checked(start: int, end: int) -> bytes:
        if state() != before:
            raise CorruptFileError(
                f"{os.fspath(path)}: the file was changed after it was opened, and its weights are "
                "still read from it. Load it again, and write changed files under another name or "
                "atomically, as save does."
            )
        return fetch(start, end)

    return checked


def _fetch_from(file: BinaryIO) -> Fetch:
    lock = threading.Lock()  # threads share the file's position

    def fetch(start: int, end: int) -> bytes:
        pieces = []
        with lock:
            file.seek(start)
            while start < end:
                piece = file.read(end - start)
                if not piece:
                    raise CorruptFileError(f"the file ended at byte {start} while it was read")
                pieces.append(piece)
                start += len(piece)
        return b"".join(pieces)

    return fetch


@contextmanager
def _name_in_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except CorruptFileError as error:
        raise CorruptFileError(f"{os.fspath(path)}: {error}") from error


def _read_whole(path: str | os.PathLike[str], use: Callable[[bytes], T]) -> T:
    data = Path(path).read_bytes()
    with _name_in_errors(path):
        fetch, size = located(lambda start, end: data[start:end], len(data))
        return use(data if size == len(data) else fetch(0, size))


@dataclass
class _Tally:
    payload: int = 0
    side: int = 0
    codecs: dict[str, None] = field(default_factory=dict)


def size_report(opened: OpenFile) -> SizeReport:
    """Return one row per tensor and codebook, one for the activations and one for the frame.

    Bytes that several tensors share are apportioned by their numbers of values, with the running
    total rounded down, so that the rows still sum to the file (SPEC.md, section 3.1).
    """
    tallies: defaultdict[str, _Tally] = defaultdict(_Tally)
    for parts, size, codecs in _shares(opened):
        total = sum(part.values for part in parts)
        before = 0
        for part in parts:
            share = size * (before + part.values) // total - size * before // total
            before += part.values
            tally = tallies[_row_name(part)]
            if part.role in PAYLOAD:
                tally.payload += share
            else:
                tally.side += share
            if part.role in (*PAYLOAD, "basis"):
                tally.codecs |= codecs
    entries = opened.header.entries.items()
    rows = [_tensor_row(name, entry, tallies["t" + name]) for name, entry in entries]
    return SizeReport((*rows, *_other_rows(opened, tallies)))


def _shares(opened: OpenFile) -> Iterator[tuple[Sequence[Part], int, dict[str, None]]]:
    """Yield parts, bytes and codecs of each stream, or of all streams that share a body."""
    shares: dict[Stream, tuple[Sequence[Part], int, dict[str, None]]] = {}
    for span in opened.spans:
        first = span.chunks[0].stream
        _, size, codecs = shares.get(first, ((), 0, {}))
        parts = [part for chunk in span.chunks for part in chunk.stream.parts]
        name = codec_of_span(span).name
        shares[first] = parts, size + span.end - span.start + CHECKSUM, codecs | {name: None}
    yield from shares.values()


def _row_name(part: Part) -> str:
    if part.role == "levels":
        return f"(codebook {part.name})"
    return "(activations)" if part.role == "clips" else "t" + part.name


def _tensor_row(name: str, entry: Entry, tally: _Tally) -> SizeRow:
    elements = math.prod(entry.shape)
    return SizeRow(
        name=name,
        kind=entry.kind,
        shape=entry.shape,
        codecs="+".join(tally.codecs),
        elements=elements,
        float_bytes=RAW_DTYPES[entry.dtype] * elements,
        payload=tally.payload,
        side=tally.side,
        dtype=entry.dtype,
    )


def _other_rows(opened: OpenFile, tallies: dict[str, _Tally]) -> list[SizeRow]:
    rows = []
    for place in range(len(opened.header.codebooks)):
        name = f"(codebook {place})"
        rows.append(SizeRow(name, "shared", (), "", 0, 0, 0, tallies[name].side, ""))
    if "(activations)" in tallies:
        side = tallies["(activations)"].side
        rows.append(SizeRow("(activations)", "file", (), "", 0, 0, 0, side, ""))
    rows.append(SizeRow("(header)", "file", (), "", 0, 0, 0, opened.frame_bytes, ""))
    return rows
