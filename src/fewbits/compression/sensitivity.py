"""Layer sensitivity: quantize one layer at a time and measure the error and the bytes saved."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from itertools import chain
from os import PathLike
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
from ..engine.lockstep.quantizer import LayerQuantizer, Work, quantize_alone
from ..engine.network.batches import Forward, as_batches, as_forward
from ..engine.network.copying import copied
from ..engine.network.distributed import ALONE, Ranks, shared_work
from ..engine.network.isolation import isolated_pass
from ..engine.network.threads import thread_count
from ..errors import CalibrationError, ClusterError, ConfigError, require
from ..methods import AnyMethod, PostTrainingMethod, as_method, trains
from ..progress import Progress, ProgressEvent, silent
from ..recipe.plan import Plan, fallback_of, make_plan
from ..recipe.recipe import Recipe, Rule
from ..search import Engine, as_engine
from .coded_model import unwrapped
from .storage.fingerprint import facts_of

__all__ = ["LayerHarm", "LayerHarms", "at_widths", "sensitivity"]


@dataclass(frozen=True)
class LayerHarm:
    """One weight quantized at one width, all others in float.

    Attributes:
        name: name of the weight.
        method: the method that quantized it; "nearest" if its inputs cannot be observed.
        bits: nominal width of its indices.
        weights: number of its values.
        bytes: bytes of its indices and steps, coded alone.
        saved: bytes of the float32 values minus ``bytes``.
        layer_error: squared error of the layer's output divided by its squared output; None if its
            inputs cannot be observed.
        mse: mean squared change of the network's output, per element.
        kl: mean Kullback-Leibler divergence (nats) of the softmax over the output's last axis.
        score: the score returned by ``evaluate``; None without.
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


class LayerHarms(list[LayerHarm]):
    """The rows of :func:`sensitivity`: a list that notebooks draw, and that writes a report."""

    def report(self, path: str | PathLike[str], title: str = "") -> int:
        """Write chart and table as one HTML file; return its length in bytes.

        Raises:
            ConfigError: ``path`` does not end in .html, or names no file that can be written.
            OSError: the system cannot write there.
        """
        from ..report import sensitivity_report  # noqa: PLC0415  (loading a file needs no Rich)

        return sensitivity_report([row.to_dict() for row in self], title=title).write(path)

    def _repr_html_(self) -> str:
        from ..report import sensitivity_html  # noqa: PLC0415

        return sensitivity_html([row.to_dict() for row in self])


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
    share: bool = True,
    engine: Engine | str = "serial",
    progress: Progress = silent,
) -> LayerHarms:
    """Quantize every weight alone at every width; the most harm per byte saved comes first.

    Biases are not corrected, so an error that a bias correction could remove counts as harm.

    Args:
        model: the float network; it is not changed.
        method: a method with the setting ``bits``, or its name, such as "gpfq".
        calibration: batches for the statistics and for measuring the change of the output.
        bits: widths to try.
        forward: runs the network on a batch and returns its output.
        evaluate: ``evaluate(model) -> score`` on selection data; costs one evaluation per row.
        effort: coding effort, for ``bytes``.
        seed: random seed.
        share: whether to share the work with the other processes of the ``torch.distributed``
            group that this one is in, if any, as in :func:`fewbits.compress`.
        engine: "serial", "ray" (extra ``ray``: layers are measured on a cluster, which is sent the
            network, the batches and the functions), or one of ``fewbits.search`` with its settings.
        progress: called after every batch, and after every row that is evaluated; by other engines
            than "serial", after every layer.

    Cost: one lockstep pass, then a forward pass over all batches for each weight and width. On a
    cluster, a lockstep pass and a float pass for each layer.

    Raises:
        ConfigError: a method without the setting ``bits``, or invalid widths.
        CalibrationError: no batches, or a network whose output is not a tensor.
        RankError: another process of the group is gone, or failed.
        ClusterError: the cluster went away, or layers failed there. Its ``finished`` holds the rows
            of all others, and its ``failed`` the errors.
    """
    where = as_engine(engine)
    with shared_work(share and where.here) as ranks:
        methods = at_widths(as_method(method), bits)
        model = unwrapped(model)
        batches = as_batches(calibration, model if forward is None else None)
        if ranks.count > 1:
            facts = {"method": str(methods), "seed": str(seed)}
            ranks.compare("sensitivity", facts | facts_of(model, batches))
        check_finite(model)
        study = _Study(model, methods, batches, forward, evaluate, effort, seed)
        if not where.here:
            return _sorted(_rows_elsewhere(study, where, progress))
        with thread_count(where.cpus):
            return _sorted(study.rows(None, progress, ranks))


def _sorted(rows: Iterable[LayerHarm]) -> LayerHarms:
    return LayerHarms(sorted(rows, key=lambda row: -row.harm))


@dataclass(frozen=True)
class _Study:
    """What the rows of all layers share; it can be sent to other processes if its parts can."""

    model: nn.Module
    methods: Mapping[int, PostTrainingMethod]
    batches: Sequence[Any]
    forward: Forward | None
    evaluate: Callable[[nn.Module], float] | None
    effort: str
    seed: int

    def plan(self) -> Plan:
        """Return the targets, and which names share weights."""
        first = next(iter(self.methods.values()))
        return make_plan(self.model, Recipe((Rule("*", first),), seed=self.seed))

    @torch.inference_mode(False)
    def rows(self, only: str | None, progress: Progress, ranks: Ranks = ALONE) -> list[LayerHarm]:
        """Measure the weights of the module ``only``, or all, in the order of the network."""
        plan = self.plan()
        network = copied(self.model).eval()
        retie(network, {**plan.aliases, **plan.bound})
        targets = [e.target for e in plan.entries if only in (None, e.target.module)]
        forward = as_forward(self.forward)
        trials = _quantize_alone(
            network, targets, self.methods, self.batches, forward, ranks=ranks, seed=self.seed
        )
        changes = _OutputChanges(network, trials, forward)
        changes.measure(self.batches, ranks, progress)
        rows: dict[int, LayerHarm] = {}
        own = ranks.own(len(trials))
        for done, place in enumerate(own, 1):
            trial = trials[place]
            score = None if self.evaluate is None else changes.score(trial, self.evaluate)
            rows[place] = _row(trial, *changes.of(trial), score, self.effort)
            progress(ProgressEvent("rows", done, len(own), trial.target.name))
        found = chain(*(part.items() for part in ranks.exchange("rows", rows)))
        return [row for _, row in sorted(found)]


def _rows_elsewhere(study: _Study, engine: Engine, progress: Progress) -> list[LayerHarm]:
    """Measure module by module on a cluster; return the rows in the order of the network."""
    modules = list(dict.fromkeys(entry.target.module for entry in study.plan().entries))
    found: dict[int, list[LayerHarm]] = {}
    progress(ProgressEvent("layers", 0, len(modules)))

    def keep(place: int, rows: list[LayerHarm]) -> None:
        found[place] = rows
        progress(ProgressEvent("layers", len(found), len(modules), modules[place]))

    try:
        failed = engine.run(partial(_rows_of, study, engine.cpus), modules, keep)
    except ClusterError as error:
        raise ClusterError(str(error), finished=_sorted(chain(*found.values()))) from error
    if failed:
        told = "; ".join(f"{modules[one.place]}: {one.error}" for one in failed)
        raise ClusterError(
            f"{len(failed)} of {len(modules)} layers could not be measured: {told}",
            finished=_sorted(chain(*found.values())),
            failed={modules[one.place]: one.error for one in failed},
        )
    return [row for place in sorted(found) for row in found[place]]


def _rows_of(study: _Study, threads: int | None, module: str) -> list[LayerHarm]:
    """Measure one module in a worker process."""
    with thread_count(threads):
        return study.rows(module, silent)


@dataclass(frozen=True, eq=False)
class _Trial:
    """One weight at one width: its integers and the dequantized values."""

    target: Target
    method: PostTrainingMethod
    bits: int
    result: Quantized
    values: Tensor
    error: float | None


@dataclass
class _EveryWidth:
    """A method for the lockstep that quantizes at every width and records the results."""

    methods: Mapping[int, PostTrainingMethod]
    results: dict[int, tuple[Quantized, float | None]] = field(default_factory=dict)

    def encode(self, layer: LayerMatrix) -> Quantized:
        """Quantize at all widths; return the last."""
        for width, method in self.methods.items():
            result = method.encode(layer)
            self.results[width] = result, _layer_error(layer, result)
        return result


def at_widths(method: AnyMethod, bits: Sequence[int]) -> dict[int, PostTrainingMethod]:
    """Return the method at every width, without bias correction."""
    known = {entry.name for entry in fields(method)}  # type: ignore[arg-type]
    if "bits" not in known or trains(method):
        raise ConfigError(
            "sensitivity needs a method that has the setting 'bits' and does not train. Got "
            f"{method.name!r}. Use a method such as gpfq or nearest."
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
    ranks: Ranks,
    seed: int,
) -> list[_Trial]:
    encoders = {t.name: _EveryWidth(methods) for t in targets}
    work: defaultdict[str, list[Work]] = defaultdict(list)
    failed = ranks.from_first(
        "check of layers", lambda: check_layers(network, targets, batches, forward).failed
    )
    for target in targets:
        if target.view.in_sight and target.name not in failed:
            work[target.module].append(Work(target, encoders[target.name].encode, False))
    if work:
        observer = LayerQuantizer(network, work, len(batches), seed, write=None, ranks=ranks)
        run_lockstep(
            network, network, list(work), batches, forward, observer,
            needs_reference=False, ranks=ranks,
        )  # fmt: skip
    trials = []
    for target in targets:
        encoder = encoders[target.name]
        encoder.results = ranks.exchange(f"widths of {target.name}", encoder.results)[0]
        if not encoder.results:
            encoder.methods = {width: fallback_of(method) for width, method in methods.items()}
            _quantize_without_inputs(network, target, encoder, seed)
        for width, (result, error) in encoder.results.items():
            values = target.view.tensor(result.dequantize(), target.shape)
            trials.append(_Trial(target, encoder.methods[width], width, result, values, error))
    return trials


def _quantize_without_inputs(
    network: nn.Module, target: Target, encoder: _EveryWidth, seed: int
) -> None:
    parameter = network.get_parameter(target.name)
    before = parameter.detach().clone()
    quantize_alone(network, Work(target, encoder.encode), seed)
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


class _OutputChanges:
    """Changes of the network's output with one weight replaced at a time."""

    def __init__(self, network: nn.Module, trials: Sequence[_Trial], forward: Forward) -> None:
        self.network, self.trials, self.forward = network, trials, forward
        self.totals = {id(trial): [0.0, 0.0] for trial in trials}  # squares, nats
        self.elements = self.rows = 0

    def measure(self, batches: Sequence[Any], ranks: Ranks, progress: Progress) -> None:
        """Sum over the batches of all ranks; the float output is held for one at a time."""
        own = ranks.own(len(batches))
        progress(ProgressEvent("layers", 0, len(own)))
        with torch.inference_mode():
            for done, place in enumerate(own, 1):
                batch = batches[place]
                exact = self._output(batch, place)
                log_p = F.log_softmax(exact, -1)
                self.elements += exact.numel()
                self.rows += exact[..., 0].numel()
                for trial in self.trials:
                    changed = self._with(trial, lambda b=batch, p=place: self._output(b, p))  # type: ignore[misc]
                    self.totals[id(trial)][0] += float((changed - exact).square().sum())
                    log_q = F.log_softmax(changed, -1)
                    self.totals[id(trial)][1] += float((log_p.exp() * (log_p - log_q)).sum())
                progress(ProgressEvent("layers", done, len(own)))
        self._join(ranks)

    def _join(self, ranks: Ranks) -> None:
        totals = [self.totals[id(trial)] for trial in self.trials]
        told = ranks.exchange("changes of the output", (self.elements, self.rows, totals))
        self.elements, self.rows = sum(e for e, _, _ in told), sum(r for _, r, _ in told)
        for place, trial in enumerate(self.trials):
            parts = [own[place] for _, _, own in told]
            self.totals[id(trial)] = [sum(column) for column in zip(*parts, strict=True)]

    def of(self, trial: _Trial) -> tuple[float, float]:
        """Return the mean squared change per element and the divergence per row."""
        squares, nats = self.totals[id(trial)]
        return squares / max(1, self.elements), max(0.0, nats / max(1, self.rows))

    def score(self, trial: _Trial, evaluate: Callable[[nn.Module], float]) -> float:
        """Return the user's score with one weight replaced."""
        return float(self._with(trial, lambda: evaluate(self.network)))

    def _with(self, trial: _Trial, call: Callable[[], Any]) -> Any:
        parameter = self.network.get_parameter(trial.target.name)
        before = parameter.detach().clone()
        try:
            parameter.data.copy_(trial.values)
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
                "sensitivity measures changes of the network's output, so forward= must return "
                f"the logits as a tensor. Got {type(output).__name__}."
            )
        return output.double()


def _row(trial: _Trial, mse: float, kl: float, score: float | None, effort: str) -> LayerHarm:
    name = trial.target.name
    coded = pack(trial.result, trial.target, torch.float32)
    report = measure(encode(Contents({name: coded}), effort))
    count = trial.values.numel()
    size = sum(row.bytes for row in report.rows if row.kind != "file")
    return LayerHarm(
        name=name,
        method=trial.method.name,
        bits=trial.bits,
        weights=count,
        bytes=size,
        saved=4 * count - size,
        layer_error=trial.error,
        mse=mse,
        kl=kl,
        score=score,
    )
