"""The result of a compression: the coded network, its plan and its measurements."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from torch import Tensor, nn

from ..coded import JSONValue
from ..engine.layers.layer import Sensitivity
from ..engine.layers.targets import Target
from ..recipe.plan import Plan
from ..search import Trace
from .coded_model import CodedModel
from .storage.finished_tensors import FinishedWeights

if TYPE_CHECKING:
    from ..report import Page

__all__ = ["BaseWeights", "CompressionResult"]


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


class BaseWeights(Protocol):
    """Older weights of a network, from which a delta tells the differences."""

    @property
    def fingerprint(self) -> str:
        """What tells these weights from all others."""

    def of_weights(self, model: nn.Module) -> Mapping[str, Tensor]:
        """Return those that weights of a network can be told as differences from."""

    def planned(self, plan: Plan, model: nn.Module) -> Plan:
        """Return the plan in which weights that did not change are left as they are."""

    def energy(
        self, model: nn.Module, targets: Iterable[Target], known: Mapping[str, Sensitivity]
    ) -> float:
        """Return by how much the output would change if no difference were told, about."""

    def result(
        self,
        state: Mapping[str, Tensor],
        finished: FinishedWeights,
        *,
        bases: Container[str],
        metadata: Mapping[str, JSONValue],
        keep: object,
        plan: Plan,
        **about: Any,
    ) -> CompressionResult:
        """Return the delta that leads to a state dict.

        Args:
            state: the new weights, of which those in ``finished`` are not used.
            finished: quantized weights.
            bases: names of those that are differences.
            metadata: what else the file says.
            keep: an object that must live as long.
            plan: what was done with every tensor.
            **about: info and notes.
        """
