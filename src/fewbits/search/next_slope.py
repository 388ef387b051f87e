"""Choose the next slope to try, as a pure function of all trials so far, so searches can resume.

Size falls roughly as ``slope ** -0.35``: a straight line in log-log coordinates that bends at both
ends and is slightly noisy (methods and coders make discrete choices). Target sizes are found by
false position in logarithms with the Illinois rule, between a slope whose file is too large and one
whose file is too small. Scores are noisier and follow no line: the slope is bracketed by doubling
steps, then bisected.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from .goal import Goal
from .trace import Trial

__all__ = ["Move", "next_move"]

_EXPONENT = 0.35  # of size as a power of slope, typical of trained networks
_EXPONENTS = (0.1, 1.5)  # plausible range of an exponent estimated from two trials
_WIDE = 16.0  # largest step while bracketing a score, in octaves of slope
_STEP = (0.02, 24.0)  # smallest and largest step for a size, in octaves of slope
_FLAT = 1e-3  # relative changes of size up to this count as none
_FLAT_OVER = 1.5  # octaves of slope between two trials before sizes count as flat
_WIDEST = 32.0  # bits per weight: as large as float32, so a smaller slope is pointless
_NARROW_SIZE = 2.0**-12  # octaves: if the size still jumps here, no size lies between
_NARROW_SCORE = 2.0**-5  # octaves: about one percent of the bytes
_MARGIN = 0.02  # fraction of a bracket that is not searched at either end
_RANGE = 120.0  # octaves of slope around 1


@dataclass(frozen=True)
class Move:
    """The slope to evaluate next, or None and the reason why the search ends."""

    slope: float | None
    reason: str = ""


def next_move(goal: Goal, start: float, trials: Sequence[Trial], reference: float | None) -> Move:
    """Return the next slope to evaluate, or why the search ends.

    Args:
        goal: the budget.
        start: slope of the first evaluation.
        trials: all trials so far, in order.
        reference: score of the float network, for a goal that limits the drop.
    """
    if not trials:
        return Move(start)
    if any(goal.is_close(trial) for trial in trials):
        return Move(None, f"met within {goal.tolerance:.0%}")
    move = _next_size(goal, trials) if goal.is_size else _next_score(goal, trials, reference)
    if move.slope is not None and any(trial.slope == move.slope for trial in trials):
        return Move(None, "no slope between those tried")
    return move


def _next_size(goal: Goal, trials: Sequence[Trial]) -> Move:
    aim = goal.limit * (1 - goal.tolerance / 2)
    points = [(math.log2(t.slope), math.log2(goal.size(t) / aim)) for t in trials]
    brackets = [pair for pair in pairwise(sorted(points)) if (pair[0][1] > 0) != (pair[1][1] > 0)]
    if not brackets:
        return _outwards(trials, points)
    # Noise may cross the limit more than once: take the nearest crossing, falling ones first.
    left, right = min(
        brackets, key=lambda pair: (pair[0][1] < 0, max(abs(pair[0][1]), abs(pair[1][1])))
    )
    width = right[0] - left[0]
    if width < _NARROW_SIZE:
        return Move(None, "the size jumps over the target")
    low, high = abs(left[1]), abs(right[1])
    same = _run_length(points)
    if same > 1:  # Illinois rule: damp the end of the bracket that does not move
        damping = 0.5 ** (same - 1)
        low, high = (low, high * damping) if _side(points, left) else (low * damping, high)
    place = min(max(low / (low + high), _MARGIN), 1 - _MARGIN)
    return Move(2 ** (left[0] + place * width))


def _run_length(points: Sequence[tuple[float, float]]) -> int:
    """Return how many of the latest trials lie on the same side of the target."""
    count = 0
    for _, rest in reversed(points):
        if (rest > 0) != (points[-1][1] > 0):
            break
        count += 1
    return count


def _side(points: Sequence[tuple[float, float]], left: tuple[float, float]) -> bool:
    return (points[-1][1] > 0) == (left[1] > 0)


def _outwards(trials: Sequence[Trial], points: Sequence[tuple[float, float]]) -> Move:
    """Extrapolate past the last trial: all trials lie on one side of the target."""
    upwards = points[0][1] > 0
    ranked = sorted(range(len(trials)), key=lambda k: points[k][0], reverse=upwards)
    last = ranked[0]
    stuck = _stuck(trials, ranked, upwards)
    if stuck:
        return Move(None, stuck)
    exponent = _EXPONENT
    if len(ranked) > 1:
        (x0, r0), (x1, r1) = points[ranked[1]], points[last]
        exponent = min(max((r0 - r1) / (x1 - x0), _EXPONENTS[0]), _EXPONENTS[1])
    growth = 2.0 ** max(0, len(trials) - 2)
    step = min(max(abs(points[last][1]) / exponent, _STEP[0] * growth), _STEP[1])
    return _at(points[last][0] + (step if upwards else -step), upwards)


def _stuck(trials: Sequence[Trial], ranked: Sequence[int], upwards: bool) -> str:
    """Return why going further in this direction is pointless; empty if it is not."""
    last = trials[ranked[0]]
    if not upwards and last.bits_per_weight >= _WIDEST:
        return "no larger file is worth having"
    if len(ranked) < 2:
        return ""
    before = trials[ranked[1]]
    flat = abs(last.bytes - before.bytes) <= _FLAT * before.bytes
    if flat and abs(math.log2(last.slope / before.slope)) >= _FLAT_OVER:
        return f"no {'larger' if upwards else 'smaller'} slope gives another size"
    return ""


def _next_score(goal: Goal, trials: Sequence[Trial], reference: float | None) -> Move:
    fit = [goal.fits(trial, reference) for trial in trials]
    good = [trial.slope for trial, fits in zip(trials, fit, strict=True) if fits]
    # Where noise lets a larger slope pass than one that failed, ignore the failures below it.
    edge = max(good, default=0.0)
    bad = [t for t, fits in zip(trials, fit, strict=True) if not fits and t.slope > edge]
    if not good or not bad:
        upwards = bool(good)
        ranked = sorted(range(len(trials)), key=lambda k: trials[k].slope, reverse=upwards)
        stuck = _stuck(trials, ranked, upwards)
        last, step = math.log2(trials[ranked[0]].slope), min(2.0 ** len(trials), _WIDE)
        return Move(None, stuck) if stuck else _at(last + (step if upwards else -step), upwards)
    best = next(t for t in trials if t.slope == edge)
    worst = min(bad, key=lambda t: t.slope)
    width = math.log2(worst.slope / edge)
    if width < _NARROW_SCORE:
        return Move(None, "the largest slope within the drop is found")
    return Move(edge * 2 ** (width * _share(goal, best, worst, reference)))


def _share(goal: Goal, best: Trial, worst: Trial, reference: float | None) -> float:
    """Return where in a bracket of slopes to look: drops grow as a power of the slope."""
    low, high = goal.drop(best, reference), goal.drop(worst, reference)
    if not (0 < low < high < math.inf and goal.limit > 0):
        return 0.5
    return min(max(math.log(goal.limit / low) / math.log(high / low), 0.25), 0.75)


def _at(position: float, upwards: bool) -> Move:
    if abs(position) > _RANGE:
        return Move(None, f"the slope has reached the {'upper' if upwards else 'lower'} limit")
    return Move(2**position)
