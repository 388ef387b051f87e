"""Batch normalization: absorbed by the layer before it, and re-estimated after quantization.

Absorbing scales each neuron by gamma / sigma and leaves the normalization with weight 1, mean 0,
variance 1 - eps and a shifted bias. The function and the names of the state dict stay the same,
and three of four vectors become constants, which a file stores for nearly nothing. Per-channel
alphabets do not notice the scaling (path following is equivariant to it); one step for a whole
layer does, and loses by it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from .targets import survey
from .views import WeightView

__all__ = ["Folded", "fold_batchnorm", "reestimate_batchnorm"]

Forward = Callable[[nn.Module, Any], Any]
_BatchNorm = nn.modules.batchnorm._BatchNorm
_TOLERANCE = 1e-3  # of the largest output; reordered float32 arithmetic stays far below it


@dataclass(frozen=True)
class Folded:
    """One absorbed pair: names of layer and normalization, and |gamma|, beta before absorbing."""

    layer: str
    norm: str
    gain: Tensor
    shift: Tensor


@torch.no_grad()
def fold_batchnorm(model: nn.Module, batch: Any, forward: Forward) -> tuple[Folded, ...]:
    """Absorb every batch normalization that directly follows a layer. Changes ``model`` in place.

    Pairs are found by one forward pass: the normalization's input *is* the layer's output. A pair
    that changes the network's output (the layer also feeds something else) is put back.

    Args:
        model: a network in eval mode.
        batch: one calibration batch, to find the pairs and to verify them.
        forward: how the network is called on a batch.

    Returns:
        The absorbed pairs, in order of execution.
    """
    views = {target.module: target.view for target in survey(model).targets}
    before = _flat(forward(model, batch))
    pairs = [pair for pair in _pairs(model, batch, forward) if pair[0] in views]
    undo = [_save(model, pair) for pair in pairs]
    folded = [_absorb(model, pair, views[pair[0]]) for pair in pairs]
    if _same(before, _flat(forward(model, batch))):
        return tuple(folded)
    for restore in undo:
        restore()
    kept = []
    for pair in pairs:
        restore = _save(model, pair)
        entry = _absorb(model, pair, views[pair[0]])
        if _same(before, _flat(forward(model, batch))):
            kept.append(entry)
        else:
            restore()
    return tuple(kept)


@torch.no_grad()
def reestimate_batchnorm(
    model: nn.Module, batches: Iterable[Any], forward: Forward, folded: Sequence[Folded] = ()
) -> tuple[str, ...]:
    """Measure again what every batch normalization sees, now that its inputs are quantized.

    Running means and variances become averages over ``batches``, each normalization fed by those
    before it with batch statistics. Where a layer absorbed its normalization, the measured
    statistics go into weight and bias instead, so that mean and variance stay constants.

    Returns:
        Names of the normalizations measured. Changes ``model`` in place; it stays in eval mode.

    Raises:
        ConfigError: the network has no batch normalization with running statistics.
    """
    norms = {n: m for n, m in model.named_modules() if _is_norm(m)}
    if not norms:
        raise ConfigError(
            "stage 'reestimate_batchnorm': the network has no batch normalization with running "
            "statistics. Remove the stage from the recipe."
        )
    absorbed = {entry.norm: entry for entry in folded}
    for name, entry in absorbed.items():
        _restore_gain(norms[name], entry)
    momenta = {name: norm.momentum for name, norm in norms.items()}
    counters = {name: norm.num_batches_tracked.clone() for name, norm in norms.items()}
    for norm in norms.values():
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over all batches
        norm.train()
    try:
        for batch in batches:
            forward(model, batch)
    finally:
        model.eval()
    for name, norm in norms.items():
        norm.momentum = momenta[name]
        norm.num_batches_tracked.copy_(counters[name])
        if name in absorbed:
            _absorb_statistics(norm)
    return tuple(norms)


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) and module.affine and module.running_mean is not None


def _pairs(model: nn.Module, batch: Any, forward: Forward) -> list[tuple[str, str]]:
    """Return (layer, norm) names where the norm's input is the layer's output, each called once."""
    made: dict[int, tuple[str, Tensor]] = {}
    calls: dict[str, int] = {}
    found: list[tuple[str, str]] = []

    def after(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            calls[name] = calls.get(name, 0) + 1
            if _is_norm(module):
                source = made.get(id(args[0])) if args else None
                if source is not None:
                    found.append((source[0], name))
            elif isinstance(output, Tensor):
                made[id(output)] = (name, output)  # holding it keeps its id from being reused

        return hook

    leaves = [(n, m) for n, m in model.named_modules() if not list(m.children())]
    handles = [module.register_forward_hook(after(name)) for name, module in leaves]
    try:
        forward(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return [pair for pair in found if calls[pair[0]] == calls[pair[1]] == 1]


def _save(model: nn.Module, pair: tuple[str, str]) -> Callable[[], None]:
    states = [
        {k: v.clone() for k, v in model.get_submodule(name).state_dict().items()} for name in pair
    ]
    modules = [model.get_submodule(name) for name in pair]

    def restore() -> None:
        for module, state in zip(modules, states, strict=True):
            module.load_state_dict(state)

    return restore


def _absorb(model: nn.Module, pair: tuple[str, str], view: WeightView) -> Folded:
    layer, norm = (model.get_submodule(name) for name in pair)
    sigma = (norm.running_var + norm.eps).sqrt()
    gamma, beta = norm.weight.detach().clone(), norm.bias.detach().clone()
    scale = gamma / sigma
    weight = layer.get_parameter(view.parameter)
    matrix = view.matrix(weight) * scale.reshape(view.groups, -1, 1)
    weight.copy_(view.tensor(matrix, tuple(weight.shape)))
    if getattr(layer, "bias", None) is not None:
        layer.bias.mul_(scale)
    norm.bias.copy_(beta - norm.running_mean * scale)
    _neutralize(norm)
    return Folded(pair[0], pair[1], gamma.abs(), beta)


def _neutralize(norm: Any) -> None:
    norm.weight.fill_(1)
    norm.running_mean.zero_()
    norm.running_var.fill_(1 - norm.eps)


def _restore_gain(norm: Any, entry: Folded) -> None:
    norm.weight.copy_(entry.gain)
    norm.bias.copy_(entry.shift)


def _absorb_statistics(norm: Any) -> None:
    gain = norm.weight / (norm.running_var + norm.eps).sqrt()
    norm.bias.sub_(norm.running_mean * gain)
    _neutralize(norm)
    norm.weight.copy_(gain)


def _flat(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, dict):
        output = list(output.values())
    if isinstance(output, (list, tuple)):
        return [tensor for part in output for tensor in _flat(part)]
    return []


def _same(before: list[Tensor], after: list[Tensor]) -> bool:
    pairs = list(zip(before, after, strict=True))
    return all(
        a.numel() == 0 or bool((a - b).abs().max() <= _TOLERANCE * a.abs().max().clamp_min(1e-12))
        for a, b in pairs
        if a.is_floating_point()
    )
