"""Metrics by name, and metrics under noise on the weights."""

from .base import METRICS, Metric, OwnMetric
from .classification import Accuracy, Loss
from .perplexity import Perplexity

__all__ = ["METRICS", "Accuracy", "Loss", "Metric", "OwnMetric", "Perplexity"]
