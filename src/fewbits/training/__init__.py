"""Training for all methods that train: a tuner for your own loop, and a ready-made loop."""

from .data.augment import FlipAndCrop
from .distillation.joint import JointDistillation, JointWeights
from .distillation.joint_trainer import JointTrainer
from .distillation.losses import CrossEntropy, Distillation
from .loop.loop import Fitted, fit
from .loop.lr_schedules import PerStage, WarmCosine
from .loop.optimizers import make_optimizer
from .loop.selection import Selection
from .tuner.prepare import prepare
from .tuner.pruning import Lobster, Magnitude
from .tuner.tuner import Tuner

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
