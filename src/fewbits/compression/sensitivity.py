"""What each layer alone does to the network when it is quantized, and what that saves."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..coded import Contents
from ..container import encode, measure
from ..engine.layers.layer import LayerMatrix, Quantized
from ..engine.layers.pack import pack
from ..engine.layers.targets import Target, check_finite, retie
from ..engine.lockstep.layer_check import check_layers
from ..engine.lockstep.lockstep import run_lockstep
from ..engine.lockstep.quantizer import LayerQuantizer, Work, quantize_blind
from ..engine.network.batches import Forward, as_batches, as_forward
from ..engine.network.copying import copied
from ..engine.network.isolation import isolated_pass
from ..errors import CalibrationError, ConfigError, require
from ..methods import AnyMethod, PostTrainingMethod, as_method, trains
from ..progress import Progress, ProgressEvent, silent
from ..recipe.plan import fallback_of, make_plan
from ..recipe.recipe import Recipe, Rule
from .coded_model import unwrapped

__all__ = ["LayerHarm", "sensitivity"]


@dataclass(frozen=True)
class LayerHarm:
    """One weight quantized at one width, all others in float.

    Attributes:
        name: of the weight.
        method: that quantized it; "nearest" where its inputs cannot be seen.
        bits: nominal width of its indices.
        weights: number of its values.
        bytes: coded alone: indices and steps.
        saved: bytes of the float32 values less ``bytes``.
        layer_error: squared error of the layer's output over its squared output; None where its
            inputs cannot be seen.
        mse: mean squared change of the network's output, per element.
        kl: mean Kullback-Leibler divergence (nats) of the softmax over the output's last axis.
        score: what ``evaluate`` returned; None without.
    """

    name: str
    method: str
    bits: int
    weights: int
    bytes: int
    saved: int
    layer_error: float | None
    mse: float
    kl: float
    score: float | None = None

    @property
    def harm(self) -> float:
        """Divergence per byte saved."""
        return self.kl / max(1, self.saved)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {**asdict(self), "harm": self.harm}


@torch.inference_mode(False)
def sensitivity(
    model: nn.Module,
    method: AnyMethod | str,
    calibration: Iterable[Any] | Tensor,
    bits: Sequence[int] = (2, 3, 4),
    forward: Forward | None = None,
    *,
    evaluate: Callable[[nn.Module], float] | None = None,
    effort: str = "balanced",
    seed: int = 0,
    progress: Progress = silent,
) -> list[LayerHarm]:
    """Quantize every weight alone at every width; the most harm per byte saved comes first.

    Biases are left as they are: what a mean shift could repay counts as harm.

    Args:
        model: the float network; stays as it is.
        method: with a setting ``bits``, or its name, such as "gpfq".
        calibration: batches for the statistics and for the change of the output.
        bits: widths to try.
        forward: calls the network on a batch and returns its output.
        evaluate: ``evaluate(model) -> score`` on selection data; costs a pass for each row.
        effort: of coding, for ``bytes``.
        seed: of every random choice.
        progress: told after every batch, and every row that is evaluated.

    Cost: one lockstep pass, then a forward pass over all batches for each weight and width.

    Raises:
        ConfigError: a method without widths, or widths it does not take.
        CalibrationError: no batches, or a network whose output is no tensor.
    """
    chosen = _at_widths(as_method(method), bits)
    model = unwrapped(model)
    batches = as_batches(calibration, model if forward is None else None)
    plan = make_plan(model, Recipe((Rule("*", chosen[bits[0]]),), seed=seed))
    check_finite(model)
    network = copied(model).eval()
    retie(network, {**plan.aliases, **plan.bound})
    targets = [entry.target for entry in plan.entries]
    alone = _quantize_alone(network, targets, chosen, batches, as_forward(forward), seed=seed)
    changes = _Changes(network, alone, as_forward(forward))
    changes.measure(batches, progress)
    rows = []
    for place, one in enumerate(alone):
        score = None if evaluate is None else changes.score(one, evaluate)
        rows.append(_row(one, *changes.of(one), score, effort))
        progress(ProgressEvent("rows", place + 1, len(alone), one.target.name))
    return sorted(rows, key=lambda row: -row.harm)


@dataclass(frozen=True, eq=False)
class _Alone:
    """One weight at one width: its integers, and the values they stand for."""

    target: Target
    method: PostTrainingMethod
    bits: int
    result: Quantized
    values: Tensor
    error: float | None


@dataclass
class _Peek:
    """A method that quantizes at every width and remembers, in place of one that does it once."""

    methods: Mapping[int, PostTrainingMethod]
    found: dict[int, tuple[Quantized, float | None]] = field(default_factory=dict)

    def encode(self, layer: LayerMatrix) -> Quantized:
        """Quantize at all widths; return the last."""
        for width, method in self.methods.items():
            result = method.encode(layer)
            self.found[width] = result, _layer_error(layer, result)
        return result


class _Looking(LayerQuantizer):
    """The observer of the lockstep that puts every weight back."""

    def complete(self, module: str) -> None:
        """Quantize the weights of a module, and undo it."""
        parameters = [self.network.get_parameter(w.target.name) for w in self.work[module]]
        before = [parameter.detach().clone() for parameter in parameters]
        super().complete(module)
        with torch.no_grad():
            for parameter, values in zip(parameters, before, strict=True):
                parameter.copy_(values)


def _at_widths(method: AnyMethod, bits: Sequence[int]) -> dict[int, PostTrainingMethod]:
    """Return the method at every width, without the correction of biases."""
    known = {entry.name for entry in fields(method)}  # type: ignore[arg-type]
    if "bits" not in known or trains(method):
        raise ConfigError(
            f"the method {method.name!r} has no setting 'bits' to vary without training. Use a "
            "method that has, such as gpfq or nearest."
        )
    require(len(bits) > 0, "bits", "a list of widths", bits)
    plain = {"bias_correction": False} if "bias_correction" in known else {}
    return {width: replace(method, bits=width, **plain) for width in bits}  # type: ignore[type-var]


def _quantize_alone(
    network: nn.Module,
    targets: Sequence[Target],
    methods: Mapping[int, PostTrainingMethod],
    batches: Sequence[Any],
    forward: Forward,
    *,
    seed: int,
) -> list[_Alone]:
    peeks = {t.name: _Peek(methods) for t in targets}
    work: defaultdict[str, list[Work]] = defaultdict(list)
    failed = check_layers(network, targets, batches, forward).failed
    for target in targets:
        if target.view.inputs is not None and target.name not in failed:
            work[target.module].append(Work(target, peeks[target.name].encode, False))
    if work:
        observer = _Looking(network, work, len(batches), seed)
        run_lockstep(
            network, network, list(work), batches, forward, observer, needs_reference=False
        )
    found = []
    for target in targets:
        peek = peeks[target.name]
        if not peek.found:
            peek.methods = {width: fallback_of(method) for width, method in methods.items()}
            _blindly(network, target, peek, seed)
        for width, (result, error) in peek.found.items():
            values = target.view.tensor(result.dequantize(), target.shape)
            found.append(_Alone(target, peek.methods[width], width, result, values, error))
    return found


def _blindly(network: nn.Module, target: Target, peek: _Peek, seed: int) -> None:
    parameter = network.get_parameter(target.name)
    before = parameter.detach().clone()
    quantize_blind(network, Work(target, peek.encode), seed)
    with torch.no_grad():
        parameter.copy_(before)


def _layer_error(layer: LayerMatrix, result: Quantized) -> float | None:
    if layer.statistics is None:
        return None
    second = layer.statistics.moments()[0].double()
    weight = layer.weight.double()
    change = result.dequantize().to(weight) - weight
    error, energy = (float(((part @ second) * part).sum()) for part in (change, weight))
    return error / energy if energy > 0 else 0.0


class _Changes:
    """How the network's output moves, with one weight replaced at a time."""

    def __init__(self, network: nn.Module, alone: Sequence[_Alone], forward: Forward) -> None:
        self.network, self.alone, self.forward = network, alone, forward
        self.totals = {id(one): [0.0, 0.0] for one in alone}  # squares, nats
        self.elements = self.rows = 0

    def measure(self, batches: Sequence[Any], progress: Progress) -> None:
        """Add up over the batches; the float output is kept for one batch at a time."""
        progress(ProgressEvent("layers", 0, len(batches)))
        with torch.inference_mode():
            for place, batch in enumerate(batches):
                exact = self._output(batch, place)
                law = F.log_softmax(exact, -1)
                self.elements += exact.numel()
                self.rows += exact[..., 0].numel()
                for one in self.alone:
                    moved = self._with(one, lambda b=batch, p=place: self._output(b, p))  # type: ignore[misc]
                    self.totals[id(one)][0] += float((moved - exact).square().sum())
                    other = F.log_softmax(moved, -1)
                    self.totals[id(one)][1] += float((law.exp() * (law - other)).sum())
                progress(ProgressEvent("layers", place + 1, len(batches)))

    def of(self, one: _Alone) -> tuple[float, float]:
        """Return the mean squared change per element and the divergence per row."""
        squares, nats = self.totals[id(one)]
        return squares / max(1, self.elements), max(0.0, nats / max(1, self.rows))

    def score(self, one: _Alone, evaluate: Callable[[nn.Module], float]) -> float:
        """Return the caller's score with one weight replaced."""
        return float(self._with(one, lambda: evaluate(self.network)))

    def _with(self, one: _Alone, call: Callable[[], Any]) -> Any:
        parameter = self.network.get_parameter(one.target.name)
        before = parameter.detach().clone()
        try:
            parameter.data.copy_(one.values)
            return call()
        finally:
            parameter.data.copy_(before)

    def _output(self, batch: Any, place: int) -> Tensor:
        output = isolated_pass(self.forward, self.network, batch, place)
        if isinstance(output, Mapping):
            output = output.get("logits")
        output = getattr(output, "logits", output)
        if isinstance(output, (tuple, list)) and output:
            output = output[0]
        if not isinstance(output, Tensor) or not output.is_floating_point() or output.dim() < 1:
            raise CalibrationError(
                "the sensitivity of layers needs the output of the network: forward= must return "
                f"its logits. Got {type(output).__name__}."
            )
        return output.double()


def _row(one: _Alone, mse: float, kl: float, score: float | None, effort: str) -> LayerHarm:
    name = one.target.name
    coded = pack(one.result, one.target, torch.float32)
    report = measure(encode(Contents({name: coded}), effort))
    count = one.values.numel()
    size = sum(row.bytes for row in report.rows if row.kind != "file")
    return LayerHarm(
        name, one.method.name, one.bits, count, size, 4 * count - size, one.error, mse, kl, score
    )
