"""Where inputs of layers are quantized: in front of the layers, or behind the ReLUs before them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from ..errors import ConfigError
from .batches import Forward
from .sites import RECTIFIERS, Site, observe

__all__ = ["PLACEMENTS", "choose_sites", "first_of", "left_in_float"]

PLACEMENTS = ("input", "output")
_LAYERS = (nn.Linear, nn.modules.conv._ConvNd)


def choose_sites(
    model: nn.Module,
    layers: Sequence[str],
    placement: str,
    batches: Sequence[Any],
    forward: Forward,
    *,
    first: str = "",
) -> list[Site]:
    """Return where the inputs of ``layers`` are quantized, with what arrives there.

    Args:
        model: the network.
        layers: names of the layers with quantized weights.
        placement: "input" (of each layer) or "output" (of every ReLU that is followed by one of
            the layers; a shortcut then reads the same quantized values as the main path).
        batches: calibration data.
        forward: how the network is called.
        first: a layer whose input is quantized wherever the others are; "" for none.

    Raises:
        ConfigError: no such place, as where a network calls ReLU as a function.
    """
    modules = dict(model.named_modules())
    able = [name for name in dict.fromkeys(layers) if isinstance(modules[name], _LAYERS)]
    if placement == "input":
        found = observe(model, able, batches, forward)
        if not found:
            raise _nowhere("no linear or convolution layer is reached")
        return found
    rectifiers = [name for name, module in modules.items() if isinstance(module, RECTIFIERS)]
    found = observe(model, [*able, *rectifiers], batches, forward)
    last = max((site.order for site in found if not site.rectified), default=-1)
    chosen = [site for site in found if site.rectified and site.order < last]
    for site in chosen:
        after = (s for s in found if not s.rectified and s.order > site.order)
        site.feeds = next(after).module
    if not chosen:
        raise _nowhere("no nn.ReLU module is called before a layer with quantized weights")
    return [site for site in found if site.module == first] + chosen


def first_of(layers: Mapping[str, Sequence[str]], ends: Sequence[str]) -> str:
    """Return the network's first layer where it is one of ``layers``, by weight; else ""."""
    first = ends[0] if ends else next(iter(layers), "")
    return layers[first][0] if first in layers else ""


def left_in_float(
    model: nn.Module, layers: Sequence[str], sites: Iterable[Site]
) -> tuple[str, ...]:
    """Return which of ``layers`` have a float input, and why; embeddings have none to quantize."""
    reached, modules = {site.module for site in sites}, dict(model.named_modules())
    told = []
    for name in layers:
        if name in reached or isinstance(modules[name], (nn.Embedding, nn.EmbeddingBag)):
            continue
        kind = type(modules[name]).__name__
        known = isinstance(modules[name], _LAYERS)
        why = "not called by calibration" if known else f"{kind}, whose inputs are not known"
        told.append(f"{name} ({why})")
    return tuple(told)


def _nowhere(reason: str) -> ConfigError:
    return ConfigError(
        f"there is no input to quantize: {reason}. Use placement='input', or make the network call "
        "nn.ReLU modules; or leave activations in float: activations=32."
    )
