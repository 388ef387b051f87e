"""What changed between two tensors of one dtype, as integers, and back again.

Bits become integers that rise with the value, so that a small change is a small integer. How small
depends on the exponent of the old value: a step of training leaves most large weights as they are,
and moves small ones by many units. Both sides know the old values, so differences are sorted by
their exponents, and the coder finds rows of like size (SPEC.md, section 9.2).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...coded import RAW_DTYPES, WEIGHT_DTYPES, GridTensor, RawTensor
from ...coding.codec import Cursor
from ...coding.raw import pack, unpack
from ...errors import CorruptFileError

__all__ = ["COLUMNS", "applied", "differences", "has_differences", "matrix_of"]

BLOCK = 1 << 21  # values that are sorted at a time; those of a chunk
COLUMNS = 1 << 8
SMALL, DIGITS = 16, 5  # differences below are classes of their own; the binary digits of this one
MOST_CLASS = SMALL + 2 * (32 - DIGITS) + 1
SIGNED = {1: "<i1", 2: "<i2", 4: "<i4"}

Bytes = NDArray[np.uint8]
Ints = NDArray[np.integer[Any]]
Wide = NDArray[np.int64]


def has_differences(dtype: str) -> bool:
    """Return whether tensors of a dtype are stored as differences: of up to 4 bytes, not complex.

    Others, if anything changed in them, are stored whole.
    """
    return RAW_DTYPES.get(dtype, 8) in SIGNED and not dtype.startswith("complex")


def matrix_of(values: int) -> tuple[int, int]:
    """Return rows and columns of the differences of so many values; the last row is filled up."""
    columns = min(COLUMNS, max(1, values))
    return -(-values // columns), columns


def differences(new: Bytes, old: Bytes, dtype: str) -> tuple[GridTensor, RawTensor]:
    """Return the differences of two tensors, given their bytes: classes, and what is below them."""
    after, before = _bits(new, dtype), _bits(old, dtype)
    shape = matrix_of(before.size)
    index = np.zeros(shape[0] * shape[1], np.int32)
    rest = [b""]
    for start in range(0, before.size, BLOCK):
        part = slice(start, min(start + BLOCK, before.size))
        change = _rising(after[part], dtype) - _rising(before[part], dtype)
        index[part], fields = _split(change[_order(before[part], dtype)].astype(np.int64))
        rest.append(fields)
    data = np.frombuffer(b"".join(rest), np.uint8)
    classes = GridTensor(shape, "float32", index.reshape(shape), np.ones(1, np.float32))
    return classes, RawTensor(data.shape, "uint8", data)


def applied(index: NDArray[np.int32], rest: bytes, old: Bytes, dtype: str) -> Bytes:
    """Return the bytes of the new tensor, given the classes of its values and what is below them.

    Raises:
        CorruptFileError: the parts do not belong together.
    """
    before, cursor = _bits(old, dtype), Cursor(rest)
    classes = index.reshape(-1)
    if abs(classes).max(initial=0) > MOST_CLASS or classes[before.size :].any():
        raise CorruptFileError("a class of a difference is out of range")
    after = np.empty_like(before)
    for start in range(0, before.size, BLOCK):
        part = slice(start, min(start + BLOCK, before.size))
        change = np.empty(part.stop - part.start, before.dtype)
        whole = _joined(classes[part], cursor)
        change[_order(before[part], dtype)] = whole.astype(before.dtype)
        after[part] = _rising(_rising(before[part], dtype) + change, dtype)
    cursor.finish()
    return after.view(np.uint8)


def _split(change: Wide) -> tuple[NDArray[np.int32], bytes]:
    """Return the classes of differences, and the bits below them, group by group."""
    size = abs(change)
    classes = size.copy()
    far = np.flatnonzero(size >= SMALL)
    exponent = np.frexp(size[far].astype(np.float64))[1].astype(np.int64)  # binary digits
    below = exponent - 2
    classes[far] = SMALL + 2 * (exponent - DIGITS) + ((size[far] >> below) & 1)
    fields = [
        pack(size[far[below == width]] & ((1 << width) - 1), 0, width)
        for width in range(DIGITS - 2, 31)
    ]
    return np.where(change < 0, -classes, classes).astype(np.int32), b"".join(fields)


def _joined(classes: NDArray[np.int32], cursor: Cursor) -> NDArray[np.int32]:
    """Undo :func:`_split`."""
    change = classes.copy()
    far = np.flatnonzero(abs(classes) >= SMALL)
    octave, upper = np.divmod(abs(classes[far].astype(np.int64)) - SMALL, 2)
    size = (2 + upper) << (octave + DIGITS - 2)
    for width in range(DIGITS - 2, 31):
        some = np.flatnonzero(octave == width + 2 - DIGITS)
        size[some] += unpack(cursor, some.size, width)
    change[far] = np.where(classes[far] < 0, -size, size).astype(np.int32)
    return change


def _bits(data: Bytes, dtype: str) -> Ints:
    return data.view(SIGNED[RAW_DTYPES[dtype]])


def _rising(bits: Ints, dtype: str) -> Ints:
    """Return integers that rise with the values of floats; also the way back from them."""
    if dtype not in WEIGHT_DTYPES:
        return bits
    width = 8 * bits.dtype.itemsize
    one = bits.dtype.type
    result: Ints = bits ^ ((bits >> one(width - 1)) & np.iinfo(bits.dtype).max)
    return result


def _order(bits: Ints, dtype: str) -> NDArray[np.int64]:
    """Return the order of values by the 8 bits after the sign, from high exponents to low ones."""
    if dtype not in WEIGHT_DTYPES:
        return np.arange(bits.size)
    width = 8 * bits.dtype.itemsize
    unsigned = bits.view(f"<u{bits.dtype.itemsize}")
    turned = unsigned << unsigned.dtype.type(1)
    key = ~(turned >> unsigned.dtype.type(width - 8)).astype(np.uint8)
    return np.argsort(key, kind="stable")
