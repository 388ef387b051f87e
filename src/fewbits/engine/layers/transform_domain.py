"""Transform-domain layers: each layer becomes a pair, one with the basis, one with coefficients.

A weight ``S T`` with a basis of its inputs is a 1x1 convolution by S' followed by one by T; with a
basis of its outputs, one by T followed by a 1x1 by S. Vectors that the file leaves out are missing
from both, so the pair may take fewer multiplications than the layer (Young et al. 2021, equation
14).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...coded import CodedTensor, TransformTensor
from ..network.batches import Forward
from ..network.isolation import isolated_pass

__all__ = ["Multiplications", "count_multiplications", "into_transform_domain"]

_INPUTS = 2  # position in (groups, neurons, inputs, taps)
_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Multiplications:
    """Number of multiplications of one forward pass, by layer name."""

    layers: Mapping[str, int]

    @property
    def total(self) -> int:
        """The sum over all linear and convolution layers."""
        return sum(self.layers.values())


def into_transform_domain(
    model: nn.Module, tensors: Mapping[str, CodedTensor], names: Mapping[str, str] | None = None
) -> tuple[str, ...]:
    """Replace layers of ``model`` by pairs if ``tensors`` stores their weight as a transform.

    Stride, padding and dilation stay with the larger kernel; the bias comes last. Only plain
    nn.Linear and nn.Conv1d to nn.Conv3d are replaced, not subclasses, which may do more, nor layers
    with hooks or tied weights. ``names``: the model's names of the tensors, where they differ.

    Returns:
        The names of the layers that were replaced.
    """
    owners: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    replaced = []
    for name, tensor in tensors.items():
        if not isinstance(tensor, TransformTensor):
            continue
        path = (names or {}).get(name, name).rpartition(".")[0]
        module = model.get_submodule(path)
        plain = type(module) in (nn.Linear, *_CONVS) and path and not _is_hooked(module)
        if not plain or owners[id(module._parameters["weight"])] > 1:
            continue
        home, leaf = model.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2]
        setattr(home, leaf, _pair(module, tensor).train(module.training))
        replaced.append(path)
    return tuple(replaced)


def _is_hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)


def _pair(module: nn.Module, tensor: TransformTensor) -> nn.Sequential:
    """Return the two layers that replace ``module``."""
    weight = module.get_parameter("weight")
    basis = torch.from_numpy(tensor.basis.dequantize()).to(weight)
    values = torch.from_numpy(tensor.coefficients.dequantize()).to(weight)
    groups = int(getattr(module, "groups", 1))
    vectors, neurons, inputs = len(values), len(weight) // groups, weight.shape[1]
    taps = tuple(weight.shape[2:])
    ones = (1,) * len(taps)
    mixes = _mixes_inputs(tensor, neurons)
    if mixes:
        first = basis.mT.repeat(groups, 1).reshape(groups * vectors, inputs, *ones)
        second = values.reshape(vectors, groups * neurons, *taps).transpose(0, 1)
    else:
        parts = values.reshape(vectors, groups, inputs, *taps)
        first = parts.transpose(0, 1).reshape(groups * vectors, inputs, *taps)
        second = basis.repeat(groups, 1).reshape(groups * neurons, vectors, *ones)
    return nn.Sequential(
        _layer(module, first, None, main=not mixes),
        _layer(module, second, module._parameters["bias"], main=mixes),
    )


def _mixes_inputs(tensor: TransformTensor, neurons: int) -> bool:
    """Return whether the rows of the matrix are input channels; see ``_unfolded`` in ``pack``."""
    if tensor.layout is None:
        return len(tensor.basis.index) != neurons
    return tensor.layout.axes.index(0) == _INPUTS


def _layer(module: Any, weight: Tensor, bias: Tensor | None, *, main: bool) -> nn.Module:
    """Return a layer with ``weight``; the ``main`` one of a pair has stride, padding and so on."""
    layer: nn.Module
    if isinstance(module, nn.Linear):
        layer = nn.Linear(weight.shape[1], len(weight), bias is not None)
    else:
        names = ("stride", "padding", "dilation", "padding_mode") if main else ()
        layer = type(module)(
            weight.shape[1] * module.groups,
            len(weight),
            tuple(weight.shape[2:]),
            groups=module.groups,
            bias=bias is not None,
            **{name: getattr(module, name) for name in names},
        )
    layer = layer.to(weight)
    with torch.no_grad():
        layer.get_parameter("weight").copy_(weight)
        if bias is not None:
            layer.get_parameter("bias").copy_(bias)
    return layer


def count_multiplications(model: nn.Module, batch: Any, forward: Forward) -> Multiplications:
    """Count the multiplications of linear and convolution layers in a pass on ``batch``."""
    counts: dict[str, int] = {}

    def watch(name: str, weight: Tensor) -> Any:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            done = output.numel() // len(weight) * weight.numel()
            counts[name] = counts.get(name, 0) + done

        return hook

    handles = [
        module.register_forward_hook(watch(name, module.get_parameter("weight")))
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, *_CONVS))
    ]
    try:
        with torch.no_grad():
            isolated_pass(forward, model, batch, 0)
    finally:
        for handle in handles:
            handle.remove()
    return Multiplications(counts)
