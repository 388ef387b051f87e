"""Slopes: what one bit is worth, and the slope that suits a network of any size."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from typing import TypeVar

from .base import AnyMethod
from .uniform import check_number

__all__ = [
    "check_slope",
    "has_open_slope",
    "slope_of",
    "suggested_slope",
    "with_open_slope",
    "with_slope",
]

_Method = TypeVar("_Method", bound=AnyMethod)

_SHARE = 0.05  # of the output's energy, as distortion


def suggested_slope(energy: float, weights: int) -> float:
    """Return the slope at which ``weights`` change an output of this energy by at most 5 % of it.

    At high rates the distortion of one weight falls by a factor of 4 with every bit, so at the
    optimum the slope is ``2 ln 2`` times the distortion of each. The sum of these over all weights
    is the distortion of the output. Weights that are not worth a bit change less.
    """
    return max(2 * math.log(2) * _SHARE * energy / max(1, weights), sys.float_info.min)


def check_slope(value: object) -> None:
    """Raise a ConfigError unless ``value`` is a finite number > 0, or None."""
    if value is not None:
        check_number("slope", value, 0)


def slope_of(method: AnyMethod) -> float | None:
    """Return the slope of a method that has one; None if it is open."""
    slope: float | None = method.slope  # type: ignore[union-attr]
    return None if slope is None else float(slope)


def has_open_slope(method: AnyMethod) -> bool:
    """Return whether the method has a slope that is not set."""
    return method.capabilities.has_slope and slope_of(method) is None


def with_slope(method: _Method, slope: float) -> _Method:
    """Return the method with another slope, or unchanged if it has none."""
    if not method.capabilities.has_slope:
        return method
    return replace(method, slope=slope)  # type: ignore[type-var]


def with_open_slope(method: _Method | None, slope: float) -> _Method | None:
    """Return the method with this slope if it leaves its own open; None for None."""
    return with_slope(method, slope) if method is not None and has_open_slope(method) else method
