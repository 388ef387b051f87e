"""JSON to entries: the type and the range of every value, before anything depends on it."""

from __future__ import annotations

import math
from typing import Any

from ..coded import FLOAT_DTYPES, RAW_DTYPES, Layout
from ..errors import CorruptFileError
from .entries import Entry, MatrixEntry, RawEntry, TransformEntry, convertible, default_matrix

__all__ = ["MAX_DIMENSIONS", "MAX_LEVELS", "MAX_OFFSET", "MAX_SIZE", "integer", "parse_entry"]

MAX_DIMENSIONS = 16
MAX_SIZE = 1 << 48  # of a dimension, and of the product of those that are not 0
MAX_LEVELS = 1 << 24  # of one codebook
MAX_OFFSET = 1 << 33  # twice an offset; larger ones are kept as floats

# Option p of each kind of matrix: values in the side stream, where rows do not tell.
PER = {"g": {"": 1, "r": 0}, "c": {"": 0, "s": 1, "r": 0}}
OPTIONS = {"g": "dmlpo", "c": "dmlpb", "t": "dlcbe", "r": "ds"}


def integer(value: object, what: str, low: int, high: int) -> int:
    """Return ``value`` if it is an integer in [low, high]; a bool or a float is none."""
    if type(value) is not int or not low <= value <= high:
        raise CorruptFileError(
            f"{what} must be an integer in [{low}, {high}]. Got {str(value)[:80]!r} instead."
        )
    return value


def parse_entry(value: object, what: str, codebooks: int) -> Entry:
    """Return the entry of the tensor ``what``; CorruptFileError names it and the value."""
    kind, shape, options = _split(value, what)
    if kind == "r":
        dtype = _choice(options.pop("d", "float32"), f"the dtype of {what}", RAW_DTYPES)
        stored = _choice(options.pop("s", dtype), f"the stored dtype of {what}", RAW_DTYPES)
        if not convertible(stored, dtype):
            raise CorruptFileError(f"{what} is {dtype}, which {stored} cannot stand for")
        return RawEntry(shape, dtype, stored)
    dtype = _choice(options.pop("d", "float32"), f"the dtype of {what}", FLOAT_DTYPES)
    layout = _layout(options.pop("l", None), what, math.prod(shape))
    if kind == "t":
        coefficients = _factor("c", ("g", "c"), options, f"the coefficients of {what}", codebooks)
        basis = _factor("b", ("g",), options, f"the basis of {what}", codebooks)
        side = ("left", "right")[integer(options.get("e", 0), f"the side of {what}", 0, 1)]
        first, last = (basis, coefficients) if side == "left" else (coefficients, basis)
        size = first.shape[0] * last.shape[1]
        if first.shape[1] != last.shape[0] or size != math.prod(shape):
            raise CorruptFileError(f"basis and coefficients of {what} do not give its shape")
        return TransformEntry(shape, dtype, layout, coefficients, basis, side)
    return _matrix(kind, shape, options, what, codebooks, dtype=dtype, layout=layout)


def _split(value: object, what: str) -> tuple[str, tuple[int, ...], dict[str, Any]]:
    if not isinstance(value, list) or not 2 <= len(value) <= 3:
        raise CorruptFileError(f"the entry of {what} is not a list of two or three")
    kind = _choice(value[0], f"the kind of {what}", OPTIONS)
    shape = _shape(value[1], f"the shape of {what}")
    options = value[2] if len(value) == 3 else {}
    if not isinstance(options, dict) or not set(options) <= set(OPTIONS[kind]):
        raise CorruptFileError(
            f"the options of {what} are unknown: {str(options)[:80]}. A newer fewbits may know."
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
        raise CorruptFileError(f"the index of {what} is {matrix}, its shape {shape}")
    per = _choice(options.get("p", ""), f"the option p of {what}", PER[kind])
    codebook = None
    if kind == "c":
        codebook = integer(options.get("b", 0), f"the codebook of {what}", 0, codebooks - 1)
    offset, offsets = _offset(options.get("o", 0), what, matrix[0])
    return MatrixEntry(
        shape=shape,
        dtype=dtype,
        matrix=(matrix[0], matrix[1]),
        layout=layout,
        factors=matrix[0] if per == "r" else PER[kind][per],
        per_row=per == "r",
        offset=offset,
        offsets=offsets,
        codebook=codebook,
    )


def _offset(value: object, what: str, rows: int) -> tuple[int | None, int]:
    if value in ("s", "r"):
        return None, 1 if value == "s" else rows
    return integer(value, f"the offset of {what}", -MAX_OFFSET, MAX_OFFSET), 0


def _factor(
    key: str, kinds: tuple[str, ...], options: dict[str, Any], what: str, codebooks: int
) -> MatrixEntry:
    value = options.get(key)
    if not isinstance(value, list) or not value or value[0] not in kinds:
        raise CorruptFileError(f"{what} must be an entry of a kind in {kinds}")
    part = parse_entry(value, what, codebooks)
    if not isinstance(part, MatrixEntry) or len(part.shape) != 2:
        raise CorruptFileError(f"{what} must be a matrix")
    return part


def _choice(value: object, what: str, known: Any) -> str:
    if not isinstance(value, str) or value not in known:
        raise CorruptFileError(f"{what} is unknown: {str(value)[:80]!r}. Known: {sorted(known)}.")
    return value


def _shape(value: object, what: str) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > MAX_DIMENSIONS:
        raise CorruptFileError(f"{what} must be a list of at most {MAX_DIMENSIONS} sizes")
    sizes = tuple(integer(size, what, 0, MAX_SIZE) for size in value)
    # Strides of a tensor without values are products of sizes too, and must fit 64 bits.
    if math.prod(filter(None, sizes)) > MAX_SIZE:
        raise CorruptFileError(f"{what} has sizes whose product is beyond {MAX_SIZE}: {sizes}")
    return sizes


def _layout(value: object, what: str, size: int) -> Layout | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2:
        raise CorruptFileError(f"the layout of {what} must be two lists")
    split = _shape(value[0], f"the layout of {what}")
    axes = _shape(value[1], f"the layout of {what}")
    if math.prod(split) != size or sorted(axes) != list(range(len(split))):
        raise CorruptFileError(f"the layout {split}, {axes} of {what} does not fit its shape")
    return Layout(split, axes)
