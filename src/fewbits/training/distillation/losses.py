"""Losses besides the penalty of the method: from labels, a teacher's outputs, or both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...engine.network.batches import Forward, call_model, describe, labels_of
from ...errors import CalibrationError, ModelError, require

__all__ = ["CrossEntropy", "Distillation", "Loss", "LossResult", "distillation_loss"]

LossResult: TypeAlias = "Tensor | tuple[Tensor, Mapping[str, Tensor]]"
Loss: TypeAlias = Callable[[nn.Module, Any], LossResult]
"""``loss(model, batch)``: the mean over the samples, alone or with further means as metrics."""


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy of class labels, with the accuracy as a metric.

    Attributes:
        forward: ``forward(model, batch) -> logits (n, classes)``.
    """

    forward: Forward = call_model

    def __call__(self, model: nn.Module, batch: Any) -> LossResult:
        """Return the mean cross-entropy in nats, and "accuracy".

        Raises:
            CalibrationError: a batch without labels.
        """
        labels = _needed_labels(batch)
        logits = logits_of(self.forward, model, batch)
        labels = labels.to(logits.device)
        return F.cross_entropy(logits, labels), {"accuracy": _accuracy(logits, labels)}


@dataclass(frozen=True)
class Distillation:
    """Match the outputs of the float network, and the labels if any (Hinton et al. 2015).

    Attributes:
        teacher: the network to match; it runs without gradients in evaluation mode.
        weight: weight of the teacher's term in [0, 1]; at 1, labels are not needed.
        temperature: divides the logits of both networks; the term is multiplied by its square.
        forward: ``forward(model, batch) -> logits (n, classes)``.
    """

    teacher: nn.Module
    weight: float = 0.5
    temperature: float = 4.0
    forward: Forward = call_model

    def __post_init__(self) -> None:
        require(0 <= self.weight <= 1, "distillation weight", "in [0, 1]", self.weight)
        require(self.temperature > 0, "temperature", "a number > 0", self.temperature)
        self.teacher.eval()

    def __call__(self, model: nn.Module, batch: Any) -> LossResult:
        """Return the combined loss, with "distil" (nats), and "accuracy" if there are labels.

        Raises:
            CalibrationError: a batch without labels, and ``weight`` is below 1.
        """
        labels = _needed_labels(batch) if self.weight < 1 else labels_of(batch)
        logits = logits_of(self.forward, model, batch)
        with torch.no_grad():
            target = logits_of(self.forward, self.teacher, batch)
        distil = distillation_loss(logits, target, self.temperature)
        metrics = {"distil": distil.detach()}
        if labels is None:
            return distil, metrics
        labels = labels.to(logits.device)
        metrics["accuracy"] = _accuracy(logits, labels)
        task = F.cross_entropy(logits, labels)
        return (1 - self.weight) * task + self.weight * distil, metrics


def distillation_loss(logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Return T^2 KL(softmax(target / T) || softmax(logits / T)), the mean over samples, in nats.

    Both are ``(n, classes)``. The target is expected to have no gradient.
    """
    log_q = F.log_softmax(logits.float() / temperature, dim=1)
    log_p = F.log_softmax(target.float() / temperature, dim=1)
    divergence = F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
    return temperature**2 * divergence


def logits_of(forward: Forward, model: nn.Module, batch: Any) -> Tensor:
    """Return the logits ``(n, classes)`` of a batch.

    Raises:
        ModelError: the forward pass fails or does not return logits.
    """
    try:
        result = forward(model, batch)
    except (RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise ModelError(
            f"the forward pass on a training batch, {describe(batch)}, raised "
            f"{type(error).__name__}: {error}. Does the data fit this network?"
        ) from error
    logits = getattr(result, "logits", result)
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        raise ModelError(
            f"the network returned {describe(logits)} on a training batch; expected logits "
            "(n, classes). For other networks, pass your own loss to fit()."
        )
    return logits


def _needed_labels(batch: Any) -> Tensor:
    labels = labels_of(batch)
    if labels is None:
        raise CalibrationError(
            "training needs (inputs, labels) with integer labels of shape (n,). Got "
            f"{describe(batch)}. Without labels, use distillation from the float network with "
            "weight 1."
        )
    return labels


def _accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.detach().argmax(1) == labels).float().mean()
