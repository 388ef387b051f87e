"""In which order to visit columns: permutations per group, applied and undone."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["descending", "permute_columns", "permute_moments", "restore_columns"]


def descending(energy: Tensor) -> Tensor:
    """Return the permutation (groups, columns) by falling energy; equal ones keep their order.

    The last columns of a sweep cannot be repaid by later ones, so the weakest come last.
    """
    return energy.argsort(dim=1, descending=True, stable=True)


def permute_columns(matrix: Tensor, order: Tensor) -> Tensor:
    """Return a copy of (groups, rows, columns) with its columns in ``order``."""
    return matrix.gather(2, order[:, None].expand(-1, matrix.shape[1], -1))


def restore_columns(matrix: Tensor, order: Tensor) -> Tensor:
    """Undo :func:`permute_columns`."""
    return permute_columns(matrix, order.argsort(1))


def permute_moments(moments: Tensor, order: Tensor) -> Tensor:
    """Return a copy of (groups, columns, columns) with its rows and columns in ``order``."""
    groups, columns = order.shape
    first = torch.arange(groups, device=order.device)[:, None] * columns
    rows = moments.reshape(groups * columns, columns).index_select(0, (order + first).flatten())
    return permute_columns(rows.reshape(moments.shape), order)
