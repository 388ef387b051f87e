"""What SPEC.md says of values (2.3), one Python float at a time, against what is read back."""

import struct

import numpy as np
import pytest
import torch

from fewbits.coded import Codebook, CodebookTensor, Contents, GridTensor, RawTensor, TransformTensor
from fewbits.container import decode, encode
from fewbits.engine.layers.pack import to_torch

RNG = np.random.default_rng(3)


def f32(value):
    """Round a float64 to float32, ties to even; one operation on float32 rounds the same so."""
    return struct.unpack("<f", struct.pack("<f", value))[0]


def f16(value):
    return struct.unpack("<e", struct.pack("<e", value))[0]


def read(tensor):
    return to_torch(decode(encode(Contents({"w": tensor}))).tensors["w"]).tolist()


def floats(*shape):
    return RNG.normal(0, 1, shape).astype(np.float32)


INDEX = RNG.integers(-(2**31), 2**31, (4, 9), np.int32) >> np.arange(0, 27, 3, dtype=np.int32)
STEP = abs(floats(4)) * np.float32(1e-3)
OFFSET = np.array([0, 0.5, -1.5, 3], np.float32)


def grid_values():
    rows = zip(INDEX.tolist(), STEP.tolist(), OFFSET.tolist(), strict=True)
    return [[f32(f32(f32(i) - offset) * step) for i in row] for row, step, offset in rows]


def test_a_grid():
    assert abs(INDEX).max() > 2**24
    assert read(GridTensor((4, 9), "float32", INDEX, STEP, OFFSET)) == grid_values()
    doubles = read(GridTensor((4, 9), "float64", INDEX, STEP, OFFSET))
    assert doubles == grid_values()
    small = read(GridTensor((4, 9), "float16", INDEX >> 16, STEP, OFFSET))
    rows = zip((INDEX >> 16).tolist(), STEP.tolist(), OFFSET.tolist(), strict=True)
    assert small == [[f16(f32(f32(i - o) * s)) for i in row] for row, s, o in rows]


def test_a_codebook():
    levels, index = np.sort(floats(7)), RNG.integers(0, 7, (4, 9), np.int32)
    found = read(CodebookTensor((4, 9), "float32", index, Codebook(levels), STEP))
    values = levels.tolist()
    rows = zip(index.tolist(), STEP.tolist(), strict=True)
    assert found == [[f32(values[i] * scale) for i in row] for row, scale in rows]


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_transform(side):
    first = GridTensor((4, 9), "float16", INDEX, STEP, OFFSET)  # its own dtype does not count
    index = RNG.integers(-9, 9, (9, 4), np.int32)
    second = GridTensor((9, 4), "float32", index, floats(1))
    if side == "left":
        tensor = TransformTensor((4, 4), "float32", second, first, side)
    else:
        tensor = TransformTensor((4, 4), "float32", first, second, side)
    left = grid_values()
    right = [[f32(i * second.step.tolist()[0]) for i in row] for row in index.tolist()]
    expected = []
    for row in left:
        expected.append([])
        for j in range(4):
            total = 0.0
            for k in range(9):
                total += row[k] * right[k][j]
            expected[-1].append(f32(total))
    assert read(tensor) == expected


def test_raw_bytes_are_converted_by_way_of_float32():
    values = np.append(RNG.normal(0, 1, 20), 1 + 2.0**-11 + 2.0**-40)
    half = RawTensor((21,), "float16", values.view(np.uint8), "float64")
    assert read(half) == [f16(f32(value)) for value in values.tolist()]
    assert read(half)[-1] != f16(float(values[-1]))
    single = RawTensor((21,), "float32", values.view(np.uint8), "float64")
    assert read(single) == [f32(value) for value in values.tolist()]
    wide = values.astype(np.float16)
    for dtype in ("float32", "float64"):
        raw = RawTensor((21,), dtype, wide.view(np.uint8), "float16")
        assert read(raw) == wide.tolist()
    brain = RawTensor((21,), "bfloat16", wide.view(np.uint8), "float16")
    assert read(brain) == torch.tensor(wide.tolist()).bfloat16().tolist()
