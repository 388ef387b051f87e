"""Rate-aware paths of a trellis: integers down a column that minimize distortion plus bits.

Trellis-coded quantization (Marcellin and Fischer 1990) with the even and odd integers as union
codebooks, entropy-coded given their parity (Fischer and Wang 1992). Errors of the rows of a column
do not feed back into each other, so the best path of a column is exact; its error is then repaid by
later columns, as in any path following.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..compiled.kernels import arrays, compiled, plain, runs_compiled
from .cheapest_levels import level_bits, total_bits

__all__ = [
    "LEAST",
    "PathDescent",
    "PathLevels",
    "nearest_paths",
    "path_bits",
    "total_path_bits",
]

LEAST = 4  # integers on each side of 0 between which a path may always choose
_SCARCE = 1e-12  # relative to the mean energy: columns below carry no signal and are just rounded

States = NDArray[np.int64]


def path_bits(levels: Tensor, top: int) -> Tensor:
    """Return bits (trials, 2 top + 1) of integers, each given its parity.

    ``levels`` are (trials, n); ``top`` is odd. Integers that do not occur are never excluded.
    """
    size = 2 * top + 1
    bits = torch.empty(len(levels), size, dtype=torch.float64)
    for odd in (0, 1):
        for trial, row in enumerate(levels):
            halves = (row[row.long() % 2 == odd] - odd) / 2
            halves = halves if len(halves) else row.new_zeros(1)
            own = level_bits(halves[None], (top + 1) // 2)[0]  # of the numbers 2 k + odd
            first = -(top + 1) // 2 * 2 + odd
            places = torch.arange(first + top, size, 2)
            inside = (places >= 0) & (places < size)
            bits[trial, places[inside]] = own[: len(places)][inside].to(bits)
    return bits


def total_path_bits(levels: Tensor, top: int) -> Tensor:
    """Return (trials,) bits of ``levels`` (trials, n) under the distributions of both parities."""
    found = []
    for row in levels:
        odd = row.long() % 2
        halves = [((row[odd == k] - k) / 2)[None] for k in (0, 1)]
        found.append(sum(float(total_bits(half, top)) for half in halves if half.numel()))
    return torch.tensor(found, dtype=torch.float64)


class _Scratch:
    """Arrays that a kernel needs for paths of so many rows."""

    def __init__(self, rows: int, following: States) -> None:
        states = len(following)
        self.wanted, self.costs = np.zeros(rows), np.zeros(rows)
        self.tables = (
            np.zeros((3, states)),
            np.zeros((rows, 4), np.int64),
            np.zeros((rows, states), np.int64),
            np.zeros(rows),
        )

    def coupled(self, states: int) -> tuple[Any, ...]:
        """Return the arrays that a kernel with a coupling needs beside ``wanted`` and ``costs``."""
        totals, _, back, path = self.tables
        rows = len(path)
        picks = np.zeros((rows + 1, 2 * states), np.int64)
        return np.zeros(rows), np.zeros((2, states, rows)), totals, picks, back, path


class PathLevels:
    """A projection onto paths that is called once per column, in order; see ``PricedLevels``.

    Args:
        lowest: the lowest integer, at most -LEAST.
        energy: (groups, columns), in the order of the calls.
        weights: (groups, neurons) float64, of the rows' squared errors.
        price: (trials,), squared error, in grid units and times weights, per bit.
        bits: (trials, integers) of the integers from ``lowest`` on, each given its parity.
        following: (states, 2) int64: the trellis, as for ``best_path``.
    """

    def __init__(
        self,
        *,
        lowest: int,
        energy: Tensor,
        weights: Tensor,
        price: Tensor,
        bits: Tensor,
        following: States,
    ) -> None:
        self._lowest, self._following = lowest, following
        costs = (energy.mT[..., None] * weights).flatten(1).contiguous()
        self._kernels: Any = compiled() if runs_compiled(costs) else plain()
        self._costs = costs.unbind()
        self._price, self._bits = price.contiguous(), bits[:, None, None].contiguous()
        self._scratch = _Scratch(weights.numel(), following)
        self._column = 0

    def project_(self, values: Tensor) -> None:
        """Overwrite one column (groups, 1, trials * neurons); after the last, start over."""
        column = self._column
        self._column = (column + 1) % len(self._costs)
        wide = values.double().contiguous()
        self._kernels.project_paths(
            *arrays(wide, self._costs[column], self._price, self._bits),
            self._lowest,
            self._following,
            self._scratch.wanted,
            *self._scratch.tables,
        )
        values.copy_(wide)


def nearest_paths(values: Tensor, lowest: int, highest: int, following: States) -> Tensor:
    """Return the path nearest to each column of ``values`` (rows, columns), by squared error.

    Args:
        values: in steps; not changed. The result has its dtype and device.
        lowest: the lowest integer, at most -LEAST.
        highest: the highest one, at least LEAST.
        following: (states, 2) int64: the trellis.

    Cost: about 50 operations a value, on the processor.
    """
    rows, columns = values.shape
    projection = PathLevels(
        lowest=lowest,
        energy=torch.ones(1, 1, dtype=torch.float64),
        weights=torch.ones(1, rows, dtype=torch.float64),
        price=torch.zeros(columns, dtype=torch.float64),
        bits=torch.zeros(columns, highest - lowest + 1, dtype=torch.float64),
        following=following,
    )
    flat = values.detach().double().cpu().mT.reshape(1, 1, -1).clone()
    projection.project_(flat)  # one trial for each column
    return flat.reshape(columns, rows).mT.to(values)


class PathDescent:
    """Levels of which sweeps improve one column after the other.

    Args:
        units: (trials, groups, neurons, columns) float64, what to approximate, in steps.
        levels: integers of the same shape and dtype, to start from; not changed.
        metric: H (groups, columns, columns) float64, symmetric.
        order: (columns,), the order in which columns are visited.
        weights: (groups, neurons) float64, of the rows' squared errors.
        following: (states, 2) int64: the trellis.

    A sweep costs N for each of n N levels that changes, and about 50 operations per level.

    Attributes:
        levels: the levels so far, in main memory.
    """

    def __init__(
        self,
        units: Tensor,
        levels: Tensor,
        metric: Tensor,
        *,
        order: Tensor,
        weights: Tensor,
        following: States,
    ) -> None:
        self._units, self._metric = units.cpu().contiguous(), metric.cpu().contiguous()
        self._order, self._weights = order.cpu().contiguous(), weights.cpu().contiguous()
        self._following = following
        self.levels = levels.cpu().clone(memory_format=torch.contiguous_format)
        self._residual = ((self._units - self.levels) @ self._metric).contiguous()
        energy = self._metric.diagonal(dim1=1, dim2=2)
        self._live = (energy > _SCARCE * energy.mean(1, keepdim=True)).contiguous()
        self._scratch = _Scratch(weights.numel(), following)

    def sweep(
        self, price: Tensor, bits: Tensor, lowest: int, coupling: Tensor | None = None
    ) -> None:
        """Visit every column once.

        Args:
            price: (trials,), squared error, in steps and times weights, per bit.
            bits: bits of the integers from ``lowest`` on, each given its parity: (trials,
                integers), or (trials, rows, columns, integers).
            lowest: the lowest integer that may be chosen, at most -LEAST.
            coupling: C (groups, neurons, neurons): the gradient of row n is also that of C_np times
                the rows p of its group. None if rows are independent. Costs ``10 n^2`` a column.
        """
        kernels: Any = compiled() if runs_compiled(self.levels) else plain()
        table = bits.double().cpu()
        table = (table[:, None, None] if table.dim() == 2 else table).contiguous()
        given = (
            *arrays(self._units, self.levels, self._residual, self._metric, self._live),
            *arrays(self._order, self._weights, price.double().cpu().contiguous(), table),
            lowest,
        )
        scratch, following = self._scratch, self._following
        if coupling is None:
            tables = scratch.wanted, scratch.costs, *scratch.tables
            kernels.descend_paths(*given, following, *tables)
            return
        others = coupling.mT.double().cpu().contiguous()
        tables = scratch.wanted, scratch.costs, *scratch.coupled(len(following))
        kernels.descend_coupled_paths(*given, *arrays(others), following, *tables)

    def errors(self) -> Tensor:
        """Return the squared error (trials, groups, neurons) of each row, in steps."""
        return ((self._units - self.levels) * self._residual).sum(3)
