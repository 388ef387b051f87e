"""The search itself: evaluate, note, move, until the budget is met or the means are spent."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from ..errors import BudgetError
from .goal import Goal
from .next_slope import next_move
from .trace import Trace, Trial

__all__ = ["SlopeSearch"]


@dataclass
class SlopeSearch:
    """A search for the slope that meets a budget.

    It holds no network: :meth:`run` is told how a slope is evaluated. What it does next follows
    from the trace alone, so that a search that was stopped and resumed ends as one that was not
    (unless ``seconds`` stops it, which no clock does twice alike).

    Attributes:
        goal: the budget.
        start: slope of the first evaluation, > 0.
        trace: what has been tried; grows.
        evaluations: bound on the trials of the trace, those of earlier runs included.
        seconds: no evaluation starts that would likely end later, but the first; None for no bound.
        noted: called after every trial and at the end, to keep the trace.
        clock: seconds from some origin.
    """

    goal: Goal
    start: float
    trace: Trace
    evaluations: int = 12
    seconds: float | None = None
    noted: Callable[[Trial | None], None] = lambda trial: None
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)

    def run(self, evaluate: Callable[[float], Trial]) -> Trial:
        """Search, and return the best trial within the budget. ``evaluate`` compresses at a slope.

        Raises:
            BudgetError: no trial is within the budget; says what came nearest.
        """
        trace, began = self.trace, self.clock()
        while True:
            move = next_move(self.goal, self.start, trace.trials, trace.reference)
            reason = move.reason if move.slope is None else self._spent(self.clock() - began)
            if move.slope is None or reason:
                break
            trial = evaluate(move.slope)
            trace.trials.append(trial)
            self._choose("")
            self.noted(trial)
        self._choose(reason)
        self.noted(None)
        if trace.best is None:
            raise BudgetError(self._missed())
        return trace.best

    def _choose(self, ended: str) -> None:
        trace = self.trace
        best = self.goal.best(trace.trials, trace.reference)
        trace.chosen = None if best is None else trace.trials.index(best)
        trace.ended = ended

    def _spent(self, elapsed: float) -> str:
        done = len(self.trace.trials)
        if done >= self.evaluations:
            return f"all {self.evaluations} evaluations are spent"
        longest = max((trial.seconds for trial in self.trace.trials), default=0.0)
        if self.seconds is not None and done and elapsed + longest > self.seconds:
            return f"the time budget of {self.seconds:g} s is spent"
        return ""

    def _missed(self) -> str:
        trace, goal = self.trace, self.goal
        if goal.is_size:
            least = min(trace.trials, key=goal.size)
            reached = f"{least.bytes:,} bytes, {least.bits_per_weight:.3f} bits per weight"
            what = f"the smallest file reached has {reached}, at slope {least.slope:.3g}"
        else:
            best = min(trace.trials, key=lambda trial: goal.drop(trial, trace.reference))
            what = (
                f"the best score reached is {best.score} with {best.bytes:,} bytes, at slope "
                f"{best.slope:.3g}; the float network has {trace.reference}"
            )
        return (
            f"no file meets the budget of {goal} after {len(trace.trials)} evaluations "
            f"({trace.ended}): {what}. Allow more, more evaluations, or keep less in float."
        )
