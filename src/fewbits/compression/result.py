"""What a compression returns: the coded network, its plan, and what was measured on the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

from ..recipe.plan import Plan
from ..search import Trace
from .coded_model import CodedModel

__all__ = ["CompressionResult"]


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class CompressionResult(CodedModel):
    """A coded network with how it came about.

    Attributes:
        plan: what was done with every tensor, and why; printable.
        info: weight name to what its method measured (relative output error, saturation, ...).
        trace: what the search for a budget tried; None where there was none.
        history: figures of every epoch of a training; empty without one.
    """

    _hint: ClassVar[str] = "print(coded.plan) and print(coded.size_report()) list every tensor"

    plan: Plan
    info: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    trace: Trace | None = None
    history: tuple[Mapping[str, float], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "reasons", self.plan.reasons)

    def with_trace(self, trace: Trace) -> CompressionResult:
        """Return the same network, encoded as far as it is, with the trace of its search."""
        made = replace(self, trace=trace)
        made._files.update(self._files)
        made._reports.update(self._reports)
        return made
