"""The levels of one weight in training: a grid, a codebook, or a grid in a transform domain.

A weight is converted to units: divided by its steps, or transformed to coefficients of a basis. In
units, the whole tensor has one increasing table of levels, which is all that entropy depends on.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from ....engine.layers.layer import Quantized, QuantizedMatrix, QuantizedTransform
from ....ops.levels.codebook import even_step, lloyd_max
from ....ops.transforms import fold, unfold

__all__ = ["Levels", "TransformLevels", "fit_codebook", "fit_grid", "levels_of"]


@dataclass(frozen=True, eq=False)
class Levels:
    """A grid or a codebook: ``value = scale * (unit - offset)``.

    A row is a neuron, or with a group that many adjacent columns of one.

    Attributes:
        values: (levels,) float32, increasing: the levels in units. Integers for a grid.
        scale: (1,) or (rows,) float32.
        shape: (groups, neurons, columns), shape of the weight.
        even: whether this is a grid, stored as a step and integers; otherwise a codebook.
        offset: (1,) or (rows,) multiples of 1/2; zero for a codebook.
        group: columns that share a scale; 0: all of a neuron's.
        basis: (channels, vectors) float32, the basis that units are coefficients of, as a file
            gives it; None where units are the weight in steps.
    """

    values: Tensor
    scale: Tensor
    shape: tuple[int, int, int]
    even: bool
    offset: Tensor
    group: int = field(default=0, kw_only=True)
    basis: Tensor | None = field(default=None, kw_only=True)

    @property
    def zero(self) -> int:
        """The position of the level nearest to zero."""
        return int(self.values.abs().argmin())

    @cached_property
    def cell(self) -> float:
        """The mean distance between neighbouring levels, in units."""
        count = len(self.values)
        return float(self.values[-1] - self.values[0]) / (count - 1) if count > 1 else 1.0

    def units(self, matrix: Tensor) -> Tensor:
        """Convert a (groups, neurons, columns) weight to (rows, columns) units."""
        groups, neurons, columns = self.shape
        width = self.group or columns
        rows = matrix.reshape(
            groups * neurons * (columns // self.group if self.group else 1), width
        )
        return rows / self.scale[:, None] + self.offset[:, None]

    def matrix(self, units: Tensor) -> Tensor:
        """Convert units to the weight; for levels, bit for bit as a file gives it."""
        return ((units - self.offset[:, None]) * self.scale[:, None]).reshape(self.shape)

    def weight_change(self, change: Tensor) -> Tensor:
        """Convert a change of the units to a change of the weight."""
        return (change * self.scale[:, None]).reshape(self.shape)

    def gradient(self, gradient: Tensor) -> Tensor:
        """Convert a gradient with respect to the units to one with respect to the weight."""
        return (gradient / self.scale[:, None]).reshape(self.shape)

    def on_basis_grid(self, basis: Tensor) -> Tensor:
        """Return the nearest basis that a file can hold."""
        raise TypeError("units that are the weight in steps have no basis")

    def with_values(self, levels: Tensor) -> Levels:
        """Return the same with other levels."""
        return replace(self, values=levels)

    def quantized(self, position: Tensor, info: dict[str, float]) -> Quantized:
        """Return the quantized weight whose unit (r, c) is on level ``position[r, c]``."""
        if not self.even:
            index = position.reshape(self.shape).int()
            return QuantizedMatrix(
                index, None, levels=self.values, scale=self.scale, info=info, group=self.group
            )
        index = self.values[position].round().int().reshape(self.shape)
        offset = self.offset if bool(self.offset.any()) else 0.0
        if isinstance(offset, Tensor) and len(offset) == 1:
            offset = float(offset)
        return QuantizedMatrix(index, self.scale, offset, info=info, group=self.group)


@dataclass(frozen=True, eq=False)
class TransformLevels(Levels):
    """A grid for the coefficients of a basis; ``scale`` and ``offset`` are per vector.

    A parameter holds the coefficients T as ``S_0 T``, in the basis of the start: it has the scale
    of the weight, and T stays what it is while the basis S of the weight ``S T`` is trained.

    Attributes:
        start: the quantized weight that training started from, with side and shape.
        synthesis: S_0 (channels, vectors) float32, the basis of the start.
        analysis: its pseudo-inverse.
    """

    start: QuantizedTransform
    synthesis: Tensor
    analysis: Tensor
    basis: Tensor = field(kw_only=True)

    @classmethod
    def of(cls, start: QuantizedTransform, values: Tensor) -> TransformLevels:
        """Return the levels ``values`` in the basis of ``start``."""
        basis = start.basis.float() * start.basis_step
        inverse = torch.linalg.pinv(basis.double()).float()
        grid = (values, start.step, start.shape, True, start.offset)
        return cls(*grid, start, basis, inverse, basis=basis)

    def on_basis_grid(self, basis: Tensor) -> Tensor:
        """Return the nearest basis that a file can hold."""
        return (basis / self.start.basis_step).round() * self.start.basis_step

    def units(self, matrix: Tensor) -> Tensor:
        """Convert a weight to (vectors, rest) coefficients in steps."""
        channels = unfold(matrix, self.start.kernel, self.start.side)
        return (self.analysis @ channels) / self.scale[:, None] + self.offset[:, None]

    def matrix(self, units: Tensor) -> Tensor:
        """Convert coefficients to the weight, up to the rounding of the products."""
        return self._folded(self.basis, units - self.offset[:, None])

    def weight_change(self, change: Tensor) -> Tensor:
        """Convert a change of the coefficients to one of the parameter."""
        return self._folded(self.synthesis, change)

    def _folded(self, basis: Tensor, units: Tensor) -> Tensor:
        channels = basis @ (units * self.scale[:, None])
        return fold(channels, self.start.shape, self.start.kernel, self.start.side)

    def gradient(self, gradient: Tensor) -> Tensor:
        """Convert a gradient with respect to the units to one with respect to the parameter."""
        channels = self.analysis.mT @ (gradient / self.scale[:, None])
        return fold(channels, self.start.shape, self.start.kernel, self.start.side)

    def quantized(self, position: Tensor, info: dict[str, float]) -> Quantized:
        """Return the weight in its basis, with coefficients on the levels ``position``."""
        index = self.values[position].round().int()
        basis = (self.basis / self.start.basis_step).round().int()
        return replace(self.start, index=index, step=self.scale, basis=basis, info=info)


def fit_grid(matrix: Tensor, count: int, width: float = 1.0) -> Levels:
    """Fit a grid of ``count`` (odd) levels with the least squared error; widen it by ``width``."""
    groups, rows, columns = matrix.shape
    step = matrix.new_full((1,), even_step(matrix, count) * width).bfloat16().float()
    top = (count - 1) // 2
    levels = torch.arange(-top, top + 1, device=matrix.device).to(matrix)
    return Levels(levels, step, (groups, rows, columns), True, matrix.new_zeros(1))


def fit_codebook(matrix: Tensor, count: int) -> Levels:
    """Fit a codebook of at most ``count`` levels with the least squared error, one of them zero."""
    groups, rows, columns = matrix.shape
    levels, one = lloyd_max(matrix, count).to(matrix), matrix.new_ones(1)
    return Levels(levels, one, (groups, rows, columns), False, torch.zeros_like(one))


def levels_of(start: Quantized, least: int = 0) -> Levels:
    """Return the levels of a quantized weight, over the range of its indices.

    ``least``: integers that there are on each side of zero in any case.
    """
    if isinstance(start, QuantizedMatrix) and start.levels is not None:
        scale = start.levels.new_ones(1) if start.scale is None else start.scale
        groups, rows, columns = start.index.shape
        zero = scale.new_zeros(1)
        return Levels(start.levels, scale, (groups, rows, columns), False, zero, group=start.group)
    if start.step is None:
        raise ValueError("a quantized weight must have a step or levels")
    step = start.step
    low, high = (int(value) for value in start.index.aminmax())
    levels = torch.arange(min(low, -least), max(high, least) + 1, device=step.device).to(step)
    offset = torch.as_tensor(start.offset, dtype=step.dtype, device=step.device).reshape(-1)
    if isinstance(start, QuantizedTransform):
        return TransformLevels.of(start, levels)
    groups, rows, columns = start.index.shape
    return Levels(levels, step, (groups, rows, columns), True, offset, group=start.group)
