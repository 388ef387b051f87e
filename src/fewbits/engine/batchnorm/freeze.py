"""Freezing normalizations without statistics, which must not use batch statistics in training.

After folding or merging, a normalization has mean 0 and variance 1 instead of its statistics, and
is correct only with these. In training mode it would use the statistics of the batch and compute
something else.
"""

from __future__ import annotations

from collections.abc import Collection
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from .fold import is_batchnorm

__all__ = ["freeze_absorbed", "freeze_zero_biases", "unfreeze", "without_statistics"]

_FROZEN, _ZERO = "_fewbits_frozen", "_fewbits_zero_bias"
_NEAR = 2.0**-8  # from 1: rounding of 1 - eps to float16 or bfloat16


def freeze_absorbed(model: nn.Module, *, coded: bool = True) -> list[str]:
    """Keep folded or merged normalizations in evaluation mode, even after ``model.train()``.

    Weights that are all 1 get no gradient and stay constant, since the layer before has the gains.
    Other weights, and biases, are trained.

    Args:
        model: the network.
        coded: whether its values come from a compressed network, where 1 - eps may have been
            rounded to 1. Otherwise a variance of 1 means that a normalization is untrained.

    Returns:
        The names of these normalizations.
    """
    held = []
    for name, module in model.named_modules():
        if is_batchnorm(module) and _has_no_statistics(module, _NEAR if coded else 0.0):
            module.eval()
            if bool((module.weight == 1).all()):
                module.__dict__[_FROZEN] = module.weight.requires_grad
                module.weight.requires_grad_(False)
            module.__dict__["train"] = MethodType(_stay, module)
            held.append(name)
    return held


def freeze_zero_biases(model: nn.Module, among: Collection[str]) -> list[str]:
    """Keep biases of layers at zero that are zero throughout: a normalization has taken them over.

    Trained, they would say twice what the bias of the normalization says, and take bytes.

    Args:
        model: the network.
        among: names of the biases that may be frozen.

    Returns:
        The names of those that are. :func:`unfreeze` undoes it.
    """
    held = []
    for path, module in model.named_modules():
        name = f"{path}.bias".lstrip(".")
        weight, bias = (module._parameters.get(leaf) for leaf in ("weight", "bias"))
        if name not in among or weight is None or weight.dim() < 2 or bias is None:
            continue
        if bias.requires_grad and not bool(bias.any()):
            bias.requires_grad_(False)
            module.__dict__[_ZERO] = True
            held.append(name)
    return held


def without_statistics(model: nn.Module) -> set[str]:
    """Return the names of the folded or merged normalizations."""
    norms = ((name, module) for name, module in model.named_modules() if is_batchnorm(module))
    return {name for name, norm in norms if _has_no_statistics(norm, _NEAR)}


def unfreeze(model: nn.Module) -> None:
    """Undo :func:`freeze_absorbed` and :func:`freeze_zero_biases`."""
    for module in model.modules():
        if module.__dict__.pop(_ZERO, False):
            module.get_parameter("bias").requires_grad_(True)
        if "train" in module.__dict__ and is_batchnorm(module):
            del module.__dict__["train"]
            if module.__dict__.pop(_FROZEN, False):
                module.weight.requires_grad_(True)


def _stay(module: nn.Module, mode: bool = True) -> nn.Module:
    return module


def _has_no_statistics(module: Any, near: float) -> bool:
    mean, variance = module.running_mean, module.running_var
    if not isinstance(mean, Tensor) or not isinstance(variance, Tensor):
        return False
    if bool((mean != 0).any()) or _is_fresh(module):
        return False
    settled = torch.full_like(variance, 1 - module.eps)
    exact = torch.equal(variance, settled) and bool((settled != 1).any())
    return exact or bool(near and (variance - 1).abs().max() <= near)


def _is_fresh(module: Any) -> bool:
    """Return whether nothing was ever learned or measured: it only looks folded."""
    seen = module.num_batches_tracked
    unseen = not isinstance(seen, Tensor) or int(seen) == 0
    return unseen and not bool(torch.any(module.bias != 0))
