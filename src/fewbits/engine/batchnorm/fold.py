"""Folding batch normalization into the layer before it.

Each neuron is scaled by gamma / sigma, and the normalization is left with weight 1, mean 0,
variance 1 - eps and a shifted bias, to which that of the layer is added if it has one. The function
and the names of the state dict stay the same, and all other vectors become constants, which take
almost no bytes in a file. Per-channel alphabets are not affected by the scaling (path following is
equivariant to it); a single step for a whole layer is, and suffers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from ..layers.targets import survey
from ..layers.views import WeightView
from ..network.batches import Forward
from ..network.isolation import isolated_pass
from ..network.sharing import assign, assign_state

__all__ = ["Folded", "affine_of", "fold_batchnorm", "is_batchnorm"]

_BatchNorm = nn.modules.batchnorm._BatchNorm
_TOLERANCE = 1e-3  # relative to the largest change; reordered float32 arithmetic is far below it


@dataclass(frozen=True)
class Folded:
    """A folded pair: the names of the layer and its normalization."""

    layer: str
    norm: str


@torch.no_grad()
def fold_batchnorm(
    model: nn.Module,
    batch: Any,
    forward: Forward,
    kept: Collection[str] = (),
    only: Collection[str] | None = None,
) -> tuple[Folded, ...]:
    """Fold every batch normalization that directly follows a layer. Changes ``model`` in place.

    Pairs are found in one forward pass: the normalization's input *is* the layer's output. A pair
    that changes the network's output (the layer also feeds something else) is undone. If the output
    has no floating tensor to compare, nothing is folded.

    Args:
        model: a network in evaluation mode.
        batch: a calibration batch to find and verify the pairs; not changed.
        forward: calls the network on a batch.
        kept: names of modules whose weights must not change.
        only: names of the normalizations that may be folded; None: all.

    Returns:
        The folded pairs, in order of execution.
    """

    def run() -> list[Tensor]:
        output = isolated_pass(forward, model, batch, seed=0)
        return [tensor.clone() for tensor in _values(output, set())]

    if not any(is_batchnorm(module) for module in model.modules()):
        return ()
    views = {t.module: t.view for t in survey(model).targets if not t.also and t.module not in kept}
    pairs = [pair for pair in _pairs(model, views, run) if only is None or pair.norm in only]
    before = run() if pairs else []
    if not before:
        return ()
    undo = [_save(model, pair) for pair in pairs]
    folded = [_absorb(model, pair, views[pair.layer]) for pair in pairs]
    if _same(before, run()):
        return tuple(folded)
    for restore in undo:
        restore()
    verified = []
    for pair in pairs:
        restore = _save(model, pair)
        entry = _absorb(model, pair, views[pair.layer])
        if _same(before, run()):
            verified.append(entry)
        else:
            restore()
    return tuple(verified)


def is_batchnorm(module: nn.Module) -> TypeGuard[_BatchNorm]:
    """Return whether ``module`` normalizes with running statistics and an affine map."""
    return isinstance(module, _BatchNorm) and module.affine and module.running_mean is not None


def affine_of(norm: Any) -> tuple[Tensor, Tensor]:
    """Return gain and bias, float64, of a batch normalization in evaluation mode."""
    gain = norm.weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()
    return gain, norm.bias.detach().double() - norm.running_mean.double() * gain


def _pairs(
    model: nn.Module, views: Mapping[str, WeightView], run: Callable[[], object]
) -> list[Folded]:
    """Return the pairs in which the norm's input is the layer's output and both are called once."""
    made: dict[int, tuple[str, Tensor]] = {}
    calls: dict[str, int] = {}
    pairs: list[Folded] = []

    def after(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            calls[name] = calls.get(name, 0) + 1
            if is_batchnorm(module):
                layer, tensor = made.get(id(args[0] if args else kwargs["input"]), ("", None))
                if tensor is not None and _fits(model, layer, views[layer], tensor, module):
                    pairs.append(Folded(layer, name))
            elif name in views and isinstance(output, Tensor):
                made[id(output)] = (name, output)  # keeping it alive prevents reuse of its id

        return hook

    handles = [
        module.register_forward_hook(after(name), with_kwargs=True)
        for name, module in model.named_modules()
        if name in views
        or is_batchnorm(module)  # scripted modules, which take no hooks, are neither
    ]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return [pair for pair in pairs if calls[pair.layer] == calls[pair.norm] == 1]


def _fits(model: nn.Module, name: str, view: WeightView, output: Tensor, norm: nn.Module) -> bool:
    """Return whether axis 1 of ``output``, which the norm scales, has one entry per neuron."""
    layer = model.get_submodule(name)
    linear = view.inputs is not None and view.parameter == "weight"  # not a lookup or recurrent
    axes = 2 + len(getattr(layer, "kernel_size", ()))
    return linear and output.dim() == axes and getattr(norm, "num_features", None) == view.rows


def _save(model: nn.Module, pair: Folded) -> Callable[[], None]:
    modules = [model.get_submodule(name) for name in (pair.layer, pair.norm)]
    states = [{k: v.clone() for k, v in module.state_dict().items()} for module in modules]

    def restore() -> None:
        for module, state in zip(modules, states, strict=True):
            assign_state(module, state)

    return restore


def _absorb(model: nn.Module, pair: Folded, view: WeightView) -> Folded:
    layer, norm = model.get_submodule(pair.layer), _norm(model, pair.norm)
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    weight = layer.get_parameter(view.parameter)
    matrix = view.matrix(weight) * scale.reshape(view.groups, -1, 1)
    assign(weight, view.tensor(matrix, tuple(weight.shape)))  # its memory may be shared
    bias = getattr(layer, "bias", None)
    norm.bias.sub_(norm.running_mean * scale)
    if isinstance(bias, Tensor):
        norm.bias.add_(bias * scale)
        bias.zero_()
    norm.weight.fill_(1)
    norm.running_mean.zero_()
    norm.running_var.fill_(1 - norm.eps)
    return pair


def _norm(model: nn.Module, name: str) -> Any:
    return model.get_submodule(name)


def _values(output: Any, seen: set[int]) -> Iterator[Tensor]:
    """Yield the floating tensors in a network's output, as strided tensors."""
    if isinstance(output, Tensor):
        if output.is_nested:
            yield from _values(output.unbind(), seen)
        elif output.is_floating_point() or output.is_complex():
            yield output if output.layout == torch.strided else output.to_dense()
        return
    if id(output) in seen or isinstance(output, (nn.Module, type)):
        return
    seen.add(id(output))
    if isinstance(output, Mapping):
        parts = list(output.values())
    elif isinstance(output, (list, tuple)):
        parts = list(output)
    elif is_dataclass(output):
        parts = [getattr(output, field.name, None) for field in fields(output)]
    else:
        parts = list(getattr(output, "__dict__", {}).values())
    for part in parts:
        yield from _values(part, seen)


def _same(before: list[Tensor], after: list[Tensor]) -> bool:
    if [tensor.shape for tensor in before] != [tensor.shape for tensor in after]:
        return False
    return all(_near(a, b) for a, b in zip(before, after, strict=True))


def _near(before: Tensor, after: Tensor) -> bool:
    """Compare values that changed: masks such as -inf or -1e9 must not set the scale."""
    moved = before != after
    old, new = before[moved], after[moved]
    if old.numel() == 0:
        return True
    largest = (old - new).abs().max()
    return bool(largest.isfinite() and largest <= _TOLERANCE * old.abs().max())
