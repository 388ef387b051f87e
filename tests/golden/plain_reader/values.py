"""SPEC.md 2.3: from integers and stored floats to values, one IEEE operation at a time.

Python's floats are float64. An operation on two float32 that is done in float64 and then rounded to
float32 is rounded as if it were done in float32.
"""

import math
import struct
from itertools import product

FLOATS = {"float64": ("<d", 8), "float32": ("<f", 4), "float16": ("<e", 2), "bfloat16": ("", 2)}
WIDTHS = {name: width for name, (_, width) in FLOATS.items()}
WIDTHS |= {"int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "bool": 1}
WIDTHS |= {"uint64": 8, "uint32": 4, "uint16": 2, "complex128": 16, "complex64": 8, "complex32": 4}
WIDTHS |= dict.fromkeys(["float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu"], 1)
WIDTHS |= dict.fromkeys(["float8_e4m3fnuz", "float8_e5m2fnuz"], 1)


def pack(value, code):
    """Return the bytes of a value, rounded to nearest even; beyond the range, of an infinity."""
    try:
        return struct.pack(code, value)
    except OverflowError:
        return struct.pack(code, math.copysign(math.inf, value))


def f32(value):
    return struct.unpack("<f", pack(value, "<f"))[0]


def brain(value):
    """Return the bytes of a float32 as bfloat16."""
    bits = int.from_bytes(pack(value, "<f"), "little")
    if math.isnan(value):
        return (bits >> 16 | 64).to_bytes(2, "little")
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).to_bytes(2, "little")


def floats(data, dtype):
    """Return the values of stored bytes."""
    code, width = FLOATS[dtype]
    parts = [data[at : at + width] for at in range(0, len(data), width)]
    if dtype == "bfloat16":
        return [struct.unpack("<f", bytes(2) + part)[0] for part in parts]
    return [struct.unpack(code, part)[0] for part in parts]


def to_bytes(values, dtype):
    """Return float32 or float64 values as bytes of a dtype."""
    code, _ = FLOATS[dtype]
    if dtype == "bfloat16":
        return b"".join(map(brain, values))
    return b"".join(pack(value, code) for value in values)


def converted(data, stored, dtype):
    """Return the bytes of a raw tensor in its own dtype."""
    if stored == dtype:
        return data
    values = floats(data, stored)
    if {stored, dtype} != {"float32", "float64"}:
        values = [f32(value) for value in values]
    return to_bytes(values, dtype)


def grid(index, columns, steps, offsets):
    """Return the float32 values of a grid; one step and offset, or one for each row."""
    known, out = {}, []
    for place, number in enumerate(index):
        row = place // columns
        key = number, offsets[row % len(offsets)], steps[row % len(steps)]
        if key not in known:
            known[key] = f32(f32(f32(number) - key[1]) * key[2])
        out.append(known[key])
    return out


def affine(index, columns, steps, minima):
    """Return the float32 values of an affine grid; one step and minimum, or one for each row."""
    return [
        f32(f32(f32(number) * steps[row % len(steps)]) + minima[row % len(minima)])
        for row, number in ((place // columns, number) for place, number in enumerate(index))
    ]


def codebook(index, columns, levels, scales):
    """Return the float32 values of a codebook."""
    return [
        f32(levels[number] * scales[place // columns % len(scales)])
        for place, number in enumerate(index)
    ]


def matrix_product(left, right, inner):
    """Return the product of two matrices, each row by row, with the inner size."""
    rows, columns = len(left) // inner if inner else 0, len(right) // inner if inner else 0
    out = []
    for row, column in product(range(rows), range(columns)):
        total = 0.0
        for k in range(inner):
            total += left[row * inner + k] * right[k * columns + column]
        out.append(f32(total))
    return out


def arranged(values, layout):
    """Return the values of a matrix in the order of its tensor."""
    if layout is None or not values:
        return values
    split, axes = layout
    strides = [math.prod(split[axis + 1 :]) for axis in range(len(split))]
    places = product(*(range(split[axis]) for axis in axes))
    return [
        values[sum(at * strides[axis] for at, axis in zip(place, axes, strict=True))]
        for place in places
    ]
