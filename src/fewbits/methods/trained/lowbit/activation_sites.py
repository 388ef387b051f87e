"""Where LowBit meets a network: the inputs it quantizes, and the layers that need a scale."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
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
    """Return the sites to quantize, and of each whether it has 8 bits whatever the others have.

    Args:
        model: the network.
        layers: by weight name the modules that have it.
        ends: the network's first and last weight matrix.
        first_last: as in :class:`fewbits.LowBit`.
        placement: as in :class:`fewbits.LowBit`.
        batches: calibration data.
        forward: how the network is called.

    Warns of layers with quantized weights whose input stays in float.
    """
    chosen = QuantizedLayers(layers, ends, first_last)
    sites = choose_sites(model, chosen, placement, batches, forward)
    if placement == "input":
        left = left_in_float(model, chosen, sites)
        if left:
            warnings.warn(
                f"inputs stay in float: {'; '.join(left)}. Weights of these layers are quantized.",
                stacklevel=6,
            )
    return [(site, chosen.is_wide(site)) for site in sites]


def add_scales(
    lines: Mapping[str, LowBitWeight],
    layers: Mapping[str, Sequence[str]],
    rescale: str,
    *,
    model: nn.Module,
    batches: Sequence[Any],
    forward: Forward,
) -> None:
    """Decide which of DoReFa's weights have a learned scale, and fit them anew."""
    chosen = {name: line for name, line in lines.items() if line.kind == "dorefa"}
    follows: frozenset[str] = frozenset()
    if chosen and batches:
        follows = normalized(model, _paths(chosen, layers), batches[0], forward)
    for name, line in chosen.items():
        own = layers.get(name, ())
        plain = bool(own) and follows.issuperset(own)
        line.scaled = {"auto": not plain, "always": True, "never": False}[rescale]
        line.step.stretch.requires_grad_(line.scaled)
        if not plain and rescale == "never":
            warnings.warn(
                f"layer {(*own, name)[0]!r}: its DoReFa weights are from -1 to 1, and no "
                "normalization follows that makes up for it. Use rescale='auto'.",
                stacklevel=6,
            )
        if line.bits != FLOAT:
            line.refit()


def _paths(lines: Mapping[str, LowBitWeight], layers: Mapping[str, Sequence[str]]) -> Iterator[str]:
    return (path for name in lines for path in layers.get(name, ()))
