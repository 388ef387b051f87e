"""Find the inputs of a network that LowBit quantizes, and the layers that need a scale."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from ....engine.activations.observer import Site, normalized
from ....engine.activations.placement import QuantizedLayers, choose_sites, left_in_float
from ....engine.network.batches import Forward
from .stages import FLOAT
from .weights import LowBitWeight

__all__ = ["add_scales", "find_inputs"]


def find_inputs(
    model: nn.Module,
    layers: Mapping[str, Sequence[str]],
    ends: Sequence[str],
    *,
    first_last: str,
    placement: str,
    batches: Sequence[Any],
    forward: Forward,
) -> list[tuple[Site, bool]]:
    """Return the sites to quantize, each with whether it always uses 8 bits.

    Warns about layers with quantized weights whose input stays in float.

    Args:
        model: the network.
        layers: the modules that own each weight, by name of the weight.
        ends: the first and the last weight matrix of the network.
        first_last: as in :class:`fewbits.LowBit`.
        placement: as in :class:`fewbits.LowBit`.
        batches: calibration data.
        forward: runs the network on a batch.
    """
    chosen = QuantizedLayers(layers, ends, first_last)
    sites = choose_sites(model, chosen, placement, batches, forward)
    if placement == "input":
        left = left_in_float(model, chosen, sites)
        if left:
            warnings.warn(
                f"inputs stay in float: {'; '.join(left)}. The weights of these layers are "
                "quantized.",
                stacklevel=6,
            )
    return [(site, chosen.is_wide(site)) for site in sites]


def add_scales(
    weights: Mapping[str, LowBitWeight],
    layers: Mapping[str, Sequence[str]],
    rescale: str,
    *,
    model: nn.Module,
    batches: Sequence[Any],
    forward: Forward,
) -> None:
    """Decide which DoReFa weights get a learned scale, and refit them."""
    dorefa = {name: weight for name, weight in weights.items() if weight.kind == "dorefa"}
    before_norm: frozenset[str] = frozenset()
    if dorefa and batches:
        before_norm = normalized(model, _paths(dorefa, layers), batches[0], forward)
    for name, weight in dorefa.items():
        modules = layers.get(name, ())
        compensated = bool(modules) and before_norm.issuperset(modules)
        weight.scaled = {"auto": not compensated, "always": True, "never": False}[rescale]
        weight.step.stretch.requires_grad_(weight.scaled)
        if not compensated and rescale == "never":
            warnings.warn(
                f"layer {(*modules, name)[0]!r}: its DoReFa weights range from -1 to 1, and no "
                "normalization follows to compensate. Use rescale='auto'.",
                stacklevel=6,
            )
        if weight.bits != FLOAT:
            weight.refit()


def _paths(names: Iterable[str], layers: Mapping[str, Sequence[str]]) -> Iterator[str]:
    return (path for name in names for path in layers.get(name, ()))
