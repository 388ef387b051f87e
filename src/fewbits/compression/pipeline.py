"""Run a plan: fold BatchNorm, quantize layer by layer, re-estimate statistics, pack."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from torch import Tensor, nn

from ..coded import ActivationSite, CodedTensor, Contents, TensorFacts, recognised
from ..engine.activations.hooks import remove_inputs
from ..engine.batchnorm.fold import Folded, fold_batchnorm
from ..engine.batchnorm.reestimate import reestimate_batchnorm
from ..engine.layers.layer import Sensitivity
from ..engine.layers.pack import pack_raw
from ..engine.layers.targets import dtype_of, retie
from ..engine.lockstep.layer_check import LayerCheck, check_layers
from ..engine.network.batches import Forward, as_batches, as_forward, explained
from ..engine.network.distributed import ALONE, Ranks
from ..engine.network.padding import Mask, masks_of
from ..engine.network.shared_memory import is_same, same_values
from ..engine.network.sharing import Guard, assign, assign_state, sharing
from ..engine.sensitivity import probe
from ..errors import CalibrationError, ConfigError
from ..methods import Activations, calibrate_inputs, has_open_slope, suggested_slope
from ..progress import Progress
from ..recipe.plan import Plan
from ..recipe.recipe import Recipe
from .quantization import (
    Quantization,
    fall_back,
    needs_data,
    needs_inputs,
    shared_weights,
)
from .result import BaseWeights, CompressionResult
from .start_levels import StartLevels
from .storage.finished_tensors import FileTensors, FinishedWeights
from .storage.workspace import Workspace

__all__ = ["Pipeline"]

_T = TypeVar("_T")
_BARE = 0.97  # share of weights that are zero, where hardly any network is left
_SMALL = 1 << 20  # bytes of a tensor that is packed at once


@dataclass
class Pipeline:
    """One run of :func:`fewbits.compress`; see there for the settings.

    ``memory`` is shared by runs that differ only in the slopes of their recipe. Stages whose
    results do not depend on slopes store them there under their own name and reuse them in later
    runs, unchanged. It is None if there are no other runs. ``key`` identifies the run in a journal.
    ``ranks`` make the same run, each on its share of the batches, and come to the same result. With
    a ``base``, weights are quantized as differences from it, and the result is a delta. With a
    ``start``, they get its levels.
    """

    plan: Plan
    calibration: Iterable[Any] | Tensor | None
    forward: Forward | None
    mask: Mask
    max_live_bytes: int
    progress: Progress
    memory: dict[str, Any] | None = None
    workspace: Workspace = field(default_factory=Workspace)
    key: str = ""
    ranks: Ranks = ALONE
    base: BaseWeights | None = None
    start: StartLevels | None = None
    notes: list[str] = field(default_factory=list)
    folded: tuple[Folded, ...] = ()
    measured: tuple[str, ...] = ()
    checked: LayerCheck = field(default_factory=LayerCheck)
    sensitivities: Mapping[str, Sensitivity] = field(default_factory=dict)
    finished: FinishedWeights = field(default_factory=FinishedWeights)
    _guard: Guard = field(default_factory=lambda: Guard(()), init=False, repr=False)
    _bases: Mapping[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    def run(self, model: nn.Module, source: str) -> CompressionResult:
        """Compress ``model``, which is not changed; weights are shared with it until they are."""
        shared = shared_weights(self.plan)
        reference, batches, masks = self._prepared(model, shared)
        recipe = self.plan.recipe
        self._guard = Guard(shared - self._guard.written)
        network = self._quantize(reference, self._guard.names, batches, masks)
        if "reestimate_batchnorm" in recipe.finish:
            forward = explained(self._call, "stage reestimate_batchnorm")
            self.measured = reestimate_batchnorm(
                reference, network, batches, forward, self.folded, ranks=self.ranks
            )
            if self.measured:
                count = len(self.measured)
                self.notes.append(f"reestimate_batchnorm: {count} BatchNorm layers re-estimated")
        coded = self._pack(self._final_state(network, model), source)
        if recipe.activations is None:
            return coded
        return self._with_activations(coded, network, recipe.activations, batches)

    def settled(self, model: nn.Module) -> Recipe:
        """Return the recipe with the slopes that the network suggests for those that are open."""
        self._prepared(model, shared_weights(self.plan))
        return self.plan.recipe

    def _prepared(
        self, model: nn.Module, shared: frozenset[str]
    ) -> tuple[nn.Module, Sequence[Any], Sequence[Sequence[Tensor]]]:
        """Return the float network as it is quantized, batches and masks; find sensitivities."""
        if self.base is not None:
            self.plan = self.base.planned(self.plan, model)
            self._bases = self.base.of_weights(model)
        reference = sharing(model, shared).eval()
        count = remove_inputs(reference)
        if count:
            self.notes.append(
                f"activations: {count} inputs or outputs that were quantized before are in float "
                "again"
            )
        batches = self._batches(reference)
        retie(reference, {**self.plan.aliases, **self.plan.bound})
        self._guard = Guard(shared)
        if "fold_batchnorm" in self.plan.recipe.prepare:
            self._fold(reference, batches)
        self._check(reference, batches)
        masks = [masks_of(batch, place, self.mask) for place, batch in enumerate(batches)]
        self._probe(reference, batches, masks)
        return reference, batches, masks

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
        for name in shared_weights(self.plan) - set(self.finished):
            parameter = network.get_parameter(name)  # kept, and still that of the caller
            assign(parameter, parameter)
        coded.load_into(network)
        failed = self.checked.failed
        layers = {name: self.plan.modules_of(name) for name in self.finished if name not in failed}
        forward = explained(self._call, "activations")
        grids, left = calibrate_inputs(
            network, layers, settings, batches, forward, ends=self.plan.ends, ranks=self.ranks
        )
        left = (*left, *(f"{name} ({failed[name]})" for name in self.finished if name in failed))
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
        """The forward function, during which no memory changes that networks share."""
        return self._guard.around(as_forward(self.forward))

    def _batches(self, reference: nn.Module) -> Sequence[Any]:
        if self.calibration is not None:
            return as_batches(self.calibration, reference if self.forward is None else None)
        methods = [entry.method for entry in self.plan.entries if entry.method]
        data_users = [m.name for m in methods if needs_data(m)]
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
                assign_state(reference.get_submodule(name), state)
        else:
            only = None if self.start is None else self.start.absorbed
            self.folded = fold_batchnorm(reference, batches[0], forward, kept, only)
            if self.memory is not None:
                self.memory["fold_batchnorm"] = self.folded, _states(reference, self.folded)
        if self.start is not None:
            self.start.check_folded([pair.norm for pair in self.folded])
        if self.folded:
            self.notes.append(f"fold_batchnorm: {len(self.folded)} BatchNorm layers absorbed")

    def _check(self, reference: nn.Module, batches: Sequence[Any]) -> None:
        """Fall back to another method where a layer's inputs are not what its weight multiplies."""
        data_driven = [e for e in self.plan.entries if needs_data(e.method)]
        checked = self.plan.entries if self.plan.recipe.activations and batches else data_driven
        targets = [e.target for e in checked]
        if targets:
            self.checked = self._remembered(
                "check",
                lambda: self.ranks.from_first(
                    "check of layers", lambda: check_layers(reference, targets, batches, self._call)
                ),
            )
        for entry in data_driven:
            if entry.target.name in self.checked.failed:
                self.plan, _ = fall_back(self.plan, entry, self.checked.failed[entry.target.name])

    def _probe(
        self, reference: nn.Module, batches: Sequence[Any], masks: Sequence[Sequence[Tensor]]
    ) -> None:
        """Measure how errors of the weights affect the output, for methods that use it."""
        probed = [
            e for e in self.plan.entries if e.method and e.method.capabilities.needs_gradients
        ]
        if not probed:
            return
        metrics = {entry.method.output_metric for entry in probed if entry.method}
        if len(metrics) > 1:
            raise ConfigError(
                f"the rules of a recipe must agree on 'metric'. Got {', '.join(sorted(metrics))}."
            )
        found = self._remembered(
            "probe",
            lambda: probe(
                reference,
                [entry.target for entry in probed],
                batches,
                explained(self._call, "gradient probes"),
                masks=masks,
                metric=next(iter(metrics)),
                seed=self.plan.recipe.seed,
                progress=self.progress,
                ranks=self.ranks,
            ),
        )
        self.sensitivities = found.layers
        names = [e.target.name for e in probed if e.method and has_open_slope(e.method)]
        weights = sum(self.plan.sizes.get(n, 0) for n in names if n in self.sensitivities)
        if weights:
            energy, of = found.energy, "the network's output"
            if self.base is not None:
                targets = [entry.target for entry in probed]
                energy, of = self.base.energy(reference, targets, found.layers), "its change"
            slope = suggested_slope(energy, weights)
            self.notes.append(f"slope: {slope:.2g}, from the size of {of}")
            self.plan = self.plan.with_open_slopes(slope)
        for entry in probed:
            if entry.target.name not in self.sensitivities:
                self.plan, _ = fall_back(self.plan, entry, "no gradient reaches the weight")

    def _remembered(self, stage: str, run: Callable[[], _T]) -> _T:
        """Return the result of a stage that does not depend on slopes, computed once."""
        memory = {} if self.memory is None else self.memory
        if stage not in memory:
            memory[stage] = run()
        result: _T = memory[stage]
        return result

    def _quantize(
        self,
        reference: nn.Module,
        shared: frozenset[str],
        batches: Sequence[Any],
        masks: Sequence[Sequence[Tensor]],
    ) -> nn.Module:
        recipe = self.plan.recipe
        later = bool(recipe.finish) or recipe.activations is not None
        stage = Quantization(
            self.plan,
            reference,
            shared,
            later or any(needs_inputs(entry.method) for entry in self.plan.entries),
            self.workspace,
            self.key,
            self.checked,
            self.folded,
            self.sensitivities,
            self._call,
            masks if any(masks) else (),
            self.max_live_bytes,
            self.progress,
            self.notes,
            self.ranks,
            self._bases,
            {} if self.start is None else self.start.levels,
        )
        network = stage.run(batches)
        self.plan, self.finished = stage.plan, stage.finished
        if self.start is not None:
            self.plan = self.start.planned(self.plan)
            self.notes += self.start.notes(activations=recipe.activations is not None)
        if self.base is None:
            self._note_zeros()
        return network

    def _note_zeros(self) -> None:
        """Note if a slope left next to nothing, as one for small networks does in a large one."""
        sloped = {
            e.target.name for e in self.plan.entries if e.method and e.method.capabilities.has_slope
        }
        sizes = {name: self.plan.sizes.get(name, 0) for name in sloped}
        total = sum(sizes.values())
        zeros = sum(self.finished.info.get(n, {}).get("zeros", 0.0) * k for n, k in sizes.items())
        if total and zeros > _BARE * total:
            self.notes.append(
                f"{zeros / total:.1%} of the weights became zero: the slope is too large for this "
                "network. Pass a smaller slope, or a budget: target_bytes, target_bits or max_drop"
            )

    def _final_state(self, network: nn.Module, model: nn.Module) -> dict[str, Tensor]:
        """Return the final state, and note in the plan which kept tensors of ``model`` changed.

        Buffers are restored to their original values unless a stage changed them on purpose.
        """
        stages = {pair.norm: "absorbed by the layer before it" for pair in self.folded}
        stages |= dict.fromkeys(self.measured, "re-estimated")
        layers = {pair.layer: "added to that of its absorbed BatchNorm" for pair in self.folded}
        buffers = {name for name, _ in network.named_buffers(remove_duplicate=False)}
        state, original = dict(network.state_dict()), model.state_dict()
        for name in self.plan.kept:
            owner = name.rpartition(".")[0]
            if name in buffers and owner not in stages:
                state[name] = original[name]  # a forward pass may count its calls
            elif not is_same(state[name], original[name]) and not same_values(
                state[name], original[name]
            ):
                what = stages.get(owner, layers.get(owner)), self.finished.changes.get(name)
                self.plan = self.plan.kept_after(name, "; ".join(filter(None, what)))
        return state

    def _pack(self, state: dict[str, Tensor], source: str) -> CompressionResult:
        recipe = self.plan.recipe
        metadata: dict[str, Any] = {"recipe": recipe.to_dict()}
        if source:
            metadata["source"] = source
        if self.base is not None:
            how: dict[str, Any] = {"bases": self._bases, "keep": self.workspace.kept}
            return self.base.result(state, self.finished, metadata=metadata, **how, **self._about)
        names = [name for name in state if name not in self.plan.aliases]
        raw: dict[str, Callable[[], CodedTensor]] = {}
        facts: dict[str, TensorFacts] = {}
        for name in names:
            if name not in self.finished:
                form = recipe.raw_dtype
                if name in self.plan.exact and form != "exact":
                    form = "keep"
                raw[name] = self._raw(state[name].detach(), form)
                facts[name] = TensorFacts(tuple(state[name].shape), dtype_of(state[name]), "raw")
        tensors = FileTensors(names, self.finished, raw, facts, self.workspace.kept)
        contents = Contents(tensors, dict(self.plan.aliases), metadata=metadata)
        return CompressionResult(contents=contents, **self._about)

    @property
    def _about(self) -> dict[str, Any]:
        """What a result says besides its contents."""
        info = {name: dict(values) for name, values in self.finished.info.items()}
        return {"plan": self.plan, "info": info, "notes": tuple(self.notes)}

    def _raw(self, tensor: Tensor, form: str) -> Callable[[], CodedTensor]:
        """Return a function that packs a tensor; now, unless it is large and on disk.

        A grid is looked for when the function is called: its codes take more memory than values.
        """
        on_disk = self.workspace.pager is not None and tensor.nbytes > _SMALL
        if form == "exact" and on_disk:
            return lambda: recognised(pack_raw(tensor))
        if form == "exact":
            exact = pack_raw(tensor)
            return lambda: recognised(exact)
        if on_disk:
            return lambda: pack_raw(tensor, form)
        packed = pack_raw(tensor, form)
        return lambda: packed


def _states(network: nn.Module, folded: Sequence[Folded]) -> dict[str, dict[str, Tensor]]:
    """Return copies of the states of all folded layers and their BatchNorm layers."""
    names = [name for pair in folded for name in (pair.layer, pair.norm)]
    states = {name: network.get_submodule(name).state_dict() for name in names}
    return {name: {k: v.clone() for k, v in state.items()} for name, state in states.items()}
