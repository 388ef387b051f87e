"""Searches for the slope that meets a budget, sweeps, and where their points are measured.

Plain Python only.
"""

from .cluster import Ray
from .engine import Engine, FailedPoint, Serial
from .engines import ENGINES, as_engine
from .goal import Goal
from .level_counts import levels_at, nearest_count, slope_at
from .next_levels import next_levels
from .next_slope import Move, next_move
from .quantities import as_bytes, as_drop, as_seconds
from .slope import SlopeSearch
from .sweep import Sweep, same_point
from .trace import Trace, Trial

__all__ = [
    "ENGINES",
    "Engine",
    "FailedPoint",
    "Goal",
    "Move",
    "Ray",
    "Serial",
    "SlopeSearch",
    "Sweep",
    "Trace",
    "Trial",
    "as_bytes",
    "as_drop",
    "as_engine",
    "as_seconds",
    "levels_at",
    "nearest_count",
    "next_levels",
    "next_move",
    "same_point",
    "slope_at",
]
