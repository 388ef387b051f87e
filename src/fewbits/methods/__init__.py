"""Methods: one file per paper, one frozen value per method, found by name in ``METHODS``."""

from .activation_ranges import Activations, calibrate_inputs
from .base import METHODS, Method, from_settings, gradients_of, to_settings, trained_from_settings
from .post_training.gpfq import GPFQ
from .post_training.gptq import GPTQ
from .post_training.nearest import Nearest
from .post_training.qronos import Qronos
from .rate_distortion.rdoq import RDOQ
from .rate_distortion.transform import Transform
from .trained.base import TRAINED, InputSession, Session, TrainedMethod, TunedWeight
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
    "TRAINED",
    "Activations",
    "InputSession",
    "LowBit",
    "Method",
    "Nearest",
    "Qronos",
    "Session",
    "TrainedMethod",
    "Transform",
    "TunedWeight",
    "calibrate_inputs",
    "from_settings",
    "gradients_of",
    "to_settings",
    "trained_from_settings",
]
