"""The rate-distortion problem of a layer whose weights are values of a given codebook.

Values are what they are, in units of steps that are given too: there is nothing to search. A file
holds their places in the codebook, in increasing order, which the coder takes for any other
integers.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import ClassVar, Self

import torch
from torch import Tensor

from ...coding import measure
from ...engine.layers.layer import Levels
from ...ops.rate_distortion.cheapest_levels import level_bits, total_bits
from ...ops.rate_distortion.descent import Descent
from ...ops.rounding.projections import CodebookProjection
from .rate_problem import RateProblem

__all__ = ["CodebookProblem"]


@dataclass(frozen=True, eq=False)
class CodebookProblem(RateProblem):
    """A problem as of :class:`RateProblem`, whose levels are the values of a codebook.

    Attributes:
        codebook: (levels,) float64, increasing.
    """

    exact: ClassVar[int] = 16  # values are denser than a slope would have steps, so more move far

    codebook: Tensor = field(kw_only=True)

    @classmethod
    def like(cls, problem: RateProblem, levels: Levels) -> Self:
        """Return the same quadratic in units of the steps, which differ by row or are all one.

        Values that are given have no outliers.
        """
        groups, neurons = problem.rows.shape
        steps = levels.step.to(problem.target).expand(groups * neurons).reshape(groups, neurons)
        same = {entry.name: getattr(problem, entry.name) for entry in fields(RateProblem)}
        same |= {"target": problem.target / steps[..., None], "outliers": None}
        same |= {"rows": problem.rows * steps.square()}
        if problem.coupling is not None:  # an error of p counts in steps of p, one of o in its own
            same["coupling"] = problem.coupling * (steps[:, None] / steps[..., None])
        return cls(**same, codebook=levels.values.to(problem.target))

    def index(self, levels: Tensor) -> Tensor:
        """Return the places int32 of values in the codebook."""
        return CodebookProjection(self.codebook.to(levels.device)).index(levels)

    def _unit(self, steps: Tensor) -> Tensor:
        return torch.ones_like(steps, dtype=self.target.dtype)

    def _first(self, units: Tensor, steps: Tensor) -> Tensor:
        """Return the nearest of the values that are next to multiples of each step."""
        whole = CodebookProjection(self.codebook)
        places = (self.codebook / steps.reshape(-1, 1).to(self.codebook)).round()
        near = whole.index(places * steps.reshape(-1, 1).to(places))
        return torch.stack(
            [
                CodebookProjection(self.codebook[own.unique().long()]).nearest(part)
                for part, own in zip(units, near, strict=True)
            ]
        )

    def _reached(self, lowest: int, highest: int) -> tuple[int, int]:
        return 0, len(self.codebook) - 1

    def _allowed(self, levels: Tensor, bits: Tensor) -> tuple[int, Tensor]:
        return 0, bits

    def _values(self, lowest: int, count: int) -> Tensor:
        return self.codebook[lowest : lowest + count]

    def _bits(self, levels: Tensor) -> Tensor:
        top = len(self.codebook) - 1
        return level_bits(self.index(levels).flatten(1), top)[:, top:]

    def _total_bits(self, levels: Tensor) -> Tensor:
        return total_bits(self.index(levels).flatten(1), len(self.codebook) - 1)

    def _sweep_with_tables(self, descent: Descent, steps: Tensor, slope: float) -> None:
        """Keep the levels of one distribution where another codec writes them for less.

        ``mix`` expects values near others; the few of a dense codebook that are in use are not.
        """
        before, step = descent.levels.clone(), self._unit(steps[0])
        super()._sweep_with_tables(descent, steps, slope)
        now = descent.levels.to(self.target)
        if self.cost(before.to(now), step, slope) < self.cost(now, step, slope):
            descent.levels = before

    def _coded_bits(self, levels: Tensor) -> float:
        return measure(*self._stored_matrix(levels), "smallest")

    def _descent(self, levels: Tensor, steps: Tensor) -> Descent:
        units = self._units(steps).flatten(0, 1)
        return Descent(units, levels.flatten(0, 1), self.metric, self.order, self.codebook)
