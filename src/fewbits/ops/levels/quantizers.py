"""Quantizers with straight-through gradients: DoReFa, PACT, LSQ, LSQ+. Tensors in, tensors out.

All round half to even and compute in float32 (float64 stays float64) even under autocast: in
bfloat16, a third of 8-bit indices would be wrong. Gradients pass through rounding unchanged;
everything else is differentiated as it is. Quantizers of activations, which run in every step, are
a single autograd node: composed of operators they cost more than the convolutions.

References:
    Zhou et al., "DoReFa-Net", 2016. Choi et al., "PACT", 2018. Esser et al., "Learned step size
    quantization", ICLR 2020. Bhalgat et al., "LSQ+", 2020.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "bounds",
    "dorefa_activation",
    "dorefa_index",
    "dorefa_weight",
    "lsq",
    "lsq_damping",
    "lsq_plus",
    "lsq_plus_weight_step",
    "lsq_step",
    "pact",
    "rounded",
    "wide",
]

_TINY = 1e-8


def bounds(bits: int, signed: bool) -> tuple[int, int]:
    """Return the lowest and highest index of ``bits`` bits; two's complement if signed."""
    return (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)


def wide(values: Tensor) -> Tensor:
    """Return ``values`` in at least float32."""
    return values if values.dtype == torch.float64 else values.float()


def rounded(values: Tensor) -> Tensor:
    """Round half to even; the gradient passes through unchanged (straight-through)."""
    result: Tensor = _Rounded.apply(values)  # type: ignore[no-untyped-call]
    return result


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.round()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


def dorefa_unit(weight: Tensor, *, per_row: bool = False, detach_max: bool = False) -> Tensor:
    """Return ``tanh(w) / (2 max |tanh w|) + 1/2``, in [0, 1].

    Args:
        weight: any shape; rows are along the first axis.
        per_row: use the maximum of each row instead of the tensor's.
        detach_max: treat the maximum as a constant; otherwise the gradient of its entry includes
            the sum over all others, of either sign (as in the authors' code).
    """
    squashed = torch.tanh(wide(weight))
    axes = tuple(range(1 if per_row else 0, weight.dim()))
    peak = squashed.abs().amax(axes, keepdim=True)
    if detach_max:
        peak = peak.detach()
    return squashed / (2 * peak.clamp_min(_TINY)) + 0.5


def dorefa_index(weight: Tensor, bits: int, *, per_row: bool = False) -> Tensor:
    """Return the indices 0 ... 2^bits - 1 of :func:`dorefa_weight`, int32."""
    unit = dorefa_unit(weight.detach(), per_row=per_row)
    return (unit * ((1 << bits) - 1)).round().to(torch.int32)


def dorefa_weight(
    weight: Tensor, bits: int, *, per_row: bool = False, detach_max: bool = False
) -> Tensor:
    """Return DoReFa's weights, of the form ``(2 i - n) / n`` with n = 2^bits - 1; never zero.

    ``2 Q(u) - 1`` with :func:`dorefa_unit`. They span [-1, 1] whatever the scale of the float
    weights, so a normalization or a scale must follow the layer. w = 0 is a tie and rounds up,
    except with one bit.
    """
    top = (1 << bits) - 1
    unit = dorefa_unit(weight, per_row=per_row, detach_max=detach_max)
    return (2 * rounded(unit * top) - top) / top


def dorefa_activation(values: Tensor, bits: int) -> Tensor:
    """Return ``round(n clamp(x, 0, 1)) / n``, n = 2^bits - 1; it replaces a ReLU."""
    top = (1 << bits) - 1
    return rounded(wide(values).clamp(0, 1) * top) / top


def pact(values: Tensor, clip: Tensor, bits: int, *, inside: bool = False) -> Tensor:
    """Return ``round(y n / clip) clip / n`` with y = clamp(x, 0, clip), n = 2^bits - 1.

    The gradient in ``clip`` is 1 for x >= clip and 0 elsewhere (PACT, eq. 3); with ``inside`` it is
    also (y_q - y) / clip within the range, as for learned steps.
    """
    top = (1 << bits) - 1
    values, clip = wide(values), wide(clip)
    if inside:
        return lsq(values, clip / top, 0, top)
    kept = torch.where(values >= clip, clip, values.clamp_min(0))
    level = (kept.detach() * (top / clip.detach())).round() * (clip.detach() / top)
    return level + (kept - kept.detach())


def lsq(values: Tensor, step: Tensor, low: int, high: int, damping: float = 1.0) -> Tensor:
    """Return ``round(clamp(v / s, low, high)) s`` with the gradients of Esser et al. (eq. 3, 5).

    The gradient in the step is ``round(v/s) - v/s`` inside the range, ``low`` or ``high`` outside,
    times ``damping``. ``step`` must be positive and broadcast over ``values``; pass steps per row
    as (rows, 1, ...). The levels have the dtype of ``values``.
    """
    scaled = _scale_gradient(wide(step), damping)
    levels: Tensor = _Levels.apply(values, scaled, low, high)  # type: ignore[no-untyped-call]
    return levels


def lsq_plus(
    values: Tensor, step: Tensor, shift: Tensor, low: int, high: int, *, damping: float = 1.0
) -> Tensor:
    """Return ``round(clamp((x - b) / s, low, high)) s + b`` with a learned shift b (LSQ+).

    The gradient in b is 0 inside and 1 outside the range, times ``damping``.
    """
    scaled = _scale_gradient(wide(shift), damping)
    return lsq(wide(values) - scaled, step, low, high, damping) + scaled


def lsq_damping(values: int, high: int) -> float:
    """Return LSQ's gradient scale 1 / sqrt(values * high) of a step that ``values`` values share.

    For activations that is the number of features of one sample.
    """
    return 1 / math.sqrt(max(1, values) * max(1, high))


def lsq_step(values: Tensor, high: int, *, per_row: bool = False) -> Tensor:
    """Return LSQ's initial step 2 mean |v| / sqrt(high), (1,) or (rows,), never zero."""
    flat = wide(values.detach()).abs()
    flat = flat.reshape(len(values), -1) if per_row else flat.reshape(1, -1)
    return _positive(flat.mean(1) * (2 / math.sqrt(max(1, high))))


def lsq_plus_weight_step(weight: Tensor, bits: int, *, per_row: bool = False) -> Tensor:
    """Return LSQ+'s initial step max(|mean - 3 dev|, |mean + 3 dev|) / 2^(bits - 1)."""
    flat = wide(weight.detach())
    flat = flat.reshape(len(weight), -1) if per_row else flat.reshape(1, -1)
    mean, deviation = flat.mean(1), flat.std(1, correction=0)
    reach = torch.maximum((mean - 3 * deviation).abs(), (mean + 3 * deviation).abs())
    return _positive(reach / (1 << (bits - 1)))


def _positive(step: Tensor) -> Tensor:
    """Replace zero steps (of all-zero values) by 1."""
    return torch.where(step > 0, step, torch.ones_like(step))


def _scale_gradient(step: Tensor, damping: float) -> Tensor:
    """Return ``step``, with its gradient multiplied by ``damping``."""
    if damping == 1.0:
        return step
    return step.detach() + (step - step.detach()) * damping


class _Levels(torch.autograd.Function):
    """Levels of ``values``; saves these in their own dtype and recomputes their units."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, step: Tensor, low: int, high: int) -> Tensor:
        ctx.save_for_backward(values, step)
        ctx.ends = (low, high)
        units = wide(values) / step
        return units.round_().clamp_(low, high).mul_(step).to(values.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        values, step = ctx.saved_tensors
        low, high = ctx.ends
        units, grad = wide(values) / step, wide(grads[0])
        # The gradient where low < units < high; zero at the ends and beyond.
        inside = torch.ops.aten.hardtanh_backward(grad, units, low, high)
        in_step = None
        if ctx.needs_input_grad[1]:
            kept = units.clamp_(low, high)
            error = kept.round().sub_(kept).mul_(grad)
            in_step = error.addcmul_(grad - inside, kept).sum_to_size(step.shape).to(step.dtype)
        return inside.to(values.dtype), in_step, None, None
