"""Training: what methods that train share, in the user's loop or in ours."""

from .masks import Lobster, Magnitude
from .preparing import prepare
from .tuner import Tuner

__all__ = ["Lobster", "Magnitude", "Tuner", "prepare"]
