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

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ....engine.layers.layer import Quantized, QuantizedMatrix
from ....errors import ConfigError, is_number, require
from ....ops.weight_fixing import Ladder
from ...base import METHODS, Capabilities, TrainingMethod
from ...schedule import Ramp, value_at
from ...uniform import check_number, check_one_of, check_switch, is_whole
from ..base import TunedWeight
from .noisy_weights import NoiseSource
from .rounds import Round, counted, finest_of, fix_more, told
from .tensors import NoiseSettings, NoisyTensors

__all__ = ["PWFN", "PwfnSession"]


_FRACTIONS = (0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95, 0.975, 0.99, 1.0)
_MEAN = math.sqrt(2 / math.pi)  # of the magnitude of the noise
_MOSTLY = 0.99
_HARDLY = 0.01  # of the way to the largest deviation
_SLACK = 1e-9  # of the training: shares are sums of rounded steps


@METHODS.register("pwfn")
@dataclass(frozen=True, kw_only=True)
class PWFN(TrainingMethod):
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
            of the way to ``largest``, whatever the optimizer and learning rate; the loss acts
            against it. A :class:`Ramp` follows the training.
        alpha: the paper's growth, a part of the loss (:meth:`Tuner.penalty`). It replaces
            ``growth``, and amounts to ``growth = 0.8 * alpha * lr / (1 - momentum) * steps``.
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

    capabilities: ClassVar[Capabilities] = Capabilities(trains=True, needs_labels=True)

    @property
    def trains_biases(self) -> bool:
        """Biases have the network's values too."""
        return True

    @property
    def trains_embeddings(self) -> bool:
        """The setting ``embeddings``."""
        return self.embeddings

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

    def start(self, weights: Sequence[TunedWeight], seed: int = 0) -> PwfnSession:
        """Give every weight its first deviation, and begin; noise follows from ``seed``."""
        return PwfnSession(self, weights, seed)


def _is_share(value: object) -> bool:
    return is_number(value) and 0 <= value <= 1


def _check_whole(name: str, value: object, least: int, most: int) -> None:
    good = is_whole(value) and least <= value <= most  # type: ignore[operator]
    require(good, name, f"an integer from {least} to {most}", value)


def _check_scheduled(name: str, value: object) -> None:
    for one in (value.start, value.end) if isinstance(value, Ramp) else (value,):
        check_number(name, one, 0, inclusive=True)


@dataclass(frozen=True, eq=False)
class _Final:
    """What a file would hold: the codebook, the indices of the row, and what they follow from."""

    levels: Tensor
    index: np.ndarray[tuple[int], np.dtype[np.int32]]
    versions: dict[str, int]


class PwfnSession:
    """The state of one training with PWFN; see :class:`fewbits.methods.trained.base.Session`.

    Attributes:
        finest: values are multiples of ``2**-finest``.
        rounds: what was done so far.
    """

    def __init__(self, method: PWFN, weights: Sequence[TunedWeight], seed: int = 0) -> None:
        self.method = method
        self.rounds: list[Round] = []
        self._source = NoiseSource(seed)
        self._progress = self._grown = 0.0
        self._steps = 0  # since the last round
        self._tensors = NoisyTensors(
            weights,
            NoiseSettings(
                method.deviation,
                method.spread,
                method.largest,
                method.samples,
                method.alpha is not None,
                self._source,
            ),
        )
        self._parts = self._tensors.parts()
        layers = [tensor.weight for tensor in self._tensors if tensor.grows]
        arrays = [(w.name, w.parameter.detach().float().cpu().numpy()) for w in layers]
        self.finest = finest_of(arrays, method.finest)
        self._final: _Final | None = None
        self._seen: tuple[Tensor, Tensor] | None = None
        self._checked = method.deviation != "learned" or not layers
        self._before = self._tensors.mean_deviation()

    # -- what Session asks for

    def penalty(self) -> Tensor:
        """Return the growth as a part of the loss; zero where it is not (``alpha`` is None)."""
        alpha = value_at(self.method.alpha or 0.0, self._progress)
        active = alpha and self.method.deviation == "learned"
        return self._tensors.penalty(alpha if active else 0.0, self.method.largest, _MEAN)

    def before_step(self) -> None:
        """Look at nothing: the noise brings the gradients of the deviations."""

    def step(self) -> None:
        """Let deviations grow, and put fixed weights back to their values."""
        self._final = None
        self._steps += 1
        if not self._checked:
            self._check_optimizer()
        self._grow()
        for tensor in self._tensors:
            tensor.write_back()

    def advance(self, progress: float) -> None:
        """Do the rounds that are due."""
        self._progress = progress
        fractions = self.method.fractions
        while len(self.rounds) < len(fractions):
            if self.method.due(len(self.rounds)) > progress + _SLACK:
                break
            self._round(fractions[len(self.rounds)])

    def parametrization(self, weight: TunedWeight) -> nn.Module | None:
        """Return what samples the weight, and keeps gradients from fixed ones."""
        return self._tensors.tensors[weight.name].noise

    def parameters(self) -> Iterable[nn.Parameter]:
        """Return the deviations, where they are learned."""
        learned = self.method.deviation == "learned"
        return [tensor.noise.deviation for tensor in self._tensors] if learned else []

    def cell(self, weight: TunedWeight) -> float:
        """Return the finest value."""
        return 2.0**-self.finest

    def quantized(self, weight: TunedWeight) -> Quantized:
        """Return the weight as if the last round were now."""
        final = self._final
        if final is None or final.versions[weight.name] != weight.parameter._version:
            final = self._final = self._finished()
        index = torch.from_numpy(final.index[self._parts[weight.name]]).reshape(weight.shape)
        matrix = weight.view.matrix(index.to(weight.parameter.device))
        levels = final.levels.to(weight.parameter.device)
        zeros = float((levels[matrix.long()] == 0).float().mean())
        info = {"levels": float(len(levels)), "zeros": zeros}
        return QuantizedMatrix(matrix, None, levels=levels, info=info)

    def measures(self) -> Mapping[str, float]:
        """Return bits per weight if stored now, share fixed, values, zeros, mean deviation."""
        total = sum(tensor.held.numel() for tensor in self._tensors)
        last = self.rounds[-1] if self.rounds else None
        fixed = last.fixed / max(1, total) if last else 0.0
        return {
            "bits_per_weight": fixed * (last.entropy if last else 0.0) + (1 - fixed) * 32,
            "fixed": fixed,
            "values": float(last.values) if last else 0.0,
            "zeros": last.zeros if last else 0.0,
            "deviation": self._tensors.mean_deviation(),
        }

    def deviations(self) -> dict[str, Tensor]:
        """Return the live deviations of each tensor by its name; copy them to keep them."""
        return {
            name: tensor.noise.deviation.detach() for name, tensor in self._tensors.tensors.items()
        }

    def state_dict(self) -> dict[str, Any]:
        """Return what is fixed, deviations, counters and the log."""
        counters = {"progress": self._progress, "grown": self._grown, "noise": self._source.count}
        rounds = [one.to_dict() for one in self.rounds]
        tensors = self._tensors.state_dict()
        told = {"tensors": tensors, "rounds": rounds, "finest": self.finest, "before": self._before}
        return {**told, **counters}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken."""
        self._progress, self._grown = state["progress"], state["grown"]
        self._source.count, self.finest = state["noise"], state["finest"]
        self.rounds = [Round.from_dict(one) for one in state["rounds"]]
        self._before = state["before"]
        self._tensors.load_state_dict(state["tensors"])
        self._final = self._seen = None

    # -- how

    def _grow(self) -> None:
        """Let the free deviations of weights go their part of the way to the largest."""
        method, passed = self.method, self._progress - self._grown
        self._grown = self._progress
        if method.alpha is not None or method.deviation != "learned" or passed <= 0:
            return
        length = (method.until - method.begin) / max(1, len(method.fractions) - 1)
        rounds = passed / length if length else passed
        share = -math.expm1(-value_at(method.growth, self._progress) * rounds)
        self._tensors.grow(share, method.largest)

    def _round(self, fraction: float) -> None:
        deviation = self._tensors.mean_deviation()
        self._warn_of_growth(deviation - self._before)
        ladder = self.method.ladder(self.finest)
        row, found = fix_more(self._tensors.row(), fraction, ladder, lock=self._locks)
        self._tensors.take(row)
        self._final = None
        self._before, self._steps = self._tensors.mean_deviation(), 0
        how = {"deviation": deviation, "unit": ladder.unit}
        self.rounds.append(told(row, found, self._progress, fraction, **how))
        zeroed = self._tensors.zeroed(_MOSTLY) if fraction == 1 else []
        if zeroed:
            warnings.warn(
                f"more than {_MOSTLY:.0%} of {', '.join(zeroed)} became zero. Take a larger "
                "finest, or less growth.",
                stacklevel=4,
            )

    @property
    def _locks(self) -> bool:
        """Whether fixed weights stay where they are: after the last round they do."""
        return self.method.mode == "lock" or len(self.rounds) == len(self.method.fractions)

    def _finished(self) -> _Final:
        ladder = self.method.ladder(self.finest)
        row, _ = fix_more(self._tensors.row(), 1.0, ladder, lock=self._locks)
        codes, _, index = counted(row.values, ladder.unit)
        levels = torch.from_numpy((codes / ladder.unit).astype(np.float32))
        return _Final(levels, index, self._tensors.versions())

    def _check_optimizer(self) -> None:
        """Refuse a training of the weights that leaves their deviations as they were."""
        tensor = next(tensor for tensor in self._tensors if tensor.grows)
        now = tensor.weight.parameter.detach(), tensor.noise.deviation.detach()
        if self._seen is not None:
            moved, learned = (not torch.equal(a, b) for a, b in zip(now, self._seen, strict=True))
            if moved and not learned:
                raise ConfigError(_why_unlearned(tensor.noise.training))
            self._checked = learned
        self._seen = None if self._checked else (now[0].clone(), now[1].clone())

    def _warn_of_growth(self, grown: float) -> None:
        """Tell once that the paper's growth does nothing in so few steps."""
        method = self.method
        active = method.alpha is not None and method.deviation == "learned"
        if not active or not self._steps or len(self.rounds) != 1:
            return
        far = method.largest - self._before
        if far > method.largest / 2 and grown < _HARDLY * far:
            warnings.warn(
                f"alpha={method.alpha} has brought the deviations no nearer to their largest in a "
                "round of this training. Take more, or growth= in its place, which counts in "
                "rounds.",
                stacklevel=5,
            )


def _why_unlearned(training: bool) -> str:
    if not training:
        return (
            "the weights are trained, but not the deviations that pwfn learns: the network is in "
            "evaluation mode, where no noise is drawn. Call model.train() before the training."
        )
    return (
        "the optimizer trains the weights, but not the deviations that pwfn learns. "
        "Make it after fewbits.prepare, over model.parameters(), which has both."
    )
