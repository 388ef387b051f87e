"""A parametrization that samples weights during training: ``w = mu + deviation * noise``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ....engine.network.distributed import in_group
from ....ops.levels.powers_of_two import LEAST
from ....ops.seeds import seed_at

__all__ = ["NoiseSource", "NoisyWeight"]


class NoiseSource:
    """Normal noise determined by a seed, the rank and a count, which is the only state.

    Ranks of a ``torch.distributed`` group draw different noise. A run resumed at a count draws the
    same noise as an uninterrupted one.
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
        """Return standard normal noise in the shape, dtype and device of ``like``."""
        rank = torch.distributed.get_rank() if in_group() else 0
        seed = seed_at(self.seed, rank, self.count)
        self.count += 1
        generator = self._generators.get(like.device)
        if generator is None:
            generator = self._generators[like.device] = torch.Generator(like.device)
        generator.manual_seed(seed)
        return torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)


class NoisyWeight(nn.Module):
    """Samples each weight in the forward pass, and gives fixed weights no gradient.

    In training mode every forward pass draws new noise; in evaluation mode, and while ``active`` is
    False, weights pass unchanged. Fixed weights are sampled too.

    Attributes:
        deviation: float32 in the shape of the weight; a parameter, trained or not.
        fixed: bool in the shape of the weight; None while nothing is fixed.
        noise: noise of the latest forward pass, if it is kept.
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
        """Sample ``weight``, in its shape and dtype."""
        if not self.active or not self.training:
            return weight
        noise = self._source.draw(self.deviation.detach()) if self._sampled else None
        if self._kept:
            self.noise = noise
        sample: Tensor = _Sample.apply(weight, self.deviation, noise, self.fixed)  # type: ignore[no-untyped-call]
        return sample


class _Sample(torch.autograd.Function):
    """``mu + max(deviation, 2**-30) * noise``; the gradient of fixed weights is zero.

    Deviations at their bound receive gradients too; otherwise they could never leave it.
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
