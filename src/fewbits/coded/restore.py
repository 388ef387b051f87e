"""Matrices to tensors, piece by piece: scratch memory does not grow with the tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["arrange", "per_value", "product", "restore"]

Float32: TypeAlias = NDArray[np.float32]
Shape: TypeAlias = tuple[int, ...]

PIECE = 1 << 16  # values restored at a time, or in a tile of a product
WIDEST = 1 << 12  # columns of a tile of a product


def restore(
    index: NDArray[np.int32],
    shape: Shape,
    order: tuple[Shape, Shape] | None,
    values: Callable[[NDArray[np.int32], slice], Float32],
) -> Float32:
    """Dequantize a matrix of indices into a tensor of ``shape``.

    ``order``: shape to which the matrix is reshaped, and the permutation of its axes; None if a
    reshape is enough. ``values`` maps a run of indices, and its slice of the flattened matrix, to
    values.
    """
    out = np.empty(shape, np.float32)
    if not out.size:
        return out
    split, axes = order or ((out.size,), (0,))
    view = out.reshape([split[axis] for axis in axes]).transpose(np.argsort(axes))
    flat = index.reshape(-1)
    for place, run in _pieces(split):
        into = view[place]
        into[...] = values(flat[run], run).reshape(into.shape)
    return out


def arrange(matrix: Float32, shape: Shape, order: tuple[Shape, Shape] | None) -> Float32:
    """Reshape a matrix of values to a tensor; ``order`` as in :func:`restore`."""
    if order is not None and matrix.size:
        matrix = np.ascontiguousarray(matrix.reshape(order[0]).transpose(order[1]))
    return matrix.reshape(shape)


def per_value(per_row: Float32, columns: int, run: slice) -> Float32:
    """Expand a per-tensor or per-row parameter to the values of a run."""
    if per_row.size == 1:
        return per_row
    first, last = run.start // columns, (run.stop - 1) // columns
    counts = np.full(last - first + 1, columns)
    counts[0] -= run.start - first * columns
    counts[-1] -= (last + 1) * columns - run.stop
    return np.repeat(per_row[first : last + 1], counts)


def product(left: Float32, right: Float32) -> Float32:
    """Return the matrix product, accumulated column by column of ``left`` in float64, rounded once.

    Works in tiles that fit a cache; an empty result costs nothing, whatever the inner size.
    """
    out = np.empty((len(left), right.shape[1]), np.float32)
    width = min(max(1, out.shape[1]), WIDEST)
    height = PIECE // width
    for top in range(0, out.shape[0] if out.size else 0, height):
        for start in range(0, out.shape[1], width):
            tile = out[top : top + height, start : start + width]
            total, term = np.zeros(tile.shape), np.empty(tile.shape)
            rows = left[top : top + height]
            for k in range(left.shape[1]):
                column = rows[:, k, None].astype(np.float64)
                np.multiply(column, right[k, start : start + width].astype(np.float64), out=term)
                total += term
            with np.errstate(over="ignore"):  # overflow of float32 gives infinity
                tile[...] = total
    return out


def _pieces(split: Shape) -> Iterator[tuple[tuple[Any, ...], slice]]:
    """Yield the index of each piece in an array of shape ``split``, and its flat slice."""
    inner, axis = 1, len(split)
    while axis and inner * split[axis - 1] <= PIECE:
        axis -= 1
        inner *= split[axis]
    if not axis:
        yield (...,), slice(0, inner)
        return
    step, size, start = PIECE // inner, split[axis - 1], 0
    for outer in np.ndindex(*split[: axis - 1]):
        for begin in range(0, size, step):
            end = min(begin + step, size)
            count = (end - begin) * inner
            yield (*outer, slice(begin, end)), slice(start, start + count)
            start += count
