"""Methods: one file per paper, one frozen value per method, found by name in ``METHODS``."""

from .activations import Activations, calibrate_inputs
from .base import METHODS, Method, from_settings, gradients_of, to_settings, trained_from_settings
from .gpfq import GPFQ
from .gptq import GPTQ
from .hemp import HEMP
from .lowbit import LowBit
from .nearest import Nearest
from .pwfn import PWFN
from .qronos import Qronos
from .rdoq import RDOQ
from .trained import TRAINED, Course, InputCourse, TrainedMethod, TunedWeight
from .transform import Transform

__all__ = [
    "GPFQ",
    "GPTQ",
    "HEMP",
    "METHODS",
    "PWFN",
    "RDOQ",
    "TRAINED",
    "Activations",
    "Course",
    "InputCourse",
    "LowBit",
    "Method",
    "Nearest",
    "Qronos",
    "TrainedMethod",
    "Transform",
    "TunedWeight",
    "calibrate_inputs",
    "from_settings",
    "gradients_of",
    "to_settings",
    "trained_from_settings",
]
