"""Schedules: settings that change while training, as functions of the share of it that is done."""

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
    """From one value to another, between two shares of the training.

    Attributes:
        start: value up to ``begin``.
        end: value from ``until`` on.
        begin: share of the training, in [0, 1].
        until: share of the training, in [begin, 1].
        shape: "linear", "cosine" (slow at both ends), "geometric" (both values above zero) or
            "step" (``start`` before ``until``).

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
        require(0 <= self.begin <= self.until <= 1, "begin, until", "shares in order", self)
        require(self.shape in _SHAPES, "shape", f"one of {', '.join(_SHAPES)}", self.shape)
        positive = self.shape != "geometric" or (self.start > 0 and self.end > 0)
        require(positive, "start and end of a geometric ramp", "above zero", self)

    def __call__(self, progress: float) -> float:
        """Return the value at ``progress``, the share of the training that is done."""
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
        """Return a mapping, as a recipe holds it, as a ramp; anything else as it is."""
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
        """Return plain values that :meth:`of` takes; defaults are left out."""
        data: dict[str, Any] = {"start": self.start, "end": self.end}
        defaults = {"begin": 0.0, "until": 1.0, "shape": "linear"}
        return data | {k: getattr(self, k) for k, v in defaults.items() if getattr(self, k) != v}


def value_at(setting: float | Ramp, progress: float) -> float:
    """Return a setting, constant or scheduled, at ``progress``."""
    return setting(progress) if isinstance(setting, Ramp) else float(setting)
