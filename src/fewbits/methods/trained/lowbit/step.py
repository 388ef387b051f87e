"""A learned step: positive whatever an optimizer does, and moved in proportion to itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ....engine.network.distributed import in_group
from ....ops.levels.quantizers import lsq_damping

__all__ = ["LearnedStep", "TrainingPart", "beside", "damping_at", "kept_dtype"]

_MOST = math.log(2)  # change of the logarithm at a time
_CALM = 0.1  # of the gradient, at 8 bits: LSQ's learning rate there is a tenth of that below


def damping_at(bits: int, values: int, high: int) -> float:
    """Return the factor on the gradient of a step that ``values`` share, at a width."""
    return lsq_damping(values, high) * (_CALM if bits >= 8 else 1.0)


def beside(values: Tensor, *learned: Tensor) -> Tensor:
    """Return ``values`` as they are; ``learned``, not needed for them, get gradients of zero.

    Processes that train together wait for a gradient of every parameter.
    """
    waited = [found for found in learned if found.requires_grad]
    if not waited or not in_group():
        return values
    unused = torch.cat(waited).sum().to(values.dtype)
    return torch.where(torch.ones_like(unused, dtype=torch.bool), values, unused)


def kept_dtype(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return ``change``, what ``module.to`` does to a tensor, without its change of dtype."""

    def moved(tensor: Tensor) -> Tensor:
        found = change(tensor)
        return found if found.dtype == tensor.dtype else tensor.to(found.device)

    return moved


class TrainingPart(nn.Module):
    """A part of a network for as long as it is trained: of its tree, but not of its state dict.

    In the tree, processes that train together find its parameters, and it moves along to another
    device. It stays in float32 whatever the network becomes: in float16, squares of steps vanish.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        super()._apply(kept_dtype(fn), recurse)  # type: ignore[no-untyped-call]
        return self

    def _save_to_state_dict(self, *told: Any) -> None:
        """Add nothing: the state dict is the float network's."""

    def _load_from_state_dict(self, *told: Any) -> None:
        """Miss nothing there."""


class LearnedStep(TrainingPart):
    """``base * exp(stretch)`` with the gradient that LSQ's step has, to first order.

    A step that an optimizer adds to can be thrown across zero, and Adam moves small steps as far as
    large ones. Here the logarithm is trained; its gradient is divided by the squared base, so that
    plain SGD moves the step as it would move LSQ's.

    Attributes:
        base: (count,) the step as it was fitted.
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
        """Return the step (count,) float32, its gradient times ``damping``."""
        fixed = self.stretch.detach()
        moved = (self.stretch - fixed) * (damping / self.base.square())
        return self.base * torch.exp(fixed + moved)

    @property
    def value(self) -> Tensor:
        """The step, without gradient."""
        return self.base * torch.exp(self.stretch.detach())

    @torch.no_grad()
    def fit(self, step: Tensor | float) -> None:
        """Begin anew from ``step``."""
        self.base.copy_(torch.as_tensor(step).clamp_min(1e-9))
        self.stretch.zero_()
        self._last.zero_()

    @torch.no_grad()
    def hold(self, most: float = math.inf) -> None:
        """Let no step change by more than a factor of 2, leave float32, or exceed ``most``."""
        low, high = self._last - _MOST, self._last + _MOST
        found = self.stretch.nan_to_num(0.0)
        found = found.clamp(low.clamp_min(-40), high.clamp_max(40))
        self.stretch.copy_(torch.minimum(found, (most / self.base).log()))
        self._last.copy_(self.stretch)

    def state(self) -> dict[str, Any]:
        """Return base and stretch."""
        return {"base": self.base.clone(), "stretch": self.stretch.detach().clone()}

    @torch.no_grad()
    def take_state(self, state: dict[str, Any]) -> None:
        """Take what :meth:`state` gave."""
        self.base.copy_(state["base"])
        self.stretch.copy_(state["stretch"])
        self._last.copy_(self.stretch)
