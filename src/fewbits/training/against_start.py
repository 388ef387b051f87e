"""Compare what training made of a compressed network with that network, and keep the better one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from os import PathLike

from torch import nn

from ..compression.coded_model import CodedModel
from ..compression.result import CompressionResult
from .loop.loop import Fitted
from .tuner.tuner import Tuner

__all__ = ["AgainstStart"]


@dataclass(frozen=True)
class AgainstStart:
    """The start of a training, and what its end must be better in.

    Attributes:
        start: the compressed network, or its file.
        score: its score on held-out data; NaN without such data.
        loss: its cross-entropy there; NaN if unknown, as with a score of the caller's.
        measure: returns that loss for a network; None if there is none.
        max_drop: as for :class:`Selection`; None for no limit.
    """

    start: CodedModel | str | PathLike[str]
    score: float
    loss: float = math.nan
    measure: Callable[[nn.Module], float] | None = None
    max_drop: float | None = None

    @classmethod
    def before(
        cls,
        start: CodedModel | str | PathLike[str],
        tuner: Tuner,
        judge: Callable[[nn.Module], float] | None,
        loss: Callable[[nn.Module], float] | None,
        max_drop: float | None,
    ) -> AgainstStart:
        """Evaluate the network of ``tuner``, which has the values of ``start``."""
        with tuner.quantized() as model:
            score, held = (math.nan if by is None else float(by(model)) for by in (judge, loss))
        return cls(start, score, held, loss, max_drop)

    def chosen(
        self, end: CompressionResult, fitted: Fitted, model: nn.Module
    ) -> tuple[CompressionResult, Fitted]:
        """Return the end or, as epoch 0, the start, with a note on both.

        ``model`` has the values of the end, and gets those of the start where it is chosen.

        Both are encoded with the effort of the end. Only their tensors are compared: metadata says
        how long a training was described, not what it made.
        """
        start = self.start if isinstance(self.start, CodedModel) else CodedModel.load(self.start)
        before = replace(start, contents=start.contents, effort=end.effort)
        sizes = _bytes_of_tensors(before), _bytes_of_tensors(end)
        told = f"tensors of {sizes[0]:,} bytes before training, {sizes[1]:,} after"
        if math.isnan(self.score) or math.isnan(fitted.score):
            if sizes[1] > sizes[0]:
                unknown = "without held-out data, nothing tells whether it is more accurate"
                return _noted(end, f"start: {told}; {unknown}"), fitted
            return end, fitted
        loss = math.nan if self.measure is None else float(self.measure(model))
        told += f"; score on held-out data {self.score:.4f} before, {fitted.score:.4f} after"
        if not math.isnan(loss):
            told += f"; loss {self.loss:.4f} before, {loss:.4f} after"
        if self._keeps_end(fitted, loss, *sizes):
            return _noted(end, f"start: {told}"), fitted
        result = CompressionResult(
            contents=before.contents,
            plan=end.plan,
            effort=end.effort,
            notes=(*start.notes, f"training made nothing better, so this is its start: {told}"),
            network_files=end.network_files,
        )
        result.load_into(model)
        return result, replace(fitted, epoch=0, score=self.score)

    def _keeps_end(self, fitted: Fitted, loss: float, before: int, after: int) -> bool:
        """Return whether the end is worth more than the start.

        All bytes are worth a loss of 1, as in HEMP's training. Where only a score is known, a
        higher one is worth any bytes, and a share of the bytes that share of the score. With
        ``max_drop``, a network that drops by more is worse than one that does not, and of two that
        do not, the smaller one is better.
        """
        if self.max_drop is not None:
            least = fitted.reference - self.max_drop
            if (self.score >= least) != (fitted.score >= least):
                return fitted.score >= least
            if fitted.score >= least:
                return after <= before
        saved, lost = (before - after) / before, loss - self.loss
        if not math.isnan(lost):
            return lost <= saved
        lost = (self.score - fitted.score) / max(abs(self.score), 1e-12)
        return lost < 0 or lost <= saved


def _bytes_of_tensors(coded: CodedModel) -> int:
    report = coded.size_report(coded.effort)
    return sum(row.bytes for row in report.rows if row.kind != "file")


def _noted(result: CompressionResult, note: str) -> CompressionResult:
    noted = replace(result, notes=(*result.notes, note))
    noted._files.update(result._files)
    noted._reports.update(result._reports)
    return noted
