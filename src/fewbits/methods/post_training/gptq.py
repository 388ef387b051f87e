"""GPTQ: error feedback that re-optimizes the weights not yet quantized.

Reference:
    Frantar, Ashkboos, Hoefler and Alistarh, "GPTQ: accurate post-training quantization for
    generative pre-trained transformers", 2022 (published as OPTQ, ICLR 2023).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ...engine.layers.layer import LayerMatrix, QuantizedMatrix
from ...ops.rounding.path_following import descending, gram_error
from ...ops.rounding.second_order import Factor, gptq
from ..base import METHODS, Capabilities
from ..path_inputs import Units, mean_error_of_levels
from ..uniform import (
    FeedbackMethod,
    check_number,
    check_passes,
    checked_weight,
    result,
)

__all__ = ["GPTQ", "factor_info"]


@METHODS.register("gptq")
@dataclass(frozen=True, kw_only=True)
class GPTQ(FeedbackMethod):
    """GPTQ, calibrated on the inputs that the layer receives in the quantized network.

    Attributes:
        passes: refinement passes of coordinate descent at the end (not in the paper).
        damping: amount added to the diagonal of the inputs' second moments, as a fraction of its
            mean. It is raised tenfold, up to five times, if the factorization fails.
    """

    name: ClassVar[str] = "gptq"
    summary: ClassVar[str] = "error feedback through a Cholesky factor; for many rows of data"
    paper: ClassVar[str] = "Frantar et al. 2022"
    capabilities: ClassVar[Capabilities] = Capabilities(
        needs_inputs="quantized", has_levels=True, takes_levels=True
    )

    passes: int = 0
    damping: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        check_passes(self.passes)
        check_number("damping", self.damping, 0)

    def encode(self, layer: LayerMatrix) -> QuantizedMatrix:
        """Quantize one weight.

        Cost: ``N^3 / 3 + n N^2`` flops for n neurons of N columns, and ``3 n N^2`` for a pass.
        """
        weight = checked_weight(layer)
        statistics = self.statistics_of(layer)
        second, _ = statistics.moments()
        step = self.step_of(layer)
        alphabet = self.alphabet(layer, step)
        units = Units.of(step, weight, self.pruned(layer))
        values, sizes = (weight / units.size).to(second), units.to(second).steps
        energy = second.diagonal(dim1=1, dim2=2)
        mean = energy.mean(1)
        damping = self.damping * torch.where(mean > 0, mean, 1)
        order = descending(energy) if self.order == "descending" else None
        chosen, factor = gptq(
            values,
            second,
            alphabet.project_,
            damping=damping,
            order=order,
            steps=sizes,
            passes=self.passes,
        )
        info = factor_info(factor)
        squares = units.size[..., 0].double().square()
        squared = gram_error(values, chosen, second, second) * squares
        nothing = values.new_zeros(()).expand_as(values)
        total = float((gram_error(values, nothing, second, second) * squares).sum())
        if total > 0:
            info["objective"] = (max(0.0, float(squared.sum())) / total) ** 0.5
            info["energy"] = total
        levels, bias_shift = units.levels(chosen), None
        if self.bias_correction:
            bias_shift = mean_error_of_levels(statistics, weight, levels, step)
        return result(layer, levels, step, alphabet, info=info, bias_shift=bias_shift)


def factor_info(factor: Factor) -> dict[str, float]:
    """Return facts about the factorization.

    "damping": the largest amount that was added; "damping_retries": how often it was raised;
    "fallback": fraction of the groups that were rounded to nearest because every try failed.
    """
    return {
        "damping": float(factor.damping.max()) if len(factor.damping) else 0.0,
        "damping_retries": float(factor.retries),
        "fallback": float(factor.failed.double().mean()) if len(factor.failed) else 0.0,
    }
