"""Coordinate descent to the levels with the least squared error plus the price of their bits.

Each level in turn becomes the cheapest given all others. The gradient ``(w - q) H`` is kept up to
date level by level, so sweeps after the first cost next to nothing: few levels still change.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..compiled.kernels import arrays, compiled, plain, runs_compiled

__all__ = ["Descent"]

_SCARCE = 1e-12  # relative to the mean energy: columns below carry no signal and are just rounded


class Descent:
    """Levels that sweeps of coordinate descent improve.

    Args:
        units: (parts, neurons, columns) float64, the values to approximate, in units of the step.
        levels: of the same shape and dtype, to start from; not changed. Integers, or values of the
            codebook.
        metric: H (groups, columns, columns) float64, symmetric; part p uses that of group
            ``p % groups``.
        order: (groups, columns), the order in which columns are visited.
        codebook: (levels,) increasing values, in units of the step; None: levels are integers.

    Setting up costs ``2 n N^2`` flops for n neurons of N columns, and a sweep N for each level that
    changes, plus a few operations per value.

    Attributes:
        levels: the levels so far, in main memory.
    """

    def __init__(
        self,
        units: Tensor,
        levels: Tensor,
        metric: Tensor,
        order: Tensor,
        codebook: Tensor | None = None,
    ) -> None:
        parts, groups = len(units), len(metric)
        self._codebook = (units.new_zeros(0) if codebook is None else codebook.to(units)).cpu()
        self._units = units.cpu().contiguous()
        self._metric, self._order = metric.cpu().contiguous(), order.cpu().contiguous()
        self.levels = levels.cpu().clone(memory_format=torch.contiguous_format)
        gap = (self._units - self.levels).reshape(parts // groups, groups, *units.shape[1:])
        product = gap.transpose(0, 1).flatten(1, 2) @ self._metric
        self._residual = (
            product.reshape(groups, parts // groups, *units.shape[1:])
            .transpose(0, 1)
            .reshape(units.shape)
            .contiguous()
        )
        energy = self._metric.diagonal(dim1=1, dim2=2)
        self._live = (energy > _SCARCE * energy.mean(1, keepdim=True)).contiguous()

    def sweep(
        self,
        price: Tensor,
        bits: Tensor,
        lowest: int,
        coupling: Tensor | None = None,
        sets: int = 1,
    ) -> None:
        """Visit every level once.

        Args:
            price: (parts, neurons), squared error in units per bit.
            bits: bits of the levels from ``lowest`` on: (parts, levels), or (parts, neurons,
                columns, levels).
            lowest: the lowest integer that may be chosen; with a codebook, its lowest place.
            coupling: C (parts, neurons, neurons): the gradient of row n is also that of C_np times
                the rows p. None if rows are independent.
            sets: with a coupling, rows are updated in this many interleaved sets. Rows of one do
                not see each other's changes.
        """
        kernels = compiled() if runs_compiled(self.levels) else plain()
        table = bits.to(price).cpu()
        table = (table[:, None, None] if table.dim() == 2 else table).contiguous()
        shift = self._units.new_zeros(0, 0, 0)
        values = self._codebook[lowest : lowest + table.shape[-1]].contiguous()  # if there is one
        for first in range(1 if coupling is None else min(sets, self.levels.shape[1])):
            if coupling is not None:
                shift = torch.zeros_like(self._residual)
                shift[:, first::sets] = coupling.cpu()[:, first::sets] @ self._residual
            kernels.descend(
                *arrays(self._units, self.levels, self._residual, shift, self._metric),
                *arrays(self._live, self._order, price.cpu().contiguous(), table),
                lowest,
                first,
                1 if coupling is None else sets,
                *arrays(values),
            )

    def errors(self) -> Tensor:
        """Return the squared error (parts, neurons) of each row, in units, by the metric."""
        return ((self._units - self.levels) * self._residual).sum(2)
