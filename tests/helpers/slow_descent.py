"""Coordinate descent written down as it is defined: the slow twin of the compiled sweeps."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["descend"]


def descend(
    weight: Tensor,
    levels: Tensor,
    second: Tensor,
    project_: Callable[[Tensor], None],
    order: Tensor | None = None,
) -> Tensor:
    """Return ``levels`` (groups, neurons, columns) after one sweep over the columns.

    Each level in turn becomes the projection of the best value given all others, in the metric
    ``second`` (groups, columns, columns). ``project_`` is called once per column, in order.
    """
    levels, groups = levels.clone(), range(len(weight))
    for place in range(weight.shape[2]):
        columns = [place if order is None else int(order[g, place]) for g in groups]
        best = [
            levels[g, :, t] + (weight - levels)[g] @ second[g, :, t] / second[g, t, t]
            for g, t in zip(groups, columns, strict=True)
        ]
        values = torch.stack(best)[:, None]
        project_(values)
        for g, t in zip(groups, columns, strict=True):
            levels[g, :, t] = values[g, 0]
    return levels
