"""Search on the slope: the file that meets a budget, after few evaluations. Plain Python only."""

from .goal import Goal
from .moves import Move, next_move
from .slope import SlopeSearch
from .trace import Trace, Trial

__all__ = ["Goal", "Move", "SlopeSearch", "Trace", "Trial", "next_move"]
