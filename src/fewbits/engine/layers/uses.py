"""How a sample uses each weight: the positions of a layer's output and input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...coded import Use
from ..network.batches import Forward
from ..network.isolation import evaluating, isolated_pass
from .targets import Target, survey

__all__ = ["count_uses"]


def count_uses(model: nn.Module, batch: Any, samples: int, forward: Forward) -> dict[str, Use]:
    """Run one batch and return how one sample uses each weight that multiplies.

    Args:
        model: the network; its mode is restored afterwards.
        batch: a batch of ``samples`` samples.
        samples: number of samples in the batch.
        forward: ``forward(model, batch)``.

    Returns:
        Name of the weight to its use, without embedding tables and layers that are never called.
    """
    uses: dict[str, Use] = {}
    handles = []

    def watch(target: Target) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            use = _use(target, args, output, samples)
            before = uses.get(target.name, Use(0, 0, use.groups))
            total = (before.outputs + use.outputs, before.inputs + use.inputs)
            uses[target.name] = Use(*total, use.groups)

        return hook

    for target in survey(model).targets:
        if "Embedding" not in target.kind:
            homes = [model.get_submodule(path) for path in target.homes]
            handles += [home.register_forward_hook(watch(target)) for home in homes]
    try:
        with torch.no_grad(), evaluating(model):
            isolated_pass(forward, model, batch, 0)
    finally:
        for handle in handles:
            handle.remove()
    return uses


def _use(target: Target, args: Any, output: Any, samples: int) -> Use:
    view = target.view
    taps = 1
    for size in view.kernel:
        taps *= size
    # Groups of a convolution divide its channels; packed attention has separate inputs per group.
    channels = view.columns(target.shape) * (view.groups if view.kernel else 1) // taps
    seen = next(value for value in args if isinstance(value, Tensor))
    inputs = seen.numel() // (samples * channels)
    one_output = isinstance(output, Tensor) and view.inputs is not None
    outputs = output.numel() // (samples * view.rows) if one_output else inputs
    return Use(max(1, outputs), max(1, inputs), view.groups)
