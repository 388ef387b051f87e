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
        max_drop: as for :class:`Selection`; None for no limit.
    """

    start: CodedModel | str | PathLike[str]
    score: float
    max_drop: float | None = None

    @classmethod
    def before(
        cls,
        start: CodedModel | str | PathLike[str],
        tuner: Tuner,
        judge: Callable[[nn.Module], float] | None,
        max_drop: float | None,
    ) -> AgainstStart:
        """Evaluate the network of ``tuner``, which has the values of ``start``."""
        score = math.nan
        if judge is not None:
            with tuner.quantized():
                score = float(judge(tuner.model))
        return cls(start, score, max_drop)

    def chosen(
        self, end: CompressionResult, fitted: Fitted, model: nn.Module
    ) -> tuple[CompressionResult, Fitted]:
        """Return the end or, as epoch 0, the start, with a note on both; ``model`` gets its values.

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
        told += f"; score on held-out data {self.score:.4f} before, {fitted.score:.4f} after"
        if self._keeps_end(fitted, *sizes):
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

    def _keeps_end(self, fitted: Fitted, before: int, after: int) -> bool:
        """Return whether the end scores higher, or saves at least the share of bytes that it loses.

        With ``max_drop``: whether it is the smaller one of those that drop by no more.
        """
        if self.max_drop is not None:
            least = fitted.reference - self.max_drop
            if (self.score >= least) != (fitted.score >= least):
                return fitted.score >= least
            if fitted.score >= least:
                return after <= before
        if fitted.score > self.score:
            return True
        lost = (self.score - fitted.score) / max(abs(self.score), 1e-12)
        return lost <= (before - after) / before


def _bytes_of_tensors(coded: CodedModel) -> int:
    report = coded.size_report(coded.effort)
    return sum(row.bytes for row in report.rows if row.kind != "file")


def _noted(result: CompressionResult, note: str) -> CompressionResult:
    noted = replace(result, notes=(*result.notes, note))
    noted._files.update(result._files)
    noted._reports.update(result._reports)
    return noted
