"""The rate-distortion problem of one layer: a quadratic distortion, and levels that minimize it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...coding import Layout, Symbols
from ...coding.mix.mix import Mix
from ...engine.layers.layer import LayerMatrix, Sensitivity
from ...engine.layers.statistics import Statistics
from ...ops.rate_distortion.cheapest_levels import PricedLevels, level_bits, total_bits
from ...ops.rounding.path_following import (
    descend_gram,
    descending,
    follow_gram,
    permute_columns,
    permute_moments,
    restore_columns,
)
from ...ops.rounding.second_order import backward_cholesky
from ...ops.transforms import unfold

__all__ = ["RateProblem"]

_TOP = 31  # levels on each side of zero
_REACH = 2  # levels beyond those in use that one sweep may add on each side
_DAMPING = 0.01  # of the target, relative to the mean input energy
_GRADIENTS = 0.7  # share of the gradients in the metric; the rest comes from the inputs alone
_RIDGE = 0.3  # added to the gradients' metric, relative to its mean energy
_FLOOR = 0.01  # least sensitivity of a row, relative to the mean
_GREEDY = 0.5  # share of the slope in the greedy pass, where later columns can still compensate
_FINEST = 0.5  # of the step at which no weight is clipped: the search starts no lower
_THIRDS = 3  # steps are tried a third of an octave apart
_COUPLING = 0.3  # factor on the coupling of rows, whose estimate from gradients is noisy
_INTERLEAVE = 4  # rows are updated in this many interleaved sets
_CONTRACTION = 0.5  # largest overshoot of rows that are updated together
_TABLES = 4  # times the coder's model is queried
_ADAPTATION = 1.25  # a symbol costs more than its own bits: it also shifts later probabilities
_LARGEST_TABLE = 1 << 27  # entries of a table of bits


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
    """

    target: Tensor
    metric: Tensor
    rows: Tensor
    order: Tensor
    factor: Tensor
    coupling: Tensor | None = None
    taps: int = 1
    width: int = 0
    transposed: bool = False

    @classmethod
    def at(
        cls, target: Tensor, metric: Tensor, rows: Tensor, coupling: Tensor | None = None
    ) -> RateProblem:
        """Build the problem from a quadratic; see the attributes."""
        order = descending(metric.diagonal(dim1=1, dim2=2))
        permuted = permute_moments(metric, order)
        factor = backward_cholesky(permuted, metric.new_zeros(len(metric))).upper
        return cls(target, metric, rows, order, factor, coupling)

    @classmethod
    def of(cls, layer: LayerMatrix, weight: Tensor, statistics: Statistics) -> RateProblem:
        """Build the problem from statistics of the inputs and the sensitivity of the output."""
        second, cross = _centred(statistics, weight)
        columns = second.shape[1]
        mean = second.diagonal(dim1=1, dim2=2).mean(1)
        damping = _DAMPING * torch.where(mean > 0, mean, 1)
        eye = torch.eye(columns, dtype=torch.float64, device=weight.device)
        damped = second + damping[:, None, None] * eye
        wide = weight.double()
        pull = cross @ wide.mT + damping[:, None, None] * wide.mT
        target = torch.linalg.solve(damped, pull).mT
        metric, rows, coupling = damped, wide.new_ones(wide.shape[:2]), None
        if layer.sensitivity is not None:
            metric = _blend(layer.sensitivity.columns.to(damped), damped)
            rows, coupling = _output_metric(layer.sensitivity, damped)
            coupling = coupling * wide.any(2)[..., None]  # dead neurons stay as they are
        problem = cls.at(target, metric, rows, coupling)
        return replace(problem, taps=layer.kernel, width=layer.width)

    def search(self, slope: float, ratio: float, priced: bool) -> Tensor:
        """Search a geometric series for the step () with the least distortion + slope * bits."""
        volume = self.factor.diagonal(dim1=1, dim2=2).log().mul(2).mean()
        base = (slope / (ratio * (self.rows.log().mean() + volume).exp())).sqrt()
        largest = self.target.abs().max()
        base = torch.minimum(base, largest)  # so that at least one level is not zero
        too_fine = (_FINEST * largest / (_TOP * base)).log2().clamp_min(0)  # and few are clipped
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
        bits = slope if priced else 0.0
        levels = self._greedy(steps, bits, rounds=2)
        levels = self._descend(levels, steps, bits, level_bits(levels.flatten(1), _TOP))
        cost = self.distortion(levels, steps) + slope * total_bits(levels.flatten(1), _TOP)
        return [float(value) for value in cost]

    def quantize(self, step: Tensor, slope: float, rate: str) -> Tensor:
        """Return the levels (groups, neurons, columns) with the least distortion + slope * bits."""
        steps, price = step.reshape(1), slope if rate != "none" else 0.0
        levels = self._greedy(steps, price, rounds=3)
        for _ in range(2):
            bits = level_bits(levels.flatten(1), _TOP)
            for _ in range(2):
                levels = self._descend(levels, steps, price, bits)
        if rate == "adaptive":
            levels = self._with_tables(levels, steps, price)
        return levels[0]

    def _with_tables(self, levels: Tensor, steps: Tensor, slope: float) -> Tensor:
        """Descend with the probabilities of the coder's model, queried again after each change."""
        mean = None
        for _ in range(_TABLES):
            symbols, layout = self._stored_matrix(levels[0])
            if symbols.size * (2 * _TOP + 1) > _LARGEST_TABLE or symbols.min() == symbols.max():
                return levels
            lowest, prices = Mix().prices(symbols, layout)
            bits = _extended(torch.from_numpy(prices), lowest)
            mean = bits if mean is None else (mean + bits) / 2
            table = self._from_stored(_ADAPTATION * mean).to(levels.device)
            for _ in range(2):
                levels = self._descend_coupled(levels, steps, slope, table)
        return levels

    def _stored_matrix(self, levels: Tensor) -> tuple[Symbols, Layout]:
        """Return levels (groups, neurons, columns) as the matrix stored in a file."""
        matrix = unfold(levels, self.taps, "row") if self.transposed else levels.flatten(0, 1)
        rows, columns = matrix.shape
        layout = Layout(rows, columns, self.taps, self.width)
        return matrix.to(torch.int32).contiguous().cpu().numpy(), layout

    def _from_stored(self, table: Tensor) -> Tensor:
        """Reshape a table (rows, columns, levels) of the stored matrix to that of the weight.

        The result is (groups, neurons, columns, levels).
        """
        if not self.transposed:
            return table.reshape(*self.target.shape, -1)
        groups, neurons, _ = self.target.shape
        parts = table.reshape(len(table), groups, neurons, self.taps, -1)
        return parts.permute(1, 2, 0, 3, 4).flatten(2, 3)

    def _descend_coupled(
        self, levels: Tensor, steps: Tensor, slope: float, table: Tensor
    ) -> Tensor:
        """Return ``levels`` (1, ...) after a sweep in which rows compensate each other's errors.

        Every fourth row is updated together. These rows do not see each other's changes, and would
        overshoot if all rows were updated at once.
        """
        if self.coupling is None:
            return self._descend(levels, steps, slope, table)
        levels = levels.clone()
        for first in range(min(_INTERLEAVE, levels.shape[2])):
            rows = slice(first, None, _INTERLEAVE)
            error = self.target - levels[0] * steps.reshape(-1, 1, 1).to(levels)
            target = self.target[:, rows] + self.coupling[:, rows] @ error
            part = replace(self, target=target, rows=self.rows[:, rows], coupling=None)
            levels[:, :, rows] = part._descend(levels[:, :, rows], steps, slope, table[:, rows])
        return levels

    def _greedy(self, steps: Tensor, slope: float, rounds: int) -> Tensor:
        """Return the levels (trials, groups, neurons, columns) chosen by path following."""
        units = self._units(steps)
        trials, groups = units.shape[:2]
        levels = units.round().clamp(-_TOP, _TOP)
        factor = self._tiled(self.factor, trials).mT
        energy = factor.diagonal(dim1=1, dim2=2).square()
        order = self._tiled(self.order, trials)
        start = permute_columns(units.flatten(0, 1), order)
        for _ in range(rounds):
            bits = level_bits(levels.flatten(1), _TOP).repeat_interleave(groups, 0)
            allowed, bits = _allowed_levels(levels, bits)
            chooser = PricedLevels(allowed, energy, _GREEDY * self._price(steps, slope), bits)
            chosen = follow_gram(start, factor, factor, chooser.project_)
            levels = restore_columns(chosen, order).reshape(units.shape)
        return levels

    def _descend(self, levels: Tensor, steps: Tensor, slope: float, bits: Tensor) -> Tensor:
        """Return ``levels`` after a sweep of coordinate descent.

        ``bits`` are (trials, levels), or a table (groups, neurons, columns, levels) of one trial.
        """
        units = self._units(steps)
        trials, groups = units.shape[:2]
        metric, order = self._tiled(self.metric, trials), self._tiled(self.order, trials)
        energy = metric.diagonal(dim1=1, dim2=2).gather(1, order)
        allowed, bits = _allowed_levels(levels, bits)
        if bits.dim() == 2:
            bits = bits.repeat_interleave(groups, 0)
        else:
            index = order[:, None, :, None].expand(-1, bits.shape[1], -1, bits.shape[3])
            bits = bits.gather(2, index)
        chooser = PricedLevels(allowed, energy, self._price(steps, slope), bits)
        chosen = descend_gram(
            units.flatten(0, 1), levels.flatten(0, 1), metric, chooser.project_, order=order
        )
        return chosen.reshape(units.shape)

    def distortion(self, levels: Tensor, steps: Tensor) -> Tensor:
        """Return the distortion (trials,) of ``levels`` (trials, groups, neurons, columns)."""
        error = self.target - levels * steps.reshape(-1, 1, 1, 1).to(levels)
        return (((error @ self.metric) * error).sum(3) * self.rows).sum((1, 2))

    def _units(self, steps: Tensor) -> Tensor:
        return self.target / steps.reshape(-1, 1, 1, 1).to(self.target)

    def _price(self, steps: Tensor, slope: float) -> Tensor:
        price = slope / (self.rows * steps.reshape(-1, 1, 1).to(self.rows).square())
        return price.flatten(0, 1)

    @staticmethod
    def _tiled(part: Tensor, trials: int) -> Tensor:
        return part.repeat(trials, *[1] * (part.dim() - 1))


def _blend(metric: Tensor, damped: Tensor) -> Tensor:
    """Blend the metric of gradient-weighted inputs, with a ridge, with that of plain inputs."""
    ridge = _RIDGE * metric.diagonal(dim1=1, dim2=2).mean(1)
    ridged = metric + torch.diag_embed(ridge[:, None].expand(-1, metric.shape[1]))
    return _GRADIENTS * ridged + (1 - _GRADIENTS) * damped


def _output_metric(sensitivity: Sensitivity, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sensitivity of the output to each row, and the relative coupling of rows."""
    rows = sensitivity.rows.to(like)
    rows = rows.clamp_min(_FLOOR * float(rows.mean()) + torch.finfo(rows.dtype).tiny)
    outputs = sensitivity.outputs.to(like)
    own = outputs.diagonal(dim1=1, dim2=2)
    own = own.clamp_min(_FLOOR * float(own.mean()) + torch.finfo(own.dtype).tiny)
    others = _COUPLING * (outputs - torch.diag_embed(outputs.diagonal(dim1=1, dim2=2)))
    scale = own.rsqrt()
    overshoot = _radius(others * scale[..., None] * scale[:, None])
    return rows, others / own[..., None] * (_CONTRACTION / overshoot.clamp_min(_CONTRACTION))


def _radius(others: Tensor) -> Tensor:
    """Return the largest spectral radius () of ``others`` (groups, n, n) in interleaved rows."""
    radii = [others.new_zeros(())]
    for first in range(min(_INTERLEAVE, others.shape[1])):
        rows = others[:, first::_INTERLEAVE, first::_INTERLEAVE]
        radii.append(torch.linalg.eigvalsh(rows).abs().max())
    return torch.stack(radii).max()


def _centred(statistics: Statistics, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return (H, G) per row about the mean, float64: the bias corrects errors of the mean."""
    second, cross = statistics.moments()
    x = statistics.reference_mean.double()[..., None]
    x_hat = statistics.quantized_mean.double()[..., None]
    rows = max(1, statistics.rows)
    centred = second.double() / rows - x_hat @ x_hat.mT
    return centred.to(weight.device), (cross.double() / rows - x_hat @ x.mT).to(weight.device)


def _allowed_levels(levels: Tensor, bits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the levels that the next sweep may choose, and their bits."""
    lowest = max(-_TOP, int(levels.min()) - _REACH)
    highest = min(_TOP, int(levels.max()) + _REACH)
    return torch.arange(lowest, highest + 1), bits[..., lowest + _TOP : highest + _TOP + 1]


def _extended(bits: Tensor, lowest: int) -> Tensor:
    """Extend bits of the symbols in use to all levels, (rows, columns, 2 top + 1).

    Each level beyond those in use costs 4 bits more than the one before.
    """
    size = bits.shape[2]
    ramp = torch.arange(-_TOP, _TOP + 1) - lowest
    inside = ramp.clamp(0, size - 1)
    distance = (ramp - inside).abs().to(bits)
    return bits[..., inside] + 4 * distance
