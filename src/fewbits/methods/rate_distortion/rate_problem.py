"""The rate-distortion problem of one layer: a quadratic distortion, and levels that minimize it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ...coding import Layout, Symbols
from ...coding.mix.mix import Mix
from ...engine.layers.layer import LayerMatrix, Sensitivity
from ...engine.layers.statistics import Statistics
from ...ops.rate_distortion.cheapest_levels import PricedLevels, level_bits, total_bits
from ...ops.rate_distortion.descent import Descent
from ...ops.rate_distortion.trellis_paths import PathLevels
from ...ops.rounding.path_following import (
    descending,
    follow_gram,
    permute_columns,
    permute_moments,
    restore_columns,
)
from ...ops.rounding.second_order import backward_cholesky
from ...ops.transforms import unfold
from ..slopes import suggested_slope

__all__ = ["LARGEST_TABLE", "TALL", "TOP", "BitsTable", "RateProblem"]

TOP = 127  # levels on each side of zero
_REACH = 2  # levels beyond those in use that one sweep may add on each side
_DAMPING = 0.01  # of target and metric, relative to the mean input energy
_FEW = 0.1  # added to that for each column per row of inputs: moments of few rows are noisy
_GRADIENTS = 0.7  # share of the gradients in the metric; the rest comes from the inputs alone
_RIDGE = 0.3  # added to the gradients' metric, relative to its mean energy
_FLOOR = 0.01  # least sensitivity of a row, relative to the mean
_LOOKUP_FLOOR = 1e-4  # the same, of rows that are looked up
TALL = 4096  # neurons of a layer that is split into blocks of similar sensitivity
_SIMILAR = 2.0  # ratio of the sensitivities in a block
_LEAST_ROWS = 64  # in a block
_OUTLIER = 12.0  # times the root mean square of a layer
_LARGE = 1 << 18  # weights of a layer beyond which levels have one distribution
_SAMPLED = 512  # neurons of a large layer that are enough to find its step
_GREEDY = 0.5  # share of the slope in the greedy pass, where later columns can still compensate
_FINEST = 0.5  # of the step at which no weight is clipped: the search starts no lower
_THIRDS = 3  # steps are tried a third of an octave apart
_COUPLING = 0.3  # factor on the coupling of rows, whose estimate from gradients is noisy
_INTERLEAVE = 4  # rows are updated in this many interleaved sets
_CONTRACTION = 0.5  # largest overshoot of rows that are updated together
_TABLES = 4  # times the coder's model is queried
_ADAPTATION = 1.25  # a symbol costs more than its own bits: it also shifts later probabilities
LARGEST_TABLE = 1 << 27  # entries of a table of bits


@dataclass(frozen=True, eq=False)
class RateProblem:
    """A layer whose distortion is a quadratic of the error ``E = target - q``.

    It is the sum over rows o of ``rows_o E_o metric E_o'``, and with ``coupling`` C also over other
    rows p of ``rows_o C_op E_o metric E_p'``: errors of two rows may cancel in later layers.

    Attributes:
        target: (groups, neurons, columns), the weight that fits best given the quantized inputs.
        metric: (groups, columns, columns).
        rows: (groups, neurons), sensitivity of the output to each row.
        order: (groups, columns), columns by descending energy.
        factor: R, with R R' the metric in this order.
        coupling: (groups, neurons, neurons), zero on the diagonal; None if unknown.
        taps: columns per input channel, which are adjacent.
        width: width of the kernel in columns; 0 if it has no rows.
        transposed: whether the rows of the stored matrix are the input channels.
        outliers: (groups, neurons, columns) bool: the few values that are far larger than all
            others, as transformers have them; None if there are none. A step that serves the others
            puts them on far more levels than are searched, so they keep the level next to them, and
            the search moves them by a few levels at most.
    """

    exact: ClassVar[int] = 2  # levels from the present one with exact prices; few move further

    target: Tensor
    metric: Tensor
    rows: Tensor
    order: Tensor
    factor: Tensor
    coupling: Tensor | None = None
    taps: int = 1
    width: int = 0
    transposed: bool = False
    outliers: Tensor | None = None

    @classmethod
    def at(
        cls, target: Tensor, metric: Tensor, rows: Tensor, coupling: Tensor | None = None
    ) -> Self:
        """Build the problem from a quadratic; see the attributes."""
        order = descending(metric.diagonal(dim1=1, dim2=2))
        return cls.ordered(target, metric, rows, order, coupling)

    @classmethod
    def ordered(
        cls, target: Tensor, metric: Tensor, rows: Tensor, order: Tensor, coupling: Tensor | None
    ) -> Self:
        """Build the problem from a quadratic, and the order of its columns."""
        permuted = permute_moments(metric, order)
        factor = backward_cholesky(permuted, metric.new_zeros(len(metric))).upper
        size = target.abs()
        outliers = size > _OUTLIER * target.square().mean().sqrt()
        found = outliers if bool(outliers.any()) else None
        return cls(target, metric, rows, order, factor, coupling, outliers=found)

    @classmethod
    def of(
        cls,
        layer: LayerMatrix,
        weight: Tensor,
        statistics: Statistics | None,
        *,
        has_bias: bool = True,
    ) -> Self:
        """Build the problem from statistics of the inputs and the sensitivity of the output.

        Without statistics, of an embedding, from the sensitivity alone. What a bias takes of an
        error is free: with ``has_bias``, moments are about the mean.
        """
        if statistics is None and layer.sensitivity is not None:
            return cls._of_lookups(layer.sensitivity, weight)
        if statistics is None:
            raise ValueError(f"layer {layer.name!r}: neither statistics nor sensitivity")
        second, cross = _moments(statistics, weight, has_bias)
        columns = second.shape[1]
        mean = second.diagonal(dim1=1, dim2=2).mean(1)
        share = _DAMPING + _FEW * columns / max(1, statistics.rows)
        damping = share * torch.where(mean > 0, mean, 1)
        eye = torch.eye(columns, dtype=torch.float64, device=weight.device)
        damped = second + damping[:, None, None] * eye
        wide = weight.double()
        pull = cross @ wide.mT + damping[:, None, None] * wide.mT
        target = torch.linalg.solve(damped, pull).mT
        metric, rows, coupling = damped, wide.new_ones(wide.shape[:2]), None
        if layer.sensitivity is not None:
            metric = _blend(layer.sensitivity.moments(has_bias).to(damped), damped)
            rows, coupling = _output_metric(layer.sensitivity, damped)
            if coupling is not None:  # dead neurons stay as they are
                coupling = coupling * wide.any(2)[..., None]
        problem = cls.at(target, metric, rows, coupling)
        return replace(problem, taps=layer.kernel, width=layer.width)

    @classmethod
    def _of_lookups(cls, sensitivity: Sensitivity, weight: Tensor) -> Self:
        metric = sensitivity.columns.double()
        energy = metric.diagonal(dim1=1, dim2=2).mean(1)
        plain = torch.diag_embed(energy[:, None].expand(-1, metric.shape[1]))
        rows = sensitivity.rows.to(metric)
        rows = rows.clamp_min(_LOOKUP_FLOOR * float(rows.mean()) + torch.finfo(rows.dtype).tiny)
        return cls.at(weight.double(), _blend(metric, plain), rows)

    def blocks(self, tall: int) -> list[Tensor]:
        """Split more than ``tall`` neurons into blocks of similar sensitivity: indices of each.

        Those of other layers are one block. The sensitivities of a vocabulary differ by a factor of
        a thousand, which one step cannot serve, and rows without coupling do not need each other.
        """
        groups, neurons, columns = self.target.shape
        if groups > 1 or neurons <= tall or self.coupling is not None:
            return [torch.arange(neurons)]
        order = self.rows[0].argsort(descending=True)
        weights = self.rows[0][order]
        most = max(_LEAST_ROWS, LARGEST_TABLE // ((2 * TOP + 1) * columns))
        found, first = [], 0
        while first < neurons:
            similar = int((weights[first:] > weights[first] / _SIMILAR).sum())
            size = min(max(similar, _LEAST_ROWS), most)
            found.append(order[first : first + size])
            first += size
        return found

    def part(self, neurons: Tensor) -> Self:
        """Return the problem of some neurons, without coupling."""
        target, rows = self.target[:, neurons], self.rows[:, neurons]
        outliers = None if self.outliers is None else self.outliers[:, neurons]
        return replace(self, target=target, rows=rows, coupling=None, outliers=outliers)

    @property
    def is_large(self) -> bool:
        """Whether the layer has so many weights that few of them tell as much.

        Networks of such layers are not written by the adaptive coder, whose prices take longest.
        """
        return self.target.numel() > _LARGE

    def sampled(self) -> Self:
        """Return the problem of some neurons of a large layer, evenly spread, without coupling."""
        if not self.is_large:
            return self
        neurons = self.target.shape[1]
        return self.part(torch.arange(0, neurons, math.ceil(neurons / _SAMPLED)))

    @property
    def slope(self) -> float:
        """The slope that suits this layer if it were the whole network."""
        none = torch.zeros_like(self.target)[None]
        energy = float(self.distortion(none, self.target.new_ones(1)))
        return suggested_slope(energy, self.target.numel())

    def search(self, slope: float, ratio: float, priced: bool) -> Tensor:
        """Search a geometric series for the step () with the least distortion + slope * bits."""
        volume = self.factor.diagonal(dim1=1, dim2=2).log().mul(2).mean()
        base = (slope / (ratio * (self.rows.log().mean() + volume).exp())).sqrt()
        usual = self.target if self.outliers is None else self.target[~self.outliers]
        largest = usual.abs().max()
        base = torch.minimum(base, largest)  # so that at least one level is not zero
        too_fine = (_FINEST * largest / (TOP * base)).log2().clamp_min(0)  # and few are clipped
        base = base * 2.0 ** ((too_fine * _THIRDS).ceil() / _THIRDS)
        costs: dict[int, float] = {}
        trials = [-2, -1, 0, 1, 2]
        while trials:
            steps = base * 2.0 ** (torch.tensor(trials).to(base) / _THIRDS)
            costs |= dict(zip(trials, self._trial(steps, slope, priced), strict=True))
            best = min(costs, key=lambda k: costs[k])
            neighbours = [best + side for side in (-2, -1, 1, 2)]
            trials = [k for k in neighbours if k not in costs and abs(k) <= 4 * _THIRDS]
            if best - 1 in costs and best + 1 in costs:
                break
        step: Tensor = base * 2.0 ** (best / _THIRDS)
        return step

    def _trial(self, steps: Tensor, slope: float, priced: bool) -> list[float]:
        """Return the cost at each of ``steps`` (trials,), all of which are processed at once."""
        bits, trials = slope if priced else 0.0, len(steps)
        levels = self._greedy(steps, bits, rounds=2)
        descent = self._descent(levels, steps)
        self._sweep(descent, steps, bits, self._bits(levels))
        errors = descent.errors().reshape(trials, *self.rows.shape).to(self.rows)
        distortion = (errors * self.rows).sum((1, 2)) * self._unit(steps).square()
        size = self._total_bits(descent.levels.reshape(trials, -1)).to(distortion)
        return [float(value) for value in distortion + slope * size]

    def quantize(self, step: Tensor, slope: float, rate: str) -> Tensor:
        """Return the levels (groups, neurons, columns) with the least distortion + slope * bits."""
        steps, price = step.reshape(1), slope if rate != "none" else 0.0
        descent = self._descent(self._greedy(steps, price, rounds=3), steps)
        for _ in range(2):
            bits = self._bits(descent.levels.reshape(1, -1))
            for _ in range(2):
                self._sweep(descent, steps, price, bits)
        if rate == "adaptive" and not self.is_large:
            self._sweep_with_tables(descent, steps, price)
        elif rate == "adaptive" and self.coupling is not None:
            bits, coupling = self._bits(descent.levels.reshape(1, -1)), self.damped_coupling()
            for _ in range(2):
                self._sweep(descent, steps, price, bits, coupling)
        return self._with_outliers(descent.levels.to(self.target).reshape(self.target.shape), step)

    def damped_coupling(self) -> Tensor | None:
        """Return the coupling, damped so that rows that are updated together do not overshoot."""
        if self.coupling is None:
            return None
        even = self.coupling.sign() * (self.coupling * self.coupling.mT).abs().sqrt()  # symmetric
        radii = [even.new_zeros(())]
        for first in range(min(_INTERLEAVE, even.shape[1])):
            rows = even[:, first::_INTERLEAVE, first::_INTERLEAVE]
            radii.append(torch.linalg.eigvalsh(rows).abs().max())
        return self.coupling * (_CONTRACTION / torch.stack(radii).max().clamp_min(_CONTRACTION))

    def _with_outliers(self, levels: Tensor, step: Tensor) -> Tensor:
        return levels if self.outliers is None else levels + self._next_levels(self.target / step)

    def _bits(self, levels: Tensor) -> Tensor:
        """Return the bits (trials, 2 TOP + 1) of levels, from those of each trial (trials, ...)."""
        return level_bits(levels.flatten(1), TOP)

    def _total_bits(self, levels: Tensor) -> Tensor:
        """Return the bits (trials,) of all levels (trials, ...)."""
        return total_bits(levels.flatten(1), TOP)

    def _sweep_with_tables(self, descent: Any, steps: Tensor, slope: float) -> None:
        """Descend with the probabilities of the coder's model, queried again after each change."""
        mean: BitsTable | None = None
        price, coupling = _ADAPTATION * self._price(steps, slope), self.damped_coupling()
        for _ in range(_TABLES):
            symbols, layout = self._stored_matrix(descent.levels)
            if symbols.size * (2 * TOP + 1) > LARGEST_TABLE or symbols.min() == symbols.max():
                return
            lowest, prices = self._coder().prices(symbols, layout, self.exact)
            table = BitsTable(torch.from_numpy(prices), lowest)
            mean = table if mean is None else mean.averaged(table)
            wide = mean.reaching(*self._reached(table.lowest, table.highest))
            bits = self._from_stored(wide.bits)
            for _ in range(2):
                descent.sweep(price, bits, wide.lowest, coupling=coupling, sets=_INTERLEAVE)

    def index(self, levels: Tensor) -> Tensor:
        """Return the integers int32 that stand for levels in a file."""
        return levels.to(torch.int32)

    def _stored_matrix(self, levels: Tensor) -> tuple[Symbols, Layout]:
        """Return levels (groups, neurons, columns) as the matrix stored in a file."""
        levels = self.index(levels)
        matrix = unfold(levels, self.taps, "row") if self.transposed else levels.flatten(0, 1)
        rows, columns = matrix.shape
        layout = Layout(rows, columns, self.taps, self.width)
        return matrix.contiguous().cpu().numpy(), layout

    def _from_stored(self, table: Tensor) -> Tensor:
        """Reshape a table (rows, columns, levels) of the stored matrix to that of the weight.

        The result is (groups, neurons, columns, levels).
        """
        if not self.transposed:
            return table.reshape(*self.target.shape, -1)
        groups, neurons, _ = self.target.shape
        parts = table.reshape(len(table), groups, neurons, self.taps, -1)
        return parts.permute(1, 2, 0, 3, 4).flatten(2, 3)

    def _greedy(self, steps: Tensor, slope: float, rounds: int) -> Tensor:
        """Return the levels (trials, groups, neurons, columns) chosen by path following."""
        units = self._units(steps)
        trials, groups, neurons, columns = units.shape
        levels = self._first(units, steps)
        factor = self.factor.mT
        energy = factor.diagonal(dim1=1, dim2=2).square()
        start = permute_columns(units.transpose(0, 1).flatten(1, 2), self.order)
        price = _GREEDY * self._price(steps, slope).reshape(trials, groups, neurons)
        for _ in range(rounds):  # the trials are further neurons
            chooser = self._chooser(levels, energy, price)
            chosen = follow_gram(start, factor, factor, chooser.project_)
            chosen = restore_columns(chosen, self.order)
            levels = chosen.reshape(groups, trials, neurons, columns).transpose(0, 1)
        return levels

    def _first(self, units: Tensor, steps: Tensor) -> Tensor:
        """Return the level next to each of ``units`` (trials, groups, neurons, columns)."""
        return units.round().clamp(-TOP, TOP)

    def _reached(self, lowest: int, highest: int) -> tuple[int, int]:
        """Return the lowest and the highest level of a sweep over levels between these."""
        return max(-TOP, lowest - _REACH), min(TOP, highest + _REACH)

    def _allowed(self, levels: Tensor, bits: Tensor) -> tuple[int, Tensor]:
        """Return the lowest level that the next sweep may choose, and the bits of it and others."""
        lowest, highest = self._reached(int(levels.min()), int(levels.max()))
        return lowest, bits[..., lowest + TOP : highest + TOP + 1]

    def _chooser(self, levels: Tensor, energy: Tensor, price: Tensor) -> PricedLevels | PathLevels:
        """Return what chooses levels like ``levels`` (trials, groups, neurons, columns).

        ``energy`` is (groups, columns), and ``price`` (trials, groups, neurons).
        """
        groups, neurons = price.shape[1:]
        lowest, bits = self._allowed(levels, self._bits(levels))
        each = bits.repeat_interleave(neurons, 0).expand(groups, -1, -1)
        values = self._values(lowest, bits.shape[-1])
        return PricedLevels(values, energy, price.transpose(0, 1).flatten(1), each)

    def _values(self, lowest: int, count: int) -> Tensor:
        """Return ``count`` levels from ``lowest`` on."""
        return torch.arange(lowest, lowest + count)

    def _descent(self, levels: Tensor, steps: Tensor) -> Any:
        """Return a descent from ``levels`` (trials, groups, neurons, columns)."""
        parts = self._units(steps).flatten(0, 1), levels.flatten(0, 1)
        return Descent(*parts, self.metric, self.order)

    def _sweep(
        self,
        descent: Any,
        steps: Tensor,
        slope: float,
        bits: Tensor,
        coupling: Tensor | None = None,
    ) -> None:
        """Improve the levels of a descent, with ``bits`` (trials, levels)."""
        lowest, bits = self._allowed(descent.levels, bits)
        bits = bits.repeat_interleave(len(self.rows), 0)
        price = self._price(steps, slope)
        descent.sweep(price, bits, lowest, coupling=coupling, sets=_INTERLEAVE)

    def distortion(self, levels: Tensor, steps: Tensor) -> Tensor:
        """Return the distortion (trials,) of ``levels`` (trials, groups, neurons, columns)."""
        error = self.target - levels * self._unit(steps).reshape(-1, 1, 1, 1)
        return (((error @ self.metric) * error).sum(3) * self.rows).sum((1, 2))

    def cost(self, levels: Tensor, step: Tensor, slope: float) -> float:
        """Return distortion + slope * bits of ``levels`` (groups, neurons, columns) in a file.

        Rows count as they feel each other, so problems of other quantizers compare.
        """
        error = self.target - levels * self._unit(step)
        pull = error @ self.metric
        if self.coupling is not None:
            pull = pull + self.coupling @ pull
        distortion = float(((pull * error).sum(2) * self.rows).sum())
        if self.is_large:
            return distortion + slope * float(self._total_bits(levels[None]))
        return distortion + slope * self._coded_bits(levels)

    def _coded_bits(self, levels: Tensor) -> float:
        """Return the bits of ``levels`` (groups, neurons, columns) in a file."""
        bits = self._coder().measure(*self._stored_matrix(levels))
        return math.inf if bits is None else bits

    def _coder(self) -> Mix:
        """Return the codec that writes the levels."""
        return Mix()

    def _units(self, steps: Tensor) -> Tensor:
        """Return the target in units of steps (trials, ...); of outliers, what rounding leaves."""
        units = self.target / self._unit(steps).reshape(-1, 1, 1, 1)
        return units if self.outliers is None else units - self._next_levels(units)

    def _unit(self, steps: Tensor) -> Tensor:
        """Return what a level of 1 stands for, float64, in the shape of ``steps``."""
        return steps.to(self.target)

    def _next_levels(self, units: Tensor) -> Tensor:
        """Return the levels (..., groups, neurons, columns) next to outliers, 0 elsewhere."""
        return torch.where(torch.as_tensor(self.outliers), units.round(), 0.0)

    def _price(self, steps: Tensor, slope: float) -> Tensor:
        price = slope / (self.rows * self._unit(steps).reshape(-1, 1, 1).square())
        return price.flatten(0, 1)


def _blend(metric: Tensor, damped: Tensor) -> Tensor:
    """Blend the metric of gradient-weighted inputs, with a ridge, with that of plain inputs."""
    ridge = _RIDGE * metric.diagonal(dim1=1, dim2=2).mean(1)
    ridged = metric + torch.diag_embed(ridge[:, None].expand(-1, metric.shape[1]))
    return _GRADIENTS * ridged + (1 - _GRADIENTS) * damped


def _output_metric(sensitivity: Sensitivity, like: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the sensitivity of the output to each row, and the relative coupling of rows."""
    rows = sensitivity.rows.to(like)
    rows = rows.clamp_min(_FLOOR * float(rows.mean()) + torch.finfo(rows.dtype).tiny)
    if sensitivity.outputs is None:
        return rows, None
    outputs = sensitivity.outputs.to(like)
    own = outputs.diagonal(dim1=1, dim2=2)
    own = own.clamp_min(_FLOOR * float(own.mean()) + torch.finfo(own.dtype).tiny)
    others = _COUPLING * (outputs - torch.diag_embed(outputs.diagonal(dim1=1, dim2=2)))
    return rows, others / own[..., None]


def _moments(statistics: Statistics, weight: Tensor, has_bias: bool) -> tuple[Tensor, Tensor]:
    """Return (H, G) per row, float64; about the mean if a bias takes errors of the mean."""
    second, cross = statistics.moments()
    rows = max(1, statistics.rows)
    second, cross = second.double() / rows, cross.double() / rows
    if has_bias:
        x = statistics.reference_mean.double()[..., None]
        x_hat = statistics.quantized_mean.double()[..., None]
        second, cross = second - x_hat @ x_hat.mT, cross - x_hat @ x.mT
    return second.to(weight.device), cross.to(weight.device)


@dataclass(frozen=True, eq=False)
class BitsTable:
    """Bits (rows, columns, levels) float32 of consecutive levels, from ``lowest`` on."""

    bits: Tensor
    lowest: int

    @property
    def highest(self) -> int:
        """The highest level."""
        return self.lowest + self.bits.shape[2] - 1

    def averaged(self, other: BitsTable) -> BitsTable:
        """Return the mean of two tables."""
        lowest, highest = min(self.lowest, other.lowest), max(self.highest, other.highest)
        first, second = (table.reaching(lowest, highest) for table in (self, other))
        return BitsTable((first.bits + second.bits) / 2, lowest)

    def reaching(self, lowest: int, highest: int) -> BitsTable:
        """Return a table of these levels; beyond those in use each costs 4 bits more."""
        if (lowest, highest) == (self.lowest, self.highest):
            return self
        ramp = torch.arange(lowest, highest + 1) - self.lowest
        inside = ramp.clamp(0, self.bits.shape[2] - 1)
        distance = (ramp - inside).abs().to(self.bits)
        return BitsTable(self.bits[..., inside] + 4 * distance, lowest)
