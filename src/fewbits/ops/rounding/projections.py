"""Projections other than to the nearest grid level: thresholds, stochastic rounding, codebooks.

Each is a ``Project``: it overwrites values in grid units with levels. Any of them can be used in
path following, which treats neurons and columns one value at a time.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..levels.grid import Grid, Project

__all__ = ["CodebookProjection", "HardThreshold", "SoftThreshold", "StochasticRounding"]


@dataclass(frozen=True, eq=False)
class CodebookProjection:
    """The nearest of strictly increasing levels; ties go to the lower one."""

    levels: Tensor

    @property
    def ends(self) -> tuple[float, float]:
        """The lowest and the highest level."""
        return float(self.levels[0]), float(self.levels[-1])

    def index(self, values: Tensor) -> Tensor:
        """Return the int32 position of the level nearest to each value, contiguous."""
        bounds = (self.levels[1:] + self.levels[:-1]) / 2
        return torch.bucketize(values.contiguous(), bounds.to(values), out_int32=True)

    def nearest(self, values: Tensor) -> Tensor:
        """Return the levels nearest to ``values``."""
        return self.levels.to(values)[self.index(values).long()]

    def project_(self, values: Tensor) -> None:
        """Overwrite ``values`` with the nearest levels."""
        values.copy_(self.nearest(values))


@dataclass(frozen=True)
class SoftThreshold:
    """Sparse rounding by an L1 penalty: shrink by ``size`` (grid units), then project.

    With a nearest projection this is the exact minimizer of ``1/2 (p - z)^2 + size |p|`` over the
    grid (sparse GPFQ: Zhang, Zhou and Saab 2023).
    """

    size: float
    then_: Project

    def project_(self, values: Tensor) -> None:
        """Overwrite ``values`` with levels."""
        values.sub_(values.clamp(-self.size, self.size))
        self.then_(values)


@dataclass(frozen=True)
class HardThreshold:
    """Sparse rounding by an L0 penalty (Zhang, Zhou and Saab 2023).

    The alphabet is zero and ``+-(size + k (top - size) / top)`` for k = 0 ... top, in grid units of
    a grid with a zero: two levels more than the grid has. Exactly the values up to ``size`` become
    zero, and the choice minimizes ``1/2 (p - z)^2 + size^2/2 [p != 0]`` over the alphabet.
    """

    size: float
    grid: Grid
    _tables: dict[tuple[torch.dtype, torch.device], Tensor] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def levels(self) -> Tensor:
        """All levels, increasing: (2 top + 3,) float32."""
        top = int(self.grid.top)
        positive = self.size + torch.arange(top + 1, dtype=torch.float64) * self._gap
        return torch.cat([-positive.flip(0), positive.new_zeros(1), positive]).float()

    @property
    def ends(self) -> tuple[float, float]:
        """The lowest and the highest level."""
        return -self.grid.top, self.grid.top

    def table(self, values: Tensor) -> Tensor:
        """Return ``levels`` in the dtype and on the device of ``values``; cached."""
        key = (values.dtype, values.device)
        if key not in self._tables:
            self._tables[key] = self.levels.to(values)
        return self._tables[key]

    @property
    def _gap(self) -> float:
        return 1 - self.size / self.grid.top

    def index(self, values: Tensor) -> Tensor:
        """Return the int32 positions of ``values``, which are levels; contiguous."""
        return CodebookProjection(self.table(values)).index(values)

    def project_(self, values: Tensor) -> None:
        """Overwrite ``values`` with levels."""
        size = values.abs().sub_(self.size)
        rank = (size / self._gap).add_(0.5).floor_().clamp_(0, self.grid.top).add_(1)
        rank.mul_(size > 0).mul_(values.sign())
        middle = int(self.grid.top) + 1
        values.copy_(self.table(values)[rank.long() + middle])


@dataclass(frozen=True, eq=False)
class StochasticRounding:
    """Round up or down at random, keeping the mean (Zhang and Saab, SPFQ, 2023).

    ``E[level | value] = value`` within the grid. One draw per value, in the order of the calls, so
    a seeded generator makes it reproducible.
    """

    grid: Grid
    generator: torch.Generator

    def project_(self, values: Tensor) -> None:
        """Overwrite ``values`` with levels."""
        offset, top = self.grid.offset, self.grid.top
        uniform = torch.rand(
            values.shape, generator=self.generator, dtype=values.dtype, device=values.device
        )
        values.add_(uniform).add_(offset).floor_().clamp_(offset - top, offset + top).sub_(offset)
