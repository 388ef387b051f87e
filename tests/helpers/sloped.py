"""A method with a slope that costs no time: for searches, whatever searches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fewbits.engine.layers.layer import LayerMatrix, QuantizedMatrix
from fewbits.methods import Capabilities, PostTrainingMethod
from fewbits.methods.uniform import check_number

__all__ = ["Sloped"]


@dataclass(frozen=True, kw_only=True)
class Sloped(PostTrainingMethod):
    """Rounding with one step for all weights, the square root of the slope."""

    name: ClassVar[str] = "sloped"
    summary: ClassVar[str] = "rounding; for tests"
    paper: ClassVar[str] = "none"
    capabilities: ClassVar[Capabilities] = Capabilities(has_slope=True)

    slope: float = 1e-3

    def __post_init__(self) -> None:
        check_number("slope", self.slope, 0)

    def encode(self, layer: LayerMatrix) -> QuantizedMatrix:
        step = torch.tensor([self.slope**0.5]).bfloat16().float()
        index = (layer.weight / step).round().int()
        return QuantizedMatrix(index, step, info={"levels": float(1 + index.max() - index.min())})
