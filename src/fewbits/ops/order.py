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


def permute_columns(weight: Tensor, order: Tensor) -> Tensor:
    """Return a copy of (groups, neurons, columns) with its columns in ``order``."""
    return weight.mT[_groups(order), order].mT


def restore_columns(weight: Tensor, order: Tensor) -> Tensor:
    """Undo :func:`permute_columns`."""
    return permute_columns(weight, order.argsort(1))


def permute_moments(moments: Tensor, order: Tensor) -> Tensor:
    """Return a copy of (groups, columns, columns) with its rows and columns in ``order``."""
    return moments[_groups(order)[..., None], order[:, :, None], order[:, None, :]]


def _groups(order: Tensor) -> Tensor:
    return torch.arange(order.shape[0], device=order.device)[:, None]
