"""What is kept of a run: the latest state to resume from, and the network of the best epoch."""

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
    """Judges epochs, and keeps the best in the run's folder, or in memory where there is none.

    Only the first process judges and writes; all take its word.
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
        """Get ready: load the checkpoint and return it, or judge the network as it is.

        Raises:
            ConfigError: the folder's run is another one.
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
                self.reference = self._judged(nullcontext)
            return None
        self.stepper.load_state_dict(state)
        self.best = Candidate.from_dict(state["best"])
        self.reference = state["reference"]
        return state

    def judged(self) -> float:
        """Return the score of the network as the file would hold it; NaN where none is asked."""
        return self._judged(self.stepper.tuner.quantized)

    def consider(self, candidate: Candidate, epochs: int) -> None:
        """Keep the network as it is now if it is the best yet."""
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
        """Write the latest checkpoint; the best epoch's file is there before it is named here."""
        if self.folder is None or not self.stepper.fabric.is_global_zero:
            return
        best = None if self.best is None else self.best.to_dict()
        state = {"key": self.key, "best": best, "reference": self.reference, **position}
        keep = None if self.best is None else self.best.epoch
        self.folder.save({**state, **self.stepper.state_dict()}, keep)

    def restore(self, epochs: int) -> Candidate:
        """Put the network and the tuner back to the best epoch, and return it."""
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

    def _judged(self, within: Callable[[], AbstractContextManager[Any]]) -> float:
        score, fabric = math.nan, self.stepper.fabric
        if self.judge is None:
            return score
        if fabric.is_global_zero:
            with within():
                score = float(self.judge(self.stepper.tuner.model))
        return float(fabric.broadcast(score))
