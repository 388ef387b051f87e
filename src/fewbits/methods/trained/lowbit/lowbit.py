"""LowBit: low-bit weights *and* activations (Zhuang et al.), with any quantizer and schedule.

Quantizers: DoReFa (as in the paper), PACT, LSQ, LSQ+. Schedules: direct, weights before
activations, decreasing widths, stochastic precision, and custom lists of stages. Training with a
teacher is a matter of the loss: :class:`fewbits.training.JointDistillation`.

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
from ....engine.activations.observer import Site
from ....engine.activations.placement import PLACEMENTS
from ....engine.batchnorm.statistics import measure_batchnorm
from ....engine.layers.layer import Quantized
from ....engine.network.batches import Forward
from ....errors import CalibrationError, ConfigError, require
from ...base import METHODS, Capabilities, TrainingMethod
from ...schedule import Ramp, value_at
from ...uniform import check_number, check_one_of, check_switch, is_whole
from ..base import TunedWeight
from ..rate_loss import rate_loss
from .activation_sites import add_scales, find_inputs
from .gates import blocks_of, draw_gates, group_parts, open_gates
from .inputs import LowBitInput, add_quantizers, remove_quantizers
from .report import LayerLevels, layer_levels, warn_of_waste
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
        weights: bits per weight, 1 to 8 (2 to 8 with "lsq" and "lsq+"); 32 leaves weights in float.
        activations: bits per value of the inputs of layers, 1 to 8; 32 leaves them in float.
        quantizer: how values are quantized: "lsq" (a learned step), "lsq+" (also a learned zero for
            inputs with negative values), "pact" (a learned clip for inputs, DoReFa for weights) or
            "dorefa" (levels from -1 to 1 for weights and from 0 to 1 for inputs, as in the paper).
        schedule: how bits change during training: "direct", "two_stage", "activations_first",
            "progressive", "two_stage_progressive" or "stochastic"; or a list of stages with bits of
            weights / activations, such as "8/8, 4/4, 2/2".
        first_last: what to do with the network's first and last layer: "8bit" (use 8 bits), "fp"
            (leave in float) or "same" (treat like all others). In a network of two layers, all are
            treated the same.
        placement: where to quantize activations: at the "input" of every layer, or at the "output"
            of every ReLU, as in the paper, so that shortcuts carry quantized values too.
        per: how many steps weights have: "tensor" (one per weight tensor) or "channel" (one per
            output neuron).
        ranges: how to fit a grid at the start of each new width: "mse" (least squared error),
            "mean" (the rule of LSQ, a step of 2 mean|v| / sqrt(largest index); not for inputs with
            a learned zero) or "percentile" (of the activations; weights use "mse").
        percentile: percentile of the activations for ``ranges="percentile"``.
        detach_max: with "dorefa", whether to treat the largest weight, by which weights are
            divided, as a constant in the gradient.
        rescale: with "dorefa", which layers get a learned scale because their levels only range
            from -1 to 1: those not followed by a normalization ("auto"), all ("always") or none
            ("never").
        decay: with "pact", weight decay of the clips: half of it times their squares is added to
            the loss.
        gates: with ``schedule="stochastic"``, what is quantized together: a "block" (all layers of
            one module, including its shortcut), a "layer", or "parts" (weights and inputs of a
            layer separately).
        chance: with ``schedule="stochastic"``, the probability that a part is quantized in a step,
            constant or scheduled. It must end at 1, or ``reestimate`` must be set.
        reestimate: whether to re-estimate BatchNorm statistics on the calibration data at the end.
        slope: with "lsq" and "lsq+", the loss that one bit of the weights' indices is worth, which
            the file entropy-codes: constant or scheduled. Their entropy is then a part of the loss
            (:meth:`Tuner.penalty`), as in HEMP, and never moves weights away from zero. 0 leaves
            it out. Activations are not stored, so they have no bits.
    """

    name: ClassVar[str] = "lowbit"
    summary: ClassVar[str] = "trains for few bits in weights and activations, for integer hardware"
    paper: ClassVar[str] = (
        "Zhuang, Tan, Liu, Liu, Reid, Shen, Effective training of convolutional neural networks "
        "with low-bitwidth weights and activations, TPAMI 44(10), 2021"
    )
    # BatchNorm is not merged: sums would round differently and flip inputs to other levels.
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
    slope: float | Ramp = 0.0

    def __post_init__(self) -> None:
        check_one_of("quantizer", self.quantizer, _QUANTIZERS)
        least = 2 if self.quantizer.startswith("lsq") else 1
        for name, low in (("weights", least), ("activations", 1)):
            value = getattr(self, name)
            good = is_whole(value) and (low <= value <= 8 or value == FLOAT)
            require(good, name, f"bits from {low} to 8, or 32 for float", value)
        if self.weights == self.activations == FLOAT:
            raise ConfigError(
                "weights and activations are both 32 (float), so nothing would be quantized. Set "
                "at least one of them to 8 bits or fewer."
            )
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
        self._check_slope()
        check_switch("detach_max", self.detach_max)
        check_switch("reestimate", self.reestimate)
        stages = self.stages
        low = min(stage.weights for stage in stages)
        expected = f"stages with weights of at least {least} bits for this quantizer"
        require(low >= least, "schedule", expected, self.schedule)

    def _check_slope(self) -> None:
        slope = Ramp.of(self.slope)
        object.__setattr__(self, "slope", slope)
        for value in (slope.start, slope.end) if isinstance(slope, Ramp) else (slope,):
            check_number("slope", value, 0, inclusive=True)
        if slope != 0:
            grid = self.quantizer.startswith("lsq") and self.weights != FLOAT
            found = f"quantizer={self.quantizer!r} and weights={self.weights}"
            require(grid, "slope", "0 unless weights are on a grid with a zero (lsq, lsq+)", found)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages of the schedule, in order."""
        return stages_of(self.schedule, self.weights, self.activations)

    @property
    def needs_calibration(self) -> bool:
        """Whether activations are quantized."""
        return self.activations != FLOAT

    @property
    def remeasures_batchnorm(self) -> bool:
        """The setting ``reestimate``."""
        return self.reestimate

    def kept(self, names: Sequence[str]) -> Mapping[str, str]:
        """Return the weights that are left in float, each with the reason."""
        if self.weights == FLOAT:
            return dict.fromkeys(names, Reason(Cause.FLOAT_WEIGHTS, "weights=32"))
        if self.first_last != "fp" or len(names) < 3:
            return {}
        first, last = (Reason(Cause.END_LAYER, which) for which in ("the first", "the last"))
        return {names[0]: first, names[-1]: last}

    def start(self, weights: Sequence[TunedWeight], seed: int = 0) -> LowBitSession:
        """Start a session. Only the stochastic schedule is random, given ``seed`` and the step."""
        return LowBitSession(self, weights, seed)


class LowBitSession:
    """A training session of LowBit; see :class:`fewbits.methods.trained.base.Session`."""

    def __init__(self, method: LowBit, weights: Sequence[TunedWeight], seed: int) -> None:
        self.method, self.seed = method, seed
        self.stages = method.stages
        self.stage = 0
        self._count, self._progress = 0, 0.0
        self._weights = list(weights)
        self._ends = {w.name for w in weights if w.end and method.first_last == "8bit"}
        self._quantizers = {weight.name: self._make_quantizer(weight) for weight in weights}
        self.inputs: dict[str, LowBitInput] = {}
        self._layers: dict[str, Sequence[str]] = {
            name: (name.rpartition(".")[0],) for name in self._quantizers
        }
        self._eight_bit_sites: set[str] = set()
        self._blocks: dict[str, str] = {}
        self._batches: Sequence[Any] = ()
        self._forward: Forward | None = None
        self._enter(0)

    def _make_quantizer(self, weight: TunedWeight) -> LowBitWeight:
        method = self.method
        kind = "dorefa" if method.quantizer in ("dorefa", "pact") else method.quantizer
        if weight.name in self._ends or weight.levels is not None:
            kind = "lsq"  # no normalization follows the last layer
        pruned = weight.mask is not None and not bool(weight.mask.all())
        if kind == "dorefa" and pruned:
            raise ConfigError(
                f"weight {weight.name!r} has pruned entries, but the grid of DoReFa has no zero. "
                "Use quantizer='lsq', or prepare(..., zeros=False)."
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
        """Start to quantize the inputs of ``layers``; see :class:`InputSession`.

        Raises:
            ConfigError: activations are to be quantized, but there is no calibration data.
        """
        self._layers, self._blocks = {**self._layers, **layers}, blocks_of(model)
        self._batches, self._forward = batches, forward
        remove_inputs(model)
        remove_quantizers(model)
        add_scales(
            self._quantizers,
            layers,
            self.method.rescale,
            model=model,
            batches=batches,
            forward=forward,
        )
        self._draw()  # again, because the blocks are known only now
        if self.method.activations == FLOAT:
            return
        if not batches:
            raise ConfigError(
                "quantizing activations needs calibration data: pass calibration=, some batches of "
                "training data, to fewbits.prepare; or leave activations in float with "
                "activations=32."
            )
        sites = find_inputs(
            model,
            layers,
            ends,
            first_last=self.method.first_last,
            placement=self.method.placement,
            batches=batches,
            forward=forward,
        )
        for site, always_8 in sites:
            self.inputs[site.name] = self._make_input(site, model, always_8)
        add_quantizers(model, self.inputs.values())
        self._eight_bit_sites = {site.name for site, always_8 in sites if always_8}
        install_inputs(model, dict(self.inputs))
        self._enter(self.stage)

    def _make_input(self, site: Site, model: nn.Module, always_8: bool) -> LowBitInput:
        narrowest = min(stage.activations for stage in self.stages)
        return LowBitInput(
            site,
            model.get_submodule(site.module),
            "lsq" if always_8 else self.method.quantizer,
            narrowest=8 if always_8 else narrowest,
            ranges=self.method.ranges,
            percentile=self.method.percentile,
        )

    def detach(self, model: nn.Module) -> Mapping[str, ActivationGrid]:
        """Enter the last stage, re-estimate BatchNorm if requested, and remove the hooks."""
        self.advance(1.0)
        if self.chance < 1 and not self.method.reestimate:
            warnings.warn(
                f"layers are still quantized with a probability of {self.chance:g} at the end, and "
                "BatchNorm statistics are of that mixture. Use reestimate=True, or a ramp that "
                "ends at 1.",
                stacklevel=3,
            )
        open_gates(self._parts())
        if self.method.reestimate:
            if not self._batches or self._forward is None:
                raise CalibrationError(
                    "reestimate=True needs calibration data to re-estimate BatchNorm statistics. "
                    "Pass calibration= to fewbits.prepare."
                )
            measure_batchnorm(model, self._batches, self._forward)
        warn_of_waste(self.report())
        remove_inputs(model)
        remove_quantizers(model)
        return self.grids()

    def grids(self) -> dict[str, ActivationGrid]:
        """Return the current grids of the inputs, as stored in a file."""
        grids = ((name, quantizer.grid()) for name, quantizer in self.inputs.items())
        return {name: grid for name, grid in grids if grid is not None}

    # -- the Session protocol

    def penalty(self) -> Tensor:
        """Return the decay of PACT's clips, and ``slope`` times the bits of the indices."""
        device = next((weight.parameter.device for weight in self._weights), None)
        total = torch.zeros((), device=device)
        clips = [q.step(1.0) for q in self.inputs.values() if q.kind == "pact"]
        for clip in clips if self.method.decay else ():
            total = total + clip.square().sum() * (self.method.decay / 2)
        slope = value_at(self.method.slope, self._progress)
        return total + self._rate(slope) if slope and self._weights_have_bits else total

    @property
    def _weights_have_bits(self) -> bool:
        """Whether weights are quantized in this stage."""
        return self.stages[self.stage].weights != FLOAT

    def _rate(self, slope: float) -> Tensor:
        """Return ``slope`` times the bits of all indices, with its gradient in the weights."""
        bits, gradients, parameters = 0.0, [], []
        for weight in self._weights:
            found = self._quantizers[weight.name].bits_of_indices()
            if found is not None:
                bits += found[0]
                gradients.append(found[1])
                parameters.append(weight.parameter)
        return rate_loss(slope, bits, gradients, parameters)

    def before_step(self) -> None:
        """Do nothing: the method acts in the forward pass."""

    def step(self) -> None:
        """Constrain the learned steps, and draw the gates of the next training step."""
        for part in self._parts():
            part.constrain()
        self._count += 1
        self._draw()

    def advance(self, progress: float) -> None:
        """Enter the stage at ``progress``; grids are refitted when the width changes."""
        self._progress = progress
        self._enter(stage_at(self.stages, progress))

    def parametrization(self, weight: TunedWeight) -> nn.Module | None:
        """Return the quantizer of the weight."""
        return self._quantizers[weight.name]

    def parameters(self) -> Iterable[nn.Parameter]:
        """Return the learned steps, scales, clips and shifts."""
        learned = [p for part in self._parts() for p in part.parameters() if p.requires_grad]
        return list(dict.fromkeys(learned))

    def cell(self, weight: TunedWeight) -> float:
        """Return the mean step."""
        step = self._quantizers[weight.name].quantized_at(self._final(weight.name)).step
        return 1.0 if step is None else float(step.mean())

    @torch.no_grad()
    def quantized(self, weight: TunedWeight) -> Quantized:
        """Return the weight quantized to its final width."""
        return self._quantizers[weight.name].quantized_at(self._final(weight.name))

    @torch.no_grad()
    def measures(self) -> Mapping[str, float]:
        """Return the current bits, the entropy of the indices and the probability of gates."""
        stage = self.stages[self.stage]
        metrics = {"weight_bits": float(stage.weights), "activation_bits": float(stage.activations)}
        if self.method.schedule == "stochastic":
            metrics["chance"] = self.chance
        bits = total = 0.0
        for weight in self._weights:
            if levels := layer_levels(weight.name, self._quantizers[weight.name]):
                bits += levels.entropy * weight.parameter.numel()
                total += weight.parameter.numel()
        return {**metrics, "bits_per_weight": bits / total if total else float(FLOAT)}

    def report(self) -> list[LayerLevels]:
        """Return how each layer uses its levels: occupancy, entropy, clipped inputs, step."""
        rows = [layer_levels(name, weight) for name, weight in self._quantizers.items()]
        rows += [layer_levels(name, quantizer) for name, quantizer in self.inputs.items()]
        return list(filter(None, rows))

    def state_dict(self) -> dict[str, Any]:
        """Return stage, counters, steps, gates and samples."""
        return {
            "stage": self.stage,
            "count": self._count,
            "progress": self._progress,
            "weights": {name: part.state() for name, part in self._quantizers.items()},
            "inputs": {name: part.state() for name, part in self.inputs.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state returned by :meth:`state_dict`."""
        self.stage, self._count = int(state["stage"]), int(state["count"])
        self._progress = float(state["progress"])
        for name, part in self._quantizers.items():
            part.load_state(state["weights"][name])
        for name, quantizer in self.inputs.items():
            quantizer.load_state(state["inputs"][name])

    # -- stages and gates

    @property
    def selectable_from(self) -> float:
        """Share of the training from which the network has its final widths."""
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
        bits = self.stages[stage]
        for name, part in self._quantizers.items():
            part.set_bits(8 if name in self._ends and bits.weights != FLOAT else bits.weights)
        for name, quantizer in self.inputs.items():
            use_8 = name in self._eight_bit_sites and bits.activations != FLOAT
            quantizer.set_bits(8 if use_8 else bits.activations)
        self._draw()

    def _final(self, name: str) -> int:
        return 8 if name in self._ends else self.method.weights

    def _parts(self) -> list[LowBitWeight | LowBitInput]:
        return [*self._quantizers.values(), *self.inputs.values()]

    def _draw(self) -> None:
        """Draw the gates, which depend on seed and step only, so they agree on all ranks."""
        if self.chance >= 1:
            open_gates(self._parts())
        else:
            draw_gates(self.groups(), self.chance, self.seed, self._count)

    def groups(self) -> list[tuple[str, LowBitWeight | LowBitInput]]:
        """Return every quantizer with the name of the group whose gate it shares."""
        parts: list[tuple[str, LowBitWeight | LowBitInput]] = []
        parts += [(self._layers[name][0], part) for name, part in self._quantizers.items()]
        parts += [(quantizer.module, quantizer) for quantizer in self.inputs.values()]
        return group_parts(self.method.gates, self._blocks, parts)
