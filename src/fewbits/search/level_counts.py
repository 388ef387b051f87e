"""Numbers of levels as slopes: twice the levels halve the steps, and a bit is worth a quarter."""

from __future__ import annotations

import math

__all__ = ["FEWEST", "MOST", "levels_at", "nearest_count", "slope_at"]

FEWEST, MOST = 3, 255  # levels; odd, so that one of them is zero


def slope_at(levels: int) -> float:
    """Return the slope that stands for a number of levels."""
    return float(levels) ** -2


def levels_at(slope: object) -> int | None:
    """Return the number of levels that a slope stands for; None if it stands for none."""
    if not isinstance(slope, float) or not 0 < slope <= 1:
        return None
    levels = round(slope**-0.5)
    known = FEWEST <= levels <= MOST and levels % 2 == 1
    return levels if known and slope_at(levels) == slope else None


def nearest_count(levels: float) -> int:
    """Return the odd number of levels nearest to one, within those that are tried."""
    odd = 2 * math.floor(levels / 2) + 1
    return min(max(odd, FEWEST), MOST)
