"""Search for the slope whose file meets a budget, in few evaluations. Plain Python only."""

from .goal import Goal
from .next_slope import Move, next_move
from .slope import SlopeSearch
from .sweep import Sweep, same_point
from .trace import Trace, Trial

__all__ = ["Goal", "Move", "SlopeSearch", "Sweep", "Trace", "Trial", "next_move", "same_point"]
