"""HEMP: high-order entropy minimization (Tartaglione et al. 2021), scaled by the crossing rule.

Weights are pulled to their levels and, along the gradient of the entropy of soft indices, to the
more frequent of their two neighbours. The crossing rule fixes the scale of the entropy term: a
weight may move to a neighbouring level that is cheaper by more than ``1 / rate_weight`` bits.

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

from ....engine.layers.layer import Quantized, QuantizedMatrix
from ....errors import ConfigError, is_number, require
from ....ops.levels.codebook import lloyd_max
from ....ops.rate_distortion.soft_entropy import ORDERS, joint_histogram, soft_brackets
from ....ops.rate_distortion.trellis_paths import LEAST
from ...base import METHODS, Capabilities, TrainingMethod
from ...schedule import Ramp, value_at
from ...uniform import check_number, check_one_of, check_switch, is_whole
from ..base import TunedWeight
from ..descent import descents
from ..rate_loss import rate_loss, towards_zero
from .levels import Levels, fit_codebook, fit_grid, levels_of
from .pools import Pool, WeightState, allowed_order, code_lengths, histogram_of
from .rate_control import RateControl
from .rounding import Rounding

__all__ = ["HEMP", "HempSession"]


_FLOATS, _CODED = 0.4, 0.1  # rate_weight for a float start, and for a coded one
_FROM_FLOATS = (
    "HEMP began at float weights, where a short training does not reach the size of the recipe "
    "smallest, which trains nothing. Begin there: fewbits train --start smallest, or with a recipe "
    "whose rules say method: rdoq and whose section 'train' says method: hemp"
)
_WORTH = 1.0  # loss that all bits at the start are worth
_PULL = Ramp(0.05, 0.5, begin=0.8, until=0.9, shape="geometric")
_FADE = Ramp(1.0, 0.0, begin=0.8, until=0.9)  # of the crossing rule: weights end on their levels
_FOLLOW = 0.1  # share of the way to the best step, at every refresh in the soft phase
# keys in checkpoints -> attributes of WeightState
_CHECKPOINTED = {"slant": "bit_gradient", "width": "width", "goal": "goal", "target": "target"}


@METHODS.register("hemp")
@dataclass(frozen=True, kw_only=True)
class HEMP(TrainingMethod):
    """High-order entropy minimization.

    Attributes:
        levels: number of levels of each weight tensor, which must be odd; tensors that start
            quantized keep their levels.
        spacing: how levels are placed: "lloyd" (a codebook with the least squared error for each
            tensor) or "even" (a uniform grid).
        order: number of consecutive weights whose joint entropy is minimized; it is lowered if
            there are too few weights to estimate it.
        rate_weight: strength of the crossing rule: a weight may move to a neighbouring level that
            is cheaper by 1 / ``rate_weight`` bits, that is 2.5 bits at 0.4; 0 turns the term off.
            The rule does not ask the loss: above about 1, and from 0.4 after a start that already
            traded bits for errors, as the recipe "smallest" does, the network collapses onto few
            levels. None: see ``slope``.
        slope: loss that one bit of the network's indices is worth. The entropy is then a part of
            the loss (:meth:`Tuner.penalty`), in the same unit for all layers, never moves weights
            away from zero, and replaces the crossing rule. None, without ``rate_weight`` and
            ``bits``, means that all bits at the start are worth 1 together, or with
            ``forward="continuous"`` a ``rate_weight`` of 0.4 from floats and of 0.1 after a
            compressed start; 0 turns the term off.
        bits: target for the entropy of the indices in bits per weight. The price of a bit, which
            starts at ``rate_weight``, is adjusted to meet it; this needs ``assign="rate"`` and
            ``forward="quantized"``. In the file, indices take fewer bits because the coder exploits
            more than frequencies, but other tensors are added.
        arrival: share of the training at which ``bits`` are reached.
        width: factor on the initial step of an "even" spacing; values above 1 give more zeros.
        pull: share of its distance to its level by which each step moves a weight. With
            ``forward="quantized"``, only the crossing rule needs a pull.
        forward: what the network computes with: "continuous" (the float weights, which are pulled
            to their levels, as in the paper) or "quantized" (the levels; gradients pass straight
            through). None means "quantized", or "continuous" with a ``rate_weight``, in recurrent
            layers and after a start with codebooks.
        soft: with ``forward="quantized"``, the first share of the training, in which the network
            still computes with the float weights and the steps adapt to them; only the entropy term
            acts on the weights.
        steps: with ``forward="quantized"``, whether the steps of grids are "trained" or "fixed".
        bases: with ``forward="quantized"``, whether the bases of weights that start as coefficients
            of a transform are "trained", on their own grids, or "fixed".
        assign: how weights are assigned to levels: "nearest", or "rate" (least squared distance
            plus bits, at a price of ``rate_weight``).
        pool: which weights share the histogram of levels: those of the whole "network", or those of
            each "tensor".
        refresh: number of steps between updates of levels, entropy and its gradient.
        refit: number of steps between refits of codebooks to the weights; 0 for never.
        insensitive: whether to act less on weights whose loss gradient is large.
    """

    name: ClassVar[str] = "hemp"
    summary: ClassVar[str] = "trains for a low entropy of the indices, for small files"
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
    forward: str | None = None
    soft: float = 0.0
    steps: str = "trained"
    bases: str = "trained"
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
        if self.forward is not None:
            check_one_of("forward", self.forward, ("continuous", "quantized"))
        check_one_of("steps", self.steps, ("trained", "fixed"))
        check_one_of("bases", self.bases, ("trained", "fixed"))
        check_one_of("assign", self.assign, ("nearest", "rate"))
        check_one_of("pool", self.pool, ("network", "tensor"))
        good = is_whole(self.refresh) and self.refresh >= 1
        require(good, "refresh", "an integer >= 1", self.refresh)
        good = is_whole(self.refit) and self.refit >= 0
        require(good, "refit", "an integer >= 0", self.refit)
        check_switch("insensitive", self.insensitive)
        check_number("arrival", self.arrival, 0, inclusive=True)
        require(self.arrival <= 1, "arrival", "a share of the training, at most 1", self.arrival)
        if self.bits is not None:
            check_number("bits", self.bits, 0)
            supported = self.assign == "rate" and self.forward == "quantized"
            given = f"assign={self.assign!r}, forward={self.forward!r}"
            expected = "None, or combined with assign='rate' and forward='quantized'"
            require(supported, "bits", expected, given)

    @property
    def starts_from(self) -> str:
        """The recipe "smallest", unless settings ask for levels or bits from floats."""
        levels = (self.levels, self.spacing) == (HEMP.levels, HEMP.spacing)
        told = (self.rate_weight, self.slope, self.bits) != (None, None, None)
        return "smallest" if levels and not told else ""

    @property
    def note_from_floats(self) -> str:
        """That a compressed start is better, with the crossing rule."""
        return _FROM_FLOATS if self.slope is None and self.bits is None else ""

    def start(self, weights: Sequence[TunedWeight], seed: int = 0) -> HempSession:
        """Fit the levels and start a session, which uses no random numbers.

        Raises:
            ConfigError: levels are to be assigned by rate, but the start has paths of a trellis.
        """
        coded = any(weight.start is not None for weight in weights)
        if self.assign == "rate" and any(weight.paths for weight in weights):
            raise ConfigError(
                "assign='rate' chooses every level alone, but the start has columns that are paths "
                "of a trellis. Leave out assign, or start from quantizer='scalar'."
            )
        forward = self.forward
        if forward is None:
            straight = all(_goes_straight_through(weight) for weight in weights)
            forward = "quantized" if straight and self.rate_weight is None else "continuous"
        free = self.rate_weight is None and self.slope is None and self.bits is None
        in_loss = free and forward == "quantized"
        rate_weight = self.rate_weight
        if rate_weight is None:
            rate_weight = _CODED if coded else _FLOATS
        method = replace(self, forward=forward, rate_weight=rate_weight)
        return HempSession(method, weights, worth=_WORTH if in_loss else None)


def _goes_straight_through(weight: TunedWeight) -> bool:
    """Return whether a weight can train on its levels: not where cells are narrow beside others.

    In a codebook, the smallest steps of the optimizer would change levels there.
    """
    codebook = isinstance(weight.start, QuantizedMatrix) and weight.start.levels is not None
    return not codebook and not weight.bypasses


def _check_scheduled(name: str, value: object) -> None:
    values = (value.start, value.end) if isinstance(value, Ramp) else (value,)
    for one in values:
        good = is_number(one) and one >= 0
        require(good, name, "a number >= 0, or a Ramp of such numbers", value)


class HempSession:
    """A training session of HEMP; see :class:`fewbits.methods.trained.base.Session`.

    Args:
        method: the settings, none of them to be chosen any more.
        weights: the weights.
        worth: loss that all bits of the start are worth, in place of ``method.slope``.
    """

    def __init__(
        self, method: HEMP, weights: Sequence[TunedWeight], *, worth: float | None = None
    ) -> None:
        self.method = method
        self._progress, self._count, self._bits = 0.0, 0, 0.0
        self._quantized_forward = method.forward == "quantized"
        self._rate_control = _rate_control(method)
        self._states = {weight.name: self._make_state(weight) for weight in weights}
        self._pools = self._make_pools()
        self._slope = method.slope
        if worth is not None:
            weights_bits = self._coded_bits() * sum(weight.parameter.numel() for weight in weights)
            self._slope = worth / max(1.0, weights_bits)
        self.advance(0.0)
        self._refresh()

    def _make_state(self, weight: TunedWeight) -> WeightState:
        least = LEAST if weight.paths else 0
        start = weight.start
        levels = self._fit_levels(weight) if start is None else levels_of(start, least)
        computes = self._quantized_forward  # otherwise no gradient reaches levels
        trained = computes and self.method.steps == "trained"
        basis = computes and self.method.bases == "trained"
        rounding = Rounding(weight, levels, trained=trained, basis=basis)
        units = levels.units(weight.matrix())
        zeros = torch.zeros_like(units)
        return WeightState(weight, rounding, levels.cell, zeros, zeros, units, units)

    def _fit_levels(self, weight: TunedWeight) -> Levels:
        """Fit levels to a weight that starts in float; fewer if it has fewer distinct values."""
        if weight.levels is not None:
            return fit_grid(weight.matrix(), weight.levels)
        if self.method.spacing == "even":
            return fit_grid(weight.matrix(), self.method.levels, self.method.width)
        return fit_codebook(weight.matrix(), self.method.levels)

    def _make_pools(self) -> list[Pool]:
        """Group the weights that share a histogram, with the order that their number allows."""
        states = list(self._states.values())
        weights = [state for state in states if state.weight.levels is None]
        vectors = [state for state in states if state.weight.levels is not None]
        groups = [weights] if self.method.pool == "network" else [[state] for state in weights]
        pools = [Pool(group, allowed_order(group, self.method.order)) for group in groups if group]
        least = min((pool.order for pool in pools), default=self.method.order)
        if least < self.method.order:
            warnings.warn(
                f"order {self.method.order} is lowered to {least}: it needs ten tuples of weights "
                "for each cell of the histogram. Use fewer levels, or pool='network'.",
                stacklevel=5,
            )
        return [*pools, *([Pool(vectors, 1)] if vectors else [])]

    @property
    def _soft(self) -> bool:
        return self._quantized_forward and self._progress < self.method.soft

    # -- the Session protocol

    def penalty(self) -> Tensor:
        """Return ``slope`` times the bits of the indices; zero with the crossing rule."""
        states = list(self._states.values())
        slope = value_at(self._slope or 0.0, self._progress)
        if not slope:
            return torch.zeros((), device=states[0].weight.parameter.device)
        gradients = [
            state.weight.view.tensor(state.levels.gradient(state.paced()), state.weight.shape)
            for state in states
        ]
        return rate_loss(slope, self._bits, gradients, [state.weight.parameter for state in states])

    @torch.no_grad()
    def before_step(self) -> None:
        """Compute from the gradients how insensitive each weight is: 1 - |g| / max |g|."""
        for state in self._states.values():
            gradient = state.weight.gradient() if self.method.insensitive else None
            if gradient is not None:
                size = gradient.abs()
                state.insensitivity = 1 - size / size.max().clamp_min(torch.finfo(size.dtype).tiny)

    @torch.no_grad()
    def step(self) -> None:
        """Move every weight towards its level and towards a lower entropy."""
        if self.method.refit and self._count and self._count % self.method.refit == 0:
            self._refit()
        if self._count % self.method.refresh == 0:
            for state in self._states.values() if self._soft else ():
                state.rounding.follow(state.units(), _FOLLOW)
            self._refresh()
        pull = value_at(self.method.pull, self._progress)
        price = self._price()
        for state in self._states.values():
            self._update(state, pull, price)
        self._count += 1

    def advance(self, progress: float) -> None:
        """Update schedules; after the soft phase the forward pass uses levels."""
        self._progress = progress
        for state in self._states.values():
            state.rounding.active = not self._soft

    def parametrization(self, weight: TunedWeight) -> nn.Module | None:
        """Return the straight-through rounding, for the quantized forward pass; otherwise None."""
        return self._states[weight.name].rounding if self._quantized_forward else None

    def parameters(self) -> Iterable[nn.Parameter]:
        """Return the logarithms of the steps, relative to the initial ones."""
        return [p for state in self._states.values() for p in state.rounding.parameters()]

    def cell(self, weight: TunedWeight) -> float:
        """Return the mean distance between neighbouring levels, averaged over the rows."""
        state = self._states[weight.name]
        return state.cell * float(state.levels.scale.mean())

    @torch.no_grad()
    def quantized(self, weight: TunedWeight) -> Quantized:
        """Return the weight rounded to its levels."""
        state = self._states[weight.name]
        levels = state.levels
        position = state.rounding.positions(state.units())
        zeros = float((position == levels.zero).float().mean())
        return levels.quantized(position, {"levels": float(len(levels.values)), "zeros": zeros})

    @torch.no_grad()
    def measures(self) -> Mapping[str, float]:
        """Return bits per weight, mean squared distance to the levels in cells, share of zeros."""
        total = distance = zeros = 0.0
        for state in self._states.values():
            total += state.target.numel()
            distance += float(((state.units() - state.target) / state.cell).square().sum())
            zeros += float((state.target == state.levels.values[state.levels.zero]).sum())
        parts = {"bits_per_weight": self._bits, "distance": distance, "zeros": zeros}
        return {name: value / max(1.0, total) for name, value in parts.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return levels, code lengths, gradients and counters."""
        weights = {}
        for name, own in self._states.items():
            tensors = {key: getattr(own, field) for key, field in _CHECKPOINTED.items()}
            weights[name] = {"cell": own.cell, **tensors, "rounding": own.rounding.state()}
        counters = {"progress": self._progress, "count": self._count, "bits": self._bits}
        rate_control = None if self._rate_control is None else self._rate_control.state()
        return {"lines": weights, "rate_control": rate_control, **counters}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state returned by :meth:`state_dict`."""
        self._progress, self._count = state["progress"], state["count"]
        self._bits = state["bits"]
        if self._rate_control is not None:
            self._rate_control.load_state(state["rate_control"])
        self.advance(self._progress)
        for name, own in self._states.items():
            stored = state["lines"][name]
            own.cell = stored["cell"]
            for key, field in _CHECKPOINTED.items():
                setattr(own, field, stored[key].to(own.target))
            own.rounding.load_state(stored["rounding"])

    # -- implementation

    @torch.no_grad()
    def _refresh(self) -> None:
        """Recompute the entropy of the soft indices, its gradient, and the level of each weight."""
        self._bits = 0.0
        price = self._price()
        for pool in self._pools:
            states = pool.states
            units = [state.units() for state in states]
            groups = [
                soft_brackets(values, state.levels.values, state.levels.zero)
                for values, state in zip(units, states, strict=True)
            ]
            histogram = joint_histogram(groups, pool.order)
            count = sum(values.numel() for values in units)
            self._bits += float(histogram.entropy()) * count
            tables = [state.levels.values for state in states]
            found = descents(groups, tables, histogram.smoothed())
            for state, descent in zip(states, found, strict=True):
                shape = state.target.shape
                state.bit_gradient = (descent.gradient * count).reshape(shape)
                state.width = descent.width.reshape(shape)
                state.goal = descent.goal.reshape(shape)
                if self._slope is not None:  # fewer bits never justify leaving zero
                    from_zero = state.units() - state.levels.values[state.levels.zero]
                    state.bit_gradient = towards_zero(state.bit_gradient, from_zero)
            self._assign_levels(pool, units, price if self.method.assign == "rate" else 0.0)
        if self._rate_control is not None:
            self._rate_control.update(self._coded_bits(), self._progress)

    def _price(self) -> float:
        """Return the current price of a bit, in squared cells."""
        if self._rate_control is not None:
            return self._rate_control.price
        return value_at(self.method.rate_weight or 0.0, self._progress)

    def _coded_bits(self) -> float:
        """Return the entropy of the weights' levels, without vectors, in bits per weight."""
        bits = total = 0.0
        for pool in self._pools:
            if pool.states[0].weight.levels is None:
                count = sum(state.target.numel() for state in pool.states)
                bits += count * float(
                    histogram_of(pool, [state.target for state in pool.states]).entropy()
                )
                total += count
        return bits / max(1.0, total)

    def _assign_levels(self, pool: Pool, units: list[Tensor], price: float) -> None:
        """Choose the level of each weight; with a price, given the histogram of the last choice."""
        pairs = list(zip(pool.states, units, strict=True))
        for _ in range(2 if price else 0):
            histogram = histogram_of(pool, [state.nearest(values) for state, values in pairs])
            for state in pool.states:
                lengths = code_lengths(histogram, state.levels)
                state.rounding.set_price(lengths, price * state.cell**2)
        for state, values in pairs:
            state.target = state.nearest(values)

    def _update(self, state: WeightState, pull: float, price: float) -> None:
        """Move one weight towards its level and a lower entropy, and keep it in range."""
        levels, matrix = state.levels, state.weight.matrix()
        units = levels.units(matrix)
        change = torch.zeros_like(units)
        crosses = price > 0 and self._slope is None and self.method.bits is None
        if crosses:
            strength = pull * price * value_at(_FADE, self._progress)
            change += self._descent(state, units, strength)
        if not self._quantized_forward or (crosses and not self._soft):
            change += (state.target - units) * pull
        move = levels.weight_change(change)
        if state.insensitivity is not None:
            move *= state.insensitivity
            state.insensitivity = None
        slack = state.cell / 2 if self._quantized_forward else 0.0
        units = levels.units(matrix + move)
        inside = units.clamp(levels.values[0] - slack, levels.values[-1] + slack)
        state.weight.write(matrix + move + levels.weight_change(inside - units))

    def _descent(self, state: WeightState, units: Tensor, strength: float) -> Tensor:
        """Return the move along the descent of the entropy, at most to where it ends."""
        force = -state.bit_gradient * state.width.square() * (strength / 2)
        most = state.width / (2 * self.method.refresh)
        left = ((state.goal - units) * force.sign()).clamp_min(0)
        return force.sign() * torch.minimum(force.abs(), torch.minimum(most, left))

    def _refit(self) -> None:
        """Refit codebooks to the weights; a codebook shared by several weights stays shared."""
        by_codebook: dict[tuple[float, ...], list[WeightState]] = {}
        for state in self._states.values():
            if not state.levels.even:
                by_codebook.setdefault(tuple(state.levels.values.tolist()), []).append(state)
        for states in by_codebook.values():
            before = states[0].levels.values
            units = torch.cat([state.units().reshape(-1) for state in states])
            levels = lloyd_max(units, len(before), before, iterations=10).to(before)
            for state in states:
                state.rounding.levels = state.levels.with_values(levels)


def _rate_control(method: HEMP) -> RateControl | None:
    if method.bits is None:
        return None
    return RateControl(method.bits, method.arrival, value_at(method.rate_weight or 0.0, 0.0))
