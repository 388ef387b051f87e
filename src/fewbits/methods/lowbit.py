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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..engine.placement import PLACEMENTS
from ..errors import ConfigError, require
from ..schedule import Ramp
from .bit_stages import FLOAT, Stage, stages_of
from .gridded import check_number, check_one_of, check_switch, is_whole
from .lowbit_course import LowBitCourse
from .trained import TRAINED, TunedWeight

__all__ = ["LowBit"]

_CHANCE = Ramp(0.25, 1.0, until=0.75)
_QUANTIZERS = ("lsq", "lsq+", "pact", "dorefa")


@TRAINED.register("lowbit")
@dataclass(frozen=True, kw_only=True)
class LowBit:
    """Low-bit weights and activations.

    Attributes:
        weights: bits of weights, 1 to 8 (LSQ from 2); 32 leaves them in float.
        activations: bits of layers' inputs, 1 to 8; 32 leaves them in float.
        quantizer: "lsq", "lsq+" (a learned zero for inputs below zero), "pact" or "dorefa".
        schedule: a name, such as "two_stage", or a list of stages "8/8, 4/4, 2/2"; see
            :mod:`fewbits.methods.bit_stages`.
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
    # Norms keep their statistics: settled, sums round otherwise, and inputs flip to other levels.
    settles: ClassVar[bool] = False

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

    def kept(self, names: Sequence[str]) -> Mapping[str, str]:
        """Return which of a network's weights stay as they are, each with the reason."""
        if self.weights == FLOAT:
            return dict.fromkeys(names, "weights are left in float: weights=32")
        if self.first_last != "fp" or len(names) < 3:
            return {}
        return {names[0]: "the first layer, left in float", names[-1]: "the last layer, in float"}

    def start(self, weights: Sequence[TunedWeight], seed: int = 0) -> LowBitCourse:
        """Begin. Only the stochastic schedule is random, by ``seed`` and the number of the step."""
        return LowBitCourse(self, weights, seed)
