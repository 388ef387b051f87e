"""The levels of one weight in training, in units of their own: grid, codebook, or transform.

A weight's matrix is seen as units: divided by its steps, or as coefficients of a basis. In units
the levels are one increasing table for the whole tensor, and entropy needs to know no more.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
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

    Attributes:
        values: (levels,) float32, increasing: what a unit may be. Integers on a grid.
        scale: (1,) or (groups * neurons,) float32.
        shape: (groups, neurons, columns) of the weight.
        even: whether the file holds a step and integers; else a codebook.
        offset: (1,) or (groups * neurons,) multiples of 1/2; zero with a codebook.
    """

    values: Tensor
    scale: Tensor
    shape: tuple[int, int, int]
    even: bool
    offset: Tensor

    @property
    def zero(self) -> int:
        """Position of the level nearest to zero."""
        return int(self.values.abs().argmin())

    @cached_property
    def cell(self) -> float:
        """The mean distance of neighbouring levels, in units."""
        count = len(self.values)
        return float(self.values[-1] - self.values[0]) / (count - 1) if count > 1 else 1.0

    def units(self, matrix: Tensor) -> Tensor:
        """Return the (rows, columns) units of a (groups, neurons, columns) weight."""
        rows = matrix.reshape(self.shape[0] * self.shape[1], self.shape[2])
        return rows / self.scale[:, None] + self.offset[:, None]

    def matrix(self, units: Tensor) -> Tensor:
        """Return the weight of units, bit for bit as a file gives it where they are levels."""
        return ((units - self.offset[:, None]) * self.scale[:, None]).reshape(self.shape)

    def moved(self, change: Tensor) -> Tensor:
        """Return by how much the weight moves when its units do."""
        return (change * self.scale[:, None]).reshape(self.shape)

    def gradient(self, slant: Tensor) -> Tensor:
        """Return the gradient in the weight of what has gradient ``slant`` in the units."""
        return (slant / self.scale[:, None]).reshape(self.shape)

    def with_values(self, levels: Tensor) -> Levels:
        """Return it with other levels."""
        return replace(self, values=levels)

    def quantized(self, position: Tensor, info: dict[str, float]) -> Quantized:
        """Return what a file holds when unit (r, c) is on level ``position[r, c]``."""
        if not self.even:
            index = position.reshape(self.shape).int()
            return QuantizedMatrix(index, None, levels=self.values, scale=self.scale, info=info)
        index = self.values[position].round().int().reshape(self.shape)
        offset = self.offset if bool(self.offset.any()) else 0.0
        if isinstance(offset, Tensor) and len(offset) == 1:
            offset = float(offset)
        return QuantizedMatrix(index, self.scale, offset, info=info)


@dataclass(frozen=True, eq=False)
class TransformLevels(Levels):
    """A grid for the coefficients of a frozen basis; ``scale`` and ``offset`` by vector.

    Attributes:
        start: basis, side and shape of the weight.
    """

    start: QuantizedTransform

    @cached_property
    def synthesis(self) -> Tensor:
        """(channels, vectors) basis, as the file has it."""
        return self.start.basis.float() * self.start.basis_step

    @cached_property
    def analysis(self) -> Tensor:
        """Its pseudo-inverse."""
        inverse: Tensor = torch.linalg.pinv(self.synthesis.double()).float()
        return inverse

    def units(self, matrix: Tensor) -> Tensor:
        """Return the (vectors, rest) coefficients in steps."""
        channels = unfold(matrix, self.start.kernel, self.start.side)
        return (self.analysis @ channels) / self.scale[:, None] + self.offset[:, None]

    def matrix(self, units: Tensor) -> Tensor:
        """Return the weight whose coefficients they are, rounded as products round."""
        return self.moved(units - self.offset[:, None])

    def moved(self, change: Tensor) -> Tensor:
        """Return by how much the weight moves when its coefficients do."""
        channels = self.synthesis @ (change * self.scale[:, None])
        return fold(channels, self.start.shape, self.start.kernel, self.start.side)

    def gradient(self, slant: Tensor) -> Tensor:
        """Return the gradient in the weight of what has gradient ``slant`` in the units."""
        channels = self.analysis.mT @ (slant / self.scale[:, None])
        return fold(channels, self.start.shape, self.start.kernel, self.start.side)

    def quantized(self, position: Tensor, info: dict[str, float]) -> Quantized:
        """Return the coefficients, on the levels ``position``, in the same basis."""
        index = self.values[position].round().int()
        return replace(self.start, index=index, step=self.scale, info=info)


def fit_grid(matrix: Tensor, count: int, width: float = 1.0) -> Levels:
    """Return ``count`` (odd) even levels of least squared error, with a step ``width`` as large."""
    groups, rows, columns = matrix.shape
    step = matrix.new_full((1,), even_step(matrix, count) * width).bfloat16().float()
    top = (count - 1) // 2
    levels = torch.arange(-top, top + 1, device=matrix.device).to(matrix)
    return Levels(levels, step, (groups, rows, columns), True, matrix.new_zeros(1))


def fit_codebook(matrix: Tensor, count: int) -> Levels:
    """Return at most ``count`` levels of least squared error, one of them zero."""
    groups, rows, columns = matrix.shape
    levels, one = lloyd_max(matrix, count).to(matrix), matrix.new_ones(1)
    return Levels(levels, one, (groups, rows, columns), False, torch.zeros_like(one))


def levels_of(start: Quantized) -> Levels:
    """Return the levels that a coded weight is on, as wide as its indices are."""
    if isinstance(start, QuantizedMatrix) and start.levels is not None:
        scale = start.levels.new_ones(1) if start.scale is None else start.scale
        groups, rows, columns = start.index.shape
        return Levels(start.levels, scale, (groups, rows, columns), False, scale.new_zeros(1))
    if start.step is None:
        raise ValueError("a coded weight has a step or levels; this one has neither")
    step = start.step
    low, high = (int(value) for value in start.index.aminmax())
    levels = torch.arange(min(low, 0), max(high, 0) + 1, device=step.device).to(step)
    offset = torch.as_tensor(start.offset, dtype=step.dtype, device=step.device).reshape(-1)
    if isinstance(start, QuantizedTransform):
        return TransformLevels(levels, step, start.shape, True, offset, start)
    groups, rows, columns = start.index.shape
    return Levels(levels, step, (groups, rows, columns), True, offset)
