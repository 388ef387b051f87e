"""Quantize the weights of a network one after the other, and keep each as soon as it is done."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..coded import Cause, CodedTensor, RawTensor, Reason
from ..engine.batchnorm.fold import Folded
from ..engine.layers.layer import Levels, Quantized, Sensitivity
from ..engine.layers.pack import pack, pack_raw, restored, to_torch
from ..engine.layers.statistics import Statistics
from ..engine.layers.targets import Target, retie
from ..engine.lockstep.float_inputs import float_inputs
from ..engine.lockstep.layer_check import LayerCheck
from ..engine.lockstep.lockstep import LockstepReport, run_lockstep
from ..engine.lockstep.quantizer import (
    Completed,
    LayerQuantizer,
    Work,
    encode_alone,
    write_result,
)
from ..engine.network.batches import Forward
from ..engine.network.distributed import ALONE, Ranks
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


@dataclass(frozen=True, eq=False)
class _Alone:
    """A weight that is quantized on its own, and why not with its method in the plan."""

    entry: PlanEntry
    method: PostTrainingMethod
    known: Statistics | None = None
    why: str = ""


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
        ranks: who else makes this run; the first of them keeps what can be resumed from.
        bases: weights of another network, by name; of those, differences are quantized.
        levels: those that weights get, by name; the others' are left to their methods.
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
    ranks: Ranks = ALONE
    bases: Mapping[str, Tensor] = field(default_factory=dict)
    levels: Mapping[str, Levels] = field(default_factory=dict)
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
        parts = list(journal.finished) if journal else []
        for part in self.ranks.from_first("parts to resume from", lambda: parts):
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
        weights, changed = self.ranks.from_first(
            f"finished {part.part}", lambda: self._stored(part)
        )
        if not self.ranks.first:
            self.finished.add(part, weights, changed)
        for name in weights if self.runs else ():
            values = to_torch(weights[name])
            if name in self.bases:
                values = restored(self.bases[name], values)
            self._write(name, self.network.get_parameter(name), values)
        parameters = dict(self.network.named_parameters(remove_duplicate=False))
        with torch.no_grad():
            for name in changed:
                parameters[name].copy_(to_torch(changed[name]))
        self.workspace.release()

    def _stored(self, part: Finished) -> tuple[dict[str, CodedTensor], dict[str, RawTensor]]:
        """Return the weights of a finished part, and the other tensors that changed with them."""
        used = self.runs or self.ranks.count > 1
        weights = {name: self.finished[name] for name in (part.weights if used else ())}
        return weights, {name: self.finished.changed(name) for name in part.changed}

    def _work(self, entry: PlanEntry, method: PostTrainingMethod) -> Work:
        name = entry.target.name
        known, base = self.sensitivities.get(name), self.bases.get(name)
        # A difference is of outputs on the same inputs, those that the layer will have.
        both = method.capabilities.needs_inputs == "both" and base is None
        levels = self.levels.get(name)
        apart = method.rounds_neurons_apart and levels is None
        return Work(entry.target, method.encode, both, known, entry.rows, apart, base, levels)

    def _quantize_blind(self) -> None:
        """Quantize weights that need no inputs first, so later layers calibrate on the result."""
        blind = [e for e in self.plan.entries if e.method and not needs_inputs(e.method)]
        others = len(blind) < sum(entry.method is not None for entry in self.plan.entries)
        place = 0
        for group in self._rounds(blind):
            self._quantize_alone([_Alone(e, e.method) for e in group if e.method])
            place += len(group)
            if not others:  # otherwise the layers that take long are counted
                name = group[-1].target.name
                self.progress(ProgressEvent("quantize", place, len(blind), name))

    def _quantize_ahead(self, batches: Sequence[Any]) -> None:
        """Quantize embeddings and what is tied to them, which the passes use first of all."""
        ahead = [e for e in self.plan.entries if needs_inputs(e.method) and not in_lockstep(e)]
        todo = [e for e in ahead if e.target.name not in self.finished]
        known = self._known_inputs(todo, batches)
        place = 0
        for group in self._rounds(ahead):
            self.progress(ProgressEvent("embed", place, len(ahead), group[0].target.name))
            alone = [self._ahead(entry, known) for entry in group]
            self._quantize_alone([work for work in alone if work is not None])
            place += len(group)
        if ahead:
            self.progress(ProgressEvent("embed", len(ahead), len(ahead)))

    def _ahead(self, entry: PlanEntry, known: Mapping[str, Statistics]) -> _Alone | None:
        """Return how an embedding is quantized, whether or not it is done already."""
        name, method = entry.target.name, entry.method
        part, why = self._done.get(f"weight {name}"), ""
        if part is not None:
            why = part.notes.get(name, "")
        elif not codes_lookups(method) and name not in known:
            why = "no calibration batch calls the layer that multiplies with it"
        if why:
            self.plan, method = fall_back(self.plan, entry, why)
        return _Alone(entry, method, known.get(name), why) if method else None

    def _rounds(self, entries: Sequence[PlanEntry]) -> list[Sequence[PlanEntry]]:
        """Divide weights that do not wait for each other into rounds, which ranks share.

        A round has as many as there are ranks: results are held until all of it is done.
        """
        ranks, sizes = self.ranks.count, self.plan.sizes
        if ranks > 1:  # together those that take about as long
            entries = sorted(entries, key=lambda e: -sizes.get(e.target.name, 0))
        return [entries[k : k + ranks] for k in range(0, len(entries), ranks)]

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
            ranks=self.ranks,
        )

    def _quantize_alone(self, alone: Sequence[_Alone]) -> None:
        """Quantize weights that do not wait for each other, dealt out over the ranks."""
        todo = [one for one in alone if one.entry.target.name not in self.finished]
        seed, write = self.plan.recipe.seed, self._write if self.runs else None
        names = [one.entry.target.name for one in todo]
        results = self.ranks.dealt(
            f"quantizing {', '.join(names)}",
            [partial(self._encoded, one, seed) for one in todo],
            [self.plan.sizes.get(name, 0) for name in names],
        )
        for name, one, result in zip(names, todo, results, strict=True):
            if write is not None:
                write_result(self.network, self._work(one.entry, one.method), result, write)
            notes = {name: one.why} if one.why else {}
            self._keep(f"weight {name}", Completed({name: result.on_cpu()}, notes=notes))

    def _encoded(self, one: _Alone, seed: int) -> Quantized:
        return encode_alone(self.network, self._work(one.entry, one.method), seed, one.known)

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
            ranks=self.ranks,
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
            ranks=self.ranks,
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
        for group in self._rounds(unreached):
            alone = []
            for entry in group:
                why = "no calibration batch calls the layer in both networks"
                self.plan, method = fall_back(self.plan, entry, why)
                alone.append(_Alone(entry, method))
            self._quantize_alone(alone)

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
            dtype = torch.float32 if name in self.bases else dtype
            weights[name] = pack(result, targets[name], dtype)
        parameters = dict(self.network.named_parameters(remove_duplicate=False))
        changed: dict[str, RawTensor] = {n: pack_raw(parameters[n]) for n in done.changes}
        info = {name: _numbers(result) for name, result in done.results.items()}
        names = tuple(weights), tuple(changed)
        part = Finished(key, *names, info, done.notes, done.unpaired, done.changes)
        self._done[key] = part
        self.finished.add(part, weights, changed)
        self.workspace.release()


def _numbers(result: Quantized) -> dict[str, float]:
    return {name: float(value) for name, value in result.info.items()}
