"""Bytes to contents: nothing in the file is believed before it is checked."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..coded import (
    ActivationGrid,
    Codebook,
    CodebookTensor,
    CodedTensor,
    Contents,
    GridTensor,
    RawTensor,
    TransformTensor,
)
from ..coding import Symbols, decode_stream, name_of
from ..errors import CorruptFileError
from .entries import Entry, MatrixEntry, RawEntry, TransformEntry
from .header import Header, parse_header
from .prefix import split_prefix
from .streams import CHECKSUM, Span, Stream, spans

__all__ = ["Opened", "decode", "decode_activations", "default_limit", "guard", "open_file"]

# (name of the tensor, leaf, role) to its values
Found: TypeAlias = dict[tuple[str, str, str], Symbols]


@dataclass(frozen=True)
class Opened:
    """A file whose header and checksums are right; no stream has been decoded."""

    data: bytes
    version: tuple[int, int]
    header: Header
    header_bytes: int
    payload_start: int
    spans: tuple[Span, ...]


def decode(data: bytes, *, max_decoded_bytes: int | None = None) -> Contents:
    """Return what the file ``data`` holds; :class:`CorruptFileError` for anything else.

    ``max_decoded_bytes`` bounds what is kept of the file (4 bytes for each index and each value of
    a transform, 1 for each byte of the rest) before any of it is taken, and with it the working
    memory, which is a few times as much; by default 64 MiB + 1024 times the file's size, far above
    what networks compress to.
    """
    limit = default_limit(data) if max_decoded_bytes is None else max_decoded_bytes
    with guard("the file"):
        opened = open_file(data, limit)
        _check_size(opened, opened.spans, limit, _products(opened.header))
        found: Found = {}
        for span in opened.spans:
            _distribute(span.stream, _decode_span(data, span), found)
        return _assemble(opened.header, found)


def default_limit(data: bytes) -> int:
    """Return how many bytes a file may decode to unless the caller knows better."""
    return 2**26 + 1024 * len(data)


def open_file(data: bytes, limit: int) -> Opened:
    """Check prefix, header (within ``limit`` bytes), coverage and checksums; decode nothing."""
    prefix = split_prefix(data, limit)
    header = parse_header(prefix.header, prefix.version, limit)
    found = spans(header, prefix.payload_start, len(data))
    for span in found:
        stored = data[span.end : span.end + CHECKSUM]
        if zlib.crc32(memoryview(data)[span.start : span.end]) != int.from_bytes(stored, "little"):
            raise CorruptFileError(
                f"{_where(span)} fails its checksum: the file is damaged. Fetch it again."
            )
    start = prefix.payload_start
    return Opened(data, prefix.version, header, len(prefix.header), start, tuple(found))


def decode_activations(opened: Opened) -> dict[str, ActivationGrid]:
    """Return the activation grids; decodes the side stream, and only where it holds clips."""
    found: Found = {}
    for span in opened.spans:
        if any(part.role == "clips" for part in span.stream.parts):
            _check_size(opened, (span,), default_limit(opened.data))
            _distribute(span.stream, _decode_span(opened.data, span), found)
    return _activations(opened.header, found)


def _products(header: Header) -> int:
    """Return the bytes of the products of transforms: only they outgrow their symbols."""
    entries = header.entries.values()
    return sum(4 * math.prod(e.shape) for e in entries if isinstance(e, TransformEntry))


def _check_size(opened: Opened, wanted: tuple[Span, ...], limit: int, products: int = 0) -> None:
    total = sum(span.stream.width * span.stream.rows * span.stream.columns for span in wanted)
    total += 32 * opened.header_bytes + products
    if total > limit:
        raise CorruptFileError(
            f"the file decodes to about {total} bytes, more than the limit of {limit}. "
            f"If you trust it, pass max_decoded_bytes={total} to fewbits.load, or "
            f"--max-decoded-mib {-(-total >> 20)} on the command line."
        )


@contextmanager
def guard(what: str) -> Iterator[None]:
    """Turn every failure of reading into a CorruptFileError, panics of libraries included."""
    try:
        yield
    except CorruptFileError:
        raise
    except BaseException as error:
        # A panic of the coder's library is a BaseException; hostile bytes must not end a process.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise CorruptFileError(
            f"{what} cannot be decoded: {type(error).__name__}: {error}. "
            "It is damaged, or not written by fewbits: fetch it again."
        ) from error


def _where(span: Span) -> str:
    return f"{span.stream.label} (bytes {span.start} to {span.end})"


def _decode_span(data: bytes, span: Span) -> Symbols:
    stream = span.stream
    with guard(_where(span)):
        try:
            body = data[span.start : span.end]
            return decode_stream(name_of(span.codec), body, stream.rows, stream.columns)
        except CorruptFileError as error:
            raise CorruptFileError(f"{_where(span)} is damaged: {error}") from error


def _distribute(stream: Stream, symbols: Symbols, found: Found) -> None:
    part = stream.parts[0]
    if stream.is_index:
        found[part.name, part.role, "index"] = symbols.astype(np.int32, copy=False)
        return
    if symbols.min() < 0 or symbols.max() > 255:
        raise CorruptFileError(f"{stream.label}: there are symbols that are no bytes")
    values = symbols.astype(np.uint8, copy=False)
    start = 0
    for part in stream.parts:
        found[part.name, part.leaf, part.role] = values[start : start + part.values].reshape(-1)
        start += part.values


def _floats(found: Found, key: tuple[str, str, str]) -> NDArray[np.float32]:
    return found.get(key, np.zeros(0, np.uint8)).view("<f4").astype(np.float32)


def _assemble(header: Header, found: Found) -> Contents:
    with guard("a codebook"):
        codebooks = [
            Codebook(_floats(found, (str(place), "", "levels")))
            for place in range(len(header.codebooks))
        ]
    tensors = {}
    for name, entry in header.entries.items():
        with guard(f"the tensor {name!r}"):
            tensors[name] = _tensor(name, entry, found, codebooks)
    activations = _activations(header, found)
    return Contents(tensors, header.aliases, activations, header.metadata)


def _tensor(name: str, entry: Entry, found: Found, codebooks: list[Codebook]) -> CodedTensor:
    if isinstance(entry, RawEntry):
        data = found.get((name, "", "raw"), np.zeros(0, np.uint8))
        if entry.stored == "bool" and data.size and data.max() > 1:
            raise CorruptFileError(f"the bool tensor {name!r} holds what is neither 0 nor 1")
        return RawTensor(entry.shape, entry.dtype, data.astype(np.uint8, copy=False), entry.stored)
    if isinstance(entry, MatrixEntry):
        return _matrix(name, "index", entry, found, codebooks)
    coefficients = _matrix(name, "coefficients", entry.coefficients, found, codebooks)
    basis = _matrix(name, "basis", entry.basis, found, codebooks)
    if isinstance(basis, CodebookTensor):
        raise CorruptFileError(f"the basis of {name!r} is not a grid")
    return TransformTensor(entry.shape, entry.dtype, coefficients, basis, entry.side, entry.layout)


def _matrix(
    name: str, leaf: str, entry: MatrixEntry, found: Found, codebooks: list[Codebook]
) -> GridTensor | CodebookTensor:
    index = found.get((name, leaf, "index"), np.zeros(entry.matrix, np.int32))
    factors = _floats(found, (name, leaf, "factors"))
    if entry.codebook is not None:
        if not entry.factors and not entry.per_row:
            factors = np.ones(1, np.float32)
        book = codebooks[entry.codebook]
        return CodebookTensor(entry.shape, entry.dtype, _int32(index), book, factors, entry.layout)
    if entry.offset is None:
        offset = _floats(found, (name, leaf, "offsets"))
    else:
        offset = np.array([entry.offset / 2], np.float32)
        if 2 * float(offset[0]) != entry.offset:
            raise CorruptFileError(f"the offset of {name!r} is not a float32")
    return GridTensor(entry.shape, entry.dtype, _int32(index), factors, offset, entry.layout)


def _int32(index: Symbols) -> NDArray[np.int32]:
    return np.ascontiguousarray(index, np.int32)


def _activations(header: Header, found: Found) -> dict[str, ActivationGrid]:
    clips = header.clips
    if clips is None:
        clips = tuple(_floats(found, ("", "", "clips")).tolist())
    grids = {}
    for (name, code), clip in zip(header.activations.items(), clips, strict=True):
        with guard(f"the activation grid of {name!r}"):
            grids[name] = ActivationGrid(code // 2, clip, bool(code % 2))
    return grids
