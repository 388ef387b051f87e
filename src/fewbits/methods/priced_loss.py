"""Bits as a part of the loss, with a gradient that was worked out before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["priced_loss"]


def priced_loss(
    slope: float, bits: float, slants: Sequence[Tensor], parameters: Sequence[nn.Parameter]
) -> Tensor:
    """Return ``slope * bits``, a float32 scalar whose gradient is ``slope`` times the ``slants``.

    Args:
        slope: loss that a bit is worth.
        bits: of the network now.
        slants: bits by which a weight's growth costs more, in the shapes of ``parameters``.
        parameters: the weights.
    """
    value: Tensor = _Priced.apply(slope, bits, tuple(slants), *parameters)  # type: ignore[no-untyped-call]
    return value


class _Priced(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, slope: float, bits: float, slants: tuple[Tensor, ...], *parameters: Tensor
    ) -> Tensor:
        ctx.slope, ctx.slants = slope, slants
        ctx.dtypes = [parameter.dtype for parameter in parameters]
        return torch.tensor(slope * bits, device=parameters[0].device)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        scale = gradient * ctx.slope
        parts = zip(ctx.slants, ctx.dtypes, strict=True)
        return (None, None, None, *((slant * scale).to(dtype) for slant, dtype in parts))
