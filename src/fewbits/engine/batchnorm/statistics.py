"""Channel moments of batch normalizations, and re-measuring their running statistics."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..network.batches import Forward
from ..network.isolation import evaluating, isolated_pass
from .fold import is_batchnorm

__all__ = ["channel_sums", "measure_batchnorm"]


@torch.no_grad()
def measure_batchnorm(model: nn.Module, batches: Iterable[Any], forward: Forward) -> list[str]:
    """Set running statistics to the plain mean over ``batches``; return the names of the norms.

    Only the normalizations are in training mode meanwhile. Changes ``model`` in place.
    """
    norms: dict[str, Any] = {n: m for n, m in model.named_modules() if is_batchnorm(m)}
    momenta = {name: norm.momentum for name, norm in norms.items()}
    try:
        with evaluating(model):
            for norm in norms.values():
                norm.reset_running_stats()
                norm.momentum = None  # a cumulative mean
                norm.training = True
            for batch in batches:
                isolated_pass(forward, model, batch, seed=0)
    finally:
        for name, norm in norms.items():
            norm.momentum = momenta[name]
    return list(norms)


def channel_sums(values: Tensor) -> Tensor:
    """Return (3, channels) float64: count, sum and sum of squares over all axes except 1."""
    axes = [axis for axis in range(values.dim()) if axis != 1]
    values = values.double()
    sums = values.sum(axes)
    count = torch.full_like(sums, values.numel() // max(1, values.shape[1]))
    return torch.stack([count, sums, values.square().sum(axes)])
