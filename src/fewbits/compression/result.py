"""The result of a compression: the coded network, its plan and its measurements."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from ..recipe.plan import Plan
from ..search import Trace
from .coded_model import CodedModel

if TYPE_CHECKING:
    from ..report import Page

__all__ = ["CompressionResult"]


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class CompressionResult(CodedModel):
    """A coded network with the record of how it was compressed.

    Attributes:
        plan: what was done with every tensor, and why; ``print`` lists it.
        info: measurements of the method for each weight (relative output error, saturation, ...).
        trace: what the search for a budget tried; None without a search.
        history: metrics of every training epoch; empty without training.
    """

    _hint: ClassVar[str] = "print(coded.plan) and print(coded.size_report()) list every tensor"

    plan: Plan
    info: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    trace: Trace | None = None
    history: tuple[Mapping[str, float], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "reasons", self.plan.reasons)

    @property
    def summary(self) -> str:
        """The size, and the share that is quantized, in one line."""
        return self.size_report().summary

    def report_page(self, title: str = "", **about: Any) -> Page:
        """Return what :meth:`report` writes, with settings, search and training."""
        known: dict[str, Any] = {"plan": self.plan.to_dict(), "history": self.history}
        if self.trace is not None:
            known["trace"] = self.trace.to_dict()
        return super().report_page(title, **{**known, **about})

    def with_trace(self, trace: Trace) -> CompressionResult:
        """Return the same network with the trace of its search; encoded files are kept."""
        result = replace(self, trace=trace)
        result._files.update(self._files)
        result._reports.update(self._reports)
        return result
