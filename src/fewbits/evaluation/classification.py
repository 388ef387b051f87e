"""Metrics of classifiers: top-1 accuracy and mean loss."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from .base import METRICS

__all__ = ["Accuracy", "Loss"]


@METRICS.register("accuracy")
class Accuracy:
    """The share of samples whose largest logit is the label."""

    name: ClassVar[str] = "accuracy"
    summary: ClassVar[str] = "top-1 accuracy"
    unit: ClassVar[str] = "%"
    higher_is_better: ClassVar[bool] = True

    def __init__(self) -> None:
        self.correct = self.samples = 0

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Count the right answers of a batch."""
        self.correct += int((logits.argmax(1) == labels).sum())
        self.samples += len(labels)

    def result(self) -> float:
        """Return the share, in [0, 1]."""
        return self.correct / self.samples


@METRICS.register("loss")
class Loss:
    """The mean cross-entropy."""

    name: ClassVar[str] = "loss"
    summary: ClassVar[str] = "mean cross-entropy"
    unit: ClassVar[str] = "nats"
    higher_is_better: ClassVar[bool] = False

    def __init__(self) -> None:
        self.total, self.samples = 0.0, 0

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add the loss of a batch."""
        self.total += float(F.cross_entropy(logits.double(), labels, reduction="sum"))
        self.samples += len(labels)

    def result(self) -> float:
        """Return the mean, in nats."""
        return self.total / self.samples
