"""Batch normalization measured anew: what training left is of another mixture of precisions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from .batches import Forward
from .fold import is_batchnorm
from .isolation import isolated_pass

__all__ = ["measure_batchnorm"]


@torch.no_grad()
def measure_batchnorm(model: nn.Module, batches: Iterable[Any], forward: Forward) -> list[str]:
    """Set running statistics to the plain mean over ``batches``; return the names of the norms.

    Only the normalizations are in training mode meanwhile. Changes ``model`` in place.
    """
    norms: dict[str, Any] = {
        name: module
        for name, module in model.named_modules()
        if is_batchnorm(module) and module.running_mean is not None
    }
    modes = {module: module.training for module in model.modules()}
    momenta = {name: norm.momentum for name, norm in norms.items()}
    model.eval()
    try:
        for norm in norms.values():
            norm.reset_running_stats()
            norm.momentum = None  # a cumulative mean
            norm.training = True
        for batch in batches:
            isolated_pass(forward, model, batch, seed=0)
    finally:
        for module, mode in modes.items():
            module.training = mode
        for name, norm in norms.items():
            norm.momentum = momenta[name]
    return list(norms)
