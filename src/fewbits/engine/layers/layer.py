"""The interface of methods: what they get about a weight, and what they return, as matrices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ...ops.levels.grid import FLOAT32_MAX
from ...ops.transforms import fold
from .statistics import Statistics

__all__ = [
    "LayerMatrix",
    "Levels",
    "Quantized",
    "QuantizedMatrix",
    "QuantizedTransform",
    "Sensitivity",
    "blocks_of",
    "join_neurons",
]

_SHARES = ("zeros", "saturation")  # of the weights, in what a method measured


def blocks_of(step: Tensor, shape: Sequence[int]) -> int:
    """Return into how many equal blocks ``step`` divides the columns of (groups, neurons, columns).

    A (1,) or (groups * neurons,) step is one for all of a neuron's columns: 1.
    """
    rows = shape[0] * shape[1]
    return step.numel() // rows if rows and step.numel() > rows else 1


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """The effect of errors of one weight on the output of a sample, on average.

    An error dW changes the output by about ``sum over o of rows_o dw_o columns dw_o'``.

    Attributes:
        rows: (groups, neurons) float64: squared output change per unit of a neuron's mean squared
            change over its positions.
        columns: (groups, columns, columns) float32: ``E[g_o g_o'] / rows_o``, averaged over rows:
            second moments of the inputs, weighted by their effect on the output.
        outputs: (groups, neurons, neurons) float32: sum over columns of ``E[g g']``; None if there
            are too many neurons, or if they are those of an embedding, which never add up.
        samples: number of samples seen.
        mean: (groups, columns) float32: the mean that a bias can compensate, weighted likewise;
            None if nothing can.
        biases: (groups, neurons) float64: squared output change per squared change of a neuron's
            bias; None if it is unknown.
    """

    rows: Tensor
    columns: Tensor
    outputs: Tensor | None
    samples: int
    mean: Tensor | None = None
    biases: Tensor | None = None

    def moments(self, has_bias: bool) -> Tensor:
        """Return ``columns``, about the mean if a bias compensates it."""
        if self.mean is None or not has_bias:
            return self.columns
        return self.columns - self.mean[..., None] * self.mean[:, None]


@dataclass(frozen=True, eq=False)
class Levels:
    """Levels that are given for a weight: ``step * value`` for each of the values.

    Attributes:
        values: (levels,) float32, strictly increasing.
        step: positive float32, (1,), (groups * neurons,), or one for each block of columns.
        offset: what a file adds to values, which are then consecutive, for the integers of a grid:
            a multiple of 1/2; None where the values are a codebook.
        group: columns that share a step; 0: all of a neuron's.
    """

    values: Tensor
    step: Tensor
    offset: float | None = None
    group: int = 0

    @property
    def largest(self) -> float:
        """The largest magnitude of a level."""
        return float(self.values.abs().max() * self.step.max())

    def to(self, device: torch.device) -> Levels:
        """Return the levels on a device."""
        return replace(self, values=self.values.to(device), step=self.step.to(device))

    def matrix(self, places: Tensor, **more: Any) -> QuantizedMatrix:
        """Return the weight whose values have these places, (groups, neurons, columns) int32.

        ``more`` are other attributes of the result.
        """
        if self.offset is None:
            known: dict[str, Any] = {"levels": self.values, "scale": self.step}
            return QuantizedMatrix(places, None, group=self.group, **known, **more)
        lowest = round(float(self.values[0]) + self.offset)
        return QuantizedMatrix(places + lowest, self.step, self.offset, group=self.group, **more)


@dataclass(frozen=True, eq=False)
class LayerMatrix:
    """One weight as a batch of matrices.

    Attributes:
        name: state-dict name of the weight, for messages.
        weight: (groups, neurons, columns) float32; one group unless the convolution is grouped.
        statistics: statistics of the layer's inputs; None if the method needs none.
        seed: seed for all randomness in this layer.
        limit: largest finite value of the weight's own dtype; no level may exceed it, or casting
            back would give infinity.
        sensitivity: effect of errors of the weight on the network's output; None if the method
            needs no gradients.
        kernel: adjacent columns per input channel: taps of a convolution, else 1.
        width: columns back to the row above in such a kernel; 0 if there is none.
        has_bias: whether a bias takes the mean error of the output.
        levels: those that the weight must have; None leaves them to the method.
    """

    name: str
    weight: Tensor
    statistics: Statistics | None = None
    seed: int = 0
    limit: float = FLOAT32_MAX
    sensitivity: Sensitivity | None = None
    kernel: int = 1
    width: int = 0
    has_bias: bool = True
    levels: Levels | None = None

    def neurons(self, part: slice) -> LayerMatrix:
        """Return the layer of some of the neurons, without given levels, on the same inputs."""
        statistics = self.statistics
        if statistics is not None and statistics.reference_energy is not None:
            energy = statistics.reference_energy[:, part]
            statistics = replace(statistics, reference_energy=energy)
        return replace(self, weight=self.weight[:, part], statistics=statistics)


@dataclass(frozen=True, eq=False)
class QuantizedMatrix:
    """Integer indices and the parameters that turn them back into values.

    Either ``value = step * (index - offset)`` (with ``step``) or ``value = scale * levels[index]``
    (with ``levels``).

    Attributes:
        index: (groups, neurons, columns) int32.
        step: (1,) or (groups * neurons,) float32, or (groups * neurons * blocks,) where each block
            of ``group`` adjacent columns has a step of its own; None with a codebook.
        offset: multiple of 1/2; 1/2 for a grid without a zero. A float32 tensor of one for each
            row or block if they differ.
        levels: strictly increasing (levels,) float32 codebook; None with a step.
        scale: float32 of the same form as a step, with ``levels``.
        bias_shift: (groups * neurons,) float32 to add to the layer's bias; None for no change.
        info: measurements of the method, for reports ("objective", "saturation", "zeros", ...).
        group: columns that share a step; 0: all of a neuron's.
        bias_step: (groups * neurons,) float32, to whose multiples the biases are rounded once they
            are shifted; None leaves them as they are.
    """

    index: Tensor
    step: Tensor | None
    offset: float | Tensor = 0.0
    levels: Tensor | None = None
    scale: Tensor | None = None
    bias_shift: Tensor | None = None
    info: Mapping[str, float] = field(default_factory=dict)
    group: int = 0
    bias_step: Tensor | None = None

    @property
    def rows(self) -> Tensor:
        """The index with a row for each neuron, or for each block of its columns if grouped."""
        groups, neurons, columns = self.index.shape
        if not self.group:
            return self.index.reshape(groups * neurons, columns)
        return self.index.reshape(groups * neurons * (columns // self.group), self.group)

    def dequantize(self) -> Tensor:
        """Return the (groups, neurons, columns) float32 values, bit-exact as from the file."""
        index = self.rows
        if self.levels is not None:
            scale = self.levels.new_ones(1) if self.scale is None else self.scale
            values, factor = self.levels[index.long()], scale
        else:
            offset = self.offset
            if isinstance(offset, Tensor):
                offset = offset.expand(len(index))[:, None]
            values, factor = index.float().sub_(offset), self._step()
        return values.mul_(factor.expand(len(index))[:, None]).reshape(self.index.shape)

    def _step(self) -> Tensor:
        if self.step is None:
            raise ValueError("a QuantizedMatrix needs either a step or levels")
        return self.step

    def on_cpu(self) -> QuantizedMatrix:
        """Return a copy whose index, as large as the weights, is in main memory."""
        return replace(self, index=self.index.cpu())


@dataclass(frozen=True, eq=False)
class QuantizedTransform:
    """Coefficients in a quantized basis that mixes the channels of a layer (Young et al. 2021).

    The matrix ``(basis_step * basis) @ (step * (index - offset))`` is the weight as unfolded by
    :func:`fewbits.ops.transforms.unfold`. Vectors with all-zero coefficients are removed.

    Attributes:
        index: (vectors, rest) int32 coefficients.
        step: (vectors,) float32.
        offset: (1,) or (vectors,) float32 multiples of 1/2.
        basis: (channels, vectors) int32.
        basis_step: (1,) float32.
        side: "row" (the channels are the inputs) or "column" (the outputs).
        shape: (groups, neurons, columns) of the weight; all groups share the basis.
        kernel: columns per input channel.
        bias_shift: (groups * neurons,) float32 to add to the layer's bias; None for no change.
        info: measurements of the method, for reports.
        bias_step: as of :class:`QuantizedMatrix`.
    """

    index: Tensor
    step: Tensor
    offset: Tensor
    basis: Tensor
    basis_step: Tensor
    side: str
    shape: tuple[int, int, int]
    kernel: int
    bias_shift: Tensor | None = None
    info: Mapping[str, float] = field(default_factory=dict)
    bias_step: Tensor | None = None

    def dequantize(self) -> Tensor:
        """Return the (groups, neurons, columns) float32 values, bit-exact as from the file."""
        basis = (self.basis.float() * self.basis_step).double()
        values = ((self.index.float() - self.offset[:, None]) * self.step[:, None]).double()
        total = basis.new_zeros(len(basis), values.shape[1])
        for vector in range(len(values)):
            total += basis[:, vector, None] * values[vector]
        return fold(total.float(), self.shape, self.kernel, self.side)

    def on_cpu(self) -> QuantizedTransform:
        """Return a copy whose index, as large as the weights, is in main memory."""
        return replace(self, index=self.index.cpu(), basis=self.basis.cpu())


Quantized: TypeAlias = QuantizedMatrix | QuantizedTransform
"""Types that a method may return."""


def join_neurons(parts: Sequence[Quantized]) -> Quantized:
    """Join the parts of a layer with one group: its neurons in order, each with its own steps.

    All parts are matrices on one grid. Of what was measured, the objective is that of the whole
    layer, given the "energy" of each part; shares of the weights are weighted by their numbers, and
    of all else the largest counts.
    """
    if len(parts) == 1:
        return parts[0]
    matrices = [part for part in parts if isinstance(part, QuantizedMatrix)]
    if len(matrices) < len(parts):
        raise TypeError("only the neurons of matrices can be joined")

    def together(values: Iterable[Tensor | None]) -> Tensor | None:
        known = [value for value in values if value is not None]
        return torch.cat(known) if known else None

    return replace(
        matrices[0],
        index=torch.cat([part.index for part in matrices], 1),
        step=together(part.step for part in matrices),
        scale=together(part.scale for part in matrices),
        bias_shift=together(part.bias_shift for part in matrices),
        bias_step=together(part.bias_step for part in matrices),
        info=_joined_info([(part.info, part.index.numel()) for part in matrices]),
    )


def _joined_info(parts: Sequence[tuple[Mapping[str, float], int]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for name in dict.fromkeys(name for info, _ in parts for name in info):
        told = [(info[name], info, count) for info, count in parts if name in info]
        energy = sum(info.get("energy", 0.0) for _, info, _ in told)
        weights = sum(count for *_, count in told)
        if name == "energy":
            found[name] = energy
        elif name == "objective" and energy > 0:
            squares = sum(value * value * info["energy"] for value, info, _ in told)
            found[name] = (squares / energy) ** 0.5
        elif name in _SHARES and weights:
            found[name] = sum(value * count for value, _, count in told) / weights
        else:
            found[name] = max(value for value, *_ in told)
    return found
