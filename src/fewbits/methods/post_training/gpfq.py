"""GPFQ: greedy path following, which corrects rounding errors along the columns of a layer.

References:
    Lybrand and Saab, "A greedy algorithm for quantizing neural networks", JMLR 22(156), 2021.
    Zhang, Zhou and Saab, "Post-training quantization for neural networks with provable
    guarantees", SIAM J. Math. Data Sci. 5(2), 2023 (mismatched inputs, thresholds).
    Zhang and Saab, "SPFQ: a stochastic algorithm and its error analysis for neural network
    quantization", 2023 (stochastic rounding; SPFQ of order one is ``rounding="stochastic"``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...engine.layers.layer import LayerMatrix, Levels, QuantizedMatrix
from ...errors import require
from ...ops.levels.grid import Grid, Project, best_clip
from ...ops.rounding.projections import HardThreshold, SoftThreshold, StochasticRounding
from ..base import METHODS, Capabilities
from ..path_inputs import PreparedInputs, mean_error_of_levels
from ..uniform import (
    DATA_FREE_RADII,
    Alphabet,
    FeedbackMethod,
    check_number,
    check_one_of,
    check_passes,
    checked_weight,
    result,
)

__all__ = ["GPFQ"]

_CLIPS = tuple(1.25 * 5 ** (-k / 11) for k in range(12))  # from 1.25 to 0.25 in a constant ratio
_PASSES = 2  # further passes change next to nothing
_SEARCHED_NEURONS = 128  # enough to choose one clip for a whole layer


@METHODS.register("gpfq")
@dataclass(frozen=True, kw_only=True)
class GPFQ(FeedbackMethod):
    """Greedy path following quantization.

    Attributes:
        radius: also "objective", which tries twelve multiples of the largest magnitude (0.25 to
            1.25 times ``clip``) and takes the one with the least output error after the whole
            sweep, for each neuron (``per="channel"``, twelve sweeps) or for the layer (on a sample
            of its neurons).
        threshold: sets small weights to zero for sparser layers: "none", "soft" (an L1 penalty) or
            "hard" (an L0 penalty, with two more levels).
        threshold_size: size of the threshold in steps of the grid; with "hard" it must be below
            the largest level.
        rounding: how to round: to the "nearest" level, or "stochastic", which is unbiased but twice
            as noisy.
        passes: refinement passes of coordinate descent after the greedy pass (not in the papers).
            None means 2, or 0 with stochastic rounding, which refinement would undo.
    """

    name: ClassVar[str] = "gpfq"
    summary: ClassVar[str] = (
        "error feedback along the columns; needs no inverse, and few rows of data"
    )
    paper: ClassVar[str] = "Lybrand and Saab 2021; Zhang, Zhou and Saab 2023"
    capabilities: ClassVar[Capabilities] = Capabilities(
        needs_inputs="both", has_levels=True, takes_levels=True
    )
    radii: ClassVar[tuple[str, ...]] = (*DATA_FREE_RADII, "objective")

    threshold: str = "none"
    threshold_size: float = 0.5
    rounding: str = "nearest"
    passes: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_one_of("threshold", self.threshold, ("none", "soft", "hard"))
        check_number("threshold_size", self.threshold_size, 0)
        check_one_of("rounding", self.rounding, ("nearest", "stochastic"))
        if self.passes is not None:
            check_passes(self.passes)
        self._check_together()

    def _check_together(self) -> None:
        stochastic = self.rounding == "stochastic"
        if self.has_codebook:
            require(self.threshold == "none", "threshold", "'none' with a codebook", self.threshold)
            require(not stochastic, "rounding", "'nearest' with a codebook", self.rounding)
        require(
            not (stochastic and self.passes), "passes", "0 with stochastic rounding", self.passes
        )
        if self.threshold == "hard":
            grid = self.grid
            require(not stochastic, "rounding", "'nearest' with a hard threshold", self.rounding)
            require(grid.offset == 0, "levels", "odd with a hard threshold", self.levels)
            below = f"below {grid.top:g}, the top level, with a hard threshold"
            require(self.threshold_size < grid.top, "threshold_size", below, self.threshold_size)

    def encode(self, layer: LayerMatrix) -> QuantizedMatrix:
        """Quantize one weight.

        Sample form (rows m <= columns N): ``6 m n N`` flops for n neurons. Gram form: ``2 n N^2``,
        and up to twice that again to measure the objective. ``radius="objective"`` repeats it.
        """
        weight = checked_weight(layer)
        inputs = PreparedInputs.of(self.statistics_of(layer), self.order)
        step = self._step(layer, inputs)
        alphabet = self.alphabet(layer, step)
        project_ = self._project(alphabet, layer.seed, weight.device)
        levels, error = inputs.sweep(weight, step, project_, self._passes, self.pruned(layer))
        info = inputs.facts(weight, error)
        shift = None
        if self.bias_correction:
            shift = mean_error_of_levels(inputs.statistics, weight, levels, step)
        return result(layer, levels, step, alphabet, info=info, bias_shift=shift)

    def refuses(self, levels: Levels) -> str:
        """Return which setting needs a grid of its own; "" for none."""
        if self.threshold != "none":
            return f"threshold={self.threshold!r} needs a grid of its own"
        if self.rounding == "stochastic":
            return "rounding='stochastic' needs a grid of its own"
        return super().refuses(levels)

    @property
    def rounds_neurons_apart(self) -> bool:
        """Whether neurons have steps of their own, and no random numbers that they share."""
        return super().rounds_neurons_apart and self.rounding == "nearest"

    @property
    def _passes(self) -> int:
        if self.passes is None:
            return 0 if self.rounding == "stochastic" else _PASSES
        return self.passes

    def alphabet(self, layer: LayerMatrix, step: Tensor) -> Alphabet:
        """Return the levels of a layer, with a hard threshold those around it."""
        if self.threshold == "hard":
            return HardThreshold(self.threshold_size, self.grid)
        return super().alphabet(layer, step)

    def pruned(self, layer: LayerMatrix) -> Tensor | None:
        """Return which weights stay zero; none with stochastic rounding, which is of all values."""
        return None if self.rounding == "stochastic" else super().pruned(layer)

    def _project(self, alphabet: Alphabet, seed: int, device: torch.device) -> Project:
        if isinstance(alphabet, Grid) and self.rounding == "stochastic":
            generator = torch.Generator(device).manual_seed(seed)
            base = StochasticRounding(alphabet, generator).project_
        else:
            base = alphabet.project_
        return (
            SoftThreshold(self.threshold_size, base).project_ if self.threshold == "soft" else base
        )

    def _step(self, layer: LayerMatrix, inputs: PreparedInputs) -> Tensor:
        """Return the step given by the radius rule, searching for it with "objective"."""
        if self.radius != "objective" or layer.levels is not None:
            return self.step_of(layer)
        weight, spacing = layer.weight, self.spacing(layer)
        groups, neurons, _ = weight.shape
        stride = max(1, groups * neurons // _SEARCHED_NEURONS) if self.per == "tensor" else 1
        sample, pruned = weight[:, ::stride], self.pruned(layer)
        zeros = None if pruned is None else pruned[:, ::stride]

        def error(factor: float) -> Tensor:
            step = spacing.step(weight, factor)
            project_ = self._project(self.alphabet(layer, step), layer.seed, weight.device)
            squared = inputs.sweep(sample, step, project_, self._passes, zeros)[1]
            return squared.flatten() if self.per == "channel" else squared.sum()[None]

        return spacing.step(weight, best_clip(error, _CLIPS)[0])
