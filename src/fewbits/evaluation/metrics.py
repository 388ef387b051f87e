"""How good a network is: accuracy and loss on labelled batches, and any metric."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ..engine.network.batches import Forward, call_model, describe, labels_of
from ..engine.network.isolation import evaluating
from ..errors import CalibrationError, ModelError
from ..progress import Progress, ProgressEvent, silent
from .base import METRICS, Measure, Metric, OwnMetric, as_measure, shown, takes
from .classification import Accuracy, Loss
from .sequences import IGNORED, check_causal, predicted, rows, token_labels

__all__ = ["Evaluation", "OwnResult", "Result", "Score", "answers", "evaluate", "evaluate_by"]


@dataclass(frozen=True)
class Evaluation:
    """Result of one pass over labelled data.

    Attributes:
        samples: number of labelled samples; of sequences, every predicted token is one.
        accuracy: fraction whose largest logit is the label (top-1), in [0, 1].
        loss: mean cross-entropy in nats.
        seconds: duration of the pass, reading the data included.
        others: results of further metrics, by name.
        counted: what ``samples`` counts: "samples" or "tokens".
    """

    samples: int
    accuracy: float
    loss: float
    seconds: float
    others: Mapping[str, float] = field(default_factory=dict)
    counted: str = "samples"

    def value(self, metric: str) -> float:
        """Return the result of one of the metrics."""
        return {Accuracy.name: self.accuracy, Loss.name: self.loss, **self.others}[metric]

    def to_dict(self) -> dict[str, float]:
        """Return JSON-ready values."""
        counted = {self.counted: self.samples, "accuracy": self.accuracy, "loss": self.loss}
        return {**counted, "seconds": self.seconds, **self.others}

    def __str__(self) -> str:
        more = "".join(f", {name} {shown(name, value)}" for name, value in self.others.items())
        told = f"accuracy {self.accuracy:.2%}, loss {self.loss:.4f}{more}"
        return f"{told} on {self.samples:,} {self.counted}"


@dataclass(frozen=True)
class OwnResult:
    """Result of a metric of one's own.

    Attributes:
        metric: what was measured.
        result: its figure.
        seconds: duration of the measurement.
    """

    metric: OwnMetric
    result: float
    seconds: float

    def value(self, metric: str) -> float:
        """Return the result of the metric."""
        return {self.metric.name: self.result}[metric]

    def to_dict(self) -> dict[str, float]:
        """Return JSON-ready values."""
        return {self.metric.name: self.result, "seconds": self.seconds}

    def __str__(self) -> str:
        return f"{self.metric.name} {shown(self.metric, self.result)}"


Result: TypeAlias = "Evaluation | OwnResult"


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
    and logits ``(n, classes)``. For logits ``(n, tokens, classes)`` labels are ``(n, tokens)``,
    -100 where nothing counts; without labels, tokens predict the next one (see
    :mod:`fewbits.evaluation.sequences`). Results with an attribute ``logits`` are understood.

    Args:
        model: the network.
        batches: labelled batches, or tokens; read once.
        forward: ``forward(model, batch) -> logits``; the default calls the model on the inputs.
        metrics: names in ``METRICS``, besides accuracy and loss.
        progress: told after every batch.

    Raises:
        CalibrationError: no batches, no labels, labels outside the classes, or next tokens asked of
            a network whose logits depend on them.
        ConfigError: no such metric.
        ModelError: the forward pass failed, or its result is not one row of logits per label.
    """
    accuracy, loss = Accuracy(), Loss()
    wanted = [name for name in dict.fromkeys(metrics) if name not in (Accuracy.name, Loss.name)]
    others = {name: METRICS[name]() for name in wanted}
    told: list[Metric] = [accuracy, loss, *others.values()]
    started, counted = time.perf_counter(), "samples"
    for labels, logits in answers(model, batches, forward, progress=progress):
        counted = "samples" if labels.dim() == 1 else "tokens"
        _tell(told, labels, logits)
    if not accuracy.samples:
        raise CalibrationError("there is nothing to evaluate: the data gave no batches.")
    seconds = time.perf_counter() - started
    more = {name: float(metric.result()) for name, metric in others.items()}
    return Evaluation(accuracy.samples, accuracy.result(), loss.result(), seconds, more, counted)


def _tell(metrics: Sequence[Metric], labels: Tensor, logits: Tensor) -> None:
    """Tell every metric of a batch, in the form that it takes."""
    whole = [metric for metric in metrics if takes(type(metric)) == "sequences"]
    if labels.dim() == 1 and whole:
        raise CalibrationError(
            f"the metric {whole[0].name!r} measures sequences, and the data has one label for each "
            "sample."
        )
    for metric in whole:
        metric.update(logits, labels)
    parts = [(logits, labels)] if labels.dim() == 1 else rows(logits, labels)
    for part, wanted in parts:
        for metric in metrics:
            if metric not in whole:
                metric.update(part, wanted)


def evaluate_by(
    metric: str | Measure,
    model: nn.Module,
    batches: Iterable[Any] | None,
    forward: Forward = call_model,
    *,
    progress: Progress = silent,
) -> Result:
    """Measure a network by one metric: as :func:`evaluate` does, or by a function of one's own.

    Raises:
        CalibrationError, ModelError: see :func:`evaluate` and :meth:`OwnMetric.measure`.
    """
    if isinstance(metric, OwnMetric):
        started = time.perf_counter()
        found = metric.measure(model, batches)
        return OwnResult(metric, found, time.perf_counter() - started)
    if batches is None:
        raise CalibrationError("there is nothing to evaluate: no data was named.")
    name = metric if isinstance(metric, str) else metric.name
    return evaluate(model, batches, forward, metrics=(name,), progress=progress)


@dataclass(frozen=True)
class Score:
    """A metric on batches, as a function of the network whose larger values are better.

    Attributes:
        measure: a metric, or its name in ``METRICS``; one whose lower results are better is
            negated.
        batches: labelled; read again for every network. None for a metric that has its own data.
        forward: ``forward(model, batch) -> logits``.
    """

    measure: str | Measure
    batches: Iterable[Any] | None
    forward: Forward = call_model

    @property
    def metric(self) -> str:
        """Name of the metric."""
        return self.measure if isinstance(self.measure, str) else self.measure.name

    def __call__(self, model: nn.Module) -> float:
        """Return the score of ``model``."""
        value = evaluate_by(self.measure, model, self.batches, self.forward).value(self.metric)
        return value if as_measure(self.measure).higher_is_better else -value


def answers(
    model: nn.Module,
    batches: Iterable[Any],
    forward: Forward = call_model,
    *,
    progress: Progress = silent,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (labels, logits) of every batch, as :func:`evaluate` sees them, in evaluation mode.

    Labels (n,) with logits (n, classes), or labels (n, tokens) with logits (n, tokens, classes).
    """
    total = len(batches) if isinstance(batches, Sized) else 0
    progress(ProgressEvent("evaluate", 0, total))
    checked = False
    with evaluating(model):
        for number, batch in enumerate(batches):
            with torch.inference_mode():
                labels, shifted = _labels(model, batch, number)
                logits = _logits(forward, model, batch, labels, number)
                labels = labels.to(logits.device)
                _check_labels(labels, logits.shape[-1], number)
                if shifted and not checked:
                    check_causal(forward, model, batch)
                    checked = True
            yield labels, logits
            progress(ProgressEvent("evaluate", number + 1, total))


def _labels(model: nn.Module, batch: Any, number: int) -> tuple[Tensor, bool]:
    """Return the labels of a batch, and whether they are its inputs, shifted by one."""
    labels = labels_of(batch)
    if labels is not None:
        return labels, False
    found = predicted(model, batch)
    if found is None:
        raise CalibrationError(
            f"evaluation batch {number} has no class labels; expected (inputs, labels) with "
            f"integer labels of shape (n,). Got {describe(batch)}."
        )
    return found


def _logits(forward: Forward, model: nn.Module, batch: Any, labels: Tensor, number: int) -> Tensor:
    try:
        result = forward(model, batch)
    except Exception as error:
        raise ModelError(
            f"the forward pass on evaluation batch {number}, {describe(batch)}, raised "
            f"{type(error).__name__}: {error}. Is this the data the network was trained for?"
        ) from error
    logits = getattr(result, "logits", result)
    shape = tuple(labels.shape)
    if not isinstance(logits, Tensor) or tuple(logits.shape[:-1]) != shape or not logits.dim() > 1:
        wanted = ", ".join(map(str, (*shape, "classes")))
        hint = ""
        if len(shape) == 2 and token_labels(batch) is None:
            hint = " The batch has tokens without labels, so each must predict the next one."
        raise ModelError(
            f"the network returned {describe(logits)} on evaluation batch {number}; expected "
            f"logits of shape ({wanted}).{hint}"
        )
    return logits


def _check_labels(labels: Tensor, classes: int, number: int) -> None:
    counted = labels if labels.dim() == 1 else labels[labels != IGNORED]
    if len(counted) and not 0 <= int(counted.min()) <= int(counted.max()) < classes:
        raise CalibrationError(
            f"evaluation batch {number} has labels from {int(counted.min())} to "
            f"{int(counted.max())}, but the network has {classes} classes."
        )
