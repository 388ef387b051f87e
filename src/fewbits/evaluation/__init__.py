"""Metrics by name, and metrics under noise on the weights."""

from .base import METRICS, Metric
from .classification import Accuracy, Loss

__all__ = ["METRICS", "Accuracy", "Loss", "Metric"]
