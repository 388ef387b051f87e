"""Contents to bytes. The same contents give the same bytes."""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..coded import (
    NEW_DTYPES,
    Codebook,
    CodebookTensor,
    CodedTensor,
    Contents,
    GridTensor,
    Place,
    RawTensor,
    TransformTensor,
)
from ..coding import CODECS, EFFORTS, Symbols, join_small
from ..coding.tasks import EncodeTask, encode_tasks, encoding_cost, join_encoded
from ..coding.workers import Workers, usable_workers
from ..errors import ConfigError
from .affordable import frugal, is_affordable, units_of_streams
from .header import Header, describe_contents, dump_header
from .prefix import MAX_HEADER, join_prefix
from .streams import CHECKSUM, Part, Stream, plan_streams

__all__ = ["encode"]

NEW = (4, 7)  # the first codec that minor version 1 brought, and 2
PLACES = 3  # the minor version that brought grids with a zero inside, and grids of outputs
DTYPES = 4  # the minor version that brought ``NEW_DTYPES``


def encode(contents: Contents, effort: str = "balanced", workers: int = 1) -> bytes:
    """Return the file that holds ``contents``, in the fewest bytes that the codecs find.

    ``effort``: "fast" (the codecs of format 1.0), "balanced", or "smallest"; what a file holds is
    the same. ``workers``: processes that share the work; 1 for none but this one, 0 for as many as
    there are cores where that pays. The bytes are the same for any number.

    Streams that would take a reader longer than it allows by default are coded by faster codecs.

    Raises ConfigError for an unknown effort, and for names, metadata or shapes beyond the format's
    bounds (SPEC.md). Cost: every codec of the effort is tried on every stream; per weight about 0.1
    microseconds for "fast", a few for the others.
    """
    header, codebooks = describe_contents(contents)
    streams = plan_streams(header)

    def symbols(stream: Stream) -> Symbols:
        return _symbols(stream, contents, codebooks)

    coded = _coded(streams, symbols, effort, workers)
    data = _file(header, coded, contents)
    if is_affordable(data, symbols):
        return data
    quick = _coded(streams, symbols, "fast", workers)
    mixed = _file(header, frugal(coded, quick, units_of_streams(data, symbols)), contents)
    return mixed if is_affordable(mixed, symbols) else _file(header, quick, contents)


def _file(header: Header, coded: Sequence[tuple[str, bytes]], contents: Contents) -> bytes:
    """Return the file of these streams."""
    pieces: list[bytes] = []
    codecs = []
    for name, body in coded:
        codecs.append(CODECS[name].number)
        if body or name != "joined":  # else it is in a stream that follows
            pieces += [body, zlib.crc32(body).to_bytes(CHECKSUM, "little")]
    lengths = tuple(len(body) for _, body in coded)
    header = replace(header, codecs=tuple(codecs), lengths=lengths)
    text = _checked(dump_header(header), header)
    minor = max([_minor_of(contents), *map(_since, codecs)])
    return b"".join([join_prefix(text, sum(map(len, pieces)), minor), *pieces])


def _coded(
    streams: list[Stream],
    symbols_of: Callable[[Stream], Symbols],
    effort: str,
    workers: int,
) -> list[tuple[str, bytes]]:
    """Return codec and bytes of every stream, small index matrices joined where it pays."""
    work = sum(encoding_cost(effort, stream.rows * stream.columns) for stream in streams)
    begun: deque[list[EncodeTask]] = deque()
    matrices: list[Symbols | None] = []

    def jobs() -> Iterator[list[EncodeTask]]:
        for stream in streams:
            symbols = symbols_of(stream)
            matrices.append(symbols if stream.is_index else None)
            begun.append(encode_tasks(stream.label, symbols, effort))
            yield begun[-1]

    with Workers(usable_workers(workers, work)) as pool:
        coded = [
            join_encoded(begun.popleft(), [result.result() for result in results])
            for results in pool.run(jobs())
        ]
    return join_small(matrices, coded) if EFFORTS[effort].joins else coded


def _since(number: int) -> int:
    """Return the minor version that brought the codec."""
    return sum(number >= first for first in NEW)


def _minor_of(contents: Contents) -> int:
    """Return the minor version that brought the dtypes and grids."""
    if any(tensor.dtype in NEW_DTYPES for tensor in contents.tensors.values()):
        return DTYPES
    grids = contents.activations.items()
    return PLACES if any(grid.zero or Place.of(name).output for name, grid in grids) else 0


def _checked(text: bytes, header: Header) -> bytes:
    if len(text) > MAX_HEADER:
        raise ConfigError(
            f"the header takes {len(text)} bytes for {len(header.entries)} tensors and the "
            f"metadata; at most {MAX_HEADER} are allowed. Shorten the metadata."
        )
    return text


def _symbols(stream: Stream, contents: Contents, codebooks: tuple[Codebook, ...]) -> Symbols:
    pieces = [_part(part, contents, codebooks) for part in stream.parts]
    joined = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
    return joined.reshape(stream.rows, stream.columns)


def _part(part: Part, contents: Contents, codebooks: tuple[Codebook, ...]) -> Symbols:
    if part.role == "levels":
        return _bytes_of(codebooks[int(part.name)].values)
    if part.role == "clips":
        grids = contents.activations.values()
        return _bytes_of(np.array([grid.clip for grid in grids], np.float32))
    tensor = contents.tensors[part.name]
    if isinstance(tensor, RawTensor):
        return tensor.data
    leaf = _leaf(tensor, part.leaf or part.role)
    if part.role == "factors":
        return _bytes_of(leaf.scale if isinstance(leaf, CodebookTensor) else leaf.step)
    if part.role == "offsets" and not isinstance(leaf, CodebookTensor):
        return _bytes_of(leaf.offset)
    return leaf.index


def _leaf(tensor: CodedTensor, role: str) -> GridTensor | CodebookTensor:
    if isinstance(tensor, TransformTensor):
        return tensor.coefficients if role == "coefficients" else tensor.basis
    if isinstance(tensor, RawTensor):
        raise TypeError("a raw tensor has no index")
    return tensor


def _bytes_of(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(values, "<f4").view(np.uint8)
