"""What the symbols of a convolution tell about each other: the model behind ``adaptive``.

A matrix (outputs, inputs * taps) is walked tap by tap: all filters' first taps, then all second
taps, and so on, in blocks of outputs. A symbol is predicted from the earlier taps of its filter
(trained filters are smooth, as pictures are), and the error's magnitude from the filter, its
input and its output so far. Both predictions are least squares over what has been seen, solved
exactly, so the decoder finds the same numbers. SPEC.md, section 4.3, is the definition.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .codec import Symbols
from .laws import THRESHOLDS
from .learners import LIMIT, RATIOS, RIDGE, Floats, Gains, Ints, Knowledge, Magnitudes, Regression
from .queue import Taker

__all__ = ["MAX_ORDER", "UNIT", "Settings", "centre_and_spread", "run", "walk_of"]

UNIT = 64  # fixed-point units of a level
MAX_ORDER = 15
NEAR, CORNER = 90, -26  # what a tap is worth before anything is known: beside or above, between


@dataclass(frozen=True)
class Settings:
    """What the encoder chooses for a stream.

    Attributes:
        taps: symbols of a filter; divides the columns.
        order: how many taps back a prediction looks; 0 for none.
        width: taps in a row of the kernel; 0: the taps are not neighbours in two dimensions.
        strength: position in ``STRENGTHS``.
        height: outputs in a block.
        centre: the mean symbol, in units.
        spread: the mean distance from it, in units, at least 1.
    """

    taps: int
    order: int
    width: int
    strength: int
    height: int
    centre: int
    spread: int


def _start(tap: int, order: int, width: int) -> tuple[int, ...]:
    """Return the weights of the taps before ``tap``, the farthest first, before any is learned."""
    start = [0] * min(tap, order)
    across = tap % width if width > 1 else 0
    near = {1: NEAR} if across else {}
    if width > 1 and tap >= width:
        near |= {width: NEAR} | ({width + 1: CORNER} if across else {})
    for back, weight in near.items():
        if back <= len(start):
            start[-back] = weight
    return tuple(start)


def _ratio(predicted: Ints, scale: Ints) -> Ints:
    """Return the class of the prediction over the error's magnitude, rounded half away from 0."""
    least = np.maximum(scale, 4096)
    size: Ints = np.minimum((1024 * np.abs(predicted) + least) // (2 * least), RATIOS)
    return np.where(predicted < 0, RATIOS - size, RATIOS + size)


def run(
    symbols: Symbols | None,
    shape: tuple[int, int],
    size: int,
    settings: Settings,
    taker: Taker,
    *,
    knowledge: Knowledge | None = None,
) -> NDArray[np.int32]:
    """Walk a matrix of ``shape`` with symbols in [0, ``size``), and return it.

    ``taker`` is given every block's symbols with their weights, or gives them (``symbols`` None).
    ``knowledge`` is begun with and added to; without, ``adaptive`` begins with none.
    Cost: about 0.1 microseconds for each symbol, and 0.3 ms for each block.
    """
    outputs, taps = shape[0], settings.taps
    inputs = shape[1] // taps
    out = np.empty((taps, outputs, inputs), np.int32)
    given = None if symbols is None else symbols.reshape(outputs, inputs, taps).transpose(2, 0, 1)
    knowledge = knowledge or Knowledge(size, settings.strength, refined=False)
    walk = _Walk((outputs, inputs, taps), size, settings, knowledge)
    for tap in range(taps):
        walk.begin(tap)
        for start in range(0, outputs, settings.height):
            block = slice(start, min(start + settings.height, outputs))
            known = None
            if given is not None:
                known = np.ascontiguousarray(given[tap, block], np.int32).reshape(-1)
            out[tap, block] = walk.step(tap, block, known, taker)
    return out.transpose(1, 2, 0).reshape(shape)


class _Walk:
    """The state of the model between blocks."""

    def __init__(
        self, shape: tuple[int, int, int], size: int, settings: Settings, knowledge: Knowledge
    ) -> None:
        outputs, self.inputs, taps = shape
        self.settings = settings
        self.size = size
        kept = min(settings.order, taps - 1)
        self.past = np.zeros((kept, outputs, self.inputs))  # of the taps, the farthest first
        self.now = np.zeros((outputs, self.inputs))
        refined = knowledge.refined
        self.magnitudes = Magnitudes(outputs, self.inputs, settings.spread, refined=refined)
        self.gains = Gains(outputs) if refined else None
        self.knowledge = knowledge
        self.values = Regression((), RIDGE)

    def begin(self, tap: int) -> None:
        """Turn to the next tap: what was current is past."""
        if len(self.past) and tap:
            self.past = np.concatenate([self.past[1:], self.now[None]])
            self.now = np.zeros_like(self.now)
        self.magnitudes.begin(neighbours=self.settings.width > 0)
        self.values = Regression(_start(tap, self.settings.order, self.settings.width), RIDGE)

    def step(
        self, tap: int, block: slice, known: NDArray[np.int32] | None, taker: Taker
    ) -> NDArray[np.int32]:
        """Code one block, learn from it, and return its symbols (h, inputs)."""
        depth = len(self.values.start)
        rows = block.stop - block.start
        before = self.past[len(self.past) - depth :, block].reshape(depth, rows * self.inputs)
        weighed = np.floor((self.values.refresh() @ before + 128) / 256)
        guess = np.clip(weighed, -LIMIT, LIMIT).astype(np.int64).reshape(rows, self.inputs)
        predicted = (self.gains.apply(block, guess) if self.gains else guess).reshape(-1)
        known_errors = self.knowledge.later if tap else self.knowledge.first
        features = self.magnitudes.features(tap, block, predicted)
        scale = np.maximum(known_errors.refresh() @ features, 1).astype(np.int64)
        place = np.clip(
            (predicted + self.settings.centre + UNIT // 8 >> 4) + 4, 0, 4 * self.size + 4
        )
        ratio = _ratio(predicted, scale)
        level = np.searchsorted(THRESHOLDS, scale, side="right")
        law = self.knowledge.law
        symbols = taker.take(law.weights(place, ratio, level), known)
        law.add(ratio, level, symbols)
        value = UNIT * symbols.astype(np.int64) - self.settings.centre
        error = np.minimum(np.abs(value - predicted), LIMIT)
        self.knowledge.add_errors(tap, features, error.astype(np.float64), scale)
        self._learn(block, before, guess, value.reshape(guess.shape), error.reshape(guess.shape))
        return symbols.reshape(guess.shape)

    def _learn(self, block: slice, before: Floats, guess: Ints, value: Ints, error: Ints) -> None:
        """Learn what is of this matrix alone from a block's guesses, values, errors."""
        if len(before):
            self.values.add(before, value.reshape(-1).astype(np.float64))
        if self.gains:
            self.gains.add(block, guess, value)
        self.magnitudes.add(block, error)
        self.now[block] = value


def walk_of(taps: int) -> tuple[int, int]:
    """Return order and width for square kernels of ``taps``."""
    return min(taps - 1, MAX_ORDER), math.isqrt(taps) if taps > 1 else 0


def centre_and_spread(symbols: Symbols) -> tuple[int, int]:
    """Return the mean of ``symbols`` and the mean distance from it, in units."""
    total, count = int(symbols.sum(dtype=np.int64)), symbols.size
    centre = (UNIT * total + count // 2) // count
    away = int(np.abs(UNIT * symbols.astype(np.int64) - centre).sum())
    return centre, max(1, math.ceil(away / count))
