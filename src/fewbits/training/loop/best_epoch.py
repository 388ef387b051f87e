"""Keep the latest checkpoint of a run, and the network of its best epoch."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from typing import Any

from torch import nn

from .checkpoint import RunFolder
from .selection import Candidate, Selection
from .stepper import Stepper

__all__ = ["BestEpoch"]


class BestEpoch:
    """Evaluates epochs and keeps the best, in the folder of the run or, without one, in memory.

    Only the first process evaluates and writes; the others receive its result.
    """

    def __init__(
        self,
        stepper: Stepper,
        folder: RunFolder | None,
        *,
        judge: Callable[[nn.Module], float] | None,
        selection: Selection,
        key: str,
        reference: float = math.nan,
    ) -> None:
        self.stepper, self.folder, self.judge = stepper, folder, judge
        self.selection, self.key = selection, key
        self.best: Candidate | None = None
        self.reference = reference
        self._held: dict[str, Any] | None = None

    def open(self, resume: bool) -> dict[str, Any] | None:
        """Load and return the checkpoint, or evaluate the initial network for a new run.

        Raises:
            ConfigError: the folder holds another run.
        """
        fabric = self.stepper.fabric
        state = None
        if self.folder is not None:
            if fabric.is_global_zero:
                self.folder.prepare(resume)
            fabric.barrier()
            state = self.folder.load(self.key) if resume else None
        if state is None:
            if math.isnan(self.reference):
                self.reference = self._score(nullcontext)
            return None
        self.stepper.load_state_dict(state)
        self.best = Candidate.from_dict(state["best"])
        self.reference = state["reference"]
        return state

    def score(self) -> float:
        """Return the score of the quantized network; NaN if there is nothing to evaluate by."""
        return self._score(self.stepper.tuner.quantized)

    def consider(self, candidate: Candidate, epochs: int) -> None:
        """Keep the current network if it is the best so far."""
        if self.judge is None or not self.selection.may(candidate.epoch, epochs):
            return
        if not self.selection.better(candidate, self.best, self.reference):
            return
        self.best = candidate
        tuner = self.stepper.tuner
        state = {"model": tuner.model.state_dict(), "tuner": tuner.state_dict()}
        if self.folder is None:
            self._held = deepcopy(state)
        elif self.stepper.fabric.is_global_zero:
            self.folder.write(self.folder.epoch_file(candidate.epoch), state)

    def save(self, position: dict[str, Any]) -> None:
        """Write the latest checkpoint; the file of the best epoch exists before it is named."""
        if self.folder is None or not self.stepper.fabric.is_global_zero:
            return
        best = None if self.best is None else self.best.to_dict()
        state = {"key": self.key, "best": best, "reference": self.reference, **position}
        keep = None if self.best is None else self.best.epoch
        self.folder.save({**state, **self.stepper.state_dict()}, keep)

    def restore(self, epochs: int) -> Candidate:
        """Restore the network and the tuner of the best epoch, and return that epoch."""
        if self.best is None:
            return Candidate(epochs, math.nan)
        if self.best.epoch == epochs:
            return self.best
        state = self._held
        if self.folder is not None:
            self.stepper.fabric.barrier()
            state = self.folder.read(self.folder.epoch_file(self.best.epoch))
        if state is not None:
            self.stepper.load_network(state)
        return self.best

    def _score(self, within: Callable[[], AbstractContextManager[Any]]) -> float:
        score, fabric = math.nan, self.stepper.fabric
        if self.judge is None:
            return score
        if fabric.is_global_zero:
            with within():
                score = float(self.judge(self.stepper.tuner.model))
        return float(fabric.broadcast(score))
