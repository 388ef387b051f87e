"""The cases of ``transform_ablation.py``, and the bench on which each is run."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fewbits
from calibration_rows import held_out
from fewbits.compression.pipeline import Pipeline
from fewbits.methods.rate_distortion import domains, rate_problem
from fewbits.methods.rate_distortion import transform as transform_module
from fewbits.ops.transforms import fold, unfold
from fewbits.progress import silent
from fewbits.recipe.plan import make_plan
from fewbits.search import Goal, SlopeSearch, Trace, Trial
from images import cifar10, normalise
from networks import resnet20
from resnet20_cifar10 import calibration_batches

__all__ = ["ARMS", "BASELINES", "BUDGETS", "FORMS", "FORM_SLOPES", "METRICS", "METRIC_SLOPES",
           "Bench", "bench", "bits_saved", "budgets_of", "drift", "logits", "test_set"]  # fmt: skip

Row = dict[str, Any]

BUDGETS = (60_000, 46_000)
_BASES = {
    "identity": {"basis": "none"},
    "klt": {"basis": "klt", "side": "row", "basis_bits": 4},
    "elt": {"basis": "elt", "side": "row", "basis_bits": 4},
    "elt where it pays": {"basis": "elt", "basis_bits": 4},
}
ARMS: dict[str, Row] = {
    f"{basis}, {'feedback' if feedback else 'no feedback'}, {rate}": {
        "method": "transform",
        **settings,
        "feedback": feedback,
        "rate": rate,
    }
    for basis, settings in _BASES.items()
    for feedback in (True, False)
    for rate in ("adaptive", "none")
    if feedback or basis != "elt where it pays"
}
_HOPEFUL = ("identity, feedback, adaptive", "elt where it pays, feedback, adaptive")


def budgets_of(arm: str) -> tuple[int, ...]:
    """Return the budgets at which an arm is measured: the smaller one for those that may win."""
    return BUDGETS if arm in _HOPEFUL else BUDGETS[:1]


_BLOCKS = {"method": "transform", "form": "blocks", "feedback": False, "rate": "none"}
FORMS: dict[str, Row] = {name: _BLOCKS | settings for name, settings in _BASES.items()}
FORM_SLOPES = (3e-5, 2e-4, 1e-3)

_PLAIN: Row = {"method": "transform", "feedback": False, "rate": "none"}
_AT_BUDGET: dict[str, Row] = {
    "elt, basis and coefficients apart": _PLAIN | _BASES["elt"],
    "elt, coefficients of the quantized basis": _PLAIN | _BASES["elt"],
    "elt, without bias correction": _PLAIN | _BASES["elt"] | {"bias_correction": False},
    "identity": _PLAIN | _BASES["identity"],
    "identity, without bias correction": _PLAIN | _BASES["identity"] | {"bias_correction": False},
    "identity, feedback": _PLAIN | _BASES["identity"] | {"feedback": True},
}
_APART = "elt, basis and coefficients apart"
_LEVELS: dict[str, list[Row]] = {
    "nearest, equal bits per channel": [{"method": "nearest", "bits": b} for b in (3, 4)],
    "gptq": [{"method": "gptq", "levels": n} for n in (5, 8, 11)],
}
BASELINES = (*_AT_BUDGET, *_LEVELS)
_BASELINE_BUDGET = 60_000


def _without_cross(statistics: Any, weight: Tensor) -> tuple[Tensor, Tensor]:
    second, _ = _centred(statistics, weight)
    return second, second


_centred = rate_problem._centred

# Constants of the metric that is shared by rdoq and transform, and the target; judged held out.
METRICS: dict[str, Row] = {
    "as it is": {},
    "gradients alone (no inputs' own)": {"_GRADIENTS": 1.0},
    "0.1 inputs' own": {"_GRADIENTS": 0.9},
    "0.5 inputs' own": {"_GRADIENTS": 0.5},
    "target of the float inputs": {"_centred": _without_cross},
}
METRIC_SLOPES = (1e-4, 2.5e-4, 5e-4)


@cache
def bench(seed: int) -> Bench:
    """Return the bench of a calibration seed, one for each process: probes are done once."""
    return Bench(seed, calibration_batches(1024, seed))


@cache
def _network() -> nn.Module:
    return resnet20().eval()


@cache
def test_set() -> tuple[Tensor, Tensor, Tensor]:
    images, labels = cifar10("test")
    x = normalise(images)
    return x, labels, logits(_network(), x)


@cache
def _held() -> tuple[Tensor, Tensor]:
    x = held_out(2000, [0, 1, 2])
    return x, logits(_network(), x)


@torch.no_grad()
def logits(net: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([net(batch) for batch in images.split(500)])


def drift(before: Tensor, after: Tensor) -> float:
    """Return the mean squared change of logits (samples, classes), centred."""
    gap = after - before
    return float((gap - gap.mean(1, keepdim=True)).square().sum(1).mean())


@dataclass
class Bench:
    """Compresses the network at one calibration seed; folding and probes are done once."""

    seed: int
    calibration: list[Tensor]
    memory: dict[str, Any] = field(default_factory=dict)

    def compress(self, settings: Row) -> fewbits.CodedModel:
        method = fewbits.methods.from_settings(settings)
        base = fewbits.Recipe.of("smallest")
        recipe = replace(base, rules=(fewbits.Rule("*", method),), seed=self.seed)
        plan = make_plan(_network(), recipe)
        pipeline = Pipeline(plan, self.calibration, None, 1 << 30, silent, self.memory)
        return pipeline.run(_network(), "")

    def folded(self) -> nn.Module:
        """Return the float network with its normalizations absorbed; probes are in the memory."""
        if "probe" not in self.memory:
            self.compress({"method": "transform", "rate": "none"})
        network = copy.deepcopy(_network())
        for name, state in self.memory["fold_batchnorm"][1].items():
            network.get_submodule(name).load_state_dict(state)
        return network

    def bias_of(self, network: nn.Module, layer: str) -> Tensor:
        """Return the bias that a mean error of a layer of the folded network goes into."""
        sinks = {pair.layer: pair.norm for pair in self.memory["fold_batchnorm"][0]}
        bias: Tensor = network.get_submodule(sinks.get(layer, layer)).bias.detach()
        return bias

    def loaded(self, coded: fewbits.CodedModel) -> nn.Module:
        return coded.load_into(copy.deepcopy(_network())).eval()

    def at_slope(self, settings: Row, images: int = 2000) -> Row:
        """Compress and measure the error on the first test images."""
        coded = self.compress(settings)
        x, _, before = test_set()
        after = logits(self.loaded(coded), x[:images])
        return _sizes(coded) | {"drift": drift(before[:images], after)}

    def at_budget(
        self, settings: Row, budget: int, start: float, trials: list[Trial], images: int = 10_000
    ) -> Row:
        """Search the slope; ``trials`` of other budgets are used, and new ones added."""
        goal = Goal("target_bytes", budget)
        held: dict[float, fewbits.CodedModel] = {}
        trace = Trace(goal.to_dict(), trials=list(trials))

        def evaluate(slope: float) -> Trial:
            held[slope] = self.compress(settings | {"slope": slope})
            report = held[slope].size_report()
            return Trial(slope, report.file_bytes, report.bits_per_weight)

        best = SlopeSearch(goal, start, trace, len(trials) + 8).run(evaluate)
        trials[:] = trace.trials
        coded = held.get(best.slope) or self.compress(settings | {"slope": best.slope})
        x, labels, before = test_set()
        after = logits(self.loaded(coded), x[:images])
        measured = {"drift": drift(before[:images], after)}
        if images == len(x):
            measured["accuracy"] = 100 * float((after.argmax(1) == labels).double().mean())
        searched = {"slope": best.slope, "evaluations": len(held)}
        return _sizes(coded) | measured | searched

    def baseline(self, name: str) -> list[Row]:
        """Return one row at the budget, or one for each setting of a method without a slope."""
        if name in _LEVELS:
            return [self.at_slope(settings) | {"settings": settings} for settings in _LEVELS[name]]
        settings = _AT_BUDGET[name]
        with _apart() if name == _APART else _as_is():
            return [
                self.at_budget(settings, _BASELINE_BUDGET, 3e-4, [], 2000) | {"settings": settings}
            ]

    def with_metric(self, name: str, slope: float) -> Row:
        """Compress with other constants, rounding only; judge on held-out training images."""
        settings = {"method": "transform", "rate": "none", "slope": slope}
        with _constants(METRICS[name]):
            coded = self.compress(settings)
        x, before = _held()
        after = logits(self.loaded(coded), x).log_softmax(1)
        told = F.kl_div(after, before.log_softmax(1), log_target=True, reduction="batchmean")
        return _sizes(coded) | {"divergence": float(told)}


def _sizes(coded: fewbits.CodedModel) -> Row:
    report = coded.size_report()
    return {
        "file_bytes": report.file_bytes,
        "bits_per_weight": report.bits_per_weight,
        "transformed_layers": sum(i.get("vectors", 0) > 0 for i in coded.info.values()),
        "foretold": sum(i.get("distortion", 0.0) for i in coded.info.values()),
        "layers_of_zeros": sum(i.get("zeros", 0) == 1 for i in coded.info.values()),
    }


@contextmanager
def _as_is() -> Iterator[None]:
    yield


@contextmanager
def _constants(values: Row) -> Iterator[None]:
    before = {name: getattr(rate_problem, name) for name in values}
    for name, value in values.items():
        setattr(rate_problem, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(rate_problem, name, value)


@contextmanager
def _apart() -> Iterator[None]:
    """Coefficients as the paper has them: of the basis before it was quantized."""
    real = domains.transformed

    def independent(
        weight: Tensor, felt: Any, side: str, basis: Tensor, *, bits: float, keep: Any = None
    ) -> Any:
        domain = real(weight, felt, side, basis, bits=bits, keep=keep)
        exact = torch.linalg.solve(basis, unfold(weight, felt.kernel, side))
        exact = exact if keep is None else exact[keep]
        return replace(domain, values=fold(exact, domain.shape, felt.kernel, side))

    transform_module.transformed = independent
    try:
        yield
    finally:
        transform_module.transformed = real


def bits_saved(before: float, after: float) -> float:
    """Return what a fall of the distortion is worth at a high rate, in bits for each weight."""
    return 0.5 * math.log2(before / after)
