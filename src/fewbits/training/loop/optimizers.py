"""Optimizers by name, over the parameters of the network and of the method."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ...errors import require
from .stepper import Tunable

__all__ = ["OPTIMIZERS", "make_optimizer"]

OPTIMIZERS = ("sgd", "adamw")


def make_optimizer(
    tuner: Tunable,
    name: str = "sgd",
    *,
    learning_rate: float,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
) -> Optimizer:
    """Return an optimizer over the parameters of ``tuner.model`` and of the method.

    Weight decay only applies to weights of two or more dimensions: it harms biases, normalization
    layers, and the steps and codebooks of the method.

    Args:
        tuner: the tuner, from :func:`fewbits.prepare`.
        name: "sgd" (with Nesterov momentum) or "adamw".
        learning_rate: learning rate of all parameters.
        momentum: momentum of "sgd", or the first beta of "adamw".
        weight_decay: weight decay per step, multiplied by the learning rate.
    """
    require(name in OPTIMIZERS, "optimizer", f"one of {', '.join(OPTIMIZERS)}", name)
    own = list(tuner.parameters())
    known = {id(parameter) for parameter in own}
    network = [p for p in tuner.model.parameters() if id(p) not in known and p.requires_grad]
    decayed: list[nn.Parameter] = [p for p in network if p.dim() > 1]
    rest = [*(p for p in network if p.dim() <= 1), *own]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=learning_rate, betas=(momentum, 0.999))
    nesterov = momentum > 0
    return torch.optim.SGD(groups, lr=learning_rate, momentum=momentum, nesterov=nesterov)
