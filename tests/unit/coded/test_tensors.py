"""Coded tensors: values against loops that are obviously right, and refusals."""

import numpy as np
import pytest

from fewbits.coded import (
    ActivationGrid,
    Codebook,
    CodebookTensor,
    Contents,
    GridTensor,
    Layout,
    RawTensor,
    TransformTensor,
)
from fewbits.errors import ConfigError

INDEX = np.arange(-6, 6, dtype=np.int32).reshape(3, 4)
STEP = np.array([0.1], np.float32)


def grid(**changes):
    settings = {"shape": (3, 4), "dtype": "float32", "index": INDEX, "step": STEP}
    return GridTensor(**(settings | changes))


@pytest.mark.parametrize("rows", [1, 3])
def test_grid_values_are_one_subtraction_and_one_product(rows):
    step = np.linspace(0.1, 0.7, rows).astype(np.float32)
    offset = np.array([0.5, -1.0, 3.5][:rows], np.float32)
    got = grid(step=step, offset=offset).dequantize()
    for r in range(3):
        for c in range(4):
            pick = r if rows == 3 else 0
            want = np.float32(np.float32(INDEX[r, c]) - offset[pick]) * step[pick]
            assert got[r, c] == want
            assert got.dtype == np.float32


def test_codebook_values_are_looked_up_and_scaled():
    book = Codebook(np.array([-1.5, 0.0, 0.25, 2.0], np.float32))
    index = np.array([[3, 0, 1], [2, 2, 0]], np.int32)
    scale = np.array([2.0, 0.1], np.float32)
    got = CodebookTensor((2, 3), "float32", index, book, scale).dequantize()
    want = [[book.values[i] * scale[r] for i in row] for r, row in enumerate(index)]
    np.testing.assert_array_equal(got, np.array(want, np.float32))


def test_layout_permutes_the_matrix_into_the_tensor():
    index = np.arange(24, dtype=np.int32).reshape(4, 6)
    tensor = grid(
        shape=(2, 4, 3),
        index=index,
        step=np.ones(1, np.float32),
        layout=Layout(split=(4, 2, 3), axes=(1, 0, 2)),
    )
    got = tensor.dequantize()
    for a in range(2):
        for b in range(4):
            for c in range(3):
                assert got[a, b, c] == index[b, 3 * a + c]


@pytest.mark.parametrize("side", ["left", "right"])
def test_transform_is_a_product_in_float64_rounded_once(side):
    rng = np.random.default_rng(1)
    left, right = (
        GridTensor(shape, "float32", rng.integers(-9, 9, shape, np.int32), STEP)
        for shape in ((3, 2), (2, 5))
    )
    basis, coefficients = (left, right) if side == "left" else (right, left)
    got = TransformTensor((15,), "float32", coefficients, basis, side).dequantize()
    want = left.dequantize().astype(np.float64) @ right.dequantize().astype(np.float64)
    assert got.shape == (15,)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got.reshape(3, 5), want, rtol=1e-7, atol=1e-9)


def test_raw_stores_its_own_dtype_unless_told_otherwise():
    assert RawTensor((2,), "float32", np.zeros(8, np.uint8)).stored == "float32"
    assert RawTensor((2,), "float32", np.zeros(4, np.uint8), "bfloat16").stored == "bfloat16"
    assert RawTensor((), "int64", np.zeros(8, np.uint8)).data.size == 8


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": (3, 5)},
        {"dtype": "int8"},
        {"index": INDEX.astype(np.int64)},
        {"index": INDEX.reshape(-1)},
        {"step": np.ones(2, np.float32)},
        {"step": np.ones(1)},
        {"step": np.array([np.nan], np.float32)},
        {"offset": np.array([0.25], np.float32)},
        {"offset": np.array([np.inf], np.float32)},
        {"layout": Layout((3, 5), (1, 0))},
    ],
)
def test_a_grid_that_cannot_be_is_refused(changes):
    with pytest.raises(ConfigError, match="must be"):
        grid(**changes)


@pytest.mark.parametrize(
    "values", [[], [1.0, 1.0], [2.0, 1.0], [np.nan], [0.0, np.inf], [[0.0, 1.0]]]
)
def test_a_codebook_that_cannot_be_is_refused(values):
    with pytest.raises(ConfigError):
        Codebook(np.array(values, np.float32))


@pytest.mark.parametrize("index", [[[0, 4]], [[-1, 0]]])
def test_an_index_outside_its_codebook_is_refused(index):
    book = Codebook(np.arange(4, dtype=np.float32))
    with pytest.raises(ConfigError, match=r"in \[0, 4\)"):
        CodebookTensor((1, 2), "float32", np.array(index, np.int32), book)


@pytest.mark.parametrize(
    ("shape", "side"), [((3, 5), "middle"), ((3, 6), "left"), ((3, 5), "right")]
)
def test_a_transform_that_cannot_be_is_refused(shape, side):
    basis = GridTensor((3, 2), "float32", np.zeros((3, 2), np.int32), STEP)
    coefficients = GridTensor((2, 5), "float32", np.zeros((2, 5), np.int32), STEP)
    with pytest.raises(ConfigError):
        TransformTensor(shape, "float32", coefficients, basis, side)


@pytest.mark.parametrize(
    ("shape", "dtype", "data"),
    [
        ((2,), "float32", np.zeros(7, np.uint8)),
        ((2,), "complex256", np.zeros(16, np.uint8)),
        ((2,), "int16", np.zeros(4, np.int8)),
    ],
)
def test_raw_bytes_that_do_not_fit_are_refused(shape, dtype, data):
    with pytest.raises(ConfigError):
        RawTensor(shape, dtype, data)


@pytest.mark.parametrize(("bits", "clip"), [(0, 1.0), (17, 1.0), (4, 0.0), (4, np.inf)])
def test_an_activation_grid_that_cannot_be_is_refused(bits, clip):
    with pytest.raises(ConfigError):
        ActivationGrid(bits, clip, signed=True)


def test_layout_axes_must_permute():
    with pytest.raises(ConfigError, match="do not permute"):
        Layout((2, 3), (0, 2))


@pytest.mark.parametrize("aliases", [{"b": "c"}, {"a": "a"}])
def test_an_alias_is_another_name_of_a_tensor(aliases):
    tensors = {"a": RawTensor((), "bool", np.zeros(1, np.uint8))}
    with pytest.raises(ConfigError, match="aliases"):
        Contents(tensors, aliases)
