"""The rate-distortion problem of a layer whose columns are paths of a trellis.

A scalar quantizer with an ideal coder loses 0.25 bit per weight to the rate-distortion bound; a
trellis of 8 states wins back about two thirds of that (Fischer and Wang, "Entropy-constrained
trellis-coded quantization", IEEE Transactions on Information Theory 38, 1992). Its integers stand
for multiples of a finer step, but the coder knows the parity of each from those above it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from ...coding.mix.trellis import Trellis
from ...coding.trellis import transitions
from ...ops.rate_distortion.trellis_paths import (
    LEAST,
    PathDescent,
    PathLevels,
    path_bits,
    total_path_bits,
)
from ...ops.rounding.path_following import descending
from .rate_problem import LARGEST_TABLE, TOP, BitsTable, RateProblem

__all__ = ["TrellisProblem"]

_FINER = 2.5  # squared ratio of the best scalar step to that of a path, where the search starts
_TABLES, _SWEEPS = 4, 2  # times the coder's model is queried, and sweeps after each


@dataclass(frozen=True, eq=False)
class TrellisProblem(RateProblem):
    """A problem as of :class:`RateProblem`, whose levels are paths down the stored matrix.

    A path runs through all groups of a column, so all groups have their columns in one order. What
    rows do to each other's errors counts in the sweeps with the coder's bits; there the rows of a
    column are decided one after the other, so nothing overshoots.
    """

    exact: ClassVar[int] = 2  # pairs of levels, since the parity is known

    @classmethod
    def at(
        cls, target: Tensor, metric: Tensor, rows: Tensor, coupling: Tensor | None = None
    ) -> Self:
        """Build the problem from a quadratic; see :class:`RateProblem`."""
        shared = descending(metric.diagonal(dim1=1, dim2=2).mean(0, keepdim=True))
        return cls.ordered(target, metric, rows, shared.expand(len(metric), -1), coupling)

    @classmethod
    def like(cls, problem: RateProblem) -> Self:
        """Return the same quadratic, for paths."""
        paths = cls.at(problem.target, problem.metric, problem.rows, problem.coupling)
        return replace(paths, taps=problem.taps, width=problem.width)

    def search(self, slope: float, ratio: float, priced: bool) -> Tensor:
        """Search the step () of a path with the least distortion + slope * bits."""
        return super().search(slope, _FINER * ratio, priced)

    def _bits(self, levels: Tensor) -> Tensor:
        return path_bits(levels.flatten(1), TOP)

    def _total_bits(self, levels: Tensor) -> Tensor:
        return total_path_bits(levels.flatten(1), TOP)

    def _coder(self) -> Trellis:
        return Trellis()

    def _chooser(self, levels: Tensor, energy: Tensor, price: Tensor) -> PathLevels:
        lowest, bits = _allowed(levels, self._bits(levels))
        each = (price * self.rows)[:, 0, 0]
        return PathLevels(
            lowest=lowest,
            energy=energy,
            weights=self.rows,
            price=each,
            bits=bits,
            following=transitions(),
        )

    def _descent(self, levels: Tensor, steps: Tensor) -> PathDescent:
        units = self._units(steps)
        order, weights, following = self.order[0], self.rows, transitions()
        return PathDescent(
            units, levels, self.metric, order=order, weights=weights, following=following
        )

    def _sweep(
        self,
        descent: PathDescent,
        steps: Tensor,
        slope: float,
        bits: Tensor,
        coupling: Tensor | None = None,
    ) -> None:
        lowest, bits = _allowed(descent.levels, bits)
        descent.sweep(slope / steps.square(), bits, lowest)

    def _sweep_with_tables(self, descent: PathDescent, steps: Tensor, slope: float) -> None:
        mean: BitsTable | None = None
        for _ in range(_TABLES):
            symbols, layout = self._stored_matrix(descent.levels[0])
            if symbols.size * (2 * TOP + 1) > LARGEST_TABLE or symbols.min() == symbols.max():
                return
            lowest, prices = self._coder().prices(symbols, layout, self.exact)
            table = BitsTable(torch.from_numpy(prices), lowest)
            mean = table if mean is None else mean.averaged(table)
            lowest, highest = self._reached(mean.lowest, mean.highest)
            wide = mean.reaching(min(lowest, -LEAST), max(highest, LEAST))
            for _ in range(_SWEEPS):
                price = slope / steps.square()
                descent.sweep(price, wide.bits[None], wide.lowest, self.coupling)

    def _next_levels(self, units: Tensor) -> Tensor:
        """Return the multiples of 4 next to outliers, which change no path, and 0 elsewhere."""
        return torch.where(torch.as_tensor(self.outliers), 4 * (units / 4).round(), 0.0)


def _allowed(levels: Tensor, bits: Tensor) -> tuple[int, Tensor]:
    """Return the lowest level that the next sweep may choose, and the bits of it and others."""
    lowest = max(-TOP, min(int(levels.min()), 0) - LEAST)
    highest = min(TOP, max(int(levels.max()), 0) + LEAST)
    return lowest, bits[..., lowest + TOP : highest + TOP + 1]
