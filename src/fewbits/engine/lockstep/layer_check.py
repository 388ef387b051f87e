"""Check once what a layer actually computes, rather than trusting its class.

Methods assume that a layer multiplies its weight with the rows it is called with. A subclass of
``nn.Linear`` may scale its weight, take its input as another argument, or gate its output: then the
layer does not return rows times weight, and error feedback would aim at the wrong target.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import CalibrationError
from ..activations.observer import stateless_pass
from ..layers.rows import Rows
from ..layers.targets import Target
from ..layers.views import WeightView
from ..network.batches import Call, Forward, explained
from ..network.isolation import autocast_off, fast_path_off

__all__ = ["LayerCheck", "check_layers"]

_ROWS = 64  # rows multiplied per layer; a deviating layer deviates in nearly all of them
_EXACT = 5e-3  # relative error in 32 bits, where GPUs may use 10-bit mantissas
_SHORT = 3e-2  # relative error in 16 bits


@dataclass
class LayerCheck:
    """Results of checking the first calls of layers.

    Attributes:
        failed: name of a weight to why its inputs cannot be used.
        without_bias: weights whose bias is not added to their product, so that mean errors cannot
            be corrected there.
    """

    failed: dict[str, str] = field(default_factory=dict)
    without_bias: set[str] = field(default_factory=set)


def check_layers(
    network: nn.Module, targets: Iterable[Target], batches: Sequence[Any], forward: Forward
) -> LayerCheck:
    """Compare every layer's output with its input rows times its weight, plus its bias.

    Args:
        network: the float network, in evaluation mode; unchanged afterwards.
        targets: weights whose inputs a method uses.
        batches: calibration batches. The first is run; others only while layers with a custom
            ``forward`` have not been called.
        forward: calls the network on a batch.

    Cost: one forward pass of one batch, and 64 rows of every layer.
    """
    checked = LayerCheck()
    waiting: defaultdict[str, list[Target]] = defaultdict(list)
    for target in targets:
        if target.view.in_sight:
            waiting[target.module].append(target)
    for place, batch in enumerate(batches):
        if place and not any(_is_custom(network.get_submodule(name)) for name in waiting):
            break
        _check_pass(
            network,
            waiting,
            checked,
            partial(stateless_pass, explained(forward, f"batch {place}"), network, batch, place),
        )
    return checked


def _check_pass(
    network: nn.Module,
    waiting: dict[str, list[Target]],
    checked: LayerCheck,
    run: Callable[[], None],
) -> None:
    """Run one pass, checking the layers that it calls and removing them from ``waiting``."""

    def after(name: str) -> Callable[..., None]:
        @torch.no_grad()
        @autocast_off()
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            for target in waiting.pop(name, ()):
                _check(module, target, Call(args, kwargs), output, checked)

        return hook

    handles = [  # before all other hooks, which may change what the layer returned
        network.get_submodule(name).register_forward_hook(
            after(name), with_kwargs=True, prepend=True
        )
        for name in waiting
    ]
    try:
        with fast_path_off():
            run()
    finally:
        for handle in handles:
            handle.remove()


def _check(module: nn.Module, target: Target, call: Call, output: Any, checked: LayerCheck) -> None:
    kind, view = type(module).__name__, target.view
    if view.outputs is None:  # attention, recurrent layers: their output is not a product
        if _is_custom(module):
            checked.failed[target.name] = (
                f"{kind} has a custom forward, so the inputs of its weights are out of sight"
            )
        return
    if view.inputs is None:
        return
    try:
        rows = view.inputs(call)
        same, biased = _compare(module, target, rows, view, output)
    except (CalibrationError, IndexError, ValueError, TypeError, RuntimeError, AttributeError):
        same, biased = False, False  # arguments of other kinds, order or shapes
    if not same:
        checked.failed[target.name] = f"{kind} does not return its input times this weight"
    elif not biased:
        checked.without_bias.add(target.name)


def _compare(
    module: nn.Module, target: Target, rows: Rows, view: WeightView, output: Any
) -> tuple[bool, bool]:
    """Return whether rows times weight give the output, and whether they do with the bias added."""
    output = output[0] if isinstance(output, tuple) else output
    if view.outputs is None or rows.count == 0:
        return True, True
    actual = view.outputs(output)
    if actual.shape != (rows.count, view.rows):
        return False, False
    picks = torch.linspace(0, rows.count - 1, min(_ROWS, rows.count)).round().long()
    weight = module.get_parameter(view.parameter)
    short = any(value.element_size() < 4 for value in (actual, weight))
    dtype = torch.float64 if actual.dtype == torch.float64 else torch.float32
    x = rows.take(picks).to(dtype)
    product = x @ view.matrix(weight.detach()).to(dtype).mT
    product = product.transpose(0, 1).flatten(1)
    bias = module._parameters.get(view.bias) if view.bias else None
    actual = actual[picks.to(actual.device)].to(dtype)
    if not bool(actual.isfinite().all()):
        return True, True  # reported elsewhere
    tolerance = _SHORT if short else _EXACT
    if bias is None:
        return _near(actual, product, product, tolerance), True
    added = product + bias.detach().to(dtype).reshape(-1)
    if _near(actual, added, torch.cat([product, added]), tolerance):
        return True, True
    return _near(actual, product, product, tolerance), False


def _near(actual: Tensor, expected: Tensor, parts: Tensor, tolerance: float) -> bool:
    scale = float(torch.linalg.vector_norm(parts)) + torch.finfo(torch.float32).tiny
    return float(torch.linalg.vector_norm(actual - expected)) <= tolerance * scale


def _is_custom(module: nn.Module) -> bool:
    """Return whether a module's forward is not that of one of torch's own layers."""
    stock = getattr(type(module).forward, "__module__", "").startswith("torch.nn.")
    return not stock or "forward" in vars(module)
