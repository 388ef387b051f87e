"""PWFN: probabilistic weight fixing (Subia-Waud and Dasmahapatra 2023), few values per network.

Every weight has a normal distribution, whose deviation is to say how far the weight may move before
the loss suffers. In rounds, weights move to sums of few powers of two that are close for many of
them, and are fixed there; the others continue to learn. One codebook serves the whole network.
Which weight has which deviation made no difference where it was measured (docs/methods/pwfn.md).

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
from .rounds import Round, count_codes, finest_exponent, fix_more, round_record
from .tensors import NoiseSettings, NoisyTensors

__all__ = ["PWFN", "PwfnSession"]


_FRACTIONS = (0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95, 0.975, 0.99, 1.0)
_MEAN = math.sqrt(2 / math.pi)  # mean magnitude of the noise
_MOSTLY = 0.99  # share of zeros in a weight that is worth a warning
_HARDLY = 0.01  # share of the way to the largest deviation that is worth a warning
_RECENT = 0.01  # weight of the latest squared gradient in the curvature, after 100 of them
_SLACK = 1e-9  # tolerance for progress, which is a sum of rounded steps


@METHODS.register("pwfn")
@dataclass(frozen=True, kw_only=True)
class PWFN(TrainingMethod):
    """Probabilistic weight fixing.

    Clusters weights and biases of linear, convolution and attention layers. Normalization layers
    and all other vectors are trained and stored without clustering.

    Attributes:
        deviation: the deviation of each weight, that is how far it may move: "learned" (as in the
            paper, from the gradients of the noise), "curvature" (``largest / sqrt(1 + 10 h / m)``,
            h a running mean of the weight's squared gradient and m the mean of h over the network,
            approached by ``growth``), "constant" (``spread`` for all weights, as a control) or
            "relative" (``spread`` times the magnitude, as in Weight Fixing Networks).
        spread: initial deviation. Learned deviations start with this as the 75th percentile of each
            tensor, and lower for weights close to powers of two.
        largest: value that learned deviations grow towards.
        growth: how fast learned deviations grow: from one round to the next they cover
            ``1 - exp(-growth)`` of the way to ``largest``, regardless of optimizer and learning
            rate, while the loss acts against it. A constant or a :class:`Ramp`.
        alpha: weight of the paper's growth term, which is a part of the loss
            (:meth:`Tuner.penalty`). If given, it replaces ``growth``; it corresponds to
            ``growth = 0.8 * alpha * lr / (1 - momentum) * steps``.
        noise: whether the forward pass samples the weights. None samples if they are "learned".
        fractions: shares of all weights that are fixed after each round, in increasing order; the
            last one must be 1.
        begin: share of the training before the first round.
        until: share of the training before the last round, after which only normalization layers
            train.
        mode: what later rounds do with fixed weights: "lock" (they stay fixed) or "recluster"
            (every round starts over with all weights).
        terms: largest number of powers of two that are summed in a value.
        signed: whether powers of two may also be subtracted.
        finest: values are multiples of ``2**-finest``. None takes 7, or more if a layer is so small
            that a quarter of its root mean square is finer.
        distance: distance at which each round starts to search for weights, in deviations.
        widen: factor by which the distance grows if it reaches no weight.
        most: largest number of different values; None for no limit.
        prefer_zero: choose zero unless another value takes more weights than zero does, by more
            than this share.
        embeddings: whether to cluster embedding tables too.
    """

    name: ClassVar[str] = "pwfn"
    summary: ClassVar[str] = "trains for few values in the whole network, all sums of powers of 2"
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
        """Whether biases are clustered, which they always are."""
        return True

    @property
    def trains_embeddings(self) -> bool:
        """The setting ``embeddings``."""
        return self.embeddings

    def __post_init__(self) -> None:
        check_one_of("deviation", self.deviation, ("curvature", "learned", "constant", "relative"))
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
            fits = self.deviation in ("curvature", "constant") or self.noise == self._learns
            wanted = "None unless deviation is 'curvature' or 'constant'"
            require(fits, "noise", wanted, self.noise)
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
        require(good, "fractions", "increasing shares above 0 that end with 1", given)
        for name in ("begin", "until"):
            require(_is_share(getattr(self, name)), name, "a share in [0, 1]", getattr(self, name))
        after = self.begin < self.until or (self.begin == self.until and len(self.fractions) == 1)
        order = "in ascending order (equal only with one round)"
        require(after, "begin and until", order, (self.begin, self.until))

    @property
    def samples(self) -> bool:
        """Whether the forward pass samples the weights."""
        return self._learns if self.noise is None else self.noise

    @property
    def _learns(self) -> bool:
        """Whether the optimizer trains the deviations."""
        return self.deviation == "learned"

    def due(self, count: int) -> float:
        """Return the share of the training at which round ``count`` (from 0) takes place."""
        last = len(self.fractions) - 1
        if count >= last:
            return self.until
        return self.begin + (self.until - self.begin) * count / last

    def ladder(self, finest: int) -> Ladder:
        """Return the settings of clustering to multiples of ``2**-finest``."""
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
        """Initialize the deviations and start a session; ``seed`` determines the noise."""
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
    """The quantized network: codebook, indices of all weights, and versions of the parameters."""

    levels: Tensor
    index: np.ndarray[tuple[int], np.dtype[np.int32]]
    versions: dict[str, int]


class PwfnSession:
    """A training session of PWFN; see :class:`fewbits.methods.trained.base.Session`.

    Attributes:
        finest: values are multiples of ``2**-finest``.
        rounds: records of the rounds so far.
    """

    def __init__(self, method: PWFN, weights: Sequence[TunedWeight], seed: int = 0) -> None:
        self.method = method
        self.rounds: list[Round] = []
        self._source = NoiseSource(seed)
        self._progress = self._grown = 0.0
        self._steps = 0  # since the last round
        self._seen = 0  # gradients, for the curvature
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
        self.finest = finest_exponent(arrays, method.finest)
        self._final: _Final | None = None
        self._last_values: tuple[Tensor, Tensor] | None = None
        self._checked = method.deviation != "learned" or not layers
        self._last_deviation = self._tensors.mean_deviation()

    # -- the Session protocol

    def penalty(self) -> Tensor:
        """Return the growth term of the loss; zero if ``alpha`` is None."""
        alpha = value_at(self.method.alpha or 0.0, self._progress)
        active = alpha and self.method.deviation == "learned"
        return self._tensors.penalty(alpha if active else 0.0, self.method.largest, _MEAN)

    def before_step(self) -> None:
        """Read the gradients of the weights, whose squares say how sharply the loss bends."""
        if self.method.deviation == "curvature":
            self._seen += 1
            self._tensors.measure(max(1 / self._seen, _RECENT))

    def step(self) -> None:
        """Grow the deviations, and reset fixed weights to their values."""
        self._final = None
        self._steps += 1
        if not self._checked:
            self._check_optimizer()
        self._grow()
        for tensor in self._tensors:
            tensor.write_back()

    def advance(self, progress: float) -> None:
        """Run the rounds that are due."""
        self._progress = progress
        fractions = self.method.fractions
        while len(self.rounds) < len(fractions):
            if self.method.due(len(self.rounds)) > progress + _SLACK:
                break
            self._round(fractions[len(self.rounds)])

    def parametrization(self, weight: TunedWeight) -> nn.Module | None:
        """Return the module that samples the weight and stops gradients of fixed ones."""
        return self._tensors.tensors[weight.name].noise

    def parameters(self) -> Iterable[nn.Parameter]:
        """Return the deviations if they are learned."""
        learned = self.method.deviation == "learned"
        return [tensor.noise.deviation for tensor in self._tensors] if learned else []

    def cell(self, weight: TunedWeight) -> float:
        """Return the distance between neighbouring values."""
        return 2.0**-self.finest

    def quantized(self, weight: TunedWeight) -> Quantized:
        """Return the weight quantized as if the last round took place now."""
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
        """Return bits per weight, share fixed, number of values, share of zeros, mean deviation."""
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
        """Return the live deviations of each tensor by name; copy them if you keep them."""
        return {
            name: tensor.noise.deviation.detach() for name, tensor in self._tensors.tensors.items()
        }

    def state_dict(self) -> dict[str, Any]:
        """Return fixed weights, deviations, counters and records of the rounds."""
        counters = {
            "progress": self._progress,
            "grown": self._grown,
            "noise": self._source.count,
            "seen": self._seen,
        }
        return {
            "tensors": self._tensors.state_dict(),
            "rounds": [one.to_dict() for one in self.rounds],
            "finest": self.finest,
            "before": self._last_deviation,
            **counters,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state returned by :meth:`state_dict`."""
        self._progress, self._grown = state["progress"], state["grown"]
        self._seen = state["seen"]
        self._source.count, self.finest = state["noise"], state["finest"]
        self.rounds = [Round.from_dict(one) for one in state["rounds"]]
        self._last_deviation = state["before"]
        self._tensors.load_state_dict(state["tensors"])
        self._final = self._last_values = None

    # -- implementation

    def _grow(self) -> None:
        """Move the deviations of free weights towards the largest, by the progress made."""
        method, passed = self.method, self._progress - self._grown
        self._grown = self._progress
        grows = method.deviation == "curvature" or (method.alpha is None and method._learns)
        if not grows or passed <= 0:
            return
        length = (method.until - method.begin) / max(1, len(method.fractions) - 1)
        rounds = passed / length if length else passed
        share = -math.expm1(-value_at(method.growth, self._progress) * rounds)
        move = self._tensors.shape if method.deviation == "curvature" else self._tensors.grow
        move(share, method.largest)

    def _round(self, fraction: float) -> None:
        deviation = self._tensors.mean_deviation()
        self._warn_of_growth(deviation - self._last_deviation)
        ladder = self.method.ladder(self.finest)
        state, clustering = fix_more(self._tensors.flat_state(), fraction, ladder, lock=self._lock)
        self._tensors.update(state)
        self._final = None
        self._last_deviation, self._steps = self._tensors.mean_deviation(), 0
        facts = {"deviation": deviation, "unit": ladder.unit}
        self.rounds.append(round_record(state, clustering, self._progress, fraction, **facts))
        zeroed = self._tensors.zeroed(_MOSTLY) if fraction == 1 else []
        if zeroed:
            warnings.warn(
                f"more than {_MOSTLY:.0%} of {', '.join(zeroed)} became zero. Use a larger "
                "'finest', or less 'growth'.",
                stacklevel=4,
            )

    @property
    def _lock(self) -> bool:
        """Whether fixed weights stay fixed, as they always do after the last round."""
        return self.method.mode == "lock" or len(self.rounds) == len(self.method.fractions)

    def _finished(self) -> _Final:
        ladder = self.method.ladder(self.finest)
        state, _ = fix_more(self._tensors.flat_state(), 1.0, ladder, lock=self._lock)
        codes, _, index = count_codes(state.values, ladder.unit)
        levels = torch.from_numpy((codes / ladder.unit).astype(np.float32))
        return _Final(levels, index, self._tensors.versions())

    def _check_optimizer(self) -> None:
        """Refuse training that updates the weights but not their deviations."""
        tensor = next(tensor for tensor in self._tensors if tensor.grows)
        now = tensor.weight.parameter.detach(), tensor.noise.deviation.detach()
        if self._last_values is not None:
            moved, learned = (
                not torch.equal(a, b) for a, b in zip(now, self._last_values, strict=True)
            )
            if moved and not learned:
                raise ConfigError(_why_unlearned(tensor.noise.training))
            self._checked = learned
        self._last_values = None if self._checked else (now[0].clone(), now[1].clone())

    def _warn_of_growth(self, grown: float) -> None:
        """Warn once if the paper's growth has no effect in this number of steps."""
        method = self.method
        active = method.alpha is not None and method.deviation == "learned"
        if not active or not self._steps or len(self.rounds) != 1:
            return
        far = method.largest - self._last_deviation
        if far > method.largest / 2 and grown < _HARDLY * far:
            warnings.warn(
                f"alpha={method.alpha} has hardly increased the deviations in one round of this "
                "training. Use a larger alpha, or growth= instead, which is counted in rounds.",
                stacklevel=5,
            )


def _why_unlearned(training: bool) -> str:
    if not training:
        return (
            "the weights are trained, but not their deviations, which pwfn learns: the network is "
            "in evaluation mode, where no noise is drawn. Call model.train() before training."
        )
    return (
        "the optimizer trains the weights, but not their deviations, which pwfn learns. Create it "
        "after fewbits.prepare with model.parameters(), which has both."
    )
