"""From a plan to a compressed network: fold, quantize layer by layer, re-estimate, pack."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from .coded import CodedTensor, Contents
from .engine.batches import Forward, as_batches, call_model, explained
from .engine.bridge import pack, pack_raw
from .engine.collect import LayerQuantizer, Work, quantize_blind
from .engine.fold import Folded, fold_batchnorm
from .engine.layer import QuantizedMatrix
from .engine.lockstep import run_lockstep
from .engine.reestimate import reestimate_batchnorm
from .errors import CalibrationError
from .model import CodedModel
from .planning import Plan, PlanEntry, fallback_of
from .progress import Progress

__all__ = ["Pipeline"]


@dataclass
class Pipeline:
    """One run of :func:`fewbits.compress`; see there for the settings."""

    plan: Plan
    calibration: Iterable[Any] | Tensor | None
    forward: Forward | None
    max_live_bytes: int
    progress: Progress
    results: dict[str, QuantizedMatrix] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def run(self, reference: nn.Module, source: str) -> CodedModel:
        """Compress ``reference``, a copy in eval mode that this may change."""
        recipe = self.plan.recipe
        seeing = [e for e in self.plan.entries if e.method and e.method.needs != "nothing"]
        batches = self._batches(bool(seeing))
        folded: tuple[Folded, ...] = ()
        if "fold_batchnorm" in recipe.prepare:
            forward = explained(self._call, "stage fold_batchnorm, batch 0")
            folded = fold_batchnorm(reference, batches[0], forward)
            self.notes.append(f"fold_batchnorm: {len(folded)} normalizations absorbed")
        network = deepcopy(reference)
        self._quantize_blind(network)
        if seeing:
            self._quantize_seeing(reference, network, seeing, batches, folded)
        if "reestimate_batchnorm" in recipe.finish:
            forward = explained(self._call, "stage reestimate_batchnorm")
            norms = reestimate_batchnorm(reference, network, batches, forward, folded)
            self.notes.append(f"reestimate_batchnorm: {len(norms)} normalizations measured")
        return self._pack(network, source)

    @property
    def _call(self) -> Forward:
        return call_model if self.forward is None else self.forward

    def _batches(self, needed: bool) -> Sequence[Any]:
        if self.calibration is not None:
            return as_batches(self.calibration)
        needing = [e.method.name for e in self.plan.entries if e.method and needed]
        needing += [*self.plan.recipe.prepare, *self.plan.recipe.finish]
        if needing:
            raise CalibrationError(
                f"{needing[0]!r} needs calibration data. Pass calibration=, an iterable of a few "
                "hundred training inputs in batches (never evaluation data)."
            )
        return ()

    def _quantize_blind(self, network: nn.Module) -> None:
        """Round what needs no inputs first: later layers then calibrate on its effect."""
        for entry in self.plan.entries:
            if entry.method and entry.method.needs == "nothing":
                work = Work(entry.target, entry.method.encode)
                name = entry.target.name
                self.results[name] = quantize_blind(network, work, self.plan.recipe.seed)

    def _quantize_seeing(
        self,
        reference: nn.Module,
        network: nn.Module,
        entries: Sequence[PlanEntry],
        batches: Sequence[Any],
        folded: tuple[Folded, ...],
    ) -> None:
        recipe = self.plan.recipe
        work: dict[str, list[Work]] = defaultdict(list)
        for entry in entries:
            if entry.method:
                both = entry.method.needs == "both"
                work[entry.target.module].append(Work(entry.target, entry.method.encode, both))
        sinks = {pair.layer: f"{pair.norm}.bias" for pair in folded}
        observer = LayerQuantizer(
            network, work, len(batches), recipe.seed, recipe.calibration_rows, sinks
        )
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
        self.notes.append(
            f"lockstep: {report.live_batches} of {len(batches)} batches suspended at a time, "
            f"{report.reruns} runs repeated"
        )
        self.results.update(observer.results)
        for name, note in observer.notes.items():
            self.plan = self.plan.noted(name, note)
        self._quantize_unreached(network, entries)

    def _quantize_unreached(self, network: nn.Module, entries: Sequence[PlanEntry]) -> None:
        for entry in entries:
            name = entry.target.name
            if name in self.results or entry.method is None:
                continue
            method = fallback_of(entry.method)
            work = Work(entry.target, method.encode)
            self.results[name] = quantize_blind(network, work, self.plan.recipe.seed)
            reason = f"instead of {entry.method.name}: no calibration batch reaches the layer"
            self.plan = self.plan.changed(name, method, reason)

    def _pack(self, network: nn.Module, source: str) -> CodedModel:
        recipe = self.plan.recipe
        targets = {entry.target.name: entry.target for entry in self.plan.entries}
        tensors: dict[str, CodedTensor] = {}
        for name, tensor in network.state_dict().items():
            if name in self.plan.aliases:
                continue
            if name in self.results:
                tensors[name] = pack(self.results[name], targets[name], tensor.dtype)
            else:
                tensors[name] = pack_raw(tensor, name, recipe.raw_dtype)
        metadata: dict[str, Any] = {"recipe": recipe.to_dict()}
        if source:
            metadata["source"] = source
        contents = Contents(tensors, dict(self.plan.aliases), metadata=metadata)
        info = {name: dict(result.info) for name, result in self.results.items()}
        return CodedModel(contents, self.plan, info, tuple(self.notes))
