"""Run a plan: fold BatchNorm, quantize layer by layer, re-estimate statistics, pack."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from torch import Tensor, nn

from ..coded import ActivationSite, Cause, Contents, Reason
from ..engine.activations.hooks import remove_inputs
from ..engine.batchnorm.fold import Folded, fold_batchnorm
from ..engine.batchnorm.reestimate import reestimate_batchnorm
from ..engine.layers.layer import Quantized, Sensitivity
from ..engine.layers.pack import pack_state
from ..engine.layers.targets import retie
from ..engine.lockstep.layer_check import LayerCheck, check_layers
from ..engine.lockstep.lockstep import run_lockstep
from ..engine.lockstep.quantizer import LayerQuantizer, Work, quantize_blind
from ..engine.network.batches import Forward, as_batches, as_forward, explained
from ..engine.network.copying import copied
from ..engine.network.shared_memory import same_values
from ..engine.sensitivity import probe
from ..errors import CalibrationError
from ..methods import Activations, PostTrainingMethod, calibrate_inputs
from ..progress import Progress
from ..recipe.plan import Plan, PlanEntry, fallback_of
from .result import CompressionResult

__all__ = ["Pipeline"]

_T = TypeVar("_T")
_UNREPEATABLE = (
    "calibrated on the inputs of the quantized network alone: two passes of the float network over "
    "one batch give the layer different inputs (random numbers or state that cannot be restored)"
)


@dataclass
class Pipeline:
    """One run of :func:`fewbits.compress`; see there for the settings.

    ``memory`` is shared by runs that differ only in the slopes of their recipe. Stages whose
    results do not depend on slopes store them there under their own name and reuse them in later
    runs, unchanged. It is None if there are no other runs.
    """

    plan: Plan
    calibration: Iterable[Any] | Tensor | None
    forward: Forward | None
    max_live_bytes: int
    progress: Progress
    memory: dict[str, Any] | None = None
    results: dict[str, Quantized] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    folded: tuple[Folded, ...] = ()
    measured: tuple[str, ...] = ()
    checked: LayerCheck = field(default_factory=LayerCheck)
    sensitivities: dict[str, Sensitivity] = field(default_factory=dict)

    def run(self, reference: nn.Module, source: str) -> CompressionResult:
        """Compress ``reference``, a copy in eval mode, which may be modified."""
        recipe = self.plan.recipe
        count = remove_inputs(reference)
        if count:
            self.notes.append(
                f"activations: {count} inputs or outputs that were quantized before are in float "
                "again"
            )
        batches = self._batches(reference)
        retie(reference, {**self.plan.aliases, **self.plan.bound})
        original = {name: tensor.clone() for name, tensor in reference.state_dict().items()}
        if "fold_batchnorm" in recipe.prepare:
            self._fold(reference, batches)
        self._check(reference, batches)
        self._probe(reference, batches)
        network = copied(reference)
        retie(network, {**self.plan.aliases, **self.plan.bound})
        self._quantize_blind(network)
        with_inputs = [e for e in self.plan.entries if _needs_inputs(e.method)]
        if with_inputs:
            self._quantize_with_inputs(reference, network, with_inputs, batches)
        if "reestimate_batchnorm" in recipe.finish:
            forward = explained(self._call, "stage reestimate_batchnorm")
            self.measured = reestimate_batchnorm(reference, network, batches, forward, self.folded)
            if self.measured:
                count = len(self.measured)
                self.notes.append(f"reestimate_batchnorm: {count} BatchNorm layers re-estimated")
        coded = self._pack(self._final_state(network, original), source)
        if recipe.activations is None:
            return coded
        return self._with_activations(coded, network, recipe.activations, batches)

    def _with_activations(
        self,
        coded: CompressionResult,
        network: nn.Module,
        settings: Activations,
        batches: Sequence[Any],
    ) -> CompressionResult:
        """Return the compressed network with grids for the inputs of its layers."""
        if not batches:
            raise CalibrationError(
                "quantizing activations needs calibration data to find their ranges. Pass "
                "calibration=, some batches of training data."
            )
        coded.load_into(network)
        failed = self.checked.failed
        layers = {name: self.plan.modules_of(name) for name in self.results if name not in failed}
        forward = explained(self._call, "activations")
        grids, left = calibrate_inputs(
            network, layers, settings, batches, forward, ends=self.plan.ends
        )
        left = (*left, *(f"{name} ({failed[name]})" for name in self.results if name in failed))
        if left:
            self.notes.append(f"activations: inputs left in float: {', '.join(left)}")
        modules = dict(network.named_modules(remove_duplicate=False))
        outputs = sum(ActivationSite.of(name, modules).output for name in grids)
        more = f", {outputs} outputs" if outputs else ""
        self.notes.append(f"activations: {len(grids) - outputs} inputs{more} quantized")
        contents = replace(coded.contents, activations=grids)
        return replace(coded, contents=contents, notes=tuple(self.notes))

    @property
    def _call(self) -> Forward:
        return as_forward(self.forward)

    def _batches(self, reference: nn.Module) -> Sequence[Any]:
        if self.calibration is not None:
            return as_batches(self.calibration, reference if self.forward is None else None)
        methods = [entry.method for entry in self.plan.entries if entry.method]
        data_users = [m.name for m in methods if _needs_data(m)]
        data_users += [*self.plan.recipe.prepare, *self.plan.recipe.finish]
        if data_users:
            raise CalibrationError(
                f"{data_users[0]!r} needs calibration data. Pass calibration=, an iterable of "
                "batches with a few hundred training inputs (never evaluation data)."
            )
        return ()

    def _fold(self, reference: nn.Module, batches: Sequence[Any]) -> None:
        forward = explained(self._call, "stage fold_batchnorm, batch 0")
        kept = {e.target.module for e in self.plan.entries if e.method is None}
        known = (self.memory or {}).get("fold_batchnorm")
        if known is not None:
            self.folded, states = known
            for name, state in states.items():
                reference.get_submodule(name).load_state_dict(state)
        else:
            self.folded = fold_batchnorm(reference, batches[0], forward, kept)
            if self.memory is not None:
                self.memory["fold_batchnorm"] = self.folded, _states(reference, self.folded)
        if self.folded:
            self.notes.append(f"fold_batchnorm: {len(self.folded)} BatchNorm layers absorbed")

    def _check(self, reference: nn.Module, batches: Sequence[Any]) -> None:
        """Fall back to another method where a layer's inputs are not what its weight multiplies."""
        data_driven = [e for e in self.plan.entries if _needs_data(e.method)]
        checked = self.plan.entries if self.plan.recipe.activations and batches else data_driven
        targets, forward = [e.target for e in checked], explained(self._call, "check of layers")
        if targets:
            self.checked = self._remembered(
                "check", lambda: check_layers(reference, targets, batches, forward)
            )
        for entry in data_driven:
            if entry.target.name in self.checked.failed:
                self._fall_back(entry, self.checked.failed[entry.target.name])

    def _probe(self, reference: nn.Module, batches: Sequence[Any]) -> None:
        """Measure how errors of the weights affect the output, for methods that use it."""
        probed = [
            e for e in self.plan.entries if e.method and e.method.capabilities.needs_gradients
        ]
        if not probed:
            return
        self.sensitivities = self._remembered(
            "probe",
            lambda: probe(
                reference,
                [entry.target for entry in probed],
                batches,
                explained(self._call, "gradient probes"),
                seed=self.plan.recipe.seed,
                progress=self.progress,
            ),
        )
        for entry in probed:
            if entry.target.name not in self.sensitivities:
                self._fall_back(entry, "no gradient reaches the weight")

    def _remembered(self, stage: str, run: Callable[[], _T]) -> _T:
        """Return the result of a stage that does not depend on slopes, computed once."""
        memory = {} if self.memory is None else self.memory
        if stage not in memory:
            memory[stage] = run()
        result: _T = memory[stage]
        return result

    def _fall_back(self, entry: PlanEntry, why: str) -> PostTrainingMethod:
        """Give one weight the method that needs no inputs, and note why in the plan."""
        if entry.method is None:
            raise ValueError(f"{entry.target.name!r} is kept: it has no method to fall back from")
        method, reason = fallback_of(entry.method), Reason(Cause.FALLBACK, entry.method.name, why)
        self.plan = self.plan.changed(entry.target.name, method, reason)
        return method

    def _work(self, entry: PlanEntry, method: PostTrainingMethod) -> Work:
        known = self.sensitivities.get(entry.target.name)
        both = method.capabilities.needs_inputs == "both"
        return Work(entry.target, method.encode, both, known)

    def _quantize_blind(self, network: nn.Module) -> None:
        """Quantize weights that need no inputs first, so later layers calibrate on the result."""
        for entry in self.plan.entries:
            if entry.method and not _needs_inputs(entry.method):
                work = self._work(entry, entry.method)
                name = entry.target.name
                self.results[name] = quantize_blind(network, work, self.plan.recipe.seed)

    def _quantize_with_inputs(
        self,
        reference: nn.Module,
        network: nn.Module,
        entries: Sequence[PlanEntry],
        batches: Sequence[Any],
    ) -> None:
        work: dict[str, list[Work]] = defaultdict(list)
        for entry in entries:
            if entry.method:
                work[entry.target.module].append(self._work(entry, entry.method))
        observer = self._observer(network, work, len(batches))
        report = run_lockstep(
            reference,
            network,
            list(work),
            batches,
            self._call,
            observer,
            max_live_bytes=self.max_live_bytes,
            needs_reference=any(w.both for group in work.values() for w in group),
            progress=self.progress,
        )
        if report.reruns:
            self.notes.append(
                f"calibration: memory holds {report.live_batches} of {len(batches)} batches at a "
                f"time, so {report.reruns} forward passes were repeated"
            )
        self.results.update(observer.results)
        for module in report.unrepeatable:
            for item in work[module]:
                observer.note(item.target.name, _UNREPEATABLE)
        for name, note in observer.notes.items():
            self.plan = self.plan.noted(name, note)
        self._quantize_unreached(network, entries)

    def _observer(
        self, network: nn.Module, work: Mapping[str, Sequence[Work]], batches: int
    ) -> LayerQuantizer:
        recipe = self.plan.recipe
        return LayerQuantizer(
            network,
            work,
            batches,
            recipe.seed,
            recipe.calibration_rows,
            sinks={pair.layer: f"{pair.norm}.bias" for pair in self.folded},
            fixed_bias=self.checked.without_bias,
        )

    def _quantize_unreached(self, network: nn.Module, entries: Sequence[PlanEntry]) -> None:
        unreached = [entry for entry in entries if entry.target.name not in self.results]
        if len(unreached) == len(entries):
            raise CalibrationError(
                f"calibration reached none of the {len(entries)} layers to quantize. forward= must "
                "call the network that is passed to it (a copy), not one that it captured."
            )
        for entry in unreached:
            method = self._fall_back(entry, "no calibration batch calls the layer in both networks")
            work = self._work(entry, method)
            self.results[entry.target.name] = quantize_blind(network, work, self.plan.recipe.seed)

    def _final_state(self, network: nn.Module, original: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the final state, and note in the plan which kept tensors have changed.

        Buffers are restored to their original values unless a stage changed them on purpose.
        """
        stages = {pair.norm: "absorbed by the layer before it" for pair in self.folded}
        stages |= dict.fromkeys(self.measured, "re-estimated")
        layers = {pair.layer: "scaled with its absorbed BatchNorm" for pair in self.folded}
        buffers = {name for name, _ in network.named_buffers(remove_duplicate=False)}
        state = dict(network.state_dict())
        for name in self.plan.kept:
            owner = name.rpartition(".")[0]
            if name in buffers and owner not in stages:
                state[name] = original[name]  # a forward pass may count its calls
            elif not same_values(state[name], original[name]):
                what = stages.get(owner) or layers.get(owner) or "corrected by the mean error"
                self.plan = self.plan.kept_after(name, what)
        return state

    def _pack(self, state: dict[str, Tensor], source: str) -> CompressionResult:
        recipe = self.plan.recipe
        targets = {entry.target.name: entry.target for entry in self.plan.entries}
        tensors = pack_state(
            state,
            results=self.results,
            targets=targets,
            aliases=self.plan.aliases,
            raw_dtype=recipe.raw_dtype,
            exact=self.plan.exact,
        )
        metadata: dict[str, Any] = {"recipe": recipe.to_dict()}
        if source:
            metadata["source"] = source
        contents = Contents(tensors, dict(self.plan.aliases), metadata=metadata)
        info = {name: dict(result.info) for name, result in self.results.items()}
        return CompressionResult(
            contents=contents, plan=self.plan, info=info, notes=tuple(self.notes)
        )


def _needs_data(method: PostTrainingMethod | None) -> bool:
    return method is not None and method.capabilities.needs_data


def _needs_inputs(method: PostTrainingMethod | None) -> bool:
    return method is not None and method.capabilities.needs_inputs != "none"


def _states(network: nn.Module, folded: Sequence[Folded]) -> dict[str, dict[str, Tensor]]:
    """Return copies of the states of all folded layers and their BatchNorm layers."""
    names = [name for pair in folded for name in (pair.layer, pair.norm)]
    states = {name: network.get_submodule(name).state_dict() for name in names}
    return {name: {k: v.clone() for k, v in state.items()} for name, state in states.items()}
