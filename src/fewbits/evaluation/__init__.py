"""How good a network is: metrics by name, and noise on its weights."""

from .base import METRICS, Metric
from .classification import Accuracy, Loss

__all__ = ["METRICS", "Accuracy", "Loss", "Metric"]
