"""Merging batch normalizations at the end of training: two vectors instead of four.

In evaluation mode a normalization multiplies by gamma / sqrt(variance + eps) and adds a bias. Once
merged, it has this gain as its weight, that bias, mean 0 and variance 1 - eps: the function and the
names of the state dict stay the same, and the statistics become constants, which take almost no
bytes in a file. During training, gamma and beta are floats: a grid would not survive the merge.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...ops.levels.codebook import offset_grid
from ..layers.layer import QuantizedMatrix
from .fold import affine_of, is_batchnorm

__all__ = ["BatchNormMerge", "mergeable"]


def mergeable(
    model: nn.Module, aliases: Mapping[str, str], held: Sequence[str] = ()
) -> tuple[str, ...]:
    """Return the names of the normalizations whose statistics can be merged into two vectors.

    They have running statistics and an affine map, compute like torch's own, and share no tensor
    with another module. They may be called twice, since the map is the same in every call.

    Args:
        model: the network.
        aliases: other state-dict names of tied tensors, each mapped to its first name.
        held: names of normalizations without statistics, folded or merged before.
    """
    shared: set[int] = set()
    for pair in aliases.items():
        homes = [_home(model, name) for name in pair]
        if homes[0] is not homes[1]:
            shared.update(id(home) for home in homes)
    return tuple(
        name
        for name, module in model.named_modules()
        if is_batchnorm(module)
        and type(module).forward.__module__ == nn.BatchNorm2d.__module__
        and all(isinstance(module._parameters.get(leaf), Tensor) for leaf in ("weight", "bias"))
        and name not in held
        and id(module) not in shared
    )


class BatchNormMerge:
    """The normalizations of a network that are merged when its training ends.

    Attributes:
        names: names of the normalizations.
        bits: bits of the grids of gains and biases; None for floats.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], bits: int | None = None) -> None:
        self.names = tuple(names)
        self.bits = bits
        self._norms: dict[str, Any] = {name: model.get_submodule(name) for name in self.names}

    def notes(self) -> list[str]:
        """Return notes for the report."""
        count = len(self.names)
        return [f"{count} batch normalizations merged: a gain and a bias"] if count else []

    @torch.no_grad()
    def settle(self) -> dict[str, QuantizedMatrix]:
        """Merge every normalization, and return the codes of the vectors that have a grid.

        A normalization whose gain is not finite is left unchanged.
        """
        results: dict[str, QuantizedMatrix] = {}
        for name, norm in self._norms.items():
            vectors = _vectors(norm, self.bits)
            if vectors is None:
                continue
            for leaf, (values, coded) in vectors.items():
                norm.get_parameter(leaf).copy_(values)
                if coded is not None:
                    results[f"{name}.{leaf}"] = coded
            norm.running_mean.zero_()
            norm.running_var.fill_(1 - norm.eps)
        return results

    @contextmanager
    def rounded(self) -> Iterator[None]:
        """Compute inside the block as merged normalizations will, keeping their statistics."""
        norms = list(self._norms.values()) if self.bits is not None else []
        saved = [(norm.weight.detach().clone(), norm.bias.detach().clone()) for norm in norms]
        with torch.no_grad():
            for norm in norms:
                _round_in_place(norm, self.bits)
        try:
            yield
        finally:
            with torch.no_grad():
                for norm, (weight, bias) in zip(norms, saved, strict=True):
                    norm.weight.copy_(weight)
                    norm.bias.copy_(bias)


def _round_in_place(norm: Any, bits: int | None) -> None:
    vectors = _vectors(norm, bits)
    if vectors is None:
        return
    gain, bias = vectors["weight"][0], vectors["bias"][0]
    norm.weight.copy_(gain * (norm.running_var.double() + norm.eps).sqrt())
    norm.bias.copy_(bias + norm.running_mean.double() * gain)


def _vectors(
    norm: Any, bits: int | None
) -> dict[str, tuple[Tensor, QuantizedMatrix | None]] | None:
    """Return gain and bias, float64, and their codes if ``bits`` is given.

    The cost of an error of the gain is weighted by the variance of its input; the bias compensates
    for its effect on the mean.
    """
    variance, mean = norm.running_var.double(), norm.running_mean.double()
    gain, bias = affine_of(norm)
    if not bool(gain.to(norm.weight.dtype).isfinite().all() and bias.isfinite().all()):
        return None
    if bits is None:
        return {"weight": (gain, None), "bias": (bias, None)}
    gain, gains = _on_grid(gain, bits, variance + norm.eps)
    bias, biases = _on_grid(norm.bias.double() - mean * gain, bits)
    return {"weight": (gain, gains), "bias": (bias, biases)}


def _on_grid(
    vector: Tensor, bits: int, cost: Tensor | None = None
) -> tuple[Tensor, QuantizedMatrix | None]:
    """Quantize a vector to 2**bits levels with zeros exact; a constant one is left unchanged."""
    if bool((vector == vector[0]).all()):
        return vector, None
    count = 2**bits
    step, lowest = offset_grid(vector, count, cost)
    index = (vector / step).round().clamp(lowest, lowest + count - 1)
    index = index.where(vector != 0, 0).int().reshape(1, 1, -1)
    coded = QuantizedMatrix(index, torch.tensor([step]))
    return coded.dequantize().reshape(-1).double(), coded


def _home(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name.rpartition(".")[0])
    except AttributeError:  # a state-dict hook chose the name
        return None
