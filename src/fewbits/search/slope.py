"""The search loop: evaluate, record, choose what to try next; stop when the budget is met."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..errors import BudgetError
from .goal import Goal
from .next_slope import Move, next_move
from .trace import Trace, Trial

__all__ = ["SlopeSearch"]


@dataclass
class SlopeSearch:
    """A search for the slope, or the number of levels, that meets a budget.

    It knows nothing of networks: :meth:`run` takes a function that evaluates a slope. Each step
    depends on the trace alone, so a search that is stopped and resumed ends like an uninterrupted
    one (unless it is stopped by ``seconds``, since timings vary).

    Attributes:
        goal: the budget.
        start: slope of the first evaluation, > 0.
        trace: the trials so far; :meth:`run` appends to it.
        evaluations: most trials in the trace, those of earlier runs included.
        seconds: time limit; an evaluation that would probably exceed it does not start, except
            the first. None for no limit.
        on_trial: called with each trial, and with None at the end, to save the trace.
        clock: returns seconds since some origin.
        choose: what to try next: ``next_move`` of slopes, or ``next_levels``.
    """

    goal: Goal
    start: float
    trace: Trace
    evaluations: int = 12
    seconds: float | None = None
    on_trial: Callable[[Trial | None], None] = lambda trial: None
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)
    choose: Callable[[Goal, float, Sequence[Trial], float | None], Move] = next_move

    def run(self, evaluate: Callable[[float], Trial]) -> Trial:
        """Search, and return the best trial within the budget. ``evaluate`` compresses at a slope.

        Raises:
            BudgetError: no trial is within the budget; the message names the nearest.
        """
        trace, began = self.trace, self.clock()
        while True:
            move = self.choose(self.goal, self.start, trace.trials, trace.reference)
            reason = move.reason if move.slope is None else self._exhausted(self.clock() - began)
            if move.slope is None or reason:
                break
            trial = evaluate(move.slope)
            trace.trials.append(trial)
            self._mark("")
            self.on_trial(trial)
        self._mark(reason)
        self.on_trial(None)
        if trace.best is None:
            raise BudgetError(self._failure())
        return trace.best

    def _mark(self, ended: str) -> None:
        trace = self.trace
        best = self.goal.best(trace.trials, trace.reference)
        trace.chosen = None if best is None else trace.trials.index(best)
        trace.ended = ended

    def _exhausted(self, elapsed: float) -> str:
        done = len(self.trace.trials)
        if done >= self.evaluations:
            return f"all {self.evaluations} evaluations are used up"
        longest = max((trial.seconds for trial in self.trace.trials), default=0.0)
        if self.seconds is not None and done and elapsed + longest > self.seconds:
            return f"the time budget of {self.seconds:g} s is used up"
        return ""

    def _failure(self) -> str:
        trace, goal = self.trace, self.goal
        if goal.is_size:
            least = min(trace.trials, key=goal.size)
            reached = f"{least.bytes:,} bytes, {least.bits_per_weight:.3f} bits per weight"
            what = f"the smallest file reached has {reached}, at {least.setting}"
        else:
            best = min(trace.trials, key=lambda trial: goal.drop(trial, trace.reference))
            what = (
                f"the best score reached is {best.score} with {best.bytes:,} bytes, at "
                f"{best.setting}; the float network has {trace.reference}"
            )
        return (
            f"no file meets the budget of {goal} after {len(trace.trials)} evaluations "
            f"({trace.ended}): {what}. Raise the budget, allow more evaluations, or keep fewer "
            "layers in float."
        )
