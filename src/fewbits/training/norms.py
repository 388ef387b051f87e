"""Batch normalizations that a layer has absorbed: they must not normalize again while training.

Absorbed, a normalization has weight 1, mean 0 and variance 1 in place of its statistics, and is
right with these alone. In training mode it would use those of the batch, and undo the absorbing.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from ..engine.fold import is_batchnorm

__all__ = ["hold_absorbed", "let_go"]

_NEAR = 2.0**-8  # of 1: what float16 or bfloat16 leaves of 1 - eps


def hold_absorbed(model: nn.Module) -> list[str]:
    """Keep absorbed normalizations in evaluation mode, whatever ``model.train()`` says.

    Their weights, all 1, get no gradient and stay constant; their biases are trained.

    Args:
        model: holding the values of a compressed network.

    Returns:
        The names of these normalizations.
    """
    held = []
    for name, module in model.named_modules():
        if is_batchnorm(module) and _is_absorbed(module):
            module.eval()
            module.weight.requires_grad_(False)
            module.__dict__["train"] = MethodType(_stay, module)
            held.append(name)
    return held


def let_go(model: nn.Module) -> None:
    """Undo :func:`hold_absorbed`."""
    for module in model.modules():
        if "train" in module.__dict__ and is_batchnorm(module):
            del module.__dict__["train"]
            module.weight.requires_grad_(True)


def _stay(module: nn.Module, mode: bool = True) -> nn.Module:
    return module


def _is_absorbed(module: Any) -> bool:
    mean, variance, weight = module.running_mean, module.running_var, module.weight
    if not isinstance(mean, Tensor) or not isinstance(variance, Tensor):
        return False
    still = bool((mean == 0).all()) and bool((weight == 1).all())
    return still and bool((variance - 1).abs().max() <= _NEAR) and not _is_fresh(module)


def _is_fresh(module: Any) -> bool:
    """Tell whether nothing was ever learned or measured: such a one looks absorbed, and is not."""
    seen = module.num_batches_tracked
    unseen = not isinstance(seen, Tensor) or int(seen) == 0
    return unseen and not bool(torch.any(module.bias != 0))
