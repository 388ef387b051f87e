"""Methods: one file per paper, one frozen value per method, found by name in ``METHODS``."""

from .base import METHODS, Method, from_settings, gradients_of, to_settings
from .gpfq import GPFQ
from .gptq import GPTQ
from .nearest import Nearest
from .qronos import Qronos
from .rdoq import RDOQ
from .transform import Transform

__all__ = [
    "GPFQ",
    "GPTQ",
    "METHODS",
    "RDOQ",
    "Method",
    "Nearest",
    "Qronos",
    "Transform",
    "from_settings",
    "gradients_of",
    "to_settings",
]
