"""A learned step that stays positive under any optimizer and changes in proportion to itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ....engine.network.distributed import in_group
from ....ops.levels.quantizers import lsq_damping

__all__ = ["LearnedStep", "TrainingPart", "damping_at", "keeping_dtype", "with_zero_gradients"]

_MOST = math.log(2)  # largest change of the logarithm per update
_EIGHT_BIT_FACTOR = 0.1  # on the gradient at 8 bits, where LSQ uses a tenth of the learning rate


def damping_at(bits: int, values: int, high: int) -> float:
    """Return the factor on the gradient of a step shared by ``values`` values, at a width."""
    return lsq_damping(values, high) * (_EIGHT_BIT_FACTOR if bits >= 8 else 1.0)


def with_zero_gradients(values: Tensor, *learned: Tensor) -> Tensor:
    """Return ``values`` unchanged, but give the unused parameters ``learned`` zero gradients.

    Distributed training waits for a gradient of every parameter.
    """
    trainable = [parameter for parameter in learned if parameter.requires_grad]
    if not trainable or not in_group():
        return values
    unused = torch.cat(trainable).sum().to(values.dtype)
    return torch.where(torch.ones_like(unused, dtype=torch.bool), values, unused)


def keeping_dtype(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Wrap the function that ``module.to`` applies to tensors so that it keeps their dtype."""

    def change_device(tensor: Tensor) -> Tensor:
        changed = change(tensor)
        return changed if changed.dtype == tensor.dtype else tensor.to(changed.device)

    return change_device


class TrainingPart(nn.Module):
    """A submodule that exists only during training and is not in the network's state dict.

    As a submodule it takes part in distributed training and moves to other devices with the
    network. It stays in float32 when the network is cast, because squares of steps would vanish in
    float16.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        super()._apply(keeping_dtype(fn), recurse)  # type: ignore[no-untyped-call]
        return self

    def _save_to_state_dict(self, *args: Any) -> None:
        """Save nothing: the state dict is that of the float network."""

    def _load_from_state_dict(self, *args: Any) -> None:
        """Load nothing, and report nothing as missing."""


class LearnedStep(TrainingPart):
    """``base * exp(stretch)``, with the gradient of LSQ's step to first order.

    If the step itself were trained, an optimizer could push it below zero, and Adam would move
    small steps as far as large ones. So its logarithm is trained; the gradient is divided by the
    squared base, so that plain SGD moves the step as in LSQ.

    Attributes:
        base: (count,) the step as fitted.
        stretch: (count,) learned logarithm of the change since then.
    """

    def __init__(self, count: int, device: torch.device) -> None:
        super().__init__()
        self.base: Tensor
        self.register_buffer("base", torch.ones(count, device=device))
        self.stretch = nn.Parameter(torch.zeros(count, device=device))
        self._last: Tensor
        self.register_buffer("_last", torch.zeros(count, device=device))

    def forward(self, damping: float) -> Tensor:
        """Return the step (count,) float32; its gradient is multiplied by ``damping``."""
        fixed = self.stretch.detach()
        change = (self.stretch - fixed) * (damping / self.base.square())
        return self.base * torch.exp(fixed + change)

    @property
    def value(self) -> Tensor:
        """The step, without gradient."""
        return self.base * torch.exp(self.stretch.detach())

    @torch.no_grad()
    def fit(self, step: Tensor | float) -> None:
        """Restart from ``step``."""
        self.base.copy_(torch.as_tensor(step).clamp_min(1e-9))
        self.stretch.zero_()
        self._last.zero_()

    @torch.no_grad()
    def constrain(self, most: float = math.inf) -> None:
        """Limit the change since the last call to a factor of 2, and the step to ``most``."""
        low, high = self._last - _MOST, self._last + _MOST
        bounded = self.stretch.nan_to_num(0.0)
        bounded = bounded.clamp(low.clamp_min(-40), high.clamp_max(40))  # within float32 too
        self.stretch.copy_(torch.minimum(bounded, (most / self.base).log()))
        self._last.copy_(self.stretch)

    def state(self) -> dict[str, Any]:
        """Return base and stretch."""
        return {"base": self.base.clone(), "stretch": self.stretch.detach().clone()}

    @torch.no_grad()
    def load_state(self, state: dict[str, Any]) -> None:
        """Restore the state returned by :meth:`state`."""
        self.base.copy_(state["base"])
        self.stretch.copy_(state["stretch"])
        self._last.copy_(self.stretch)
