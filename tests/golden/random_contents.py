"""Contents of any kind, drawn at random: small, for readers that are slow."""

import numpy as np

from fewbits.coded import (
    ActivationGrid,
    AffineTensor,
    Codebook,
    CodebookTensor,
    Contents,
    GridTensor,
    Layout,
    RawTensor,
    TransformTensor,
)

FLOATS = ["float32", "float32", "float64", "float16", "bfloat16"]
SHAPES = [(9,), (6, 40), (5, 3, 4), (8, 3, 3, 3), (6, 4, 5, 1), (4, 2, 1, 5), (2, 3, 2, 2, 3), ()]


def integers(rng, rows, columns, least=None, most=None):
    """Draw a matrix of a bell of any width, perhaps smooth from column to column."""
    found = rng.laplace(0, 2.0 ** rng.integers(-2, 9), (rows, columns))
    if rng.random() < 0.5:
        found = np.cumsum(found, axis=1) / 2
    return np.rint(found).clip(least, most).astype(np.int32)


def matrix_of(shape):
    rows = shape[0] if shape else 1
    return rows, int(np.prod(shape, dtype=int)) // rows


def laid_out(rng, shape):
    """Draw (rows, columns, layout): the default, or a permutation."""
    rows, columns = matrix_of(shape)
    if len(shape) < 2 or rng.random() < 0.6:
        return rows, columns, None
    moved = int(rng.integers(2, len(shape) + 1))
    axes = (*rng.permutation(moved).tolist(), *range(moved, len(shape)))
    layout = [0] * len(shape)
    for place, axis in enumerate(axes):
        layout[axis] = shape[place]
    return layout[0], rows * columns // layout[0], Layout(tuple(layout), axes)


def steps(rng, rows):
    count = rows if rng.random() < 0.4 else 1
    return rng.normal(0, 1, count).astype(np.float32)


def grid(rng, shape, dtype="float32", *, far=True):
    rows, columns, layout = laid_out(rng, shape)
    choice = int(rng.integers(4))
    count = rows if choice == 3 else 1
    offset = (rng.integers(-9, 9, count) / 2).astype(np.float32) * (choice > 0)
    if choice == 2 and far:
        offset = np.array([1e20], np.float32)
    return GridTensor(shape, dtype, integers(rng, rows, columns), steps(rng, rows), offset, layout)


def affine(rng, shape, dtype="float32"):
    rows, columns, layout = laid_out(rng, shape)
    step = steps(rng, rows)
    minimum = rng.normal(0, 3, step.size).astype(np.float32)
    return AffineTensor(shape, dtype, integers(rng, rows, columns), step, minimum, layout)


def codebook(rng, shape, book, dtype="float32"):
    rows, columns, layout = laid_out(rng, shape)
    index = abs(integers(rng, rows, columns)) % len(book.values)
    scale = steps(rng, rows) if rng.random() < 0.7 else np.ones(1, np.float32)
    return CodebookTensor(shape, dtype, index, book, scale, layout)


def transform(rng, book, dtype):
    first, inner, last = (int(size) for size in rng.integers(1, 8, 3))
    side = str(rng.choice(["left", "right"]))
    left, right = (first, inner), (inner, last)
    basis, other = (left, right) if side == "left" else (right, left)
    coefficients = codebook(rng, other, book) if rng.random() < 0.4 else grid(rng, other, far=False)
    return TransformTensor((first, last), dtype, coefficients, grid(rng, basis, far=False), side)


def raw(rng, size=None):
    """Draw a raw tensor, perhaps of a dtype that is stored in another."""
    dtype, shape = str(rng.choice(FLOATS)), (size or int(rng.integers(0, 40)),)
    values = rng.normal(1, 1, shape)
    if rng.random() < 0.3:
        data = rng.integers(0, 50, shape).astype("<i2").view(np.uint8)
        return RawTensor(shape, "int16", data)
    stored = "float16" if rng.random() < 0.4 else dtype
    if stored == "bfloat16":
        data = values.astype("<f4").view("<u2")[1::2].copy().view(np.uint8)
    else:
        data = values.astype({"float16": "<f2", "float32": "<f4", "float64": "<f8"}[stored])
    return RawTensor(shape, dtype, data.view(np.uint8), stored)


def random_contents(rng):
    books = [Codebook(np.sort(rng.normal(0, 1, n)).astype(np.float32)) for n in (2, 7)]
    tensors = {}
    for place in range(int(rng.integers(4, 9))):
        shape, dtype = SHAPES[rng.integers(len(SHAPES))], str(rng.choice(FLOATS))
        name = f"{rng.choice(['a.b', 'a.c', 'd'])}.{place}.{rng.choice(['weight', 'bias'])}"
        kind = rng.random()
        if kind < 0.12:
            tensors[name] = affine(rng, shape, dtype)
        elif kind < 0.5:
            tensors[name] = grid(rng, shape, dtype)
        elif kind < 0.7:
            tensors[name] = codebook(rng, shape, books[rng.integers(2)], dtype)
        elif kind < 0.8:
            tensors[name] = transform(rng, books[rng.integers(2)], dtype)
        else:
            tensors[name] = raw(rng)
    tensors["large.values"] = raw(rng, 9000) if rng.random() < 0.3 else raw(rng)
    first = next(iter(tensors))
    grids = {"in": ActivationGrid(int(rng.integers(1, 17)), float(rng.random()) + 0.1, signed=True)}
    return Contents(tensors, {"tied": first}, grids, {"seed": float(rng.random())})
