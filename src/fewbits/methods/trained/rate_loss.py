"""Bits of indices as a part of the loss, with a gradient that was computed apart from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["rate_loss", "towards_zero"]


def rate_loss(
    slope: float, bits: float, gradients: Sequence[Tensor], parameters: Sequence[nn.Parameter]
) -> Tensor:
    """Return ``slope * bits``, a float32 scalar with gradient ``slope * gradients``.

    Args:
        slope: loss that one bit is worth.
        bits: current bits of the network.
        gradients: gradients of the bits, in the shapes of ``parameters``.
        parameters: the weights.
    """
    value: Tensor = _RateLoss.apply(slope, bits, tuple(gradients), *parameters)  # type: ignore[no-untyped-call]
    return value


class _RateLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, slope: float, bits: float, gradients: tuple[Tensor, ...], *parameters: Tensor
    ) -> Tensor:
        ctx.slope, ctx.gradients = slope, gradients
        ctx.dtypes = [parameter.dtype for parameter in parameters]
        return torch.tensor(slope * bits, device=parameters[0].device)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        scale = gradient * ctx.slope
        parts = zip(ctx.gradients, ctx.dtypes, strict=True)
        return (None, None, None, *((part * scale).to(dtype) for part, dtype in parts))


def towards_zero(gradient: Tensor, values: Tensor) -> Tensor:
    """Return the gradient where a step along it moves a value towards zero, 0 elsewhere.

    A weight away from zero may be worth its bits to the loss; fewer bits are never worth leaving
    zero.
    """
    return gradient.where(gradient * values > 0, 0.0)
