"""Quantize the inputs of layers without training, with ranges from calibration data."""

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
from ..engine.network.distributed import ALONE, Ranks
from ..errors import ConfigError, did_you_mean, require, shorten
from ..ops.levels.ranges import SHARES, fit_percentile, fit_range, fit_shifted
from .uniform import check_number, check_one_of, check_switch, is_whole

__all__ = ["Activations", "calibrate_inputs"]

_OUTPUT_BITS = 8


@dataclass(frozen=True, kw_only=True)
class Activations:
    """Settings for quantizing the inputs of layers whose weights are quantized.

    Attributes:
        bits: bits per value, 2 to 8.
        ranges: how to choose the range of each input: "mse" (the least squared rounding error) or
            "percentile" (of the magnitudes).
        percentile: percentile of the magnitudes, for ``ranges="percentile"``.
        first_last: what to do with the first and the last quantized layer: "8bit" (use 8 bits),
            "fp" (leave in float) or "same" (treat like all others).
        placement: where to quantize: at the "input" of every layer, or at the "output" of every
            ReLU in front of one.
        outputs: whether to quantize, to 8 bits, also layer outputs that no quantized layer reads,
            such as those that enter the sums of a residual network. Runtimes have integer kernels
            only for layers whose output is quantized too.
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
        """Build settings from a number of bits or a mapping; return settings unchanged.

        Raises:
            ConfigError: another kind of value, an unknown setting, or a value out of range.
        """
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
                    f"activations have no setting {key!r}. Valid settings: {', '.join(known)}."
                    + did_you_mean(str(key), known)
                )
        return cls(**value)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that :meth:`of` accepts: bits, and all but the defaults."""
        defaults = asdict(Activations())
        return {k: v for k, v in asdict(self).items() if k == "bits" or v != defaults[k]}


def calibrate_inputs(
    network: nn.Module,
    layers: Mapping[str, Sequence[str]],
    settings: Activations,
    batches: Sequence[Any],
    forward: Forward,
    *,
    ends: Sequence[str] = (),
    ranks: Ranks = ALONE,
) -> tuple[dict[str, ActivationGrid], tuple[str, ...]]:
    """Return the grid of every site, and the layers whose inputs stay in float with the reasons.

    Args:
        network: the network with quantized weights, on which ranges are observed. Not modified.
        layers: names of the quantized weights, in order, each with the modules that own it.
        settings: bits and rules.
        batches: calibration data.
        forward: runs the network on a batch.
        ends: the first and the last weight matrix of the network.
        ranks: who else runs passes, each over its share of the batches; all get the same grids.

    Raises:
        ConfigError: there is no input to quantize.
    """
    chosen = QuantizedLayers(layers, ends, settings.first_last)
    if not chosen.paths:
        raise ConfigError(
            f"activations={settings.bits}: no layer has quantized weights (apart from the first "
            "and the last with first_last='fp'), so there is no input to quantize. Leave "
            "activations out, or quantize more weights."
        )
    sites = choose_sites(network, chosen, settings.placement, batches, forward, ranks=ranks)
    grids = {}
    for site in sites:
        bits = 8 if chosen.is_wide(site) else settings.bits
        grids[site.name] = _grid(site, bits, settings)
    if settings.outputs:
        outputs = unquantized_outputs(network, chosen.paths, batches[0], forward)
        for site in observe(network, outputs, batches, forward, outputs=True, ranks=ranks):
            grids[site.name] = _asymmetric_grid(site, settings)
    return grids, left_in_float(network, chosen, sites) if settings.placement == "input" else ()


def _asymmetric_grid(site: Site, settings: Activations) -> ActivationGrid:
    """Return an unsigned grid with a zero point: runtimes want one type for inputs and outputs."""
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
