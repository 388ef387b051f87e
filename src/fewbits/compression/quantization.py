"""Quantize the weights of a network one after the other, and keep each as soon as it is done."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..coded import Cause, CodedTensor, RawTensor, Reason
from ..engine.batchnorm.fold import Folded
from ..engine.layers.layer import Quantized, Sensitivity
from ..engine.layers.pack import pack, pack_raw, to_torch
from ..engine.layers.statistics import Statistics
from ..engine.layers.targets import Target, retie
from ..engine.lockstep.float_inputs import float_inputs
from ..engine.lockstep.layer_check import LayerCheck
from ..engine.lockstep.lockstep import LockstepReport, run_lockstep
from ..engine.lockstep.quantizer import Completed, LayerQuantizer, Work, quantize_alone
from ..engine.network.batches import Forward
from ..engine.network.sharing import sharing
from ..errors import CalibrationError
from ..methods import PostTrainingMethod
from ..progress import Progress, ProgressEvent
from ..recipe.plan import Plan, PlanEntry, fallback_of
from .storage.finished_tensors import FinishedWeights
from .storage.journal import Finished
from .storage.workspace import Workspace

__all__ = [
    "Quantization",
    "codes_lookups",
    "fall_back",
    "in_lockstep",
    "needs_data",
    "needs_inputs",
    "shared_weights",
]


def needs_data(method: PostTrainingMethod | None) -> bool:
    """Return whether a method needs calibration data; None does not."""
    return method is not None and method.capabilities.needs_data


def needs_inputs(method: PostTrainingMethod | None) -> bool:
    """Return whether a method needs the inputs of a layer; None does not."""
    return method is not None and method.capabilities.needs_inputs != "none"


def codes_lookups(method: PostTrainingMethod | None) -> bool:
    """Return whether a method codes embeddings from their sensitivity; None does not."""
    return method is not None and method.capabilities.codes_lookups


def in_lockstep(entry: PlanEntry) -> bool:
    """Return whether a weight is quantized when the forward passes reach its layer.

    Embeddings, and weights tied to them, are not: they are quantized before any pass.
    """
    target: Target = entry.target
    return needs_inputs(entry.method) and target.view.in_sight and not target.looked_up


def fall_back(plan: Plan, entry: PlanEntry, why: str) -> tuple[Plan, PostTrainingMethod]:
    """Give one weight the method that needs no inputs; return the plan, which says why, and it."""
    if entry.method is None:
        raise ValueError(f"{entry.target.name!r} is kept: it has no method to fall back from")
    method, reason = fallback_of(entry.method), Reason(Cause.FALLBACK, entry.method.name, why)
    return plan.changed(entry.target.name, method, reason), method


def shared_weights(plan: Plan) -> frozenset[str]:
    """Return the weights that the float and the quantized network can share.

    Not those that share memory with other tensors, which must keep doing so.
    """
    tied = {*plan.exact, *plan.bound.values()}
    targets = [entry.target for entry in plan.entries]
    return frozenset(t.name for t in targets if not tied & {t.name, *t.also})


@dataclass
class Quantization:
    """One quantization of all weights; see :class:`fewbits.compression.pipeline.Pipeline`.

    Attributes:
        plan: what to do with every weight; changed where something else was done.
        reference: the float network.
        shared: weights that ``reference`` may share with the quantized network.
        runs: whether the quantized network will run, so that it needs its values.
        workspace: where finished weights are kept.
        key: identifies this run in a journal.
        notes: what happened, for the user.
        finished: the weights that are done.
    """

    plan: Plan
    reference: nn.Module
    shared: frozenset[str]
    runs: bool
    workspace: Workspace
    key: str
    checked: LayerCheck
    folded: Sequence[Folded]
    sensitivities: Mapping[str, Sensitivity]
    forward: Forward
    masks: Sequence[Sequence[Tensor]]
    max_live_bytes: int
    progress: Progress
    notes: list[str] = field(default_factory=list)
    finished: FinishedWeights = field(init=False)
    network: nn.Module = field(init=False)
    _done: dict[str, Finished] = field(default_factory=dict, init=False)

    def run(self, batches: Sequence[Any]) -> nn.Module:
        """Quantize every weight of the plan; return the quantized network."""
        network = self.network = sharing(self.reference, self.shared)
        retie(network, {**self.plan.aliases, **self.plan.bound})
        journal = self.workspace.begin(self.key)
        self.finished = FinishedWeights(journal)
        coded = [e.target.name for e in self.plan.entries if e.method]
        if self.runs:
            self.workspace.place({name: network.get_parameter(name) for name in coded})
        for part in journal.finished if journal else ():
            self._restore(part)
        if self._done:
            self.notes.append(
                f"resumed after {len(self.finished.facts)} of {len(coded)} weights, which an "
                "earlier run had finished"
            )
        self._quantize_blind()
        self._quantize_ahead(batches)
        with_inputs = [e for e in self.plan.entries if in_lockstep(e)]
        if with_inputs:
            self._quantize_with_inputs(with_inputs, batches)
        return network

    def _restore(self, part: Finished) -> None:
        """Give the quantized network the values of a part that an earlier run finished."""
        self._done[part.part] = part
        for name in part.weights if self.runs else ():
            self._write(name, self.network.get_parameter(name), to_torch(self.finished[name]))
        parameters = dict(self.network.named_parameters(remove_duplicate=False))
        with torch.no_grad():
            for name in part.changed:
                parameters[name].copy_(to_torch(self.finished.changed(name)))
        self.workspace.release()

    def _work(self, entry: PlanEntry, method: PostTrainingMethod) -> Work:
        known = self.sensitivities.get(entry.target.name)
        both = method.capabilities.needs_inputs == "both"
        return Work(entry.target, method.encode, both, known, entry.rows)

    def _quantize_blind(self) -> None:
        """Quantize weights that need no inputs first, so later layers calibrate on the result."""
        blind = [e for e in self.plan.entries if e.method and not needs_inputs(e.method)]
        others = len(blind) < sum(entry.method is not None for entry in self.plan.entries)
        for place, entry in enumerate(blind):
            if entry.method:
                self._quantize_alone(entry, entry.method)
            if not others:  # otherwise the layers that take long are counted
                name = entry.target.name
                self.progress(ProgressEvent("quantize", place + 1, len(blind), name))

    def _quantize_ahead(self, batches: Sequence[Any]) -> None:
        """Quantize embeddings and what is tied to them, which the passes use first of all."""
        ahead = [e for e in self.plan.entries if needs_inputs(e.method) and not in_lockstep(e)]
        todo = [e for e in ahead if e.target.name not in self.finished]
        known = self._known_inputs(todo, batches)
        for place, entry in enumerate(ahead):
            self.progress(ProgressEvent("embed", place, len(ahead), entry.target.name))
            name, method = entry.target.name, entry.method
            part, why = self._done.get(f"weight {name}"), ""
            if part is not None:
                why = part.notes.get(name, "")
            elif not codes_lookups(method) and name not in known:
                why = "no calibration batch calls the layer that multiplies with it"
            if why:
                self.plan, method = fall_back(self.plan, entry, why)
            if method:
                self._quantize_alone(entry, method, known.get(name), why)
        if ahead:
            self.progress(ProgressEvent("embed", len(ahead), len(ahead)))

    def _known_inputs(
        self, ahead: Sequence[PlanEntry], batches: Sequence[Any]
    ) -> dict[str, Statistics]:
        """Return the float network's inputs of weights whose methods use them."""
        recipe = self.plan.recipe
        rows = {
            e.target: e.rows or recipe.calibration_rows
            for e in ahead
            if not codes_lookups(e.method)
        }
        if not rows:
            return {}
        return float_inputs(
            self.reference,
            rows,
            batches,
            self.forward,
            masks=self.masks,
            seed=recipe.seed,
            progress=self.progress,
        )

    def _quantize_alone(
        self,
        entry: PlanEntry,
        method: PostTrainingMethod,
        known: Statistics | None = None,
        why: str = "",
    ) -> None:
        name = entry.target.name
        if name not in self.finished:
            work, seed = self._work(entry, method), self.plan.recipe.seed
            write = self._write if self.runs else None
            result = quantize_alone(self.network, work, seed, write, known)
            notes = {name: why} if why else {}
            self._keep(f"weight {name}", Completed({name: result}, notes=notes))

    def _quantize_with_inputs(self, entries: Sequence[PlanEntry], batches: Sequence[Any]) -> None:
        work: dict[str, list[Work]] = defaultdict(list)
        for entry in entries:
            if entry.method:
                work[entry.target.module].append(self._work(entry, entry.method))
        observer = self._observer(work, len(batches))
        report = run_lockstep(
            self.reference,
            self.network,
            list(work),
            batches,
            self.forward,
            observer,
            max_live_bytes=self.max_live_bytes,
            needs_reference=any(w.both for group in work.values() for w in group),
            finished=[module for module in work if f"module {module}" in self._done],
            progress=self.progress,
        )
        self._note(report, observer)
        self._quantize_unreached(entries)

    def _observer(self, work: Mapping[str, Sequence[Work]], batches: int) -> LayerQuantizer:
        recipe = self.plan.recipe
        parts = [self._done[f"module {m}"] for m in work if f"module {m}" in self._done]
        return LayerQuantizer(
            self.network,
            work,
            batches,
            recipe.seed,
            recipe.calibration_rows,
            sinks={pair.layer: f"{pair.norm}.bias" for pair in self.folded},
            fixed_bias=self.checked.without_bias,
            masks=self.masks,
            reference=self.reference,
            write=self._write,
            keep=lambda module, done: self._keep(f"module {module}", done),
            notes={name: note for part in parts for name, note in part.notes.items()},
            unpaired={name for part in parts for name in part.unpaired},
        )

    def _note(self, report: LockstepReport, observer: LayerQuantizer) -> None:
        if report.reruns:
            self.notes.append(
                f"calibration: memory holds {report.live_batches} of {observer.batches} batches at "
                f"the layers that need most, so {report.reruns} forward passes were repeated"
            )
        for name, note in observer.notes.items():
            self.plan = self.plan.noted(name, note)

    def _quantize_unreached(self, entries: Sequence[PlanEntry]) -> None:
        reached = {n for key, p in self._done.items() if key[:7] == "module " for n in p.weights}
        unreached = [entry for entry in entries if entry.target.name not in reached]
        if len(unreached) == len(entries):
            raise CalibrationError(
                f"calibration reached none of the {len(entries)} layers to quantize. forward= must "
                "call the network that is passed to it (a copy), not one that it captured."
            )
        for entry in unreached:
            why = "no calibration batch calls the layer in both networks"
            self.plan, method = fall_back(self.plan, entry, why)
            self._quantize_alone(entry, method)

    def _write(self, name: str, parameter: Tensor, values: Tensor) -> None:
        """Set the values of a quantized weight, without changing the float network."""
        if name in self.shared:
            self.workspace.set_values(name, parameter, values)
        else:
            with torch.no_grad():
                parameter.copy_(values)

    def _keep(self, key: str, done: Completed) -> None:
        """Keep weights that are done, in the form in which a file has them."""
        targets = {e.target.name: e.target for e in self.plan.entries}
        weights: dict[str, CodedTensor] = {}
        for name, result in done.results.items():
            dtype = self.network.get_parameter(name).dtype
            weights[name] = pack(result, targets[name], dtype)
        parameters = dict(self.network.named_parameters(remove_duplicate=False))
        changed: dict[str, RawTensor] = {n: pack_raw(parameters[n]) for n in done.shifted}
        info = {name: _numbers(result) for name, result in done.results.items()}
        part = Finished(key, tuple(weights), tuple(changed), info, done.notes, done.unpaired)
        self._done[key] = part
        self.finished.add(part, weights, changed)
        self.workspace.release()


def _numbers(result: Quantized) -> dict[str, float]:
    return {name: float(value) for name, value in result.info.items()}
