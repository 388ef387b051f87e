"""Quantized inputs of layers without training: ranges from calibration data alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from ..coded import ActivationGrid
from ..engine.activations.observer import Site, observe
from ..engine.activations.outputs import unquantized_outputs
from ..engine.activations.placement import PLACEMENTS, QuantizedLayers, choose_sites, left_in_float
from ..engine.network.batches import Forward
from ..errors import ConfigError, did_you_mean, require, shorten
from ..ops.levels.ranges import SHARES, fit_percentile, fit_range, fit_shifted
from .uniform import check_number, check_one_of, check_switch, is_whole

__all__ = ["Activations", "calibrate_inputs"]

_OUTPUT_BITS = 8


@dataclass(frozen=True, kw_only=True)
class Activations:
    """How inputs of layers with quantized weights are quantized after those.

    Attributes:
        bits: width, 2 to 8.
        ranges: "mse" (least squared error of rounding) or "percentile".
        percentile: of the magnitudes, for the rule of that name.
        first_last: of the first and last quantized layer: "8bit", "fp" (left alone) or "same".
        placement: "input" of every layer, or "output" of every ReLU before one.
        outputs: put on 8 bits also what a layer (or the normalization after it) gives, where no
            quantized layer reads it: what goes into the sums of a residual network. Runtimes have
            integer kernels only for layers whose output is quantized too.
    """

    bits: int = 8
    ranges: str = "mse"
    percentile: float = 99.99
    first_last: str = "8bit"
    placement: str = "input"
    outputs: bool = False

    def __post_init__(self) -> None:
        good = is_whole(self.bits) and 2 <= self.bits <= 8
        require(good, "activations: bits", "an integer from 2 to 8", self.bits)
        check_one_of("activations: ranges", self.ranges, ("mse", "percentile"))
        check_number("activations: percentile", self.percentile, 0)
        require(self.percentile <= 100, "activations: percentile", "at most 100", self.percentile)
        check_one_of("activations: first_last", self.first_last, ("8bit", "fp", "same"))
        check_one_of("activations: placement", self.placement, PLACEMENTS)
        check_switch("activations: outputs", self.outputs)

    @classmethod
    def of(cls, value: object) -> Activations:
        """Return what is meant by a number of bits, or the mapping of a recipe."""
        if isinstance(value, Activations):
            return value
        if is_whole(value):
            return cls(bits=value)  # type: ignore[arg-type]
        known = tuple(cls.__dataclass_fields__)
        if not isinstance(value, Mapping):
            raise ConfigError(
                f"activations must be a number of bits, or a mapping of {', '.join(known)}. "
                f"Got {shorten(value)} instead."
            )
        for key in value:
            if key not in known:
                raise ConfigError(
                    f"activations have no setting {key!r}. They have: {', '.join(known)}."
                    + did_you_mean(str(key), known)
                )
        return cls(**value)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that :meth:`of` takes; defaults are left out, but for bits."""
        plain = asdict(Activations())
        return {k: v for k, v in asdict(self).items() if k == "bits" or v != plain[k]}


def calibrate_inputs(
    network: nn.Module,
    layers: Mapping[str, Sequence[str]],
    settings: Activations,
    batches: Sequence[Any],
    forward: Forward,
    *,
    ends: Sequence[str] = (),
) -> tuple[dict[str, ActivationGrid], tuple[str, ...]]:
    """Return the grids by site of ``network``, which is not changed, and layers without, with why.

    Args:
        network: with the quantized weights: ranges are of what its layers see.
        layers: names of the quantized weights, in order, and of each the modules that have it.
        settings: widths and rules.
        batches: calibration data.
        forward: how the network is called.
        ends: the network's first and last weight matrix.

    Raises:
        ConfigError: no input is left to quantize.
    """
    chosen = QuantizedLayers(layers, ends, settings.first_last)
    if not chosen.paths:
        raise ConfigError(
            f"activations={settings.bits}: no layer has quantized weights (of those that are not "
            "first or last, with first_last='fp'), so there is no input to quantize. Leave "
            "activations out, or quantize more weights."
        )
    sites = choose_sites(network, chosen, settings.placement, batches, forward)
    found = {}
    for site in sites:
        bits = 8 if chosen.is_wide(site) else settings.bits
        found[site.name] = _grid(site, bits, settings)
    if settings.outputs:
        loose = unquantized_outputs(network, chosen.paths, batches[0], forward)
        for site in observe(network, loose, batches, forward, outputs=True):
            found[site.name] = _shifted(site, settings)
    return found, left_in_float(network, chosen, sites) if settings.placement == "input" else ()


def _shifted(site: Site, settings: Activations) -> ActivationGrid:
    """Return an unsigned grid with a zero inside: runtimes want one type on both sides."""
    values, tries = site.sample, SHARES
    if settings.ranges == "percentile":
        size = fit_percentile(values, settings.percentile)
        values, tries = values.clamp(-size, size), 1
    clip, zero = fit_shifted(values, _OUTPUT_BITS, tries)
    return ActivationGrid(_OUTPUT_BITS, clip, False, zero)


def _grid(site: Site, bits: int, settings: Activations) -> ActivationGrid:
    values = site.sample if site.signed else site.sample.clamp_min(0)
    if settings.ranges == "percentile":
        clip = fit_percentile(values, settings.percentile)
    else:
        clip = fit_range(values, bits, signed=site.signed)
    return ActivationGrid(bits, clip, site.signed)
