"""Qronos: GPTQ that first corrects for the change of the inputs.

Reference:
    Zhang, Zhang, Colbert and Saab, "Qronos: correcting the past by shaping the future in
    post-training quantization", 2025.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ...engine.layers.layer import LayerMatrix, QuantizedMatrix
from ...ops.rounding.second_order import largest_eigenvalue, qronos
from ..base import METHODS, Capabilities
from ..path_inputs import PreparedInputs, Units, mean_error
from ..uniform import (
    FeedbackMethod,
    check_number,
    check_passes,
    checked_weight,
    result,
)
from .gptq import factor_info

__all__ = ["Qronos"]


@METHODS.register("qronos")
@dataclass(frozen=True, kw_only=True)
class Qronos(FeedbackMethod):
    """Qronos: match the outputs of the float network given the inputs of the quantized network.

    Attributes:
        passes: refinement passes of coordinate descent at the end (not in the paper).
        damping: amount added to the diagonal of the inputs' second moments, as a fraction of their
            largest eigenvalue: how much weights are held near their values where the data say
            little. The paper has 1e-6, and pulls weights to zero instead. It is raised tenfold, up
            to five times, if the factorization fails.
    """

    name: ClassVar[str] = "qronos"
    summary: ClassVar[str] = "error feedback that also corrects drifted inputs; best at fixed bits"
    paper: ClassVar[str] = "Zhang et al. 2025"
    capabilities: ClassVar[Capabilities] = Capabilities(
        needs_inputs="both", has_levels=True, takes_levels=True
    )

    passes: int = 2
    damping: float = 3e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_passes(self.passes)
        check_number("damping", self.damping, 0)

    def encode(self, layer: LayerMatrix) -> QuantizedMatrix:
        """Quantize one weight, in float64.

        Cost: ``N^3 / 3 + 5 n N^2`` flops for n neurons of N columns, and ``5 n N^2`` for a pass.
        """
        weight = checked_weight(layer)
        inputs = PreparedInputs.of(self.statistics_of(layer), self.order)
        small, small_cross = inputs.statistics.moments()
        second = small.double()
        cross = second if small_cross is small else small_cross.double()
        step = self.step_of(layer)
        alphabet = self.alphabet(layer, step)
        units = Units.of(step, weight, self.pruned(layer)).to(second)
        largest = largest_eigenvalue(second)
        damping = self.damping * torch.where(largest > 0, largest, 1)
        chosen, factor = qronos(
            weight / units.size,
            second,
            cross,
            alphabet.project_,
            damping=damping,
            order=inputs.order,
            steps=units.steps,
            passes=self.passes,
        )
        info = factor_info(factor)
        quantized = chosen * units.size
        info |= inputs.facts(weight, inputs.error(weight, quantized))
        shift = mean_error(inputs.statistics, weight.double(), quantized)
        bias_shift = shift if self.bias_correction else None
        levels = units.levels(chosen)
        return result(layer, levels, step, alphabet, info=info, bias_shift=bias_shift)
