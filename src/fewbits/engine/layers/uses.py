"""How often a sample uses each weight: positions of a layer's output and input."""

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
    """Run one batch and return, for every weight that multiplies, how one sample uses it.

    Args:
        model: the network; its mode is as before afterwards.
        batch: of ``samples`` samples.
        samples: in the batch.
        forward: ``forward(model, batch)``.

    Returns:
        Name of the weight to its use; tables of embeddings, and layers never called, are left out.
    """
    found: dict[str, Use] = {}
    handles = []

    def watch(target: Target) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            use = _use(target, args, output, samples)
            before = found.get(target.name, Use(0, 0, use.groups))
            total = (before.outputs + use.outputs, before.inputs + use.inputs)
            found[target.name] = Use(*total, use.groups)

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
    return found


def _use(target: Target, args: Any, output: Any, samples: int) -> Use:
    view = target.view
    taps = 1
    for size in view.kernel:
        taps *= size
    # The groups of a convolution share out its channels; packed attention has inputs for each.
    channels = view.columns(target.shape) * (view.groups if view.kernel else 1) // taps
    seen = next(value for value in args if isinstance(value, Tensor))
    inputs = seen.numel() // (samples * channels)
    one_output = isinstance(output, Tensor) and view.inputs is not None
    outputs = output.numel() // (samples * view.rows) if one_output else inputs
    return Use(max(1, outputs), max(1, inputs), view.groups)
