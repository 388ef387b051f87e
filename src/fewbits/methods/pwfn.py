"""PWFN: probabilistic weight fixing (Subia-Waud and Dasmahapatra 2023), few values for a network.

Every weight is a normal law whose deviation is learned: how far it may move before the loss
notices. In rounds, weights move to sums of few powers of two that many of them may move to, and are
fixed there; the others go on learning. One codebook serves the whole network.

Reference:
    Subia-Waud and Dasmahapatra, "Probabilistic Weight Fixing: Large-scale training of neural
    network weight uncertainties for quantization", NeurIPS 2023. Its predecessor: "Weight Fixing
    Networks", ECCV 2022.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ..errors import is_number, require
from ..ops.weight_fixing import Ladder
from ..schedule import Ramp
from .gridded import check_number, check_one_of, check_switch, is_whole
from .pwfn_course import PwfnCourse
from .trained import TRAINED, TunedWeight

__all__ = ["PWFN"]

_FRACTIONS = (0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95, 0.975, 0.99, 1.0)


@TRAINED.register("pwfn")
@dataclass(frozen=True, kw_only=True)
class PWFN:
    """Probabilistic weight fixing.

    Clusters weights and biases of linear, convolution and attention layers. Normalizations and all
    other vectors are trained, and stored as they are.

    Attributes:
        deviation: "learned" (the paper's), "constant" (``spread`` for all, a control), or
            "relative" (``spread`` times the magnitude, the distance of Weight Fixing Networks).
        spread: deviations at the start: the 75th percentile of each tensor where they are learned,
            and less beside powers of two.
        largest: deviation that the growth leads to.
        growth: of learned deviations of weights: between two rounds they go ``1 - exp(-growth)``
            of the way to ``largest``, whatever the optimizer and its rate; the loss acts against
            it. A :class:`Ramp` follows the training.
        alpha: the paper's growth, a part of the loss (:meth:`Tuner.penalty`), of which the rate
            and the number of steps make ``growth = 0.8 * alpha * rate / (1 - momentum) * steps``.
            Given, it takes the place of ``growth``.
        noise: whether the forward pass samples; None: where deviations are learned.
        fractions: of all weights that are fixed after each round, the last one 1.
        begin: share of the training before the first round.
        until: share of the training before the last round; after it only normalizations train.
        mode: "lock" (fixed is fixed) or "recluster" (every round begins with all weights).
        terms: most powers of two in a value.
        signed: whether powers may be subtracted in a sum.
        finest: values are multiples of ``2**-finest``; None: at least 7, and a quarter of the root
            mean square of the layer where it is least.
        distance: first distance in a round, in deviations.
        widen: factor on the distance where no weight is in reach.
        most: how many values there may be; None for any number.
        prefer_zero: 0 is taken before a value that takes at most this share more weights.
        embeddings: whether embedding tables are clustered too.
    """

    name: ClassVar[str] = "pwfn"
    summary: ClassVar[str] = (
        "trains towards a few values for the whole network, sums of powers of 2"
    )
    paper: ClassVar[str] = (
        "Subia-Waud, Dasmahapatra, Probabilistic Weight Fixing: Large-scale training of neural "
        "network weight uncertainties for quantization, NeurIPS 2023"
    )

    deviation: str = "learned"
    spread: float = 0.0025
    largest: float = 0.05
    growth: float | Ramp = 0.4
    alpha: float | Ramp | None = None
    noise: bool | None = None
    fractions: tuple[float, ...] = _FRACTIONS
    begin: float = 0.1
    until: float = 1.0
    mode: str = "lock"
    terms: int = 4
    signed: bool = False
    finest: int | None = None
    distance: float = 1.0
    widen: float = 2.0
    most: int | None = None
    prefer_zero: float = 0.0
    embeddings: bool = False

    biases: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_one_of("deviation", self.deviation, ("learned", "constant", "relative"))
        check_one_of("mode", self.mode, ("lock", "recluster"))
        for name in ("spread", "largest", "distance"):
            check_number(name, getattr(self, name), 0)
        check_number("widen", self.widen, 1)
        check_number("prefer_zero", self.prefer_zero, 0, inclusive=True)
        for name in ("growth", "alpha"):
            object.__setattr__(self, name, Ramp.of(getattr(self, name)))
            if name == "growth" or self.alpha is not None:
                _check_scheduled(name, getattr(self, name))
        for name in ("signed", "embeddings"):
            check_switch(name, getattr(self, name))
        if self.noise is not None:
            check_switch("noise", self.noise)
            fits = self.deviation == "constant" or self.noise == (self.deviation == "learned")
            require(fits, "noise", "None unless deviation is 'constant'", self.noise)
        _check_whole("terms", self.terms, 1, 24)
        if self.finest is not None:
            _check_whole("finest", self.finest, 0, 24)
        if self.most is not None:
            _check_whole("most", self.most, 2, 2**16)
        self._check_rounds()

    def _check_rounds(self) -> None:
        given: Any = self.fractions
        if isinstance(given, list):
            given = tuple(given)
            object.__setattr__(self, "fractions", given)
        good = isinstance(given, tuple) and all(_is_share(f) for f in given) and bool(given)
        good = good and sorted(set(given)) == list(given) and given[0] > 0 and given[-1] == 1
        require(good, "fractions", "increasing shares above 0, the last one 1", given)
        for name in ("begin", "until"):
            require(_is_share(getattr(self, name)), name, "a share in [0, 1]", getattr(self, name))
        after = self.begin < self.until or (self.begin == self.until and len(self.fractions) == 1)
        require(after, "begin, until", "in order", (self.begin, self.until))

    @property
    def samples(self) -> bool:
        """Whether the forward pass sees samples of the weights."""
        return self.deviation == "learned" if self.noise is None else self.noise

    def due(self, count: int) -> float:
        """Return the share of the training at which round ``count``, from 0, takes place."""
        last = len(self.fractions) - 1
        if count >= last:
            return self.until
        return self.begin + (self.until - self.begin) * count / last

    def ladder(self, finest: int) -> Ladder:
        """Return what weights may move to on a grid of ``2**-finest``."""
        return Ladder(
            finest,
            terms=self.terms,
            distance=self.distance,
            widen=self.widen,
            signed=self.signed,
            most=self.most,
            prefer_zero=self.prefer_zero,
        )

    def start(self, weights: Sequence[TunedWeight], seed: int = 0) -> PwfnCourse:
        """Give every weight its first deviation, and begin; noise follows from ``seed``."""
        return PwfnCourse(self, weights, seed)


def _is_share(value: object) -> bool:
    return is_number(value) and 0 <= value <= 1


def _check_whole(name: str, value: object, least: int, most: int) -> None:
    good = is_whole(value) and least <= value <= most  # type: ignore[operator]
    require(good, name, f"an integer from {least} to {most}", value)


def _check_scheduled(name: str, value: object) -> None:
    for one in (value.start, value.end) if isinstance(value, Ramp) else (value,):
        check_number(name, one, 0, inclusive=True)
