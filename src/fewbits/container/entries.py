"""Header entries: everything about a tensor except its symbols and float parameters."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..coded import (
    FLOAT_DTYPES,
    RAW_DTYPES,
    AffineTensor,
    Codebook,
    CodebookTensor,
    CodedTensor,
    GridTensor,
    Layout,
    RawTensor,
)
from ..errors import ConfigError, CorruptFileError

__all__ = [
    "GROUPED_BYTES",
    "MAX_DIMENSIONS",
    "MAX_LEVELS",
    "MAX_OFFSET",
    "MAX_SIZE",
    "Entry",
    "MatrixEntry",
    "RawEntry",
    "TransformEntry",
    "convertible",
    "default_matrix",
    "describe",
    "entry_json",
    "integer",
    "leaves",
    "parse_entry",
    "rows_entry",
]


GROUPED_BYTES = 65_536  # raw tensors up to this size share a stream

Shape: TypeAlias = tuple[int, ...]
MAX_DIMENSIONS = 16
MAX_SIZE = 1 << 48  # of a dimension, and of the product of all nonzero ones
MAX_LEVELS = 1 << 24  # of one codebook
MAX_OFFSET = 1 << 33  # of twice an offset; larger ones are stored as floats
# Option p of each kind of matrix: number of values in the side stream, unless it is the rows'.
PER = {"g": {"": 1, "r": 0}, "a": {"": 1, "r": 0}, "c": {"": 0, "s": 1, "r": 0}}
OPTIONS = {"g": "dmlpo", "a": "dmlp", "c": "dmlpb", "t": "dlcbe", "r": "ds"}


@dataclass(frozen=True)
class MatrixEntry:
    """A grid (``codebook`` is None), affine or codebook tensor.

    Attributes:
        matrix: (rows, columns) of the index.
        factors: number of steps or scales in the side stream: 0 (a scale of 1), 1 or rows.
        per_row: whether ``factors`` counts rows rather than a single value.
        offset: twice the offset; None if offsets are in the side stream.
        offsets: number of offsets in the side stream, or of minima: 0, 1 or rows.
        codebook: position of the codebook.
        affine: whether it has minima instead of offsets.
    """

    shape: Shape
    dtype: str
    matrix: tuple[int, int]
    layout: Layout | None
    factors: int
    per_row: bool
    offset: int | None
    offsets: int
    codebook: int | None
    affine: bool = False

    @property
    def kind(self) -> str:
        """Name of the kind in reports."""
        if self.affine:
            return "affine"
        return "grid" if self.codebook is None else "codebook"


@dataclass(frozen=True)
class TransformEntry:
    """Two matrix entries and the side of the basis."""

    shape: Shape
    dtype: str
    layout: Layout | None
    coefficients: MatrixEntry
    basis: MatrixEntry
    side: str

    kind = "transform"


@dataclass(frozen=True)
class RawEntry:
    """An uncompressed tensor; ``stored`` is the dtype of its bytes."""

    shape: Shape
    dtype: str
    stored: str

    kind = "raw"

    @property
    def values(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def width(self) -> int:
        """Bytes of one stored value."""
        return RAW_DTYPES[self.stored]

    @property
    def grouped(self) -> bool:
        """Whether its bytes share a stream with those of other small tensors."""
        return self.values * self.width <= GROUPED_BYTES


Entry: TypeAlias = MatrixEntry | TransformEntry | RawEntry


def convertible(stored: str, dtype: str) -> bool:
    """Return whether a file may store a tensor of ``dtype`` as bytes of dtype ``stored``."""
    return stored == dtype or (stored in FLOAT_DTYPES and dtype in FLOAT_DTYPES)


def default_matrix(shape: Shape) -> tuple[int, int]:
    """Return rows and columns of the index if the tensor is just its reshaped matrix."""
    return (shape[0], math.prod(shape[1:])) if shape else (1, 1)


def leaves(entry: Entry) -> Iterator[tuple[str, MatrixEntry]]:
    """Yield (role, entry) for the index matrices of a tensor, in the order of the file."""
    if isinstance(entry, MatrixEntry):
        yield "index", entry
    elif isinstance(entry, TransformEntry):
        yield "coefficients", entry.coefficients
        yield "basis", entry.basis


def rows_entry(entry: Entry, first: int, stop: int) -> Entry | None:
    """Return the entry of rows [first, stop) of a tensor's first dimension.

    None if it lacks these rows, or if they are not rows of its matrix.
    """
    if not entry.shape or not 0 <= first < stop <= entry.shape[0]:
        return None
    shape = (stop - first, *entry.shape[1:])
    if isinstance(entry, RawEntry):
        return None if entry.grouped else replace(entry, shape=shape)
    if isinstance(entry, TransformEntry) or entry.layout is not None:
        return None
    if entry.matrix != default_matrix(entry.shape):
        return None
    factors, offsets = (
        stop - first if count == entry.shape[0] else count
        for count in (entry.factors, entry.offsets)
    )
    return replace(
        entry, shape=shape, matrix=default_matrix(shape), factors=factors, offsets=offsets
    )


def integer(value: object, what: str, low: int, high: int) -> int:
    """Return ``value`` if it is an integer in [low, high]; bools and floats are not."""
    if type(value) is not int or not low <= value <= high:
        raise CorruptFileError(
            f"{what} must be an integer in [{low}, {high}]. Got {str(value)[:80]!r} instead."
        )
    return value


def parse_entry(value: object, what: str, codebooks: int) -> Entry:
    """Parse the entry of the tensor ``what``; a CorruptFileError names it and the value."""
    kind, shape, options = _split(value, what)
    if kind == "r":
        dtype = _choice(options.pop("d", "float32"), f"the dtype of {what}", RAW_DTYPES)
        stored = _choice(options.pop("s", dtype), f"the stored dtype of {what}", RAW_DTYPES)
        if not convertible(stored, dtype):
            raise CorruptFileError(f"{what} has dtype {dtype} but is stored as {stored}")
        return RawEntry(shape, dtype, stored)
    dtype = _choice(options.pop("d", "float32"), f"the dtype of {what}", FLOAT_DTYPES)
    layout = _layout(options.pop("l", None), what, math.prod(shape))
    if kind == "t":
        coefficients = _parse_part(
            "c", ("g", "c"), options, f"the coefficients of {what}", codebooks
        )
        basis = _parse_part("b", ("g",), options, f"the basis of {what}", codebooks)
        side = ("left", "right")[integer(options.get("e", 0), f"the side of {what}", 0, 1)]
        first, last = (basis, coefficients) if side == "left" else (coefficients, basis)
        size = first.shape[0] * last.shape[1]
        if first.shape[1] != last.shape[0] or size != math.prod(shape):
            raise CorruptFileError(f"basis and coefficients of {what} do not match its shape")
        return TransformEntry(shape, dtype, layout, coefficients, basis, side)
    return _matrix(kind, shape, options, what, codebooks, dtype=dtype, layout=layout)


def _split(value: object, what: str) -> tuple[str, tuple[int, ...], dict[str, Any]]:
    if not isinstance(value, list) or not 2 <= len(value) <= 3:
        raise CorruptFileError(f"the entry of {what} is not a list of two or three items")
    kind = _choice(value[0], f"the kind of {what}", OPTIONS)
    shape = _shape(value[1], f"the shape of {what}")
    options = value[2] if len(value) == 3 else {}
    if not isinstance(options, dict) or not set(options) <= set(OPTIONS[kind]):
        raise CorruptFileError(
            f"unknown options of {what}: {str(options)[:80]}. A newer fewbits may support them."
        )
    return kind, shape, dict(options)


def _matrix(
    kind: str,
    shape: tuple[int, ...],
    options: dict[str, Any],
    what: str,
    codebooks: int,
    *,
    dtype: str,
    layout: Layout | None,
) -> MatrixEntry:
    matrix = _shape(options.get("m", list(default_matrix(shape))), f"the matrix of {what}")
    if len(matrix) != 2 or math.prod(matrix) != math.prod(shape):
        raise CorruptFileError(f"the index of {what} is {matrix}, but its shape is {shape}")
    per = _choice(options.get("p", ""), f"the option p of {what}", PER[kind])
    codebook = None
    if kind == "c":
        codebook = integer(options.get("b", 0), f"the codebook of {what}", 0, codebooks - 1)
    factors = matrix[0] if per == "r" else PER[kind][per]
    offset, offsets = _offset(options.get("o", 0), what, matrix[0])
    if kind == "a":
        offset, offsets = None, factors
    return MatrixEntry(
        shape=shape,
        dtype=dtype,
        matrix=(matrix[0], matrix[1]),
        layout=layout,
        factors=factors,
        per_row=per == "r",
        offset=offset,
        offsets=offsets,
        codebook=codebook,
        affine=kind == "a",
    )


def _offset(value: object, what: str, rows: int) -> tuple[int | None, int]:
    if value in ("s", "r"):
        return None, 1 if value == "s" else rows
    return integer(value, f"the offset of {what}", -MAX_OFFSET, MAX_OFFSET), 0


def _parse_part(
    key: str, kinds: tuple[str, ...], options: dict[str, Any], what: str, codebooks: int
) -> MatrixEntry:
    value = options.get(key)
    if not isinstance(value, list) or not value or value[0] not in kinds:
        raise CorruptFileError(f"{what} must be an entry of one of the kinds {kinds}")
    part = parse_entry(value, what, codebooks)
    if not isinstance(part, MatrixEntry) or len(part.shape) != 2:
        raise CorruptFileError(f"{what} must be a matrix")
    return part


def _choice(value: object, what: str, known: Any) -> str:
    if not isinstance(value, str) or value not in known:
        raise CorruptFileError(f"{what} is unknown: {str(value)[:80]!r}. Valid: {sorted(known)}.")
    return value


def _shape(value: object, what: str) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > MAX_DIMENSIONS:
        raise CorruptFileError(f"{what} must be a list of at most {MAX_DIMENSIONS} sizes")
    sizes = tuple(integer(size, what, 0, MAX_SIZE) for size in value)
    # Strides of empty tensors are products of sizes too, and must fit 64 bits.
    if math.prod(filter(None, sizes)) > MAX_SIZE:
        raise CorruptFileError(f"{what} has sizes whose product exceeds {MAX_SIZE}: {sizes}")
    return sizes


def _layout(value: object, what: str, size: int) -> Layout | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2:
        raise CorruptFileError(f"the layout of {what} must be a pair of lists")
    split = _shape(value[0], f"the layout of {what}")
    axes = _shape(value[1], f"the layout of {what}")
    if math.prod(split) != size or sorted(axes) != list(range(len(split))):
        raise CorruptFileError(f"the layout {split}, {axes} of {what} does not fit its shape")
    return Layout(split, axes)


def describe(name: str, tensor: CodedTensor, codebooks: dict[bytes, Codebook]) -> Entry:
    """Return the entry of ``tensor``; adds new codebooks to ``codebooks``, keyed by their bytes."""
    shape = tuple(int(size) for size in tensor.shape)
    layout = None if isinstance(tensor, RawTensor) else tensor.layout
    if max(len(shape), len(layout.split) if layout else 0) > MAX_DIMENSIONS:
        raise ConfigError(
            f"{name!r} has {len(shape)} dimensions; a file allows at most {MAX_DIMENSIONS}."
        )
    if math.prod(filter(None, shape)) > MAX_SIZE:
        raise ConfigError(
            f"{name!r} has shape {shape}; a file allows a product of nonzero sizes of at most "
            f"{MAX_SIZE}."
        )
    if isinstance(tensor, RawTensor):
        return _raw(name, shape, tensor)
    if isinstance(tensor, GridTensor):
        return _grid(shape, tensor)
    if isinstance(tensor, AffineTensor):
        return _affine(shape, tensor)
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
            "dtypes can be converted: store it in its own dtype."
        )
    if tensor.stored == "bool" and tensor.data.size and int(tensor.data.max()) > 1:
        raise ConfigError(f"{name!r} is bool, but contains bytes other than 0 and 1.")
    return RawEntry(shape, tensor.dtype, tensor.stored)


def _grid(shape: tuple[int, ...], tensor: GridTensor) -> MatrixEntry:
    rows, columns = tensor.index.shape
    offset = _doubled_offset(tensor.offset)
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


def _affine(shape: tuple[int, ...], tensor: AffineTensor) -> MatrixEntry:
    rows, columns = tensor.index.shape
    return MatrixEntry(
        shape=shape,
        dtype=tensor.dtype,
        matrix=(rows, columns),
        layout=tensor.layout,
        factors=tensor.step.size,
        per_row=tensor.step.size != 1,
        offset=None,
        offsets=tensor.minimum.size,
        codebook=None,
        affine=True,
    )


def _codebook(
    shape: tuple[int, ...], tensor: CodebookTensor, codebooks: dict[bytes, Codebook]
) -> MatrixEntry:
    rows, columns = tensor.index.shape
    levels = tensor.codebook.values.size
    if levels > MAX_LEVELS:
        raise ConfigError(f"a codebook has {levels} levels; a file allows at most {MAX_LEVELS}.")
    key = tensor.codebook.values.tobytes()
    codebooks.setdefault(key, tensor.codebook)
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
        codebook=list(codebooks).index(key),
    )


def _doubled_offset(offset: NDArray[np.float32]) -> int | None:
    """Return twice a single offset, or None if the side stream must store the offsets."""
    if offset.size != 1:
        return None
    value = 2 * float(offset[0])
    negative_zero = value == 0 and bool(np.signbit(offset[0]))
    return None if negative_zero or abs(value) > MAX_OFFSET else int(value)


def entry_json(entry: Entry) -> list[Any]:
    """Return the entry as JSON for the header, without options that have their default."""
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
    if entry.affine:
        return _with_options("a", entry, options)
    if entry.offset is None:
        options["o"] = "s" if entry.offsets == 1 else "r"
    elif entry.offset:
        options["o"] = entry.offset
    if entry.codebook:
        options["b"] = entry.codebook
    return _with_options("g" if entry.codebook is None else "c", entry, options)


def _with_options(kind: str, entry: Entry, options: dict[str, Any]) -> list[Any]:
    return [kind, list(entry.shape), options] if options else [kind, list(entry.shape)]
