"""Levels of a method: their number, which a search for a budget varies, or a given codebook."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from ..engine.layers.layer import LayerMatrix
from ..errors import is_number, require
from .base import AnyMethod

__all__ = [
    "CODEBOOK",
    "MOST_LEVELS",
    "check_codebook",
    "codebook_of",
    "count_of_levels",
    "with_levels",
]

_Method = TypeVar("_Method", bound=AnyMethod)

MOST_LEVELS = 256  # values in a codebook
CODEBOOK = f"2 to {MOST_LEVELS} increasing numbers"


def check_codebook(given: object, expected: str) -> None:
    """Raise a ConfigError that tells what was ``expected`` unless ``given`` is a codebook."""
    known = given if isinstance(given, tuple) else ()
    sound = 2 <= len(known) <= MOST_LEVELS and all(is_number(value) for value in known)
    require(sound, "levels", expected, given)
    values = torch.tensor(known, dtype=torch.float64).float()
    rising = bool(values.isfinite().all()) and bool((values.diff() > 0).all())
    require(rising, "levels", f"{CODEBOOK} that float32 tells apart", given)


def codebook_of(levels: tuple[float, ...], layer: LayerMatrix) -> Tensor:
    """Return given levels as float32 on the device of the layer's weight.

    Raises:
        ConfigError: one is beyond the dtype of the weight.
    """
    values = torch.tensor(levels, dtype=torch.float32, device=layer.weight.device)
    fits = bool((values.abs() <= layer.limit).all())
    held = f"values up to {layer.limit:g}, which {layer.name!r} can hold"
    require(fits, "levels", held, levels)
    return values


def count_of_levels(method: AnyMethod) -> int | None:
    """Return how many levels the grid of a method has.

    None if it has no such setting, or a codebook instead of a grid.
    """
    if not method.capabilities.has_levels:
        return None
    levels, bits = method.levels, method.bits  # type: ignore[union-attr]
    if levels is None:
        return int(2**bits - 1)
    return levels if isinstance(levels, int) else None


def with_levels(method: _Method, count: int) -> _Method:
    """Return the method with another number of levels, or unchanged if it has none."""
    if count_of_levels(method) is None:
        return method
    return replace(method, levels=count)  # type: ignore[type-var]
