"""Transform quantization: channels decorrelated, then quantized at one slope for all layers.

Reference:
    Young, Zhe, Taubman and Girod, "Transform quantization for CNN compression", TPAMI 2021.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..engine.layer import LayerMatrix, Quantized
from ..engine.statistics import Statistics
from ..errors import ConfigError, require
from ..ops.transforms import SIDES
from .base import METHODS
from .domains import Domain, Felt, plain_domain, transformed
from .gridded import (
    check_number,
    check_one_of,
    check_switch,
    checked_statistics,
    checked_weight,
    is_whole,
)
from .inputs import mean_error
from .rated import How, Rated, rate

__all__ = ["Transform"]

TINY = 1e-300
_PLAIN = 0.2  # of the metric is the inputs' own: gradients know nothing of a unit that is off
_APART = 0.5  # of what outputs share is not counted on: it differs from input to input
_DEAD = 0.72  # 1 / (2 ln 2) bits a weight: less than that is lost by leaving a channel out


@METHODS.register("transform")
@dataclass(frozen=True, kw_only=True)
class Transform:
    """Transform quantization at a slope, with the basis quantized and paid for.

    Attributes:
        slope: squared error of the network's output (its logits, summed) that one bit is worth.
            The same for all layers, it shares the bits out among them.
        basis: "elt" (decorrelates weights and output errors), "klt" (weights only), or "none".
        side: which channels the basis mixes: "row" (inputs), "column" (outputs), or "best": for
            each layer what costs least of these and no transform.
        form: "entropy" (uniform steps, entropy-coded) or "blocks" (the paper's: eight blocks of
            rows in a layer, each of 0 to 8 bits, billed at fixed length).
        basis_bits: for each value of a basis.
        feedback: round with the error fed back along the columns, inside the domain; with
            "entropy" only.
        bias_correction: shift the bias by the mean output error over the calibration rows.
    """

    name: ClassVar[str] = "transform"
    summary: ClassVar[str] = "channels in a basis where it pays, bits shared out at one slope"
    paper: ClassVar[str] = "Young et al. 2021"
    needs: ClassVar[str] = "both"
    gradients: ClassVar[str] = "marginals"

    slope: float = 1e-4
    basis: str = "elt"
    side: str = "best"
    form: str = "entropy"
    basis_bits: int = 4
    feedback: bool = True
    bias_correction: bool = True

    def __post_init__(self) -> None:
        check_number("slope", self.slope, 0)
        check_one_of("basis", self.basis, ("elt", "klt", "none"))
        check_one_of("side", self.side, ("best", "row", "column"))
        check_one_of("form", self.form, ("entropy", "blocks"))
        sound = is_whole(self.basis_bits) and 2 <= self.basis_bits <= 8
        require(sound, "basis_bits", "an integer from 2 to 8", self.basis_bits)
        check_switch("feedback", self.feedback)
        clash = self.feedback and self.form == "blocks"
        require(not clash, "feedback", "False with form='blocks'", self.feedback)
        check_switch("bias_correction", self.bias_correction)

    def encode(self, layer: LayerMatrix) -> Quantized:
        """Quantize one weight.

        Cost: for each basis tried two eigendecompositions of its channels, ``N^3 / 3 + n N^2``
        flops for the feedback, and a count of the symbols.
        """
        statistics = checked_statistics(layer, self.name)
        weight = checked_weight(layer).double()
        felt = self._felt(layer)
        how = How(self.slope, self.form == "blocks", self.feedback, layer.limit)
        kept = _without_the_dead(weight, felt, self.slope)
        found = [rated for rated in self._candidates(kept, felt, how) if rated is not None]
        best = min(found, key=lambda rated: rated.distortion + self.slope * rated.bits)
        if not self.bias_correction:
            return best.result
        shift = mean_error(statistics, weight, best.result.dequantize().double())
        return replace(best.result, bias_shift=shift)

    def _felt(self, layer: LayerMatrix) -> Felt:
        """Return the metric of the layer; errors of the mean cost nothing where a bias repays.

        Gradients tell of small errors. A unit that is off most of the time sends none back, but
        errors as large as its inputs turn it on: so a part of the metric is the inputs' own.
        """
        found = layer.sensitivity
        if found is None or found.inputs is None or found.outputs is None:
            raise ConfigError(
                f"layer {layer.name!r}: the method {self.name!r} needs calibration gradients and "
                "got none. Compress with calibration data, or use a method that needs nothing."
            )
        trace = found.outputs.diagonal(dim1=1, dim2=2).sum(1).clamp_min(TINY)
        outputs = found.outputs * (found.rows.sum(1) / trace)[:, None, None]
        outputs = outputs.lerp(torch.diag_embed(outputs.diagonal(dim1=1, dim2=2)), _APART)
        inputs = found.columns
        if not self.bias_correction:
            inputs = found.inputs / found.rows.sum(1).clamp_min(TINY)[:, None, None]
        plain = _spread(checked_statistics(layer, self.name), self.bias_correction)
        inputs = (1 - _PLAIN) * inputs.to(plain) + _PLAIN * plain
        device = layer.weight.device
        return Felt(outputs.to(device), inputs.to(device), layer.kernel)

    def _candidates(self, weight: Tensor, felt: Felt, how: How) -> Iterator[Rated | None]:
        """Yield the layer coded in every domain that is asked for and possible."""
        _, neurons, columns = weight.shape
        channels = {"row": columns // felt.kernel, "column": neurons}
        wanted: tuple[str, ...] = SIDES if self.side == "best" else (self.side,)
        wanted = () if self.basis == "none" else wanted
        possible = [side for side in wanted if channels[side] > 1 and weight.any()]
        if self.side == "best" or not possible:
            yield rate(plain_domain(weight, felt), weight, felt, how)
        for side in possible:
            first = rate(self._in_basis(weight, felt, side), weight, felt, how)
            if first is None or bool(first.live.all()):
                yield first
                continue
            yield rate(self._in_basis(weight, felt, side, first.live), weight, felt, how)

    def _in_basis(
        self, weight: Tensor, felt: Felt, side: str, keep: Tensor | None = None
    ) -> Domain:
        return transformed(weight, felt, side, self.basis, bits=self.basis_bits, keep=keep)


def _spread(statistics: Statistics, centred: bool) -> Tensor:
    """Return the second moments of the inputs, about their mean where a bias repays that."""
    second = statistics.moments()[0].double() / max(1, statistics.rows)
    mean = statistics.quantized_mean.double()
    return second - mean[:, :, None] * mean[:, None] if centred else second


def _without_the_dead(weight: Tensor, felt: Felt, slope: float) -> Tensor:
    """Return the weight with zeros for neurons and inputs that no bit is worth being spent on.

    In a basis of its own each would soon be a row of zeros, but steps are not theirs alone.
    """
    energy = ((weight @ felt.inputs) * weight).sum(2) * felt.rows
    rows = energy > _DEAD * slope * weight.shape[2]
    spread = felt.inputs.diagonal(dim1=1, dim2=2)
    inputs = (weight.square() * felt.rows[:, :, None]).sum(1) * spread
    inputs = inputs.reshape(len(inputs), -1, felt.kernel).sum(2)
    columns = inputs > _DEAD * slope * weight.shape[1] * felt.kernel
    columns = columns.repeat_interleave(felt.kernel, 1)
    kept = weight * rows[:, :, None] * columns[:, None]
    return kept if bool(kept.any()) else weight
