"""Weights that are sampled while training: ``w = mu + deviation * noise``, a parametrization."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ....engine.network.distributed import in_group
from ....ops.levels.powers_of_two import LEAST
from ....ops.seeds import seed_at

__all__ = ["NoiseSource", "Noisy"]


class NoiseSource:
    """Normal noise as a function of a seed, the process and a count: nothing else is its state.

    Processes of a ``torch.distributed`` group draw different noise. A run that is resumed at a
    count draws what an unbroken one draws there.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.count = 0
        self._generators: dict[torch.device, torch.Generator] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> NoiseSource:
        copied = NoiseSource(self.seed)
        copied.count = self.count
        return copied

    def draw(self, like: Tensor) -> Tensor:
        """Return standard normal noise in the shape of ``like``, on its device."""
        rank = torch.distributed.get_rank() if in_group() else 0
        seed = seed_at(self.seed, rank, self.count)
        self.count += 1
        generator = self._generators.get(like.device)
        if generator is None:
            generator = self._generators[like.device] = torch.Generator(like.device)
        generator.manual_seed(seed)
        return torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)


class Noisy(nn.Module):
    """Gives the forward pass a sample of each weight, and fixed weights no gradient.

    Draws anew in every forward pass in training mode; in evaluation mode, and while ``active`` is
    False, it does nothing. Weights that are fixed are sampled too.

    Attributes:
        deviation: float32, in the shape of the weight; a parameter, trained or not.
        fixed: bool, in the shape of the weight; None while nothing is fixed.
        noise: of the latest forward pass, where it is kept.
    """

    fixed: Tensor | None
    noise: Tensor | None

    def __init__(
        self, deviation: Tensor, source: NoiseSource, *, trained: bool, sampled: bool, kept: bool
    ) -> None:
        super().__init__()
        self.active = True
        self.deviation = nn.Parameter(deviation, requires_grad=trained)
        self.register_buffer("fixed", None, persistent=False)
        self.noise = None
        self._source, self._sampled, self._kept = source, sampled, kept

    def forward(self, weight: Tensor) -> Tensor:
        """Return a sample in the shape and dtype of ``weight``."""
        if not self.active or not self.training:
            return weight
        noise = self._source.draw(self.deviation.detach()) if self._sampled else None
        if self._kept:
            self.noise = noise
        sample: Tensor = _Sample.apply(weight, self.deviation, noise, self.fixed)  # type: ignore[no-untyped-call]
        return sample


class _Sample(torch.autograd.Function):
    """``mu + max(deviation, 2**-30) * noise``; the gradient of fixed weights is zero.

    The gradient passes to deviations at their bound too, or they could never leave it.
    """

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, deviation: Tensor, noise: Tensor | None, fixed: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(noise, fixed)
        ctx.dtype = deviation.dtype
        if noise is None:
            return weight.view_as(weight)
        return torch.addcmul(weight, deviation.clamp_min(LEAST).to(weight.dtype), noise.to(weight))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        noise, fixed = ctx.saved_tensors
        if fixed is not None:
            gradient = gradient.masked_fill(fixed, 0)
        own = None
        if noise is not None and ctx.needs_input_grad[1]:
            own = gradient.to(ctx.dtype) * noise
        return gradient, own, None, None
