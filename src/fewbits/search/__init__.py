"""Search for the slope whose file meets a budget, in few evaluations. Plain Python only."""

from .goal import Goal
from .next_slope import Move, next_move
from .quantities import as_bytes, as_drop, as_seconds
from .slope import SlopeSearch
from .sweep import Sweep, same_point
from .trace import Trace, Trial

__all__ = [
    "Goal",
    "Move",
    "SlopeSearch",
    "Sweep",
    "Trace",
    "Trial",
    "as_bytes",
    "as_drop",
    "as_seconds",
    "next_move",
    "same_point",
]
