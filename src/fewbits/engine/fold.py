"""Batch normalization absorbed by the layer before it.

Absorbing scales each neuron by gamma / sigma and leaves the normalization with weight 1, mean 0,
variance 1 - eps and a shifted bias. The function and the names of the state dict stay the same,
and three of four vectors become constants, which a file stores for nearly nothing. Per-channel
alphabets do not notice the scaling (path following is equivariant to it); one step for a whole
layer does, and loses by it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from .targets import survey
from .views import WeightView

__all__ = ["Folded", "fold_batchnorm", "is_batchnorm"]

Forward = Callable[[nn.Module, Any], Any]
_BatchNorm = nn.modules.batchnorm._BatchNorm
_TOLERANCE = 1e-3  # of the largest output; reordered float32 arithmetic stays far below it


@dataclass(frozen=True)
class Folded:
    """One absorbed pair: names of the layer and of its normalization."""

    layer: str
    norm: str


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


def is_batchnorm(module: nn.Module) -> TypeGuard[_BatchNorm]:
    """Tell whether ``module`` normalizes with running statistics and an affine map."""
    return isinstance(module, _BatchNorm) and module.affine and module.running_mean is not None


def _pairs(model: nn.Module, batch: Any, forward: Forward) -> list[tuple[str, str]]:
    """Return (layer, norm) names where the norm's input is the layer's output, each called once."""
    made: dict[int, tuple[str, Tensor]] = {}
    calls: dict[str, int] = {}
    found: list[tuple[str, str]] = []

    def after(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            calls[name] = calls.get(name, 0) + 1
            if is_batchnorm(module):
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
    layer, norm = model.get_submodule(pair[0]), _norm(model, pair[1])
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    weight = layer.get_parameter(view.parameter)
    matrix = view.matrix(weight) * scale.reshape(view.groups, -1, 1)
    weight.copy_(view.tensor(matrix, tuple(weight.shape)))
    bias = getattr(layer, "bias", None)
    if isinstance(bias, Tensor):
        bias.mul_(scale)
    norm.bias.sub_(norm.running_mean * scale)
    norm.weight.fill_(1)
    norm.running_mean.zero_()
    norm.running_var.fill_(1 - norm.eps)
    return Folded(*pair)


def _norm(model: nn.Module, name: str) -> Any:
    return model.get_submodule(name)


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
