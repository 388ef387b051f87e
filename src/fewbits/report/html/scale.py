"""Axes of charts: from values to positions, and the ticks whose labels have room."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

__all__ = ["CHARACTER", "Scale", "spaced"]

CHARACTER = 6.7  # width of a character of the labels: 11 pixels high, of fixed width


@dataclass(frozen=True)
class Scale:
    """Maps values from ``low`` to ``high`` to positions from ``start`` to ``end``."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    @classmethod
    def around(
        cls, values: Sequence[float], start: float, end: float, *, log: bool = False
    ) -> Scale:
        """Return a scale with some room around finite values, of which there is at least one."""
        low, high = min(values), max(values)
        if log:
            room = max(0.04 * math.log(high / low), 0.05)
            return cls(low * math.exp(-room), high * math.exp(room), start, end, True)
        room = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
        return cls(low - room, high + room, start, end)

    def __call__(self, value: float) -> float:
        """Return the position of a value."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self.start + (self.end - self.start) * (value - low) / (high - low)

    def ticks(self, count: int = 6) -> list[float]:
        """Return round values within the scale, about ``count`` of them."""
        if self.log and self.high > 2.5 * self.low:
            first = math.floor(math.log10(self.low))
            powers = [10.0**power for power in range(first, math.ceil(math.log10(self.high)) + 1)]
            few = [power for power in powers if self.low <= power <= self.high]
            if len(few) >= count:
                return few[:: math.ceil(len(few) / count)]
            some = [factor * power for power in powers for factor in (1, 2, 3, 5, 7)]
            return [value for value in some if self.low <= value <= self.high]
        step = _round_step((self.high - self.low) / count)
        first_tick = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [step * place for place in range(first_tick, last + 1)]


def spaced(
    scale: Scale, ticks: Sequence[float], text: Callable[[float], str], left: float, right: float
) -> list[tuple[float, str]]:
    """Return position and label of the ticks; those whose label has no room are left out.

    A label is centred on its tick, and lies between ``left`` and ``right``.
    """
    placed: list[tuple[float, str]] = []
    free = left
    for tick in ticks:
        label = text(tick)
        half, at = CHARACTER * len(label) / 2, scale(tick)
        if at - half >= free and at + half <= right:
            placed.append((at, label))
            free = at + half + CHARACTER
    return placed


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
