"""Optimizers by name, over the network and what the method learns of its own."""

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
    """Return an optimizer over ``tuner.model`` and the method's own learnables.

    Weight decay acts on weights of two or more dimensions only: on biases, normalizations, and the
    method's steps and codebooks it does harm.

    Args:
        tuner: from :func:`fewbits.prepare`.
        name: "sgd" (Nesterov where there is momentum) or "adamw".
        learning_rate: of everything.
        momentum: of "sgd"; the first coefficient of "adamw".
        weight_decay: per step, times the learning rate.
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
