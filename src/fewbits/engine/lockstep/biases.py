"""Biases of quantized layers: which parameter it is, its correction, and its rounding."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..layers.layer import Quantized
from ..layers.targets import Target

__all__ = ["bias_of", "round_bias", "round_to_steps", "shift_bias"]


def bias_of(network: nn.Module, target: Target, sink: str) -> tuple[str, str]:
    """Return the parameter that takes a layer's mean error, or "" and why there is none.

    ``sink``: the one of the normalization that was folded into the layer; "" if there is none.
    """
    bias = f"{target.module}.{target.view.bias}".lstrip(".") if target.view.bias else ""
    parameters = dict(network.named_parameters(remove_duplicate=False))
    sink = sink if sink in parameters else bias
    if sink not in parameters:
        return "", "the layer has none"
    if _is_shared(network, parameters[sink]):
        return "", "it is shared with another layer"
    return sink, ""


@torch.no_grad()
def shift_bias(bias: Tensor, result: Quantized) -> str:
    """Correct a bias, in place, if the result of its layer says how; return what was done."""
    if result.bias_shift is None:
        return ""
    bias.add_(result.bias_shift.to(bias))
    return "corrected by the mean error"


def round_bias(bias: Tensor, result: Quantized) -> str:
    """Round a bias to multiples of its steps, in place, if it has some; return what was done."""
    if result.bias_step is None:
        return ""
    round_to_steps(bias, result.bias_step)
    return "rounded as finely as the slope pays for"


@torch.no_grad()
def round_to_steps(bias: Tensor, step: Tensor) -> None:
    """Round a bias to multiples of ``step`` (or one for each value), in place.

    Values that are not finite, or would not be, stay as they are.
    """
    step = step.to(bias.device, torch.float64)
    near = (bias.double() / step).round().mul(step).to(bias)
    bias.copy_(torch.where(near.isfinite(), near, bias))


def _is_shared(network: nn.Module, parameter: Tensor) -> bool:
    held = [p for module in network.modules() for p in module._parameters.values()]
    return sum(p is parameter for p in held) > 1
