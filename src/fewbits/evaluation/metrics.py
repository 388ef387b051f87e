"""How good a network is on labelled batches: accuracy, loss, and any registered metric."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..engine.network.batches import Forward, call_model, describe, labels_of
from ..engine.network.isolation import evaluating
from ..errors import CalibrationError, ModelError
from ..progress import Progress, ProgressEvent, silent
from .base import METRICS, Metric, shown
from .classification import Accuracy, Loss

__all__ = ["Evaluation", "Score", "answers", "evaluate"]


@dataclass(frozen=True)
class Evaluation:
    """Result of one pass over labelled data.

    Attributes:
        samples: number of labelled samples.
        accuracy: fraction whose largest logit is the label (top-1), in [0, 1].
        loss: mean cross-entropy in nats.
        seconds: duration of the pass, reading the data included.
        others: results of further metrics, by name.
    """

    samples: int
    accuracy: float
    loss: float
    seconds: float
    others: Mapping[str, float] = field(default_factory=dict)

    def value(self, metric: str) -> float:
        """Return the result of one of the metrics."""
        return {Accuracy.name: self.accuracy, Loss.name: self.loss, **self.others}[metric]

    def to_dict(self) -> dict[str, float]:
        """Return JSON-ready values."""
        counted = {"samples": self.samples, "accuracy": self.accuracy, "loss": self.loss}
        return {**counted, "seconds": self.seconds, **self.others}

    def __str__(self) -> str:
        more = "".join(f", {name} {shown(name, value)}" for name, value in self.others.items())
        told = f"accuracy {self.accuracy:.2%}, loss {self.loss:.4f}{more}"
        return f"{told} on {self.samples:,} samples"


def evaluate(
    model: nn.Module,
    batches: Iterable[Any],
    forward: Forward = call_model,
    *,
    metrics: Sequence[str] = (),
    progress: Progress = silent,
) -> Evaluation:
    """Run ``model`` over ``batches`` in evaluation mode; its mode and device stay as they were.

    A batch is ``(inputs, ..., labels)`` or a dict with ``"labels"``; labels are integers ``(n,)``
    and logits ``(n, classes)``. Results with an attribute ``logits`` are understood.

    Args:
        model: the network.
        batches: labelled batches; read once.
        forward: ``forward(model, batch) -> logits``; the default calls the model on the inputs.
        metrics: names in ``METRICS``, besides accuracy and loss.
        progress: told after every batch.

    Raises:
        CalibrationError: no batches, no labels, or labels outside the classes.
        ConfigError: no such metric.
        ModelError: the forward pass failed, or its result is not one row of logits per label.
    """
    accuracy, loss = Accuracy(), Loss()
    wanted = [name for name in dict.fromkeys(metrics) if name not in (Accuracy.name, Loss.name)]
    others = {name: METRICS[name]() for name in wanted}
    told: list[Metric] = [accuracy, loss, *others.values()]
    started = time.perf_counter()
    for labels, logits in answers(model, batches, forward, progress=progress):
        for metric in told:
            metric.update(logits, labels)
    if not accuracy.samples:
        raise CalibrationError("there is nothing to evaluate: the data gave no batches.")
    seconds = time.perf_counter() - started
    more = {name: float(metric.result()) for name, metric in others.items()}
    return Evaluation(accuracy.samples, accuracy.result(), loss.result(), seconds, more)


@dataclass(frozen=True)
class Score:
    """A metric on batches, as a function of the network whose larger values are better.

    Attributes:
        metric: a name in ``METRICS``; one whose lower results are better is negated.
        batches: labelled; read again for every network.
    """

    metric: str
    batches: Iterable[Any]

    def __call__(self, model: nn.Module) -> float:
        """Return the score of ``model``."""
        value = evaluate(model, self.batches, metrics=(self.metric,)).value(self.metric)
        return value if METRICS[self.metric].higher_is_better else -value


def answers(
    model: nn.Module,
    batches: Iterable[Any],
    forward: Forward = call_model,
    *,
    progress: Progress = silent,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (labels, logits) of every batch, as :func:`evaluate` sees them, in evaluation mode."""
    total = len(batches) if isinstance(batches, Sized) else 0
    progress(ProgressEvent("evaluate", 0, total))
    with evaluating(model):
        for number, batch in enumerate(batches):
            with torch.inference_mode():
                labels = _labels(batch, number)
                logits = _logits(forward, model, batch, labels, number)
                labels = labels.to(logits.device)
                _check_labels(labels, logits.shape[1], number)
            yield labels, logits
            progress(ProgressEvent("evaluate", number + 1, total))


def _labels(batch: Any, number: int) -> Tensor:
    labels = labels_of(batch)
    if labels is None:
        raise CalibrationError(
            f"evaluation batch {number} has no class labels; expected (inputs, labels) with "
            f"integer labels of shape (n,). Got {describe(batch)}."
        )
    return labels


def _logits(forward: Forward, model: nn.Module, batch: Any, labels: Tensor, number: int) -> Tensor:
    try:
        result = forward(model, batch)
    except Exception as error:
        raise ModelError(
            f"the forward pass on evaluation batch {number}, {describe(batch)}, raised "
            f"{type(error).__name__}: {error}. Is this the data the network was trained for?"
        ) from error
    logits = getattr(result, "logits", result)
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(labels):
        raise ModelError(
            f"the network returned {describe(logits)} on evaluation batch {number}; expected "
            f"logits of shape ({len(labels)}, classes)."
        )
    return logits


def _check_labels(labels: Tensor, classes: int, number: int) -> None:
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise CalibrationError(
            f"evaluation batch {number} has labels from {int(labels.min())} to "
            f"{int(labels.max())}, but the network has {classes} classes."
        )
