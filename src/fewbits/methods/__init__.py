"""Compression methods, one file per paper; each is a frozen dataclass listed in ``METHODS``."""

from .activation_ranges import Activations, calibrate_inputs
from .base import (
    METHODS,
    AnyMethod,
    Capabilities,
    Method,
    PostTrainingMethod,
    TrainingMethod,
    as_method,
    from_settings,
    is_method,
    post_training_methods,
    to_settings,
    training_methods,
    trains,
)
from .levels import count_of_levels, with_levels
from .post_training.gpfq import GPFQ
from .post_training.gptq import GPTQ
from .post_training.nearest import Nearest
from .post_training.qronos import Qronos
from .rate_distortion.rdoq import RDOQ
from .rate_distortion.transform import Transform
from .slopes import has_open_slope, slope_of, suggested_slope, with_open_slope, with_slope
from .trained.base import InputSession, Session, Switchable, TunedWeight
from .trained.hemp.hemp import HEMP
from .trained.lowbit.lowbit import LowBit
from .trained.pwfn.pwfn import PWFN

__all__ = [
    "GPFQ",
    "GPTQ",
    "HEMP",
    "METHODS",
    "PWFN",
    "RDOQ",
    "Activations",
    "AnyMethod",
    "Capabilities",
    "InputSession",
    "LowBit",
    "Method",
    "Nearest",
    "PostTrainingMethod",
    "Qronos",
    "Session",
    "Switchable",
    "TrainingMethod",
    "Transform",
    "TunedWeight",
    "as_method",
    "calibrate_inputs",
    "count_of_levels",
    "from_settings",
    "has_open_slope",
    "is_method",
    "post_training_methods",
    "slope_of",
    "suggested_slope",
    "to_settings",
    "training_methods",
    "trains",
    "with_levels",
    "with_open_slope",
    "with_slope",
]
