"""Values restored in pieces: the bits of the plain formulas, whatever the sizes and the order."""

import tracemalloc

import numpy as np
import pytest

from fewbits.coded import Codebook, CodebookTensor, GridTensor, Layout, TransformTensor

SIZES = [(1, 1), (3, 5), (300, 700), (1, 200_000), (200_000, 1), (257, 513)]


def plain(matrix, shape, layout):
    if layout is not None:
        matrix = matrix.reshape(layout.split).transpose(layout.axes)
    return np.ascontiguousarray(matrix).reshape(shape)


def floats(rng, count):
    return rng.normal(size=count).astype(np.float32)


@pytest.mark.parametrize(("rows", "columns"), SIZES)
@pytest.mark.parametrize("per_row", [False, True])
def test_pieces_have_the_bits_of_the_whole(rows, columns, per_row):
    rng = np.random.default_rng(rows)
    index = rng.integers(-5, 6, (rows, columns)).astype(np.int32)
    count = rows if per_row else 1
    step, offset = floats(rng, count), np.rint(floats(rng, count))
    book = Codebook(np.arange(6, dtype=np.float32))
    grid = (index.astype(np.float32) - offset[:, None]) * step[:, None]
    coded = book.values[abs(index)] * step[:, None]
    turned = Layout((columns, 1, rows), (2, 0, 1))
    for layout in (None, Layout((rows, columns), (1, 0)), turned):
        shape = (columns, rows)
        tensor = GridTensor(shape, "float32", index, step, offset, layout)
        assert tensor.dequantize().tobytes() == plain(grid, shape, layout).tobytes()
        tensor = CodebookTensor(shape, "float32", abs(index), book, step, layout)
        assert tensor.dequantize().tobytes() == plain(coded, shape, layout).tobytes()


@pytest.mark.parametrize(("n", "rank", "m"), [(3, 2, 4), (300, 7, 900), (1, 5, 9000), (9000, 3, 1)])
def test_tiles_of_a_product_have_the_bits_of_the_sums(n, rank, m):
    rng = np.random.default_rng(n)
    left, right = (
        GridTensor(s, "float32", rng.integers(-5, 6, s).astype(np.int32), floats(rng, s[0]))
        for s in ((n, rank), (rank, m))
    )
    a, b = (part.dequantize().astype(np.float64) for part in (left, right))
    total = np.zeros((n, m))
    for k in range(rank):
        total += a[:, k, None] * b[k]
    layout = Layout((n, m), (1, 0))
    tensor = TransformTensor((m, n), "float32", right, left, "left", layout)
    wanted = plain(total.astype(np.float32), (m, n), layout)
    assert tensor.dequantize().tobytes() == wanted.tobytes()


def test_restoring_holds_little_beside_the_values():
    tensor = GridTensor(
        (2048, 1024),
        "float32",
        np.ones((1024, 2048), np.int32),
        np.ones(1024, np.float32),
        layout=Layout((1024, 2048), (1, 0)),
    )
    tracemalloc.start()
    values = tensor.dequantize()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.3 * values.nbytes
