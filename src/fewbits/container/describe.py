"""Coded tensors to entries, and entries to JSON: what the writer says, defaults left out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..coded import Codebook, CodebookTensor, CodedTensor, GridTensor, RawTensor
from ..errors import ConfigError
from .entries import Entry, MatrixEntry, RawEntry, TransformEntry, convertible, default_matrix
from .parse import MAX_DIMENSIONS, MAX_LEVELS, MAX_OFFSET, MAX_SIZE

__all__ = ["describe", "entry_json"]


def describe(name: str, tensor: CodedTensor, codebooks: dict[int, Codebook]) -> Entry:
    """Return the entry of ``tensor``; a new codebook is added to ``codebooks`` by its ``id``."""
    shape = tuple(int(size) for size in tensor.shape)
    layout = None if isinstance(tensor, RawTensor) else tensor.layout
    if max(len(shape), len(layout.split) if layout else 0) > MAX_DIMENSIONS:
        raise ConfigError(
            f"{name!r} has {len(shape)} dimensions; a file holds at most {MAX_DIMENSIONS}."
        )
    if math.prod(filter(None, shape)) > MAX_SIZE:
        raise ConfigError(
            f"{name!r} has the shape {shape}; in a file the product of its sizes, without those "
            f"that are 0, is at most {MAX_SIZE}."
        )
    if isinstance(tensor, RawTensor):
        return _raw(name, shape, tensor)
    if isinstance(tensor, GridTensor):
        return _grid(shape, tensor)
    if isinstance(tensor, CodebookTensor):
        return _codebook(shape, tensor, codebooks)
    coefficients = describe(name, tensor.coefficients, codebooks)
    basis = describe(name, tensor.basis, codebooks)
    if not isinstance(coefficients, MatrixEntry) or not isinstance(basis, MatrixEntry):
        raise ConfigError(f"{name!r}: the parts of a transform must be matrices")
    return TransformEntry(shape, tensor.dtype, layout, coefficients, basis, tensor.side)


def _raw(name: str, shape: tuple[int, ...], tensor: RawTensor) -> RawEntry:
    if not convertible(tensor.stored, tensor.dtype):
        raise ConfigError(
            f"{name!r} has dtype {tensor.dtype} but is stored as {tensor.stored}. Only floating "
            "dtypes are converted: store it in its own."
        )
    if tensor.stored == "bool" and tensor.data.size and int(tensor.data.max()) > 1:
        raise ConfigError(f"{name!r} is bool, but holds bytes other than 0 and 1.")
    return RawEntry(shape, tensor.dtype, tensor.stored)


def _grid(shape: tuple[int, ...], tensor: GridTensor) -> MatrixEntry:
    rows, columns = tensor.index.shape
    offset = _twice(tensor.offset)
    return MatrixEntry(
        shape=shape,
        dtype=tensor.dtype,
        matrix=(rows, columns),
        layout=tensor.layout,
        factors=tensor.step.size,
        per_row=tensor.step.size != 1,
        offset=offset,
        offsets=tensor.offset.size if offset is None else 0,
        codebook=None,
    )


def _codebook(
    shape: tuple[int, ...], tensor: CodebookTensor, codebooks: dict[int, Codebook]
) -> MatrixEntry:
    rows, columns = tensor.index.shape
    levels = tensor.codebook.values.size
    if levels > MAX_LEVELS:
        raise ConfigError(f"a codebook has {levels} levels; a file holds at most {MAX_LEVELS}.")
    codebooks.setdefault(id(tensor.codebook), tensor.codebook)
    one = tensor.scale.size == 1 and float(tensor.scale[0]) == 1.0
    return MatrixEntry(
        shape=shape,
        dtype=tensor.dtype,
        matrix=(rows, columns),
        layout=tensor.layout,
        factors=0 if one else tensor.scale.size,
        per_row=tensor.scale.size != 1,
        offset=0,
        offsets=0,
        codebook=list(codebooks).index(id(tensor.codebook)),
    )


def _twice(offset: NDArray[np.float32]) -> int | None:
    """Return twice the one offset, or None where the side stream must keep what it is."""
    if offset.size != 1:
        return None
    value = 2 * float(offset[0])
    negative_zero = value == 0 and bool(np.signbit(offset[0]))
    return None if negative_zero or abs(value) > MAX_OFFSET else int(value)


def entry_json(entry: Entry) -> list[Any]:
    """Return the entry as the header holds it, without what is default."""
    options: dict[str, Any] = {}
    if entry.dtype != "float32":
        options["d"] = entry.dtype
    if isinstance(entry, RawEntry):
        if entry.stored != entry.dtype:
            options["s"] = entry.stored
        return _with_options("r", entry, options)
    if entry.layout is not None:
        options["l"] = [list(entry.layout.split), list(entry.layout.axes)]
    if isinstance(entry, TransformEntry):
        options |= {"b": entry_json(entry.basis), "c": entry_json(entry.coefficients)}
        if entry.side == "right":
            options["e"] = 1
        return _with_options("t", entry, options)
    if entry.matrix != default_matrix(entry.shape):
        options["m"] = list(entry.matrix)
    return _matrix_json(entry, options)


def _matrix_json(entry: MatrixEntry, options: dict[str, Any]) -> list[Any]:
    if entry.per_row:
        options["p"] = "r"
    elif entry.codebook is not None and entry.factors:
        options["p"] = "s"
    if entry.offset is None:
        options["o"] = "s" if entry.offsets == 1 else "r"
    elif entry.offset:
        options["o"] = entry.offset
    if entry.codebook:
        options["b"] = entry.codebook
    return _with_options("g" if entry.codebook is None else "c", entry, options)


def _with_options(kind: str, entry: Entry, options: dict[str, Any]) -> list[Any]:
    return [kind, list(entry.shape), options] if options else [kind, list(entry.shape)]
