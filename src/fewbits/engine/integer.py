"""The integer reference: products of integer weights and integer inputs, and nothing rounded else.

A layer with a quantized weight and a quantized input computes
``step_w * step_x * (sum of integers) + bias``. Integers are held in float64, in which sums below
2^53 are exact; larger ones are refused. Batch normalizations are an affine map for each channel.
It is slow, and tells what integer hardware computes.

A network of float32 differs from it: where the float32 sum of a layer falls beside the edge of two
levels, a value may go to either, and some images change their class. That is float32's doing; its
twin in float64, :func:`fake_quantized_network`, gives the classes that the integers give.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from ..coded import ActivationGrid, Contents, GridTensor, Place
from ..errors import ModelError
from .activations import apply_grid, hooks_of
from .fold import affine_of, is_batchnorm

__all__ = ["fake_quantized_network", "integer_network", "whole_integers"]

_EXACT = 2.0**53
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def integer_network(model: nn.Module, contents: Contents) -> tuple[nn.Module, list[str]]:
    """Return a copy of ``model`` that computes in integers, and the layers that do.

    What is not in integers, shortcuts between layers say, is float64, and so is the output.

    Args:
        model: the network with the values and hooks of ``contents`` (``load_into``); in evaluation
            mode, and it stays as it is.
        contents: of its file.

    Raises:
        ModelError: no layer has both weights and inputs on grids, or ``model`` was not loaded.
    """
    network = fake_quantized_network(model, contents)
    hooks, done = hooks_of(network), []
    for name, module in network.named_modules():
        weight = contents.tensors.get(f"{name}.weight")
        grid = contents.activations.get(name)
        if isinstance(module, _LAYERS) and isinstance(weight, GridTensor) and grid is not None:
            hooks[name].changes = {}  # the layer does it itself
            setattr(module, "forward", _IntegerLayer(module, weight, grid))  # noqa: B010
            done.append(name)
        elif is_batchnorm(module):
            setattr(module, "forward", _Affine(module))  # noqa: B010
    if not done:
        raise ModelError(
            "no layer has both its weight and its input on grids, so nothing can be computed in "
            "integers. Quantize activations at the input of layers too."
        )
    return network, done


def fake_quantized_network(model: nn.Module, contents: Contents) -> nn.Module:
    """Return a copy of ``model`` in float64, in which integers times steps are not rounded.

    Its inputs may be of any floating dtype. Arguments and errors as in :func:`integer_network`.
    """
    network = deepcopy(model).eval().double()
    places = [Place.of(name) for name in contents.activations]
    absent = sorted({p.module for p in places if not p.output} - set(hooks_of(network)))
    if absent:
        raise ModelError(
            f"the network does not quantize the input of {absent[0]!r}, which its file does. Pass "
            "the network that fewbits.load(path, into=...) or coded.load_into(...) returned."
        )
    for name, module in network.named_modules():
        weight = contents.tensors.get(f"{name}.weight")
        if isinstance(module, _LAYERS) and isinstance(weight, GridTensor):
            integers, step = whole_integers(weight)
            module.weight.data = (integers * step.double()[:, None]).reshape(weight.shape)
    network.register_forward_pre_hook(_doubled, with_kwargs=True, prepend=True)
    return network


def _doubled(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    def change(value: Any) -> Any:
        floating = isinstance(value, Tensor) and value.is_floating_point()
        return value.double() if floating else value

    return tuple(map(change, args)), {name: change(value) for name, value in kwargs.items()}


def whole_integers(weight: GridTensor) -> tuple[Tensor, Tensor]:
    """Return (rows, columns) float64 integers and float32 steps whose product the weight is.

    A grid without a zero has odd integers, at half of its step: exact.
    """
    twice = 2 * torch.from_numpy(weight.index).double()
    twice = twice - 2 * torch.from_numpy(weight.offset).double()[:, None]
    odd = bool((twice % 2 != 0).any())
    return twice if odd else twice / 2, torch.from_numpy(weight.step) / (2 if odd else 1)


class _IntegerLayer:
    """``step_w * step_x * (integers) + bias`` in place of a layer's forward."""

    def __init__(self, module: Any, weight: GridTensor, grid: ActivationGrid) -> None:
        integers, step = whole_integers(weight)
        self.weight, self.scale = integers.reshape(weight.shape), step.double() * float(grid.step)
        self.grid, self.module = grid, module
        reach = max(abs(grid.low - grid.zero), abs(grid.high - grid.zero))
        most = float(self.weight.abs().flatten(1).sum(1).max()) * reach
        if most >= _EXACT:
            raise ModelError(f"sums of integers reach {most:.3g}, beyond what is exact, 2^53.")

    def __call__(self, values: Tensor) -> Tensor:
        """Return what the layer would, from exact integer sums."""
        index = (apply_grid(values, self.grid) / float(self.grid.step)).round()
        module = self.module
        if isinstance(module, nn.Linear):
            total = nn.functional.linear(index, self.weight) * self.scale
            axes: tuple[int, ...] = ()
        else:
            total = module._conv_forward(index, self.weight, None)
            axes = (1,) * len(module.kernel_size)
            total = total * self.scale.reshape(-1, *axes)
        if module.bias is not None:
            total = total + module.bias.reshape(-1, *axes)
        return total


class _Affine:
    """A batch normalization in evaluation: a factor and a shift for each channel."""

    def __init__(self, norm: Any) -> None:
        self.gain, self.shift = affine_of(norm)

    def __call__(self, values: Tensor) -> Tensor:
        """Return the normalized values."""
        shape = (1, -1, *[1] * (values.dim() - 2))
        made: Tensor = values * self.gain.reshape(shape) + self.shift.reshape(shape)
        return made
