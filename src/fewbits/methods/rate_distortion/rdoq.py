"""Rate-distortion optimized quantization: path following that accounts for bits at one slope.

Every level minimizes distortion + slope * bits, where distortion is the squared change of the
network's output and the bits come from the coder's own model. All distortions share one unit, so
one slope serves all layers; the step that fits the slope is found by a search. Closest published
relatives: CERWU (Conzelmann and Bamler, "Reducing storage of pretrained neural networks by
rate-constrained quantization and entropy coding", arXiv 2505.18758) and OBS (Hassibi and Stork
1993).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...engine.layers.layer import LayerMatrix, Levels, QuantizedMatrix
from ...engine.layers.statistics import Statistics
from ...errors import CalibrationError, ConfigError, require, shorten
from ...ops.levels.grid import all_finite
from ...ops.rounding.projections import CodebookProjection
from ..base import METHODS, Capabilities, PostTrainingMethod
from ..levels import CODEBOOK, MOST_LEVELS, check_codebook, codebook_of
from ..path_inputs import mean_error
from ..slopes import check_slope
from ..uniform import (
    check_number,
    check_one_of,
    check_switch,
    checked_statistics,
    checked_weight,
    is_pruned,
)
from .bias_steps import bias_steps
from .codebook_problem import CodebookProblem
from .rate_problem import TALL, RateProblem
from .trellis_problem import TrellisProblem

__all__ = ["RDOQ"]


_VOCABULARY = 256  # rows of an embedding that is split into blocks
_CHUNK = 1 << 21  # weights of a layer that a file holds in one piece: a path cannot go on


@METHODS.register("rdoq")
@dataclass(frozen=True, kw_only=True)
class RDOQ(PostTrainingMethod):
    """Rate-distortion optimized quantization.

    Attributes:
        slope: squared change of the output (centred logits of one sample, or of one token of a
            sequence) that one bit is worth. A larger slope gives a smaller file. None: that at
            which the output changes by a few percent of its energy. A search for a budget sets it.
        ratio: starting point of the search for the step: slope divided by squared step, in units of
            distortion.
        rate: how to estimate the bits of a level: "adaptive" (from the coder's adaptive model),
            "static" (from one distribution per layer), or "none" (levels are chosen by distortion
            alone; only the step follows the slope).
        bias_correction: whether to correct the bias by the mean output error on the calibration
            data.
        bias_rounding: whether to round biases as finely as the slope pays for.
        metric: what distortion is measured in: "logits" (squared error of the output), "fisher"
            (divergence of the predicted probabilities), or "auto": "fisher" for language models,
            which return logits for every token, else "logits".
        quantizer: "scalar" (every level is free), "trellis" (levels down a column are a path of a
            trellis of 8 states: fewer bytes at equal distortion with the codecs that know it, above
            some 0.7 bits per weight), or "auto" (for each layer whichever of the two costs less;
            takes as long as both).
        levels: a codebook instead of a grid: a tuple of 2 to 256 increasing values, which all
            layers share, without steps. With the quantizer "scalar" only.
    """

    name: ClassVar[str] = "rdoq"
    summary: ClassVar[str] = "distortion and coded bits at one slope; smallest files"
    paper: ClassVar[str] = "after Conzelmann and Bamler 2025, with a metric from gradients"
    capabilities: ClassVar[Capabilities] = Capabilities(
        needs_inputs="both",
        needs_gradients=True,
        codes_lookups=True,
        has_slope=True,
        takes_levels=True,
    )

    slope: float | None = None
    ratio: float = 0.25
    rate: str = "adaptive"
    bias_correction: bool = True
    bias_rounding: bool = True
    metric: str = "auto"
    quantizer: str = "scalar"
    levels: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        check_slope(self.slope)
        check_number("ratio", self.ratio, 0)
        check_one_of("rate", self.rate, ("adaptive", "static", "none"))
        check_switch("bias_correction", self.bias_correction)
        check_switch("bias_rounding", self.bias_rounding)
        check_one_of("metric", self.metric, ("auto", "logits", "fisher"))
        check_one_of("quantizer", self.quantizer, ("scalar", "trellis", "auto"))
        if self.levels is not None:
            self._check_levels()

    def _check_levels(self) -> None:
        given: object = self.levels
        if isinstance(given, list):  # as read from YAML or JSON
            given = tuple(given)
            object.__setattr__(self, "levels", given)
        on_grid = "on a grid, the slope says how many levels pay"
        check_codebook(given, f"None or a tuple of {CODEBOOK} ({on_grid})")
        scalar = self.quantizer == "scalar"
        expected = "'scalar' with given levels: a trellis needs an even grid"
        require(scalar, "quantizer", expected, self.quantizer)
        alone = self.ratio == RDOQ.ratio
        require(alone, "ratio", "left alone with given levels, which have no step", self.ratio)

    @property
    def output_metric(self) -> str:
        """The metric of the output that sensitivities are measured in."""
        return self.metric

    @property
    def fallback_settings(self) -> Mapping[str, Any]:
        """Settings for the same levels."""
        return {} if self.levels is None else {"levels": self.levels, "radius": "absmax"}

    @property
    def absorbs_scales(self) -> bool:
        """Whether steps follow the weights, which given levels do not."""
        return self.levels is None

    def refuses(self, levels: Levels) -> str:
        """Return why a weight cannot be given these levels; "" if it can."""
        if self.levels is not None:
            return f"levels={shorten(self.levels)} asks for others"
        if self.quantizer != "scalar":
            return f"quantizer={self.quantizer!r} needs a grid of its own"
        if levels.group:
            return f"each {levels.group} columns have a step of their own"
        count = len(levels.values)
        return "" if count <= MOST_LEVELS else f"{count:,} levels are more than {MOST_LEVELS}"

    def encode(self, layer: LayerMatrix) -> QuantizedMatrix:
        """Quantize one weight.

        Cost for n neurons of N columns: a few factorizations of ``N^3 / 3`` flops each, and about
        25 sweeps of ``n N^2``; the loop over columns is sequential, 0.1 ms each.
        """
        weight = checked_weight(layer)
        statistics = None
        if layer.statistics is not None or layer.sensitivity is None:
            statistics = checked_statistics(layer, self.name)
        levels = self._levels(layer, weight)
        if not bool(weight.any()):
            return _all_zero(weight, levels)
        corrects = self.bias_correction and layer.has_bias
        problems = self._problems(layer, weight, statistics, corrects, levels)
        slope = self.slope or problems[0].slope
        wide = TALL if statistics is not None else _VOCABULARY
        found = [self._chosen(layer, problem, slope, wide) for problem in problems]
        best = min(found, key=lambda one: one.cost) if len(found) > 1 else found[0]
        matrix = QuantizedMatrix(best.index, best.step)
        if levels is not None:
            matrix = levels.matrix(best.index)
        values, shift = matrix.dequantize(), None
        if corrects and statistics is not None:
            shift = mean_error(statistics, weight, values)
        info = {
            "levels": float(_count(best.index) if levels is None else len(levels.values)),
            "zeros": float((values == 0).double().mean()),
            "distortion": best.distortion,
        }
        rounds = self.bias_rounding and layer.has_bias
        steps = bias_steps(layer.sensitivity, slope) if rounds else None
        return replace(matrix, bias_shift=shift, info=info, bias_step=steps)

    def _levels(self, layer: LayerMatrix, weight: Tensor) -> Levels | None:
        """Return the given levels, of the method or of the layer; pruned layers need a zero."""
        levels = layer.levels
        if self.levels is not None:
            levels = Levels(codebook_of(self.levels, layer), weight.new_ones(1))
        if levels is not None and not bool((levels.values == 0).any()) and is_pruned(weight):
            zeros = float((weight == 0).double().mean())
            raise ConfigError(
                f"layer {layer.name!r}: {zeros:.0%} of its weights are zero, and none of the "
                f"{len(levels.values)} levels is. Add 0 to the levels, or exclude this layer."
            )
        return levels

    def _problems(
        self,
        layer: LayerMatrix,
        weight: Tensor,
        statistics: Statistics | None,
        corrects: bool,
        levels: Levels | None,
    ) -> list[RateProblem]:
        """Return the problem of each quantizer that is to be tried."""
        scalar = RateProblem.of(layer, weight, statistics, has_bias=corrects)
        if levels is not None:
            return [CodebookProblem.like(scalar, levels)]
        blocks = scalar.blocks(TALL if statistics is not None else _VOCABULARY)
        if self.quantizer == "scalar" or len(blocks) > 1 or weight.numel() > _CHUNK:
            return [scalar]
        trellis = TrellisProblem.like(scalar)
        return [trellis] if self.quantizer == "trellis" else [scalar, trellis]

    def _chosen(self, layer: LayerMatrix, problem: RateProblem, slope: float, tall: int) -> _Chosen:
        """Return the levels and steps of a layer, block by block, and what they cost."""
        blocks = problem.blocks(tall)
        index = torch.empty_like(problem.target, dtype=torch.int32)
        size = index.new_ones(index.shape[1] if len(blocks) > 1 else 1, dtype=torch.float32)
        distortion, cost = 0.0, math.inf
        for neurons in blocks:
            part = problem.part(neurons) if len(blocks) > 1 else problem
            step = part.sampled().search(slope, self.ratio, self.rate != "none")
            step = step.bfloat16().to(step)  # so that two of its bytes are zero in the file
            chosen = part.quantize(step, slope, self.rate)
            added = part.distortion(chosen[None], step.reshape(1))
            _check(layer, chosen, added)
            distortion += float(added)
            index[:, neurons] = part.index(chosen)
            size[neurons if len(blocks) > 1 else 0] = step.float()
            if self.quantizer == "auto" and len(blocks) == 1:
                cost = problem.cost(chosen, step, slope)
        return _Chosen(index, size, distortion, cost)


@dataclass(frozen=True, eq=False)
class _Chosen:
    """Integers (groups, neurons, columns) int32 and steps (1 or neurons,) of a layer.

    ``cost`` is distortion + slope * bits as the file has them, if it is known.
    """

    index: Tensor
    step: Tensor
    distortion: float
    cost: float


def _check(layer: LayerMatrix, levels: Tensor, distortion: Tensor) -> None:
    if not (all_finite(levels) and all_finite(distortion)):
        raise CalibrationError(
            f"layer {layer.name!r}: its inputs are too large or too small for float32 "
            "arithmetic. Scale the calibration data, or keep this layer in float."
        )


def _all_zero(weight: Tensor, levels: Levels | None) -> QuantizedMatrix:
    index, info = torch.zeros_like(weight, dtype=torch.int32), {"levels": 1.0, "zeros": 1.0}
    if levels is None:
        return QuantizedMatrix(index, weight.new_ones(1), info=info)
    nearest = CodebookProjection(levels.values).index(torch.zeros_like(weight))
    return levels.matrix(nearest, info=info)


def _count(index: Tensor) -> int:
    """Return the number of levels of a symmetric grid that has these integers."""
    return 2 * int(index.abs().max()) + 1
