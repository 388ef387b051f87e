"""Training: what methods that train share, in the user's loop or in ours."""

from .augment import FlipAndCrop
from .loop import Fitted, fit
from .losses import CrossEntropy, Distillation
from .masks import Lobster, Magnitude
from .optimizers import make_optimizer
from .preparing import prepare
from .rates import WarmCosine
from .select import Selection
from .tuner import Tuner

__all__ = [
    "CrossEntropy",
    "Distillation",
    "Fitted",
    "FlipAndCrop",
    "Lobster",
    "Magnitude",
    "Selection",
    "Tuner",
    "WarmCosine",
    "fit",
    "make_optimizer",
    "prepare",
]
