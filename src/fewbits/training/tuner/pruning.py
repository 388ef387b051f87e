"""Pruning during training, by magnitude or by the sensitivity of the loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ...errors import require
from ...methods import TunedWeight
from ...methods.schedule import Ramp, value_at
from ...methods.uniform import check_number, check_one_of

__all__ = [
    "Lobster",
    "Magnitude",
    "Pruning",
    "keep_zeros",
    "prune_below",
    "pruned_share",
    "share_threshold",
]


class Pruning(Protocol):
    """A way to prune: settings only; masks belong to the weights."""

    def advance(self, weights: Sequence[TunedWeight], progress: float) -> None:
        """Prune according to the schedule at ``progress``."""
        ...

    def step(self, weights: Sequence[TunedWeight]) -> None:
        """Act after the optimizer's step, while its gradients are still available."""
        ...


@dataclass(frozen=True, kw_only=True)
class Magnitude:
    """Prune the smallest weights.

    Attributes:
        share: share of the weights to prune; a :class:`Ramp` prunes gradually.
        scope: "network" (one threshold for all) or "tensor" (the same share of each).
    """

    share: float | Ramp
    scope: str = "network"

    def __post_init__(self) -> None:
        object.__setattr__(self, "share", Ramp.of(self.share))
        ends = (self.share.start, self.share.end) if isinstance(self.share, Ramp) else (self.share,)
        for value in ends:
            check_number("share", value, 0, inclusive=True)
            require(value < 1, "share", "below 1", value)
        check_one_of("scope", self.scope, ("network", "tensor"))

    def advance(self, weights: Sequence[TunedWeight], progress: float) -> None:
        """Prune up to the share, in increments of half a percent, and exactly at the end."""
        share = value_at(self.share, progress)
        last = not isinstance(self.share, Ramp) or progress >= self.share.until
        missing = share - pruned_share(weights)
        if missing <= (1e-9 if last else 0.005):
            return
        pools = [weights] if self.scope == "network" else [[weight] for weight in weights]
        for pool in pools:
            prune_below(pool, share_threshold([w.parameter for w in pool], share))

    def step(self, weights: Sequence[TunedWeight]) -> None:
        """Do nothing: the schedule prunes."""


@dataclass(frozen=True, kw_only=True)
class Lobster:
    """Shrink weights to which the loss is insensitive, for pruning at plateaus.

    Loss-based sensitivity regularization (Tartaglione et al. 2020): every step subtracts
    ``strength * w * relu(1 - |dL/dw|)`` from each weight. :meth:`Tuner.prune` then prunes.

    Attributes:
        strength: factor on the change of each step.
    """

    strength: float = 1e-4

    def __post_init__(self) -> None:
        check_number("strength", self.strength, 0)

    def advance(self, weights: Sequence[TunedWeight], progress: float) -> None:
        """Do nothing: the user prunes at plateaus of the loss."""

    @torch.no_grad()
    def step(self, weights: Sequence[TunedWeight]) -> None:
        """Shrink every weight according to its insensitivity."""
        for weight in weights:
            values, gradient = weight.parameter, weight.parameter.grad
            if gradient is not None:
                values.sub_(values * (1 - gradient.abs()).relu_() * self.strength)


@torch.no_grad()
def prune_below(weights: Sequence[TunedWeight], threshold: float) -> None:
    """Prune the weights whose magnitude is at most ``threshold``; pruned weights stay pruned."""
    for weight in weights:
        mask = weight.parameter.abs() > threshold
        weight.mask = mask if weight.mask is None else mask & weight.mask
        weight.parameter.mul_(weight.mask)


def keep_zeros(weights: Sequence[TunedWeight]) -> None:
    """Treat weights that are exactly zero as pruned; biases are excluded, as they start at zero."""
    for weight in (weight for weight in weights if weight.parameter.dim() > 1):
        alive = weight.parameter.detach() != 0
        if not bool(alive.all()):
            weight.mask = alive


def pruned_share(weights: Sequence[TunedWeight]) -> float:
    """Return the share of weights that are pruned."""
    total = sum(weight.parameter.numel() for weight in weights)
    pruned = sum(int((~weight.mask).sum()) for weight in weights if weight.mask is not None)
    return pruned / max(1, total)


def largest_threshold(
    weights: Sequence[TunedWeight], loss: Callable[[], float], worst: float, trials: int = 12
) -> float:
    """Find by bisection the largest threshold whose pruning keeps ``loss()`` at most ``worst``.

    The weights are restored afterwards. Cost: ``trials`` evaluations of the loss.
    """
    saved = [weight.parameter.detach().clone() for weight in weights]
    low, high = 0.0, max(float(values.abs().max()) for values in saved)
    for _ in range(trials):
        middle = (low + high) / 2
        with torch.no_grad():
            for weight, values in zip(weights, saved, strict=True):
                weight.parameter.copy_(values * (values.abs() > middle))
        if loss() <= worst:
            low = middle
        else:
            high = middle
    with torch.no_grad():
        for weight, values in zip(weights, saved, strict=True):
            weight.parameter.copy_(values)
    return low


def share_threshold(tensors: Sequence[Tensor], share: float) -> float:
    """Return the magnitude at or below which a ``share`` of all values lies; -1 for a share of 0.

    Nearest rank, over all tensors together. Cost: one selection among all magnitudes.
    """
    sizes = torch.cat([tensor.detach().reshape(-1).abs().float() for tensor in tensors])
    rank = round(share * sizes.numel())
    return float(sizes.kthvalue(rank).values) if rank else -1.0
