"""LowBit: low-bit weights *and* activations (Zhuang et al.), quantizer and schedule apart.

Quantizers: DoReFa (the paper's), PACT, LSQ, LSQ+. Schedules: direct, weights before activations,
falling widths, stochastic precision, and lists of one's own. Training with a teacher is a loss:
:class:`fewbits.training.JointDistillation`.

References:
    Zhuang, Shen, Tan, Liu and Reid, "Towards effective low-bitwidth convolutional neural networks",
    CVPR 2018. Zhuang, Tan, Liu, Liu, Reid and Shen, "Effective training of convolutional neural
    networks with low-bitwidth weights and activations", TPAMI 44(10), 2021.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ....coded import ActivationGrid, Cause, Reason
from ....engine.activations.hooks import install_inputs, remove_inputs
from ....engine.activations.placement import PLACEMENTS
from ....engine.batchnorm.statistics import measure_batchnorm
from ....engine.layers.layer import Quantized
from ....engine.network.batches import Forward
from ....errors import CalibrationError, ConfigError, require
from ...base import METHODS, Capabilities, TrainingMethod
from ...schedule import Ramp, value_at
from ...uniform import check_number, check_one_of, check_switch, is_whole
from ..base import TunedWeight
from .activation_sites import add_scales, find_inputs
from .gates import blocks_of, draw_gates, grouped, open_gates
from .inputs import LowBitInput, join_network, leave_network
from .report import LayerLevels, levels_of, warn_of
from .stages import FLOAT, Stage, stage_at, stages_of
from .weights import LowBitWeight

__all__ = ["LowBit", "LowBitSession"]


_CHANCE = Ramp(0.25, 1.0, until=0.75)
_QUANTIZERS = ("lsq", "lsq+", "pact", "dorefa")


@METHODS.register("lowbit")
@dataclass(frozen=True, kw_only=True)
class LowBit(TrainingMethod):
    """Low-bit weights and activations.

    Attributes:
        weights: bits of weights, 1 to 8 (LSQ from 2); 32 leaves them in float.
        activations: bits of layers' inputs, 1 to 8; 32 leaves them in float.
        quantizer: "lsq", "lsq+" (a learned zero for inputs below zero), "pact" or "dorefa".
        schedule: a name, such as "two_stage", or a list of stages "8/8, 4/4, 2/2"; see
            :mod:`fewbits.methods.trained.lowbit.stages`.
        first_last: the network's first and last layer, in the order of its modules: "8bit", "fp"
            (in float) or "same". A network of two layers has no such ends.
        placement: "input" of every layer, or "output" of every ReLU, as in the paper: shortcuts
            then carry quantized values.
        per: "tensor" or "channel": steps of weights.
        ranges: how a grid starts at each new width: "mse" (least squared error), "mean" (LSQ's
            2 mean|v| / sqrt(high); not of inputs with a learned zero) or "percentile".
        percentile: of activations, for the rule of that name.
        detach_max: DoReFa's maximum is a constant to the gradient.
        rescale: DoReFa's levels are from -1 to 1; a learned scale for layers that no normalization
            follows ("auto"), for "always" all, or "never".
        decay: of PACT's clips: half of it times their squares is added to the loss.
        gates: what "stochastic" draws as one: a "block" (layers of one module, its shortcut's
            too; not of a mere sequence), a "layer", or "parts" (weights and inputs of a layer on
            their own).
        chance: with which "stochastic" quantizes a part in a step, constant or scheduled; it must
            end at 1, or normalizations must be measured anew.
        reestimate: measure normalizations anew on the calibration data at the end.
    """

    name: ClassVar[str] = "lowbit"
    summary: ClassVar[str] = "trains for few bits in weights and activations, for integer hardware"
    paper: ClassVar[str] = (
        "Zhuang, Tan, Liu, Liu, Reid, Shen, Effective training of convolutional neural networks "
        "with low-bitwidth weights and activations, TPAMI 44(10), 2021"
    )
    # Norms keep their statistics: merged, sums round otherwise, and inputs flip to other levels.
    capabilities: ClassVar[Capabilities] = Capabilities(
        trains=True, needs_labels=True, quantizes_activations=True, merges_batchnorm=False
    )

    weights: int = 4
    activations: int = 4
    quantizer: str = "lsq"
    schedule: str = "direct"
    first_last: str = "8bit"
    placement: str = "input"
    per: str = "tensor"
    ranges: str = "mse"
    percentile: float = 99.9
    detach_max: bool = False
    rescale: str = "auto"
    decay: float = 0.0
    gates: str = "block"
    chance: float | Ramp = _CHANCE
    reestimate: bool = False

    def __post_init__(self) -> None:
        check_one_of("quantizer", self.quantizer, _QUANTIZERS)
        least = 2 if self.quantizer.startswith("lsq") else 1
        for name, low in (("weights", least), ("activations", 1)):
            value = getattr(self, name)
            good = is_whole(value) and (low <= value <= 8 or value == FLOAT)
            require(good, name, f"bits from {low} to 8, or 32 for float", value)
        if self.weights == self.activations == FLOAT:
            raise ConfigError("weights and activations are both 32 bits: nothing is left to train.")
        check_one_of("first_last", self.first_last, ("8bit", "fp", "same"))
        check_one_of("placement", self.placement, PLACEMENTS)
        check_one_of("per", self.per, ("tensor", "channel"))
        check_one_of("ranges", self.ranges, ("mse", "mean", "percentile"))
        check_one_of("rescale", self.rescale, ("auto", "always", "never"))
        check_one_of("gates", self.gates, ("block", "layer", "parts"))
        check_number("percentile", self.percentile, 0)
        require(self.percentile <= 100, "percentile", "at most 100", self.percentile)
        check_number("decay", self.decay, 0, inclusive=True)
        object.__setattr__(self, "chance", Ramp.of(self.chance))
        chance = self.chance
        for value in (chance.start, chance.end) if isinstance(chance, Ramp) else (chance,):
            check_number("chance", value, 0, inclusive=True)
            require(value <= 1, "chance", "a probability, at most 1", value)
        check_switch("detach_max", self.detach_max)
        check_switch("reestimate", self.reestimate)
        stages = self.stages
        low = min(stage.weights for stage in stages)
        require(low >= least, "schedule", f"weights of {least} bits or more", self.schedule)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages, in order."""
        return stages_of(self.schedule, self.weights, self.activations)

    @property
    def needs_calibration(self) -> bool:
        """Whether activations are quantized at all."""
        return self.activations != FLOAT

    @property
    def remeasures_batchnorm(self) -> bool:
        """The setting ``reestimate``."""
        return self.reestimate

    def kept(self, names: Sequence[str]) -> Mapping[str, str]:
        """Return which of a network's weights stay as they are, each with the reason."""
        if self.weights == FLOAT:
            return dict.fromkeys(names, Reason(Cause.FLOAT_WEIGHTS, "weights=32"))
        if self.first_last != "fp" or len(names) < 3:
            return {}
        first, last = (Reason(Cause.END_LAYER, which) for which in ("the first", "the last"))
        return {names[0]: first, names[-1]: last}

    def start(self, weights: Sequence[TunedWeight], seed: int = 0) -> LowBitSession:
        """Begin. Only the stochastic schedule is random, by ``seed`` and the number of the step."""
        return LowBitSession(self, weights, seed)


class LowBitSession:
    """The state of one training with LowBit; see :class:`fewbits.methods.trained.base.Session`."""

    def __init__(self, method: LowBit, weights: Sequence[TunedWeight], seed: int) -> None:
        self.method, self.seed = method, seed
        self.stages = method.stages
        self.stage = 0
        self._count, self._progress = 0, 0.0
        self._weights = list(weights)
        self._ends = {w.name for w in weights if w.end and method.first_last == "8bit"}
        self._lines = {weight.name: self._line(weight) for weight in weights}
        self.inputs: dict[str, LowBitInput] = {}
        self._layers: dict[str, Sequence[str]] = {
            name: (name.rpartition(".")[0],) for name in self._lines
        }
        self._wide: set[str] = set()
        self._blocks: dict[str, str] = {}
        self._batches: Sequence[Any] = ()
        self._forward: Forward | None = None
        self._enter(0)

    def _line(self, weight: TunedWeight) -> LowBitWeight:
        method = self.method
        kind = "dorefa" if method.quantizer in ("dorefa", "pact") else method.quantizer
        if weight.name in self._ends or weight.levels is not None:
            kind = "lsq"  # no normalization follows the last layer
        pruned = weight.mask is not None and not bool(weight.mask.all())
        if kind == "dorefa" and pruned:
            raise ConfigError(
                f"weight {weight.name!r} has pruned entries, and DoReFa's grid has no zero. Use "
                "quantizer='lsq', or prepare(..., zeros=False)."
            )
        return LowBitWeight(
            weight, kind, per=method.per, ranges=method.ranges, detach_max=method.detach_max
        )

    # -- the network around the weights

    def attach(
        self,
        model: nn.Module,
        layers: Mapping[str, Sequence[str]],
        batches: Sequence[Any],
        forward: Forward,
        ends: Sequence[str] = (),
    ) -> None:
        """Quantize inputs of ``layers`` from now on; see :class:`InputSession`.

        Raises:
            ConfigError: activations are to be quantized, and there is no calibration data.
        """
        self._layers, self._blocks = {**self._layers, **layers}, blocks_of(model)
        self._batches, self._forward = batches, forward
        remove_inputs(model)
        leave_network(model)
        add_scales(
            self._lines, layers, self.method.rescale, model=model, batches=batches, forward=forward
        )
        self._draw()  # the blocks are known now
        if self.method.activations == FLOAT:
            return
        if not batches:
            raise ConfigError(
                "activations start from calibrated ranges: pass calibration=, some batches of "
                "training data, to fewbits.prepare; or leave them in float: activations=32."
            )
        found = find_inputs(
            model,
            layers,
            ends,
            first_last=self.method.first_last,
            placement=self.method.placement,
            batches=batches,
            forward=forward,
        )
        narrowest = min(stage.activations for stage in self.stages)
        for site, eight in found:
            self.inputs[site.name] = LowBitInput(
                site,
                model.get_submodule(site.module),
                "lsq" if eight else self.method.quantizer,
                narrowest=8 if eight else narrowest,
                ranges=self.method.ranges,
                percentile=self.method.percentile,
            )
        join_network(model, self.inputs.values())
        self._wide = {site.name for site, eight in found if eight}
        install_inputs(model, dict(self.inputs))
        self._enter(self.stage)

    def detach(self, model: nn.Module) -> Mapping[str, ActivationGrid]:
        """End: enter the last stage, measure normalizations where asked, remove the hooks."""
        self.advance(1.0)
        if self.chance < 1 and not self.method.reestimate:
            warnings.warn(
                f"layers are quantized with a chance of {self.chance:g} at the end, and statistics "
                "of normalizations are of that mixture. Use reestimate=True, or a ramp up to 1.",
                stacklevel=3,
            )
        open_gates(self._parts())
        if self.method.reestimate:
            if not self._batches or self._forward is None:
                raise CalibrationError(
                    "reestimate=True measures normalizations on calibration data, and there is "
                    "none. Pass calibration= to fewbits.prepare."
                )
            measure_batchnorm(model, self._batches, self._forward)
        warn_of(self.report())
        remove_inputs(model)
        leave_network(model)
        return self.grids()

    def grids(self) -> dict[str, ActivationGrid]:
        """Return the grids of the inputs as a file holds them now."""
        found = ((name, made.grid()) for name, made in self.inputs.items())
        return {name: grid for name, grid in found if grid is not None}

    # -- what Session asks for

    def penalty(self) -> Tensor:
        """Return PACT's decay of clips; zero for the others."""
        device = next((weight.parameter.device for weight in self._weights), None)
        total = torch.zeros((), device=device)
        clips = [made.step(1.0) for made in self.inputs.values() if made.kind == "pact"]
        for clip in clips if self.method.decay else ():
            total = total + clip.square().sum() * (self.method.decay / 2)
        return total

    def before_step(self) -> None:
        """Nothing: the method acts in the forward pass."""

    def step(self) -> None:
        """Keep steps positive, and draw the gates of the next step."""
        for part in self._parts():
            part.hold()
        self._count += 1
        self._draw()

    def advance(self, progress: float) -> None:
        """Enter the stage at ``progress``; a new width fits its grids anew."""
        self._progress = progress
        self._enter(stage_at(self.stages, progress))

    def parametrization(self, weight: TunedWeight) -> nn.Module | None:
        """Return the quantizer of the weight."""
        return self._lines[weight.name]

    def parameters(self) -> Iterable[nn.Parameter]:
        """Return the steps, scales, clips and shifts that are learned."""
        found = [p for part in self._parts() for p in part.parameters() if p.requires_grad]
        return list(dict.fromkeys(found))

    def cell(self, weight: TunedWeight) -> float:
        """Return the mean step."""
        found = self._lines[weight.name].quantized_at(self._final(weight.name)).step
        return 1.0 if found is None else float(found.mean())

    @torch.no_grad()
    def quantized(self, weight: TunedWeight) -> Quantized:
        """Return the weight on its levels; at the final width where it is float now."""
        return self._lines[weight.name].quantized_at(self._final(weight.name))

    @torch.no_grad()
    def measures(self) -> Mapping[str, float]:
        """Return the bits now, the entropy of the indices, and the share of clipped inputs."""
        now = self.stages[self.stage]
        told = {"weight_bits": float(now.weights), "activation_bits": float(now.activations)}
        if self.method.schedule == "stochastic":
            told["chance"] = self.chance
        bits = total = 0.0
        for weight in self._weights:
            if found := levels_of(weight.name, self._lines[weight.name]):
                bits += found.entropy * weight.parameter.numel()
                total += weight.parameter.numel()
        return {**told, "bits_per_weight": bits / total if total else float(FLOAT)}

    def report(self) -> list[LayerLevels]:
        """Return how each layer uses its levels: occupancy, entropy, clipped inputs, step."""
        rows = [levels_of(name, line) for name, line in self._lines.items()]
        rows += [levels_of(name, found) for name, found in self.inputs.items()]
        return list(filter(None, rows))

    def state_dict(self) -> dict[str, Any]:
        """Return stage, counters, steps, gates and samples."""
        return {
            "stage": self.stage,
            "count": self._count,
            "progress": self._progress,
            "weights": {name: line.state() for name, line in self._lines.items()},
            "inputs": {name: made.state() for name, made in self.inputs.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken."""
        self.stage, self._count = int(state["stage"]), int(state["count"])
        self._progress = float(state["progress"])
        for name, line in self._lines.items():
            line.take_state(state["weights"][name])
        for name, made in self.inputs.items():
            made.take_state(state["inputs"][name])

    # -- stages and gates

    @property
    def selectable_from(self) -> float:
        """Share of the training from which the network computes at its final widths."""
        chance = self.method.chance
        if self._stochastic:
            return chance.until if isinstance(chance, Ramp) else 0.0
        return self.stages[-2].until if len(self.stages) > 1 else 0.0

    @property
    def _stochastic(self) -> bool:
        return self.method.schedule == "stochastic"

    @property
    def chance(self) -> float:
        """Probability that a part is quantized in a step."""
        return value_at(self.method.chance, self._progress) if self._stochastic else 1.0

    def _enter(self, stage: int) -> None:
        self.stage = stage
        now = self.stages[stage]
        for name, line in self._lines.items():
            line.enter(8 if name in self._ends and now.weights != FLOAT else now.weights)
        for name, made in self.inputs.items():
            eight = name in self._wide and now.activations != FLOAT
            made.enter(8 if eight else now.activations)
        self._draw()

    def _final(self, name: str) -> int:
        return 8 if name in self._ends else self.method.weights

    def _parts(self) -> list[LowBitWeight | LowBitInput]:
        return [*self._lines.values(), *self.inputs.values()]

    def _draw(self) -> None:
        """Draw the gates: a function of the seed and the step, so the same on every rank."""
        if self.chance >= 1:
            open_gates(self._parts())
        else:
            draw_gates(self.grouped(), self.chance, self.seed, self._count)

    def grouped(self) -> list[tuple[str, LowBitWeight | LowBitInput]]:
        """Return every quantizer with the name of the group that it is drawn with."""
        parts: list[tuple[str, LowBitWeight | LowBitInput]] = []
        parts += [(self._layers[name][0], line) for name, line in self._lines.items()]
        parts += [(made.module, made) for made in self.inputs.values()]
        return grouped(self.method.gates, self._blocks, parts)
