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
from .exact import solve_rounded
from .laws import CLASSES, THRESHOLDS, law_table
from .queue import Taker

__all__ = ["MAX_ORDER", "STRENGTHS", "UNIT", "Settings", "centre_and_spread", "run"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

UNIT = 64  # fixed-point units of a level
MAX_ORDER = 15
STRENGTHS = (16, 128, 1024, 8192)  # how many symbols seen the law is worth
LIMIT = 8191  # of a prediction and of a feature, in units
WEIGHT_LIMIT = 1024  # of a weight, in 1/256
RIDGE = 245_760  # 60 levels squared
SCALE_RIDGE = 81_920  # 20 levels squared
NEAR, CORNER = 90, -26  # what a tap is worth before anything is known: beside or above, between
FIRST_SCALE, LATER_SCALE = (0, 128, 128, 0), (90, 102, 26, 26)
RATIOS = 6  # classes of the prediction to either side, in half magnitudes of the error


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


class _Regression:
    """Weights in 1/256 by ridge regression towards ``start``; exact integers throughout."""

    def __init__(self, start: tuple[int, ...], ridge: int) -> None:
        self.start = start
        self.ridge = ridge
        self.squares = np.zeros((len(start), len(start)))
        self.right = np.zeros(len(start))
        self.seen = self.solved = 0
        self.weights = np.array(start, np.float64)

    def refresh(self) -> Floats:
        """Return the weights for the next block, solved anew once a quarter more was seen."""
        if self.seen and 4 * self.seen >= 5 * self.solved and self.start:
            self.solved = self.seen
            squares = [[int(value) for value in row] for row in self.squares.tolist()]
            right = [
                256 * int(value) - sum(w * s for w, s in zip(self.start, row, strict=True))
                for value, row in zip(self.right.tolist(), squares, strict=True)
            ]
            for place, row in enumerate(squares):
                row[place] += self.ridge
            moved = solve_rounded(squares, right)
            total = [w + m for w, m in zip(self.start, moved, strict=True)]
            self.weights = np.clip(np.array(total, np.float64), -WEIGHT_LIMIT, WEIGHT_LIMIT)
        return self.weights

    def add(self, inputs: Floats, wanted: Floats) -> None:
        """Learn from ``inputs`` (k, n) and ``wanted`` (n,): integers, so sums are exact."""
        self.squares += inputs @ inputs.T
        self.right += inputs @ wanted
        self.seen += 1


class _Magnitudes:
    """How large errors have been: by filter, by input, by output; in units."""

    def __init__(self, outputs: int, inputs: int, spread: int) -> None:
        self.filters = np.zeros((outputs, inputs), np.int64)
        self.inputs = np.zeros(inputs, np.int64)
        self.outputs = np.zeros(outputs, np.int64)
        self.rows = 0
        self.spread = spread

    def forget_inputs(self) -> None:
        """Begin with other inputs: taps that are no neighbours are columns of their own."""
        self.inputs[:] = 0
        self.rows = 0

    def features(self, tap: int, block: slice, predicted: Ints) -> Floats:
        """Return (4, n): the filter, output times input, overall, and the prediction's size."""
        spread = self.spread
        width = self.inputs.size
        column = (self.inputs + 2 * spread) // (self.rows + 2)
        row = (self.outputs[block] + spread * width) // ((tap + 1) * width)
        out = np.empty((4, predicted.size), np.int64)
        out[0] = (self.filters[block] // tap).reshape(-1) if tap else 0
        out[1] = (row[:, None] * column // spread).reshape(-1)
        out[2] = spread
        out[3] = np.abs(predicted)
        return np.minimum(out, LIMIT).astype(np.float64)

    def add(self, block: slice, errors: Ints) -> None:
        """Learn the absolute errors (h, inputs) of a block."""
        self.filters[block] += errors
        self.inputs += errors.sum(axis=0)
        self.outputs[block] += errors.sum(axis=1)
        self.rows += errors.shape[0]


class _Law:
    """Weights of the symbols: the law of the class, and what was counted in it."""

    def __init__(self, size: int, strength: int) -> None:
        self.size = size
        self.table = (law_table(size) * STRENGTHS[strength]).astype(np.float64)
        self.counts = np.zeros(((2 * RATIOS + 1) * CLASSES, size))

    def weights(self, place: Ints, ratio: Ints, scale: Ints) -> Floats:
        """Return (n, A) for symbols of these classes."""
        out: Floats = self.table[place * CLASSES + scale]
        out += self.counts[ratio * CLASSES + scale]
        return out

    def add(self, ratio: Ints, scale: Ints, symbols: NDArray[np.int32]) -> None:
        """Count symbols; one weighs 2**20, as much as the law's total at strength 1."""
        cells = (ratio * CLASSES + scale) * self.size + symbols
        found = np.bincount(cells, minlength=self.counts.size)
        self.counts += found.reshape(self.counts.shape) * float(1 << 20)


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
    symbols: Symbols | None, shape: tuple[int, int], size: int, settings: Settings, taker: Taker
) -> NDArray[np.int32]:
    """Walk a matrix of ``shape`` with symbols in [0, ``size``), and return it.

    ``taker`` is given every block's symbols with their weights, or gives them (``symbols`` None).
    Cost: about 0.1 microseconds for each symbol, and 0.3 ms for each block.
    """
    outputs, taps = shape[0], settings.taps
    inputs = shape[1] // taps
    out = np.empty((taps, outputs, inputs), np.int32)
    given = None if symbols is None else symbols.reshape(outputs, inputs, taps).transpose(2, 0, 1)
    walk = _Walk((outputs, inputs, taps), size, settings)
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

    def __init__(self, shape: tuple[int, int, int], size: int, settings: Settings) -> None:
        outputs, self.inputs, taps = shape
        self.settings = settings
        self.size = size
        kept = min(settings.order, taps - 1)
        self.past = np.zeros((kept, outputs, self.inputs))  # of the taps, the farthest first
        self.now = np.zeros((outputs, self.inputs))
        self.magnitudes = _Magnitudes(outputs, self.inputs, settings.spread)
        self.law = _Law(size, settings.strength)
        self.first = _Regression(FIRST_SCALE, SCALE_RIDGE)
        self.later = _Regression(LATER_SCALE, SCALE_RIDGE)
        self.values = _Regression((), RIDGE)

    def begin(self, tap: int) -> None:
        """Turn to the next tap: what was current is past."""
        if len(self.past) and tap:
            self.past = np.concatenate([self.past[1:], self.now[None]])
            self.now = np.zeros_like(self.now)
        if not self.settings.width:
            self.magnitudes.forget_inputs()
        self.values = _Regression(_start(tap, self.settings.order, self.settings.width), RIDGE)

    def step(
        self, tap: int, block: slice, known: NDArray[np.int32] | None, taker: Taker
    ) -> NDArray[np.int32]:
        """Code one block, learn from it, and return its symbols (h, inputs)."""
        depth = len(self.values.start)
        rows = block.stop - block.start
        before = self.past[len(self.past) - depth :, block].reshape(depth, rows * self.inputs)
        weighed = np.floor((self.values.refresh() @ before + 128) / 256)
        predicted = np.clip(weighed, -LIMIT, LIMIT).astype(np.int64)
        features = self.magnitudes.features(tap, block, predicted)
        errors = self.later if tap else self.first
        scale = np.maximum(errors.refresh() @ features, 1).astype(np.int64)
        place = np.clip(
            (predicted + self.settings.centre + UNIT // 8 >> 4) + 4, 0, 4 * self.size + 4
        )
        ratio = _ratio(predicted, scale)
        level = np.searchsorted(THRESHOLDS, scale, side="right")
        symbols = taker.take(self.law.weights(place, ratio, level), known)
        self.law.add(ratio, level, symbols)
        value = UNIT * symbols.astype(np.int64) - self.settings.centre
        error = np.minimum(np.abs(value - predicted), LIMIT)
        if depth:
            self.values.add(before, value.astype(np.float64))
        errors.add(features, error.astype(np.float64))
        self.magnitudes.add(block, error.reshape(rows, self.inputs))
        self.now[block] = value.reshape(rows, self.inputs)
        return symbols.reshape(rows, self.inputs)


def centre_and_spread(symbols: Symbols) -> tuple[int, int]:
    """Return the mean of ``symbols`` and the mean distance from it, in units."""
    total, count = int(symbols.sum(dtype=np.int64)), symbols.size
    centre = (UNIT * total + count // 2) // count
    away = int(np.abs(UNIT * symbols.astype(np.int64) - centre).sum())
    return centre, max(1, math.ceil(away / count))
