"""Contents to bytes. The same contents give the same bytes."""

from __future__ import annotations

import zlib
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..coded import (
    Codebook,
    CodebookTensor,
    CodedTensor,
    Contents,
    GridTensor,
    RawTensor,
    TransformTensor,
)
from ..coding import CODECS, Symbols, encode_stream
from ..errors import ConfigError
from .header import Header, describe_contents, dump_header
from .prefix import MAX_HEADER, join_prefix
from .streams import CHECKSUM, Part, Stream, plan_streams

__all__ = ["encode"]

NEW = (4, 7)  # the first codec that minor version 1 brought, and 2


def encode(contents: Contents, effort: str = "balanced") -> bytes:
    """Return the file that holds ``contents``, in the fewest bytes that the codecs find.

    ``effort``: "fast" (the codecs of format 1.0), "balanced", or "smallest"; what a file holds is
    the same. Raises ConfigError for an unknown effort, and for names, metadata or shapes beyond
    the format's bounds (SPEC.md). Cost: every codec of the effort is tried on every stream; per
    weight about 0.1 microseconds for "fast", a few for the others.
    """
    header, codebooks = describe_contents(contents)
    pieces: list[bytes] = []
    codecs, lengths = [], []
    for stream in plan_streams(header):
        name, body = encode_stream(_symbols(stream, contents, codebooks), effort)
        codecs.append(CODECS[name].number)
        lengths.append(len(body))
        pieces += [body, zlib.crc32(body).to_bytes(CHECKSUM, "little")]
    header = replace(header, codecs=tuple(codecs), lengths=tuple(lengths))
    text = _checked(dump_header(header), header)
    minor = max((_since(number) for number in codecs), default=0)
    return b"".join([join_prefix(text, sum(map(len, pieces)), minor), *pieces])


def _since(number: int) -> int:
    """Return the minor version that brought the codec."""
    return sum(number >= first for first in NEW)


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
