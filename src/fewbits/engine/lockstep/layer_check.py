"""What a layer computes, seen once, in place of what its class is called.

Methods take the rows that a layer is called with for what its weight multiplies. A subclass of
``nn.Linear`` may scale its weight, take its input as another argument, or gate its output: then the
rows times the weight are not what the layer returns, and errors are fed back to the wrong target.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import CalibrationError
from ..activations.observer import quiet_pass
from ..layers.rows import Rows
from ..layers.targets import Target
from ..layers.views import WeightView
from ..network.batches import Call, Forward
from ..network.isolation import autocast_off, fast_path_off

__all__ = ["LayerCheck", "check_layers"]

_ROWS = 64  # that are multiplied; a wrong layer is wrong in nearly all
_EXACT = 5e-3  # relative error in 32 bits, where GPUs may multiply with mantissas of 10
_SHORT = 3e-2  # in 16 bits


@dataclass
class LayerCheck:
    """What the first calls of layers showed.

    Attributes:
        failed: name of a weight to why its inputs cannot be relied on.
        without_bias: weights whose bias is not added to what they make, so that no error of the
            mean can be put into it.
    """

    failed: dict[str, str] = field(default_factory=dict)
    without_bias: set[str] = field(default_factory=set)


def check_layers(
    network: nn.Module, targets: Iterable[Target], batches: Sequence[Any], forward: Forward
) -> LayerCheck:
    """Compare what every layer returns with its input rows times its weight, plus its bias.

    Args:
        network: the float network, in evaluation mode; as it was afterwards.
        targets: weights whose inputs a method asks for.
        batches: of calibration. The first is run; others only while layers with a ``forward`` of
            their own have not been called.
        forward: calls the network on a batch.

    Cost: one forward pass of one batch, and 64 rows of every layer.
    """
    found = LayerCheck()
    waiting: defaultdict[str, list[Target]] = defaultdict(list)
    for target in targets:
        if target.view.inputs is not None:
            waiting[target.module].append(target)
    for place, batch in enumerate(batches):
        if place and not any(_is_own(network.get_submodule(name)) for name in waiting):
            break
        _look(network, waiting, found, lambda b=batch, p=place: quiet_pass(forward, network, b, p))  # type: ignore[misc]
    return found


def _look(
    network: nn.Module,
    waiting: dict[str, list[Target]],
    found: LayerCheck,
    run: Callable[[], None],
) -> None:
    """Run one pass and take the layers that it calls out of ``waiting``."""

    def after(name: str) -> Callable[..., None]:
        @torch.no_grad()
        @autocast_off()
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            for target in waiting.pop(name, ()):
                _check(module, target, Call(args, kwargs), output, found)

        return hook

    handles = [  # first of all hooks: others may change what the layer returned
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


def _check(module: nn.Module, target: Target, call: Call, output: Any, found: LayerCheck) -> None:
    kind, view = type(module).__name__, target.view
    if view.inputs is None:
        return
    if view.outputs is None:  # attention, recurrent layers: what they return is no product
        if _is_own(module):
            found.failed[target.name] = (
                f"{kind} has a forward of its own, and what its weights multiply is out of sight"
            )
        return
    try:
        rows = view.inputs(call)
        same, biased = _compare(module, target, rows, view, output)
    except (CalibrationError, IndexError, ValueError, TypeError, RuntimeError, AttributeError):
        same, biased = False, False  # arguments of other kinds, in another order, of other shapes
    if not same:
        found.failed[target.name] = f"{kind} does not return its input times this weight"
    elif not biased:
        found.without_bias.add(target.name)


def _compare(
    module: nn.Module, target: Target, rows: Rows, view: WeightView, output: Any
) -> tuple[bool, bool]:
    """Tell whether rows times weight are the output, and whether that holds with the bias."""
    output = output[0] if isinstance(output, tuple) else output
    if view.outputs is None or rows.count == 0:
        return True, True
    made = view.outputs(output)
    if made.shape != (rows.count, view.rows):
        return False, False
    picks = torch.linspace(0, rows.count - 1, min(_ROWS, rows.count)).round().long()
    weight = module.get_parameter(view.parameter)
    short = any(value.element_size() < 4 for value in (made, weight))
    dtype = torch.float64 if made.dtype == torch.float64 else torch.float32
    x = rows.take(picks).to(dtype)
    product = x @ view.matrix(weight.detach()).to(dtype).mT
    product = product.transpose(0, 1).flatten(1)
    bias = module._parameters.get(view.bias) if view.bias else None
    made = made[picks.to(made.device)].to(dtype)
    if not bool(made.isfinite().all()):
        return True, True  # told elsewhere, of the values
    tolerance = _SHORT if short else _EXACT
    if bias is None:
        return _near(made, product, product, tolerance), True
    added = product + bias.detach().to(dtype).reshape(-1)
    if _near(made, added, torch.cat([product, added]), tolerance):
        return True, True
    return _near(made, product, product, tolerance), False


def _near(made: Tensor, expected: Tensor, parts: Tensor, tolerance: float) -> bool:
    scale = float(torch.linalg.vector_norm(parts)) + torch.finfo(torch.float32).tiny
    return float(torch.linalg.vector_norm(made - expected)) <= tolerance * scale


def _is_own(module: nn.Module) -> bool:
    """Tell whether a module's forward is another than that of torch's own layers."""
    stock = getattr(type(module).forward, "__module__", "").startswith("torch.nn.")
    return not stock or "forward" in vars(module)
