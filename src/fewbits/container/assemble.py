"""Assemble coded tensors from decoded symbols, with the checks that need several values."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..coded import (
    ActivationGrid,
    AffineTensor,
    Codebook,
    CodebookTensor,
    CodedTensor,
    GridTensor,
    RawTensor,
    TransformTensor,
)
from ..coding import Symbols
from ..errors import CorruptFileError
from .entries import Entry, MatrixEntry, RawEntry
from .header import Header
from .streams import Stream

__all__ = [
    "Key",
    "SymbolMap",
    "as_bytes",
    "build_activations",
    "build_codebooks",
    "build_tensor",
    "distribute",
    "guard",
]

Key: TypeAlias = tuple[str, str, str]  # name of the tensor, leaf, role
SymbolMap: TypeAlias = MutableMapping[Key, Symbols]


@contextmanager
def guard(what: str) -> Iterator[None]:
    """Turn any failure while reading into a CorruptFileError, including panics of libraries."""
    try:
        yield
    except (CorruptFileError, OSError):
        raise
    except Exception as error:
        raise CorruptFileError(
            f"{what} cannot be decoded: {type(error).__name__}: {error}. The file is damaged or "
            "was not written by fewbits: download or copy it again."
        ) from error


def distribute(stream: Stream, symbols: Symbols, decoded: SymbolMap) -> None:
    """Store the symbols of a stream (bytes as uint8) under the tensors to which they belong."""
    if stream.is_index:
        (part,) = stream.parts
        decoded[part.name, part.role, "index"] = symbols
        return
    start = 0
    for part in stream.parts:
        decoded[part.name, part.leaf, part.role] = symbols[start : start + part.values].reshape(-1)
        start += part.values


def as_bytes(symbols: Symbols, label: str) -> Symbols:
    """Return symbols as uint8; raise CorruptFileError if they are out of range."""
    if symbols.dtype == np.uint8:
        return symbols
    if symbols.min(initial=0) < 0 or symbols.max(initial=0) > 255:
        raise CorruptFileError(f"{label}: some symbols are not bytes")
    return symbols.astype(np.uint8)


def _floats(decoded: SymbolMap, key: tuple[str, str, str]) -> NDArray[np.float32]:
    return decoded.get(key, np.zeros(0, np.uint8)).view("<f4").astype(np.float32)


def build_tensor(
    name: str, entry: Entry, decoded: SymbolMap, codebooks: list[Codebook]
) -> CodedTensor:
    """Build a tensor from the decoded symbols of its streams."""
    if isinstance(entry, RawEntry):
        data = decoded.get((name, "", "raw"), np.zeros(0, np.uint8))
        if entry.stored == "bool" and data.size and data.max() > 1:
            raise CorruptFileError(f"the bool tensor {name!r} has values other than 0 and 1")
        return RawTensor(entry.shape, entry.dtype, data.astype(np.uint8, copy=False), entry.stored)
    if isinstance(entry, MatrixEntry):
        return _matrix(name, "index", entry, decoded, codebooks)
    coefficients = _matrix(name, "coefficients", entry.coefficients, decoded, codebooks)
    basis = _matrix(name, "basis", entry.basis, decoded, codebooks)
    if not isinstance(basis, GridTensor) or isinstance(coefficients, AffineTensor):
        raise CorruptFileError(f"the factors of {name!r} are not a grid or a codebook")
    return TransformTensor(entry.shape, entry.dtype, coefficients, basis, entry.side, entry.layout)


def build_codebooks(header: Header, decoded: SymbolMap) -> list[Codebook]:
    """Build the codebooks of a file from its decoded side stream."""
    with guard("a codebook"):
        return [
            Codebook(_floats(decoded, (str(place), "", "levels")))
            for place in range(len(header.codebooks))
        ]


def _matrix(
    name: str, leaf: str, entry: MatrixEntry, decoded: SymbolMap, codebooks: list[Codebook]
) -> GridTensor | AffineTensor | CodebookTensor:
    index = decoded.get((name, leaf, "index"), np.zeros(entry.matrix, np.int32))
    factors = _floats(decoded, (name, leaf, "factors"))
    if entry.codebook is not None:
        if not entry.factors and not entry.per_row:
            factors = np.ones(1, np.float32)
        book = codebooks[entry.codebook]
        return CodebookTensor(entry.shape, entry.dtype, _int32(index), book, factors, entry.layout)
    if entry.affine:
        minimum = _floats(decoded, (name, leaf, "offsets"))
        return AffineTensor(entry.shape, entry.dtype, _int32(index), factors, minimum, entry.layout)
    if entry.offset is None:
        offset = _floats(decoded, (name, leaf, "offsets"))
    else:
        offset = np.array([entry.offset / 2], np.float32)
        if 2 * float(offset[0]) != entry.offset:
            raise CorruptFileError(f"the offset of {name!r} is not a float32 value")
    return GridTensor(entry.shape, entry.dtype, _int32(index), factors, offset, entry.layout)


def _int32(index: Symbols) -> NDArray[np.int32]:
    return np.ascontiguousarray(index, np.int32)


def build_activations(header: Header, decoded: SymbolMap) -> dict[str, ActivationGrid]:
    """Build the activation grids from the header and the decoded side stream."""
    clips = header.clips
    if clips is None:
        clips = tuple(_floats(decoded, ("", "", "clips")).tolist())
    grids = {}
    for (name, code), clip in zip(header.activations.items(), clips, strict=True):
        with guard(f"the activation grid of {name!r}"):
            grids[name] = ActivationGrid(code % 64 // 2, clip, bool(code % 2), code // 64)
    return grids
