"""What a metric is: a running figure over batches of logits and labels, filed under a name."""

from __future__ import annotations

from typing import ClassVar, Protocol

from torch import Tensor

from ..errors import require
from ..registry import Registry

__all__ = ["METRICS", "Metric", "shown"]


class Metric(Protocol):
    """One pass over labelled data: made anew for each, told every batch, asked once.

    Attributes:
        name: under which it is registered in ``METRICS``.
        summary: one line on what it measures.
        unit: of the result: "%" for a share in [0, 1], "nats", ...; may be empty.
        higher_is_better: whether a larger result is a better one.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    unit: ClassVar[str]
    higher_is_better: ClassVar[bool]

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Take in a batch: logits (n, classes), and int64 labels (n,) on the same device."""

    def result(self) -> float:
        """Return the figure of all batches, of which there is at least one sample."""
        ...


def _check_metric(name: str, kind: type[Metric]) -> None:
    parts = ("name", "summary", "unit", "higher_is_better", "update", "result")
    missing = [part for part in parts if not hasattr(kind, part)]
    require(not missing, f"the metric {name!r}", f"one with {', '.join(missing)}", kind)


METRICS: Registry[type[Metric]] = Registry("metric", "fewbits.metrics", _check_metric)


def shown(name: str, value: float) -> str:
    """Return a result as people read it: a share in percent, another figure with its unit."""
    unit = METRICS[name].unit
    return f"{value:.2%}" if unit == "%" else f"{value:.4f} {unit}".rstrip()
