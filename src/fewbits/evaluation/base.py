"""What a metric is: a running figure over batches of logits and labels, filed under a name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from ..engine.network.isolation import evaluating
from ..errors import FewbitsError, ModelError, require
from ..registry import Registry

__all__ = ["METRICS", "TAKES", "Measure", "Metric", "OwnMetric", "as_measure", "shown", "takes"]

# What a metric is told, besides logits and labels of whole sequences that are cut into rows:
# rows of logits (n, classes); whole sequences (n, tokens, classes); or the network itself.
TAKES = ("rows", "sequences", "network")


class Metric(Protocol):
    """One pass over labelled data: made anew for each, told every batch, asked once.

    A class may also declare what it takes, ``takes: ClassVar[str]``: "rows" (the default), or
    "sequences" if it needs whole sequences. For "rows", every label of a sequence is a sample, and
    the logits of long sequences come in several parts.

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
        """Take in a batch.

        Rows: logits (n, classes), and int64 labels (n,) on the same device. Sequences: logits (n,
        tokens, classes), and labels (n, tokens) of what the logits predict, -100 where nothing
        counts.
        """

    def result(self) -> float:
        """Return the figure of all batches, of which there is at least one sample."""
        ...


@dataclass(frozen=True)
class OwnMetric:
    """A function of one's own that measures a network: ``function(model, batches) -> number``.

    ``model`` is in evaluation mode, and gradients are off; ``batches`` is the data to measure on,
    to be iterated any number of times, or None if no data was named.

    Attributes:
        name: how messages call it, such as "mytask:score".
        function: what is called. Its attributes ``higher_is_better`` (default True) and ``unit``
            ("%" for a share in [0, 1]; default none) say how to read its results.
    """

    takes: ClassVar[str] = "network"
    name: str
    function: Callable[[nn.Module, Iterable[Any] | None], Any]

    @property
    def summary(self) -> str:
        """One line on what it measures."""
        return (self.function.__doc__ or self.name).strip().partition("\n")[0]

    @property
    def unit(self) -> str:
        """Unit of the result."""
        return str(getattr(self.function, "unit", ""))

    @property
    def higher_is_better(self) -> bool:
        """Whether a larger result is a better one."""
        return bool(getattr(self.function, "higher_is_better", True))

    def measure(self, model: nn.Module, batches: Iterable[Any] | None) -> float:
        """Return the figure of a network.

        Raises:
            ModelError: the function failed, or returned something other than one number.
        """
        try:
            with evaluating(model), torch.no_grad():
                found = self.function(model, batches)
        except FewbitsError:
            raise
        except Exception as error:
            raise ModelError(f"metric {self.name!r} raised {type(error).__name__}: {error}") from (
                error
            )
        try:
            return float(found)
        except (TypeError, ValueError, RuntimeError):
            raise ModelError(
                f"metric {self.name!r} returned {type(found).__name__}; expected one number."
            ) from None


Measure: TypeAlias = "type[Metric] | OwnMetric"


def takes(metric: Measure) -> str:
    """Return what a metric is told: an entry of ``TAKES``."""
    return str(getattr(metric, "takes", TAKES[0]))


def _check_metric(name: str, kind: type[Metric]) -> None:
    parts = ("name", "summary", "unit", "higher_is_better", "update", "result")
    missing = [part for part in parts if not hasattr(kind, part)]
    require(not missing, f"the metric {name!r}", f"one with {', '.join(missing)}", kind)
    known = takes(kind) in TAKES[:2]
    require(known, f"what the metric {name!r} takes", " or ".join(TAKES[:2]), takes(kind))


METRICS: Registry[type[Metric]] = Registry("metric", "fewbits.metrics", _check_metric)


def as_measure(metric: str | Measure) -> Measure:
    """Return a metric by its name in ``METRICS``; one that is not a name is returned.

    Raises:
        ConfigError: no such metric.
    """
    return METRICS[metric] if isinstance(metric, str) else metric


def shown(metric: str | Measure, value: float) -> str:
    """Return a result as people read it: a share in percent, another figure with its unit."""
    unit = as_measure(metric).unit
    return f"{value:.2%}" if unit == "%" else f"{value:.4f} {unit}".rstrip()
