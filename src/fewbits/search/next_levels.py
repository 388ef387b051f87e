"""Choose the next number of levels to try, as a pure function of all trials so far.

Sizes and scores grow with the levels, so the number is bracketed by steps of a factor of 4 and then
bisected; a search of all 127 odd numbers takes at most twelve trials.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from .goal import Goal
from .level_counts import FEWEST, MOST, levels_at, nearest_count, slope_at
from .next_slope import Move
from .trace import Trial

__all__ = ["next_levels"]

_WIDER = 4  # factor between two numbers while none on the other side of the limit is known


def next_levels(goal: Goal, start: float, trials: Sequence[Trial], reference: float | None) -> Move:
    """Return the slope of the next number of levels to evaluate, or why the search ends.

    Args:
        goal: the budget.
        start: slope of the number that is evaluated first.
        trials: all trials so far, in order.
        reference: score of the float network, for a goal that limits the drop.
    """
    if not trials:
        return Move(start)
    if any(goal.is_close(trial) for trial in trials):
        return Move(None, f"met within {goal.tolerance:.0%}")
    counts = {levels_at(trial.slope) or FEWEST: goal.fits(trial, reference) for trial in trials}
    low, high = _bracket(counts, fewer_fit=goal.is_size)
    if low is not None and high is not None:
        if high - low <= 2:
            return Move(None, "no number of levels between those tried")
        middle = nearest_count(math.sqrt(low * high))
        return Move(slope_at(min(max(middle, low + 2), high - 2)))
    edge, end = (min(counts), FEWEST) if low is None else (max(counts), MOST)
    if edge == end:
        return Move(None, f"{end} levels are the {'fewest' if low is None else 'most'}")
    return Move(slope_at(nearest_count(edge / _WIDER if low is None else _WIDER * edge)))


def _bracket(counts: Mapping[int, bool], *, fewer_fit: bool) -> tuple[int | None, int | None]:
    """Return the numbers next to the limit, of which one fits and one does not; None if unknown.

    Of a size, the most levels that fit are wanted; of a drop, the fewest.
    """
    fitting = [count for count, fits in counts.items() if fits]
    others = [count for count, fits in counts.items() if not fits]
    if fewer_fit:
        low = max(fitting, default=None)
        return low, min((n for n in others if low is None or n > low), default=None)
    high = min(fitting, default=None)
    return max((n for n in others if high is None or n < high), default=None), high
