"""Training: what methods that train share, in the user's loop or in ours."""

from .augment import FlipAndCrop
from .joint import JointDistillation, JointWeights
from .joint_trainer import JointTrainer
from .loop import Fitted, fit
from .losses import CrossEntropy, Distillation
from .masks import Lobster, Magnitude
from .optimizers import make_optimizer
from .preparing import prepare
from .rates import PerStage, WarmCosine
from .select import Selection
from .tuner import Tuner

__all__ = [
    "CrossEntropy",
    "Distillation",
    "Fitted",
    "FlipAndCrop",
    "JointDistillation",
    "JointTrainer",
    "JointWeights",
    "Lobster",
    "Magnitude",
    "PerStage",
    "Selection",
    "Tuner",
    "WarmCosine",
    "fit",
    "make_optimizer",
    "prepare",
]
