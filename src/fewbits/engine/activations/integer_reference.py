"""The integer reference: layers computed as sums of integer products, with nothing else rounded.

A layer with a quantized weight and a quantized input computes
``step_w * step_x * (sum of integers) + bias``. Integers are held in float64, where sums below 2^53
are exact; larger ones raise an error. Batch normalizations become an affine map per channel. It is
slow, and shows what integer hardware computes.

Values on a grid are exact integer multiples of its step in float64. So a layer can recover the
integers from its input, in any call and wherever the grid was applied: at its own input, or at a
ReLU before it, with max pooling and changes of shape in between.

A float32 network gives slightly different results: if the float32 sum of a layer lies next to the
boundary between two levels, it may round either way, and some images change their class. That is
due to float32; in float64, :func:`fake_quantized_network` gives the same classes as the integers.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...coded import ActivationGrid, ActivationSite, Contents, GridTensor
from ...errors import ModelError
from ..batchnorm.fold import affine_of, is_batchnorm
from ..network.batches import call_model
from ..network.copying import copied
from ..network.naming import fitted
from .hooks import hooks_of
from .observer import stateless_pass

__all__ = ["fake_quantized_network", "integer_network", "whole_integers"]

_EXACT = 2.0**53
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def integer_network(
    model: nn.Module, contents: Contents, example: Any = None
) -> tuple[nn.Module, list[str]]:
    """Return a copy of ``model`` that computes in integers, and the names of the layers that do.

    Everything else, such as shortcuts between layers, is computed in float64, and so is the output.
    The listed layers compute every call in integers; a call in which they cannot is a ModelError.
    A layer with several steps for a neuron is not among them.

    Args:
        model: the network with the values and hooks of ``contents`` (``load_into``), on any
            device, in evaluation mode; not changed.
        contents: contents of its file.
        example: a batch of inputs, as for ``fewbits.compress``. Layers without a grid of their own
            (``placement="output"``) use integers if all their inputs for this batch lie on a grid
            of the file; without an example they use floats.

    Raises:
        ModelError: no layer has both weights and inputs on grids, sums are too large to be exact,
            or ``model`` was not loaded from the file.
    """
    contents = fitted(contents, model)
    network = fake_quantized_network(model, contents)
    layers = _layers_of(network, contents)
    modules = dict(network.named_modules(remove_duplicate=False))
    places = (ActivationSite.of(name, modules) for name in contents.activations)
    done = {place.module for place in places if not place.output and place.module in layers}
    if example is not None:
        rest = {name: layer for name, layer in layers.items() if name not in done}
        done |= _reached_by_integers(network, rest, example)
    if not done:
        raise ModelError(
            "no layer has both its weight and its input on grids, with one step for a neuron, so "
            "nothing can be computed in integers. Quantize activations at the inputs of layers "
            "too; if they are quantized at ReLUs (placement='output'), pass example=, a batch of "
            "inputs."
        )
    for name, module in network.named_modules():
        if name in done:
            setattr(module, "forward", layers[name])  # noqa: B010
        elif is_batchnorm(module):
            setattr(module, "forward", _Affine(module))  # noqa: B010
    return network, [name for name in layers if name in done]


def _layers_of(network: nn.Module, contents: Contents) -> dict[str, _IntegerLayer]:
    """Return the integer version of each layer whose weight is on a grid."""
    grids = list(dict.fromkeys(map(_Levels.of, contents.activations.values())))
    layers = {}
    for name, module in network.named_modules():
        weight = contents.tensors.get(f"{name}.weight")
        if isinstance(module, _LAYERS) and isinstance(weight, GridTensor) and weight.blocks == 1:
            layers[name] = _IntegerLayer(name, module, weight, grids)
    return layers


def _reached_by_integers(
    network: nn.Module, layers: dict[str, _IntegerLayer], example: Any
) -> set[str]:
    """Return those of ``layers`` that are called with values on grids only."""
    seen: dict[str, bool] = {}
    handles = []
    for name, layer in layers.items():

        def check(
            module: nn.Module, args: Any, name: str = name, layer: _IntegerLayer = layer
        ) -> None:
            seen[name] = seen.get(name, True) and layer.integers_in(args[0]) is not None

        handles.append(layer.module.register_forward_pre_hook(check))
    try:
        stateless_pass(call_model, network, example, 0)
    finally:
        for handle in handles:
            handle.remove()
    return {name for name, whole in seen.items() if whole}


def fake_quantized_network(model: nn.Module, contents: Contents) -> nn.Module:
    """Return a copy of ``model`` in float64, in which integers times steps are exact.

    Its inputs may have any floating dtype. Arguments and errors as in :func:`integer_network`.
    """
    contents = fitted(contents, model)
    network = copied(model).eval().double()
    modules = dict(network.named_modules(remove_duplicate=False))
    places = [ActivationSite.of(name, modules) for name in contents.activations]
    absent = sorted({p.module for p in places if not p.output} - set(hooks_of(network)))
    if absent:
        raise ModelError(
            f"the network does not quantize the input of {absent[0]!r}, but its file does. Pass "
            "the network returned by fewbits.load(path, into=...) or coded.load_into(...)."
        )
    for name, module in network.named_modules():
        weight = contents.tensors.get(f"{name}.weight")
        if isinstance(module, _LAYERS) and isinstance(weight, GridTensor):
            integers, step = whole_integers(weight)
            values = (integers * step.double()[:, None]).reshape(weight.shape)
            module.weight.data = values.to(module.weight.device)
    network.register_forward_pre_hook(_inputs_to_double, with_kwargs=True, prepend=True)
    return network


def _inputs_to_double(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return _double(args), _double(kwargs)


def _double(value: Any) -> Any:
    """Convert floating tensors in tuples, lists and mappings to float64."""
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, tuple):
        parts = map(_double, value)
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if isinstance(value, list):
        return [_double(part) for part in value]
    if isinstance(value, MutableMapping):
        twin = copy(value)  # of its own class
        for key in list(twin):
            twin[key] = _double(value[key])
        return twin
    return value


def whole_integers(weight: GridTensor) -> tuple[Tensor, Tensor]:
    """Return (rows, columns) float64 integers and float32 steps whose product is the weight.

    A grid without a zero becomes odd integers at half its step, exactly.
    """
    twice = 2 * torch.from_numpy(weight.index).double()
    twice = twice - 2 * torch.from_numpy(weight.offset).double()[:, None]
    odd = bool((twice % 2 != 0).any())
    return twice if odd else twice / 2, torch.from_numpy(weight.step) / (2 if odd else 1)


@dataclass(frozen=True)
class _Levels:
    """The values of a grid: ``step`` times the integers in [low, high]."""

    step: float
    low: int
    high: int

    @classmethod
    def of(cls, grid: ActivationGrid) -> _Levels:
        """Return the levels of a grid."""
        return cls(float(grid.step), grid.low - grid.zero, grid.high - grid.zero)

    def integers_in(self, values: Tensor) -> Tensor | None:
        """Return ``values`` as integers; None if a value is not a level."""
        index = (values / self.step).round().clamp(self.low, self.high)
        # A float32 times a 16-bit integer is exact in float64; NaN stays NaN.
        whole = (index * self.step == values) | values.isnan()
        return index if bool(whole.all()) else None


class _IntegerLayer:
    """Computes ``step_w * step_x * (integers) + bias`` instead of a layer's forward."""

    def __init__(
        self, name: str, module: Any, weight: GridTensor, grids: Sequence[_Levels]
    ) -> None:
        integers, step = whole_integers(weight)
        device = module.weight.device
        self.name, self.module, self.grids = name, module, list(grids)
        self.weight = integers.reshape(weight.shape).to(device)
        self.step = step.double().to(device)
        reach = max((max(-grid.low, grid.high) for grid in grids), default=0)
        most = float(integers.abs().sum(1).max()) * reach
        if most >= _EXACT:
            raise ModelError(
                f"sums of integers in {name!r} reach {most:.3g}, but are exact only below 2^53."
            )

    def integers_in(self, values: Tensor) -> tuple[Tensor, float] | None:
        """Return ``values`` as integers, and their step; None if they are on no grid."""
        for place, grid in enumerate(self.grids):
            index = grid.integers_in(values)
            if index is not None:
                self.grids.insert(0, self.grids.pop(place))  # likely the next one's as well
                return index, grid.step
        return None

    def __call__(self, values: Tensor) -> Tensor:
        """Return the output of the layer, from exact integer sums."""
        recovered = self.integers_in(values)
        if recovered is None:
            raise ModelError(
                f"the input of {self.name!r} is on no grid of the file in this call, so it cannot "
                "be computed in integers. If the layer has no grid of its own, pass an example= in "
                "which this happens too; the layer then uses floats."
            )
        index, step = recovered
        module, scale = self.module, self.step * step
        if isinstance(module, nn.Linear):
            total = nn.functional.linear(index, self.weight) * scale
            axes: tuple[int, ...] = ()
        else:
            total = module._conv_forward(index, self.weight, None)
            axes = (1,) * len(module.kernel_size)
            total = total * scale.reshape(-1, *axes)
        if module.bias is not None:
            total = total + module.bias.reshape(-1, *axes)
        return total


class _Affine:
    """A batch normalization in evaluation mode: a factor and a shift per channel."""

    def __init__(self, norm: Any) -> None:
        self.gain, self.shift = affine_of(norm)

    def __call__(self, values: Tensor) -> Tensor:
        """Return the normalized values."""
        shape = (1, -1, *[1] * (values.dim() - 2))
        result: Tensor = values * self.gain.reshape(shape) + self.shift.reshape(shape)
        return result
