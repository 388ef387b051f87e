"""Schedules: settings that change during training, as a function of its progress."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError, is_number, require, shorten

__all__ = ["Ramp", "value_at"]

_SHAPES = ("linear", "cosine", "geometric", "step")


@dataclass(frozen=True)
class Ramp:
    """A setting that changes from one value to another during training.

    Attributes:
        start: value until ``begin``.
        end: value from ``until`` on.
        begin: share of the training after which the value starts to change, in [0, 1].
        until: share of the training at which ``end`` is reached, in [begin, 1].
        shape: "linear", "cosine" (slow at both ends), "geometric" (a constant ratio per unit of
            time; both values must be above zero) or "step" (``start`` until ``until``, then
            ``end``).

    >>> Ramp(0, 1, until=0.5)(0.25)
    0.5
    """

    start: float
    end: float
    begin: float = 0.0
    until: float = 1.0
    shape: str = "linear"

    def __post_init__(self) -> None:
        for name in ("start", "end", "begin", "until"):
            value = getattr(self, name)
            require(is_number(value), name, "a finite number", value)
        ordered = 0 <= self.begin <= self.until <= 1
        require(ordered, "begin and until", "shares of the training in ascending order", self)
        require(self.shape in _SHAPES, "shape", f"one of {', '.join(_SHAPES)}", self.shape)
        positive = self.shape != "geometric" or (self.start > 0 and self.end > 0)
        require(positive, "start and end of a geometric ramp", "above zero", self)

    def __call__(self, progress: float) -> float:
        """Return the value at ``progress``, the finished share of the training."""
        if progress >= self.until:
            return float(self.end)
        if progress <= self.begin or self.shape == "step":
            return float(self.start)
        part = (progress - self.begin) / (self.until - self.begin)
        if self.shape == "cosine":
            part = (1 - math.cos(math.pi * part)) / 2
        if self.shape == "geometric":
            return float(self.start * (self.end / self.start) ** part)
        return float(self.start + (self.end - self.start) * part)

    @classmethod
    def of(cls, value: Any) -> Any:
        """Build a ramp from a mapping, as in a recipe; return any other value unchanged."""
        if not isinstance(value, Mapping):
            return value
        try:
            return cls(**value)
        except TypeError:
            raise ConfigError(
                "a schedule must be a mapping of start, end, begin, until and shape. "
                f"Got {shorten(dict(value))} instead."
            ) from None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that :meth:`of` accepts; defaults are left out."""
        data: dict[str, Any] = {"start": self.start, "end": self.end}
        defaults = {"begin": 0.0, "until": 1.0, "shape": "linear"}
        return data | {k: getattr(self, k) for k, v in defaults.items() if getattr(self, k) != v}


def value_at(setting: float | Ramp, progress: float) -> float:
    """Return the value of a constant or scheduled setting at ``progress``."""
    return setting(progress) if isinstance(setting, Ramp) else float(setting)
