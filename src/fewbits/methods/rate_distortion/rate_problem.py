"""One layer as a quadratic of its weight's error, and its levels at least distortion plus bits."""

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

_TOP = 31  # levels to either side of zero
_REACH = 2  # levels that one sweep may add to those in use, either way
_DAMPING = 0.01  # of the mean input energy, in the target
_GRADIENTS = 0.7  # of the metric; the rest is the inputs'
_RIDGE = 0.3  # of the gradients' mean energy
_FLOOR = 0.01  # of the mean row sensitivity
_GREEDY = 0.5  # of the slope, while later columns still repay
_FINEST = 0.5  # of the step at which no weight is clipped: no search begins below
_THIRDS = 3  # steps are tried a third of an octave apart
_COUPLING = 0.3  # of what gradients say of two rows together, which is noisy
_TURNS = 4  # of rows
_CONTRACTION = 0.5  # the most by which rows of one turn, blind to each other, may overshoot
_TABLES = 4  # times the coder's model is asked
_SWAY = 1.25  # times its own bits: with what a symbol does to the laws of those after it
_LARGEST_TABLE = 1 << 27  # bits of alternatives that are kept


@dataclass(frozen=True, eq=False)
class RateProblem:
    """A layer as a quadratic of the error ``E = target - q``.

    Its cost is the sum over rows o of ``rows_o E_o metric E_o'``; with ``coupling`` C also over
    other rows p of ``rows_o C_op E_o metric E_p'``: errors of two rows may cancel further on.

    Attributes:
        target: (groups, neurons, columns): the weight that answers best to the quantized inputs.
        metric: (groups, columns, columns).
        rows: (groups, neurons).
        order: (groups, columns): columns by falling energy.
        factor: R, with R R' the metric in this order.
        coupling: (groups, neurons, neurons), zero on the diagonal; None where it is not known.
        taps: columns of each input channel, which lie together.
        width: columns to the row above, among these; 0 for none.
        turned: whether the file's rows are the input channels.
    """

    target: Tensor
    metric: Tensor
    rows: Tensor
    order: Tensor
    factor: Tensor
    coupling: Tensor | None = None
    taps: int = 1
    width: int = 0
    turned: bool = False

    @classmethod
    def at(
        cls, target: Tensor, metric: Tensor, rows: Tensor, coupling: Tensor | None = None
    ) -> RateProblem:
        """Build it from a quadratic: see the attributes."""
        order = descending(metric.diagonal(dim1=1, dim2=2))
        permuted = permute_moments(metric, order)
        factor = backward_cholesky(permuted, metric.new_zeros(len(metric))).upper
        return cls(target, metric, rows, order, factor, coupling)

    @classmethod
    def of(cls, layer: LayerMatrix, weight: Tensor, statistics: Statistics) -> RateProblem:
        """Build it from the statistics of the inputs and the sensitivity of the output."""
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
        """Return the step () with the least distortion + slope * bits, of a geometric series."""
        volume = self.factor.diagonal(dim1=1, dim2=2).log().mul(2).mean()
        base = (slope / (ratio * (self.rows.log().mean() + volume).exp())).sqrt()
        largest = self.target.abs().max()
        base = torch.minimum(base, largest)  # at least one level is not zero
        short = (_FINEST * largest / (_TOP * base)).log2().clamp_min(0)  # and not all are clipped
        base = base * 2.0 ** ((short * _THIRDS).ceil() / _THIRDS)
        known: dict[int, float] = {}
        coming = [-2, -1, 0, 1, 2]
        while coming:
            steps = base * 2.0 ** (torch.tensor(coming).to(base) / _THIRDS)
            known |= dict(zip(coming, self._trial(steps, slope, priced), strict=True))
            best = min(known, key=lambda k: known[k])
            edges = [best + side for side in (-2, -1, 1, 2)]
            coming = [k for k in edges if k not in known and abs(k) <= 4 * _THIRDS]
            if best - 1 in known and best + 1 in known:
                break
        found: Tensor = base * 2.0 ** (best / _THIRDS)
        return found

    def _trial(self, steps: Tensor, slope: float, priced: bool) -> list[float]:
        """Return the cost at each of ``steps`` (trials,), all walked at once."""
        bits = slope if priced else 0.0
        levels = self._greedy(steps, bits, rounds=2)
        levels = self._descend(levels, steps, bits, level_bits(levels.flatten(1), _TOP))
        cost = self.distortion(levels, steps) + slope * total_bits(levels.flatten(1), _TOP)
        return [float(value) for value in cost]

    def quantize(self, step: Tensor, slope: float, rate: str) -> Tensor:
        """Return the levels (groups, neurons, columns)."""
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
        """Descend with the laws of the coder's model, asked again after each change."""
        mean = None
        for _ in range(_TABLES):
            filed, layout = self._as_filed(levels[0])
            if filed.size * (2 * _TOP + 1) > _LARGEST_TABLE or filed.min() == filed.max():
                return levels
            lowest, found = Mix().prices(filed, layout)
            bits = _widened(torch.from_numpy(found), lowest)
            mean = bits if mean is None else (mean + bits) / 2
            table = self._from_filed(_SWAY * mean).to(levels.device)
            for _ in range(2):
                levels = self._descend_coupled(levels, steps, slope, table)
        return levels

    def _as_filed(self, levels: Tensor) -> tuple[Symbols, Layout]:
        """Return levels (groups, neurons, columns) as the matrix that a file holds."""
        matrix = unfold(levels, self.taps, "row") if self.turned else levels.flatten(0, 1)
        rows, columns = matrix.shape
        layout = Layout(rows, columns, self.taps, self.width)
        return matrix.to(torch.int32).contiguous().cpu().numpy(), layout

    def _from_filed(self, table: Tensor) -> Tensor:
        """Return (groups, neurons, columns, levels) from a table of the matrix's places."""
        if not self.turned:
            return table.reshape(*self.target.shape, -1)
        groups, neurons, _ = self.target.shape
        parts = table.reshape(len(table), groups, neurons, self.taps, -1)
        return parts.permute(1, 2, 0, 3, 4).flatten(2, 3)

    def _descend_coupled(
        self, levels: Tensor, steps: Tensor, slope: float, table: Tensor
    ) -> Tensor:
        """Return ``levels`` (1, ...) after a sweep in which rows also repay each other's errors.

        Rows go in turns, every fourth one together: rows of one turn do not see each other's
        changes, and all at once they would overshoot.
        """
        if self.coupling is None:
            return self._descend(levels, steps, slope, table)
        levels = levels.clone()
        for first in range(min(_TURNS, levels.shape[2])):
            turn = slice(first, None, _TURNS)
            error = self.target - levels[0] * steps.reshape(-1, 1, 1).to(levels)
            target = self.target[:, turn] + self.coupling[:, turn] @ error
            part = replace(self, target=target, rows=self.rows[:, turn], coupling=None)
            levels[:, :, turn] = part._descend(levels[:, :, turn], steps, slope, table[:, turn])
        return levels

    def _greedy(self, steps: Tensor, slope: float, rounds: int) -> Tensor:
        """Return (trials, groups, neurons, columns) levels of path following."""
        units = self._units(steps)
        trials, groups = units.shape[:2]
        levels = units.round().clamp(-_TOP, _TOP)
        factor = self._tiled(self.factor, trials).mT
        energy = factor.diagonal(dim1=1, dim2=2).square()
        order = self._tiled(self.order, trials)
        start = permute_columns(units.flatten(0, 1), order)
        for _ in range(rounds):
            bits = level_bits(levels.flatten(1), _TOP).repeat_interleave(groups, 0)
            near, bits = _near(levels, bits)
            chooser = PricedLevels(near, energy, _GREEDY * self._price(steps, slope), bits)
            found = follow_gram(start, factor, factor, chooser.project_)
            levels = restore_columns(found, order).reshape(units.shape)
        return levels

    def _descend(self, levels: Tensor, steps: Tensor, slope: float, bits: Tensor) -> Tensor:
        """Return ``levels`` after a sweep; ``bits`` are (trials, levels), or one trial's table."""
        units = self._units(steps)
        trials, groups = units.shape[:2]
        metric, order = self._tiled(self.metric, trials), self._tiled(self.order, trials)
        energy = metric.diagonal(dim1=1, dim2=2).gather(1, order)
        near, bits = _near(levels, bits)
        if bits.dim() == 2:
            bits = bits.repeat_interleave(groups, 0)
        else:
            index = order[:, None, :, None].expand(-1, bits.shape[1], -1, bits.shape[3])
            bits = bits.gather(2, index)
        chooser = PricedLevels(near, energy, self._price(steps, slope), bits)
        found = descend_gram(
            units.flatten(0, 1), levels.flatten(0, 1), metric, chooser.project_, order=order
        )
        return found.reshape(units.shape)

    def distortion(self, levels: Tensor, steps: Tensor) -> Tensor:
        """Return (trials,) the distortion of ``levels`` (trials, groups, neurons, columns)."""
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
    """Return the metric: the inputs as gradients weigh them, with a ridge, and as they are."""
    ridge = _RIDGE * metric.diagonal(dim1=1, dim2=2).mean(1)
    ridged = metric + torch.diag_embed(ridge[:, None].expand(-1, metric.shape[1]))
    return _GRADIENTS * ridged + (1 - _GRADIENTS) * damped


def _output_metric(sensitivity: Sensitivity, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return how much the output feels each row, and two rows together over one of them."""
    rows = sensitivity.rows.to(like)
    rows = rows.clamp_min(_FLOOR * float(rows.mean()) + torch.finfo(rows.dtype).tiny)
    together = sensitivity.outputs.to(like)
    own = together.diagonal(dim1=1, dim2=2)
    own = own.clamp_min(_FLOOR * float(own.mean()) + torch.finfo(own.dtype).tiny)
    others = _COUPLING * (together - torch.diag_embed(together.diagonal(dim1=1, dim2=2)))
    scale = own.rsqrt()
    overshoot = _radius(others * scale[..., None] * scale[:, None])
    return rows, others / own[..., None] * (_CONTRACTION / overshoot.clamp_min(_CONTRACTION))


def _radius(others: Tensor) -> Tensor:
    """Return (): the largest spectral radius of ``others`` (groups, n, n) within one turn."""
    found = [others.new_zeros(())]
    for first in range(min(_TURNS, others.shape[1])):
        turn = others[:, first::_TURNS, first::_TURNS]
        found.append(torch.linalg.eigvalsh(turn).abs().max())
    return torch.stack(found).max()


def _centred(statistics: Statistics, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return (H, G) of one row about the mean, float64: what a bias repays is taken out."""
    second, cross = statistics.moments()
    ours = statistics.reference_mean.double()[..., None]
    theirs = statistics.quantized_mean.double()[..., None]
    rows = max(1, statistics.rows)
    centred = second.double() / rows - theirs @ theirs.mT
    return centred.to(weight.device), (cross.double() / rows - theirs @ ours.mT).to(weight.device)


def _near(levels: Tensor, bits: Tensor) -> tuple[Tensor, Tensor]:
    """Return those of the levels from -top to top that may be chosen next, and their bits."""
    lowest = max(-_TOP, int(levels.min()) - _REACH)
    highest = min(_TOP, int(levels.max()) + _REACH)
    return torch.arange(lowest, highest + 1), bits[..., lowest + _TOP : highest + _TOP + 1]


def _widened(bits: Tensor, lowest: int) -> Tensor:
    """Return (rows, columns, 2 top + 1) from those of the symbols in use: 4 bits more a level."""
    size = bits.shape[2]
    ramp = torch.arange(-_TOP, _TOP + 1) - lowest
    inside = ramp.clamp(0, size - 1)
    away = (ramp - inside).abs().to(bits)
    return bits[..., inside] + 4 * away
