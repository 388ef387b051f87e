"""HEMP: high-order entropy minimization (Tartaglione et al. 2021), weighed by the crossing rule.

Weights are pulled to their levels and, along the gradient of the entropy of soft indices, to the
more popular of their two neighbours. The entropy's weight is set by what it does: a weight may
leave its cell when the neighbour is likelier by more than ``1 / rate_weight`` bits.

Reference:
    Tartaglione, Lathuiliere, Fiandrotti, Cagnazzo and Grangetto, "HEMP: High-order entropy
    minimization for neural network compression", Neurocomputing 461, 2021.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from ..errors import is_number, require
from ..ops.soft_entropy import ORDERS
from ..schedule import Ramp
from .gridded import check_number, check_one_of, check_switch, is_whole
from .hemp_course import HempCourse
from .trained import TRAINED, TunedWeight

__all__ = ["HEMP"]

_FLOATS, _CODED = 0.4, 0.1  # rate_weight by the start
_PULL = Ramp(0.05, 0.5, begin=0.8, until=0.9, shape="geometric")


@TRAINED.register("hemp")
@dataclass(frozen=True, kw_only=True)
class HEMP:
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

    keeps_levels: ClassVar[bool] = True

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

    def start(self, weights: Sequence[TunedWeight], seed: int = 0) -> HempCourse:
        """Fit the levels, and begin. Nothing of it is random."""
        if self.rate_weight is not None:
            return HempCourse(self, weights)
        coded = any(weight.start is not None for weight in weights)
        return HempCourse(replace(self, rate_weight=_CODED if coded else _FLOATS), weights)


def _check_scheduled(name: str, value: object) -> None:
    values = (value.start, value.end) if isinstance(value, Ramp) else (value,)
    for one in values:
        require(is_number(one) and one >= 0, name, "a number >= 0, or a Ramp between such", value)
