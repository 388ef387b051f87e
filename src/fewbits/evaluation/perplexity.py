"""The metric of language models: perplexity."""

from __future__ import annotations

import math
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from .base import METRICS

__all__ = ["Perplexity"]


@METRICS.register("perplexity")
class Perplexity:
    """The exponential of the mean cross-entropy, over all predicted tokens alike."""

    name: ClassVar[str] = "perplexity"
    summary: ClassVar[str] = "exponential of the mean cross-entropy of tokens"
    unit: ClassVar[str] = ""
    higher_is_better: ClassVar[bool] = False

    def __init__(self) -> None:
        self.total, self.samples = 0.0, 0

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add the cross-entropies of some tokens, computed in float32 and summed in float64."""
        losses = F.cross_entropy(logits.float(), labels, reduction="none")
        self.total += float(losses.double().sum())
        self.samples += len(labels)

    def result(self) -> float:
        """Return the perplexity, at least 1; infinite if it has no number."""
        mean = self.total / self.samples
        return math.exp(mean) if mean < math.log(1.7e308) else math.inf
