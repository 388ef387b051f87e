"""Placement of activation quantizers: at the inputs of layers, or at the ReLUs before them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ...errors import ConfigError
from ..network.batches import Forward
from ..network.distributed import ALONE, Ranks
from .observer import RECTIFIERS, Site, observe

__all__ = ["PLACEMENTS", "QuantizedLayers", "choose_sites", "left_in_float"]

PLACEMENTS = ("input", "output")
_LAYERS = (nn.Linear, nn.modules.conv._ConvNd)


@dataclass(frozen=True)
class QuantizedLayers:
    """Layers with quantized weights, and the policy for the first and last layer.

    Attributes:
        weights: name of a weight, in order, to the modules that use it.
        ends: the network's first and last weight matrix.
        first_last: their inputs have 8 bits ("8bit"), stay float ("fp") or are as all ("same").
    """

    weights: Mapping[str, Sequence[str]]
    ends: Sequence[str]
    first_last: str

    @property
    def paths(self) -> list[str]:
        """The modules whose inputs are quantized."""
        found = dict.fromkeys(path for own in self.weights.values() for path in own)
        left = self._outer if self.first_last == "fp" else ()
        return [path for path in found if path not in left]

    @property
    def first(self) -> str:
        """The network's first layer if its input is quantized, else ""."""
        name = self.ends[0] if self.ends else next(iter(self.weights), "")
        there = self.first_last != "fp" and name in self.weights
        return self.weights[name][0] if there else ""

    def is_wide(self, site: Site) -> bool:
        """Return whether a site has 8 bits regardless of the others."""
        return self.first_last == "8bit" and not self._outer.isdisjoint((site.module, site.feeds))

    @property
    def _outer(self) -> set[str]:
        return {path for name in self.ends for path in self.weights.get(name, ())}


def choose_sites(
    model: nn.Module,
    layers: QuantizedLayers,
    placement: str,
    batches: Sequence[Any],
    forward: Forward,
    *,
    ranks: Ranks = ALONE,
) -> list[Site]:
    """Choose the sites at which the inputs of ``layers`` are quantized, and observe them.

    Args:
        model: the network.
        layers: layers with quantized weights; the input of the network's first layer is quantized
            wherever the others are.
        placement: "input" (of each layer) or "output" (of every ReLU that is followed by one of
            the layers; a shortcut then reads the same quantized values as the main path).
        batches: calibration data.
        forward: calls the network on a batch.
        ranks: who else runs passes, each over its share of the batches.

    Raises:
        ConfigError: there are no sites, for example if the network calls ReLU as a function.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    able = [name for name in layers.paths if isinstance(modules[name], _LAYERS)]
    if placement == "input":
        found = observe(model, able, batches, forward, ranks=ranks)
        if not found:
            raise _nowhere("no linear or convolution layer is reached")
        return found
    rectifiers = [name for name, m in model.named_modules() if isinstance(m, RECTIFIERS)]
    found = observe(model, [*able, *rectifiers], batches, forward, ranks=ranks)
    last = max((site.order for site in found if not site.rectified), default=-1)
    chosen = [site for site in found if site.rectified and site.order < last]
    for site in chosen:
        after = (s for s in found if not s.rectified and s.order > site.order)
        site.feeds = next(after).module
    if not chosen:
        raise _nowhere("no nn.ReLU module is called before a layer with quantized weights")
    return [site for site in found if site.module == layers.first] + chosen


def left_in_float(
    model: nn.Module, layers: QuantizedLayers, sites: Iterable[Site]
) -> tuple[str, ...]:
    """Return which of ``layers`` have a float input, and why; embeddings have none to quantize."""
    reached = {site.module for site in sites}
    modules = dict(model.named_modules(remove_duplicate=False))
    notes = []
    for name in layers.paths:
        if name in reached or isinstance(modules[name], (nn.Embedding, nn.EmbeddingBag)):
            continue
        kind = type(modules[name]).__name__
        known = isinstance(modules[name], _LAYERS)
        why = "not called by calibration" if known else f"{kind}, whose inputs are not supported"
        notes.append(f"{name} ({why})")
    return tuple(notes)


def _nowhere(reason: str) -> ConfigError:
    return ConfigError(
        f"there is no input to quantize: {reason}. Use placement='input', or make the network use "
        "nn.ReLU modules; or leave activations in float: activations=32."
    )
