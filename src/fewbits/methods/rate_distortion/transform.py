"""Transform quantization: decorrelate channels, then quantize at one slope for all layers.

Reference:
    Young, Zhe, Taubman and Girod, "Transform quantization for CNN compression", TPAMI 2021.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import inf
from typing import ClassVar

from torch import Tensor

from ...engine.layers.layer import LayerMatrix, Quantized
from ...errors import CalibrationError, ConfigError, require
from ...ops.transforms import SIDES
from ..base import METHODS, Capabilities, PostTrainingMethod
from ..path_inputs import mean_error
from ..slopes import check_slope
from ..uniform import (
    check_one_of,
    check_switch,
    checked_statistics,
    checked_weight,
    is_whole,
)
from .candidate import Candidate, CandidateSettings, candidate_at_slope
from .domains import Domain, ErrorMetric, best_basis, plain_domain, transformed
from .rate_problem import TALL, RateProblem
from .rdoq import RDOQ

__all__ = ["Transform"]

_DEPTHS = (2, 3, 4, 5)  # bits per value of a basis; more never paid
_NEAR = 1.1  # bases whose rounded cost exceeds this multiple of that without one are dropped


@METHODS.register("transform")
@dataclass(frozen=True, kw_only=True)
class Transform(PostTrainingMethod):
    """Transform quantization at a slope; the basis is quantized too and its bits are counted.

    Attributes:
        slope: squared error of the network's output (summed over the logits) that one bit is worth.
            It is the same for all layers, which allocates the bits among them. None: that at which
            the output changes by a few percent of its energy.
        basis: the transform: "elt" (decorrelates weights and output errors), "klt" (decorrelates
            weights only) or "none".
        side: the channels that the basis mixes: "row" (inputs), "column" (outputs), or "best",
            which takes for each layer the cheapest of these two and no transform.
        form: how coefficients are coded: "entropy" (uniform steps and entropy coding) or "blocks"
            (as in the paper: eight blocks of rows per layer with 0 to 8 bits each, counted at fixed
            length).
        basis_bits: bits per value of a basis. None: for each layer the number from 2 to 5 with the
            least distortion + slope * bits.
        feedback: whether later values correct earlier errors: those of earlier layers, and of
            earlier columns in the same layer. Only with ``form="entropy"``.
        rate: how to estimate the bits of a level: "adaptive" (from the coder's adaptive model),
            "static" (from one distribution per layer), or "none" (levels are the nearest ones).
            Only with ``form="entropy"``.
        bias_correction: whether to correct the bias by the mean output error on the calibration
            data.
        metric: what distortion is measured in: "logits" (squared error of the output), "fisher"
            (divergence of the predicted probabilities), or "auto": "fisher" for language models,
            which return logits for every token, else "logits".
    """

    name: ClassVar[str] = "transform"
    summary: ClassVar[str] = "decorrelates channels where it pays; bits allocated by one slope"
    paper: ClassVar[str] = "Young et al. 2021"
    capabilities: ClassVar[Capabilities] = Capabilities(
        needs_inputs="both", needs_gradients=True, has_slope=True
    )

    slope: float | None = None
    basis: str = "elt"
    side: str = "best"
    form: str = "entropy"
    basis_bits: int | None = None
    feedback: bool = True
    rate: str = "adaptive"
    bias_correction: bool = True
    metric: str = "auto"

    def __post_init__(self) -> None:
        check_slope(self.slope)
        check_one_of("basis", self.basis, ("elt", "klt", "none"))
        check_one_of("side", self.side, ("best", "row", "column"))
        check_one_of("form", self.form, ("entropy", "blocks"))
        if self.basis_bits is not None:
            sound = is_whole(self.basis_bits) and 2 <= self.basis_bits <= 8
            require(sound, "basis_bits", "None or an integer from 2 to 8", self.basis_bits)
        check_switch("feedback", self.feedback)
        check_one_of("rate", self.rate, ("adaptive", "static", "none"))
        blocks = self.form == "blocks"
        clash = blocks and self.feedback
        require(not clash, "feedback", "False with form='blocks'", self.feedback)
        clash = blocks and self.rate != "none"
        require(not clash, "rate", "'none' with form='blocks'", self.rate)
        check_switch("bias_correction", self.bias_correction)
        check_one_of("metric", self.metric, ("auto", "logits", "fisher"))

    @property
    def output_metric(self) -> str:
        """The metric of the output that sensitivities are measured in."""
        return self.metric

    def encode(self, layer: LayerMatrix) -> Quantized:
        """Quantize one weight.

        Cost: for each basis two eigendecompositions of its channels, ``N^3 / 3 + n N^2`` flops for
        the feedback, and a count of the symbols; then, with a rate, the cost of RDOQ without a
        transform and for each basis that may pay.
        """
        if layer.sensitivity is None:
            raise ConfigError(
                f"layer {layer.name!r}: the method {self.name!r} needs calibration gradients and "
                "got none. Pass calibration data, or use a method that needs none, such as "
                "'nearest'."
            )
        weight = checked_weight(layer)
        if weight.shape[1] > TALL:  # a basis of so many outputs is larger than what it saves
            plain = RDOQ(slope=self.slope, rate=self.rate, bias_correction=self.bias_correction)
            return plain.encode(layer)
        statistics = checked_statistics(layer, self.name)
        corrects = self.bias_correction and layer.has_bias
        problem = RateProblem.of(layer, weight, statistics, has_bias=corrects)
        target = problem.target if self.feedback else weight.double()
        settings = CandidateSettings(
            self.slope or problem.slope,
            self.form == "blocks",
            self.feedback,
            self.rate,
            layer.limit,
        )
        best = self._best(target, ErrorMetric.of(problem), settings)
        if best is None:
            raise CalibrationError(
                f"layer {layer.name!r}: its inputs are too large or too small for the quantized "
                "weight to stay finite. Scale the calibration data, or keep this layer in float."
            )
        if not corrects:
            return best.result
        shift = mean_error(statistics, weight.double(), best.result.dequantize().double())
        return replace(best.result, bias_shift=shift)

    def _best(
        self, weight: Tensor, metric: ErrorMetric, settings: CandidateSettings
    ) -> Candidate | None:
        """Return the layer in the cheapest of the possible domains.

        Rounding shows which bases may pay; only these, and no transform, are tried with a rate. In
        layers of a few hundred weights, rounding may still cost less than levels with a rate.
        """
        rounding = replace(settings, rate="none")
        tried = {
            side: self._rounded(weight, metric, side, rounding)
            for side in self._sides(weight, metric.kernel)
        }
        rounded = [candidate for _, candidate in tried.values()]
        if settings.rate == "none":
            return _least(rounded, settings.slope)
        bound = _NEAR * _cost(tried["none"][1], settings.slope) if "none" in tried else inf
        likely = [
            domain
            for domain, candidate in tried.values()
            if _cost(candidate, settings.slope) <= bound
        ]
        priced = [candidate_at_slope(domain, weight, metric, settings) for domain in likely]
        return _least([*rounded, *priced], settings.slope)

    def _sides(self, weight: Tensor, kernel: int) -> list[str]:
        """Return the domains to try, including "none" unless a requested side is possible."""
        _, neurons, columns = weight.shape
        channels = {"row": columns // kernel, "column": neurons}
        requested: tuple[str, ...] = SIDES if self.side == "best" else (self.side,)
        requested = () if self.basis == "none" else requested
        possible = [side for side in requested if channels[side] > 1 and weight.any()]
        return ["none", *possible] if self.side == "best" or not possible else possible

    def _rounded(
        self, weight: Tensor, metric: ErrorMetric, side: str, settings: CandidateSettings
    ) -> tuple[Domain, Candidate | None]:
        """Return a domain and the layer in it; bases are refitted to the vectors in use.

        Of several depths of the basis, the cheapest.
        """
        if side == "none":
            domain = plain_domain(weight, metric)
            return domain, candidate_at_slope(domain, weight, metric, settings)
        basis = best_basis(weight, metric, side, self.basis)
        depths = _DEPTHS if self.basis_bits is None else (self.basis_bits,)
        tried = [_at_depth(weight, metric, (side, basis), bits, settings) for bits in depths]
        return min(tried, key=lambda pair: _cost(pair[1], settings.slope))


def _at_depth(
    weight: Tensor,
    metric: ErrorMetric,
    where: tuple[str, Tensor],
    bits: int,
    settings: CandidateSettings,
) -> tuple[Domain, Candidate | None]:
    """Return a domain whose basis has ``bits`` per value, and the layer in it."""
    domain = transformed(weight, metric, *where, bits=bits)
    first = candidate_at_slope(domain, weight, metric, settings)
    if first is None or bool(first.live.all()):
        return domain, first
    fewer = transformed(weight, metric, *where, bits=bits, keep=first.live)
    return fewer, candidate_at_slope(fewer, weight, metric, settings)


def _cost(candidate: Candidate | None, slope: float) -> float:
    return inf if candidate is None else candidate.distortion + slope * candidate.bits


def _least(candidates: Iterable[Candidate | None], slope: float) -> Candidate | None:
    best = min(candidates, key=lambda candidate: _cost(candidate, slope))
    return best if _cost(best, slope) < inf else None
