"""HEMP: high-order entropy minimization (Tartaglione et al. 2021), weighed by the crossing rule.

Weights are pulled to their levels and, along the gradient of the entropy of soft indices, to the
more popular of their two neighbours. The entropy's weight is set by what it does: a weight may
leave its cell when the neighbour is likelier by more than ``1 / rate_weight`` bits.

Reference:
    Tartaglione, Lathuiliere, Fiandrotti, Cagnazzo and Grangetto, "HEMP: High-order entropy
    minimization for neural network compression", Neurocomputing 461, 2021.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ....engine.layers.layer import Quantized
from ....errors import is_number, require
from ....ops.levels.codebook import lloyd_max
from ....ops.rate_distortion.soft_entropy import (
    ORDERS,
    entropy_gradient,
    joint_histogram,
    soft_brackets,
)
from ...base import METHODS, Capabilities, TrainingMethod
from ...schedule import Ramp, value_at
from ...uniform import check_number, check_one_of, check_switch, is_whole
from ..base import TunedWeight
from .levels import Levels, fit_codebook, fit_grid, levels_of
from .pools import Line, Pool, allowed_order, histogram_of, own_lengths
from .rate_control import RateControl, priced_loss
from .rounding import Rounding

__all__ = ["HEMP", "HempSession"]


_FLOATS, _CODED = 0.4, 0.1  # rate_weight by the start
_PULL = Ramp(0.05, 0.5, begin=0.8, until=0.9, shape="geometric")
_FOLLOW = 0.1  # of the way to the best step, at every refresh of the soft share


@METHODS.register("hemp")
@dataclass(frozen=True, kw_only=True)
class HEMP(TrainingMethod):
    """High-order entropy minimization.

    Attributes:
        levels: of each weight tensor, an odd number; tensors that start coded keep theirs.
        spacing: "lloyd" (a codebook of least squared error for each tensor) or "even" (a grid).
        order: weights in a tuple whose entropy is minimized; less where there are too few tuples.
        rate_weight: 1/L*: at 0.4 a weight crosses to a neighbour that is likelier by 2.5 bits; 0
            for no entropy term. Above about 1 the network collapses onto few levels. None for 0.4,
            and 0.1 where weights start coded: a start that has weighed bits against errors already
            (recipe "smallest") has few levels left to leave, and collapses at 0.4.
        slope: loss that a bit of the network's indices is worth. Given, it takes the place of the
            crossing rule: the entropy is a part of the loss (:meth:`Tuner.penalty`), in the same
            unit for all layers, and never draws weights away from zero.
        bits: entropy of the indices, in bits per weight, that the price of a bit is steered to;
            levels are chosen by rate, and ``rate_weight`` is where the price begins. The file takes
            less for indices, as its coder sees more than counts, and has other tensors.
        arrival: share of the training at which ``bits`` are reached.
        width: factor on the first step of an "even" spacing; above 1 for more zeros.
        pull: share of its distance to its level that a weight loses in a step. In the quantized
            forward pass, which needs no pull, the pace of the entropy term alone.
        forward: "continuous" (the paper's: the network computes with the float weights, which the
            pull brings to their levels) or "quantized" (with the levels; gradients pass through).
        soft: share of the training, with the quantized forward pass, in which the network still
            computes with the float weights, and steps follow them; only the entropy acts.
        steps: of grids, in the quantized forward pass: "trained", or "fixed".
        assign: "nearest" level, or "rate": least squared distance plus bits, at ``rate_weight``.
        pool: one histogram for the "network", or one for each "tensor".
        refresh: steps for which levels, entropy and its gradient are kept.
        refit: steps after which codebooks follow the weights; 0 for never.
        insensitive: act less on weights whose loss gradient is large.
    """

    name: ClassVar[str] = "hemp"
    summary: ClassVar[str] = "trains towards a low entropy of the indices, for small files"
    paper: ClassVar[str] = "Tartaglione et al. 2021"

    capabilities: ClassVar[Capabilities] = Capabilities(
        trains=True, needs_labels=True, keeps_levels=True
    )

    levels: int = 15
    spacing: str = "lloyd"
    order: int = 1
    rate_weight: float | Ramp | None = None
    slope: float | Ramp | None = None
    bits: float | None = None
    arrival: float = 0.3
    width: float = 1.0
    pull: float | Ramp = _PULL
    forward: str = "continuous"
    soft: float = 0.0
    steps: str = "trained"
    assign: str = "nearest"
    pool: str = "network"
    refresh: int = 10
    refit: int = 0
    insensitive: bool = True

    def __post_init__(self) -> None:
        for name in ("rate_weight", "pull", "slope"):
            object.__setattr__(self, name, Ramp.of(getattr(self, name)))
            if name == "pull" or getattr(self, name) is not None:
                _check_scheduled(name, getattr(self, name))
        check_number("width", self.width, 0)
        check_number("soft", self.soft, 0, inclusive=True)
        require(self.soft <= 1, "soft", "a share of the training, at most 1", self.soft)
        good = is_whole(self.levels) and 3 <= self.levels <= 1023 and self.levels % 2 == 1
        require(good, "levels", "an odd number from 3 to 1023", self.levels)
        check_one_of("spacing", self.spacing, ("lloyd", "even"))
        require(
            is_whole(self.order) and self.order in ORDERS, "order", f"one of {ORDERS}", self.order
        )
        check_one_of("forward", self.forward, ("continuous", "quantized"))
        check_one_of("steps", self.steps, ("trained", "fixed"))
        check_one_of("assign", self.assign, ("nearest", "rate"))
        check_one_of("pool", self.pool, ("network", "tensor"))
        require(is_whole(self.refresh) and self.refresh >= 1, "refresh", ">= 1", self.refresh)
        require(is_whole(self.refit) and self.refit >= 0, "refit", ">= 0", self.refit)
        check_switch("insensitive", self.insensitive)
        check_number("arrival", self.arrival, 0, inclusive=True)
        require(self.arrival <= 1, "arrival", "a share of the training, at most 1", self.arrival)
        if self.bits is not None:
            check_number("bits", self.bits, 0)
            rated = self.assign == "rate" and self.forward == "quantized"
            ways = f"assign={self.assign!r}, forward={self.forward!r}"
            require(rated, "bits", "None, or assign='rate' and forward='quantized' with it", ways)

    def start(self, weights: Sequence[TunedWeight], seed: int = 0) -> HempSession:
        """Fit the levels, and begin. Nothing of it is random."""
        if self.rate_weight is not None:
            return HempSession(self, weights)
        coded = any(weight.start is not None for weight in weights)
        return HempSession(replace(self, rate_weight=_CODED if coded else _FLOATS), weights)


def _check_scheduled(name: str, value: object) -> None:
    values = (value.start, value.end) if isinstance(value, Ramp) else (value,)
    for one in values:
        require(is_number(one) and one >= 0, name, "a number >= 0, or a Ramp between such", value)


class HempSession:
    """The state of one training with HEMP; see :class:`fewbits.methods.trained.base.Session`."""

    def __init__(self, method: HEMP, weights: Sequence[TunedWeight]) -> None:
        self.method = method
        self._progress, self._count, self._bits = 0.0, 0, 0.0
        self._straight = method.forward == "quantized"
        self._rate_control = _rate_control(method)
        self._lines = {weight.name: self._line(weight) for weight in weights}
        self._pools = self._pooled()
        self.advance(0.0)
        self._refresh()

    def _line(self, weight: TunedWeight) -> Line:
        levels = self._fitted(weight) if weight.start is None else levels_of(weight.start)
        trained = self._straight and self.method.steps == "trained"
        rounding = Rounding(weight, levels, trained=trained)
        units = levels.units(weight.matrix())
        zeros = torch.zeros_like(units)
        return Line(weight, rounding, levels.cell, zeros, zeros, units)

    def _fitted(self, weight: TunedWeight) -> Levels:
        """Return the levels of a weight that starts from floats; fewer for fewer values."""
        if weight.levels is not None:
            return fit_grid(weight.matrix(), weight.levels)
        if self.method.spacing == "even":
            return fit_grid(weight.matrix(), self.method.levels, self.method.width)
        return fit_codebook(weight.matrix(), self.method.levels)

    def _pooled(self) -> list[Pool]:
        """Return who shares a histogram, each with the order that its number of tuples allows."""
        lines = list(self._lines.values())
        weights = [line for line in lines if line.weight.levels is None]
        vectors = [line for line in lines if line.weight.levels is not None]
        parted = [weights] if self.method.pool == "network" else [[line] for line in weights]
        pools = [Pool(group, allowed_order(group, self.method.order)) for group in parted if group]
        least = min((pool.order for pool in pools), default=self.method.order)
        if least < self.method.order:
            warnings.warn(
                f"order {self.method.order} needs ten tuples for each cell of the histogram; with "
                f"these levels and weights it is {least}. Use fewer levels, or pool='network'.",
                stacklevel=5,
            )
        return [*pools, *([Pool(vectors, 1)] if vectors else [])]

    @property
    def _soft(self) -> bool:
        return self._straight and self._progress < self.method.soft

    # -- what Session asks for

    def penalty(self) -> Tensor:
        """Return ``slope`` times the bits of the indices; zero where the crossing rule acts."""
        lines = list(self._lines.values())
        slope = value_at(self.method.slope or 0.0, self._progress)
        if not slope:
            return torch.zeros((), device=lines[0].weight.parameter.device)
        slants = [
            line.weight.view.tensor(line.levels.gradient(line.slant), line.weight.shape)
            for line in lines
        ]
        return priced_loss(slope, self._bits, slants, [line.weight.parameter for line in lines])

    @torch.no_grad()
    def before_step(self) -> None:
        """Take from the gradients how insensitive each weight is: 1 - |g| / max |g|."""
        for line in self._lines.values():
            gradient = line.weight.gradient() if self.method.insensitive else None
            if gradient is not None:
                size = gradient.abs()
                line.calm = 1 - size / size.max().clamp_min(torch.finfo(size.dtype).tiny)

    @torch.no_grad()
    def step(self) -> None:
        """Move every weight: to its level, and where the entropy falls."""
        if self.method.refit and self._count and self._count % self.method.refit == 0:
            self._refit()
        if self._count % self.method.refresh == 0:
            for line in self._lines.values() if self._soft else ():
                line.rounding.follow(line.units(), _FOLLOW)
            self._refresh()
        pull = value_at(self.method.pull, self._progress)
        rate = self._rate()
        for line in self._lines.values():
            self._move(line, pull, rate)
        self._count += 1

    def advance(self, progress: float) -> None:
        """Follow the schedules; after its soft share the forward pass sees levels."""
        self._progress = progress
        for line in self._lines.values():
            line.rounding.active = not self._soft

    def parametrization(self, weight: TunedWeight) -> nn.Module | None:
        """Return the rounding with gradients passed through, in the quantized forward pass."""
        return self._lines[weight.name].rounding if self._straight else None

    def parameters(self) -> Iterable[nn.Parameter]:
        """Return the logarithms of the steps, relative to the first ones."""
        return [p for line in self._lines.values() for p in line.rounding.parameters()]

    def cell(self, weight: TunedWeight) -> float:
        """Return the mean distance of neighbouring levels, over the rows."""
        line = self._lines[weight.name]
        return line.cell * float(line.levels.scale.mean())

    @torch.no_grad()
    def quantized(self, weight: TunedWeight) -> Quantized:
        """Return the weight on its levels."""
        line = self._lines[weight.name]
        levels = line.levels
        position = line.rounding.positions(line.units())
        zeros = float((position == levels.zero).float().mean())
        return levels.quantized(position, {"levels": float(len(levels.values)), "zeros": zeros})

    @torch.no_grad()
    def measures(self) -> Mapping[str, float]:
        """Return bits per weight, mean squared distance in cells, and share of zeros."""
        total = distance = zeros = 0.0
        for line in self._lines.values():
            total += line.target.numel()
            distance += float(((line.units() - line.target) / line.cell).square().sum())
            zeros += float((line.target == line.levels.values[line.levels.zero]).sum())
        parts = {"bits_per_weight": self._bits, "distance": distance, "zeros": zeros}
        return {name: value / max(1.0, total) for name, value in parts.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return levels, laws, forces and counters."""
        kept = ("cell", "slant", "most", "target")
        lines = {
            name: {key: getattr(line, key) for key in kept} | {"rounding": line.rounding.state()}
            for name, line in self._lines.items()
        }
        counters = {"progress": self._progress, "count": self._count, "bits": self._bits}
        rate_control = None if self._rate_control is None else self._rate_control.state()
        return {"lines": lines, "rate_control": rate_control, **counters}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken."""
        self._progress, self._count = state["progress"], state["count"]
        self._bits = state["bits"]
        if self._rate_control is not None:
            self._rate_control.take_state(state["rate_control"])
        self.advance(self._progress)
        for name, line in self._lines.items():
            kept = state["lines"][name]
            line.cell = kept["cell"]
            for key in ("slant", "most", "target"):
                setattr(line, key, kept[key].to(line.target))
            line.rounding.take_state(kept["rounding"])

    # -- how

    @torch.no_grad()
    def _refresh(self) -> None:
        """Count the soft indices anew: the bits, where they fall, and every weight's level."""
        self._bits = 0.0
        rate = self._rate()
        for pool in self._pools:
            lines = pool.lines
            units = [line.units() for line in lines]
            groups = [
                soft_brackets(values, line.levels.values, line.levels.zero)
                for values, line in zip(units, lines, strict=True)
            ]
            histogram = joint_histogram(groups, pool.order)
            count = sum(values.numel() for values in units)
            self._bits += float(histogram.entropy()) * count
            gradients = entropy_gradient(groups, histogram.smoothed())
            for line, group, gradient in zip(lines, groups, gradients, strict=True):
                line.slant = (gradient * count).reshape(line.target.shape)
                line.most = (group.width / (2 * self.method.refresh)).reshape(line.target.shape)
                if self.method.slope is not None:  # bits never pay for leaving zero
                    sign = line.slant * (line.units() - line.levels.values[line.levels.zero])
                    line.slant = line.slant.where(sign > 0, 0.0)
            self._settle(pool, units, rate if self.method.assign == "rate" else 0.0)
        if self._rate_control is not None:
            self._rate_control.look(self._coded_bits(), self._progress)

    def _rate(self) -> float:
        """Return the price of a bit now."""
        if self._rate_control is not None:
            return self._rate_control.price
        return value_at(self.method.rate_weight or 0.0, self._progress)

    def _coded_bits(self) -> float:
        """Return the entropy of the levels that weights are on, vectors aside, in bits each."""
        bits = total = 0.0
        for pool in self._pools:
            if pool.lines[0].weight.levels is None:
                count = sum(line.target.numel() for line in pool.lines)
                bits += count * float(
                    histogram_of(pool, [line.target for line in pool.lines]).entropy()
                )
                total += count
        return bits / max(1.0, total)

    def _settle(self, pool: Pool, units: list[Tensor], rate: float) -> None:
        """Choose the level of each weight; at a rate by the law of the levels chosen before."""
        pairs = list(zip(pool.lines, units, strict=True))
        for _ in range(2 if rate else 0):
            law = histogram_of(pool, [line.nearest(values) for line, values in pairs])
            for line in pool.lines:
                line.rounding.price(own_lengths(law, line.levels), rate * line.cell**2)
        for line, values in pairs:
            line.target = line.nearest(values)

    def _move(self, line: Line, pull: float, rate: float) -> None:
        levels, matrix = line.levels, line.weight.matrix()
        units = levels.units(matrix)
        change = torch.zeros_like(units)
        if self.method.slope is None and self.method.bits is None:
            force = line.slant * (pull * rate * line.cell**2 / 2)
            change -= torch.maximum(torch.minimum(force, line.most), -line.most)
        if not self._straight:
            change += (line.target - units) * pull
        moved = levels.moved(change)
        if line.calm is not None:
            moved *= line.calm
            line.calm = None
        slack = line.cell / 2 if self._straight else 0.0
        units = levels.units(matrix + moved)
        inside = units.clamp(levels.values[0] - slack, levels.values[-1] + slack)
        line.weight.write(matrix + moved + levels.moved(inside - units))

    def _refit(self) -> None:
        sharing: dict[tuple[float, ...], list[Line]] = {}
        for line in self._lines.values():
            if not line.levels.even:
                sharing.setdefault(tuple(line.levels.values.tolist()), []).append(line)
        for lines in sharing.values():  # one codebook stays one
            before = lines[0].levels.values
            units = torch.cat([line.units().reshape(-1) for line in lines])
            levels = lloyd_max(units, len(before), before, iterations=10).to(before)
            for line in lines:
                line.rounding.levels = line.levels.with_values(levels)


def _rate_control(method: HEMP) -> RateControl | None:
    if method.bits is None:
        return None
    return RateControl(method.bits, method.arrival, value_at(method.rate_weight or 0.0, 0.0))
