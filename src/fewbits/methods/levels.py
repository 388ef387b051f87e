"""The number of levels of a method, which a search for a budget varies."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from .base import AnyMethod

__all__ = ["count_of_levels", "with_levels"]

_Method = TypeVar("_Method", bound=AnyMethod)


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
