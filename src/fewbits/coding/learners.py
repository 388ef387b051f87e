"""What a model of symbols learns as it goes: regressions, magnitudes of errors, counts.

All sums are integers that floating point holds exactly, so every machine learns the same.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .exact import solve_rounded
from .laws import CLASSES, WHOLE, law_table

__all__ = [
    "LATER_SCALE",
    "LIMIT",
    "RATIOS",
    "RIDGE",
    "STRENGTHS",
    "Floats",
    "Gains",
    "Ints",
    "Knowledge",
    "Law",
    "Magnitudes",
    "Regression",
]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

STRENGTHS = (16, 128, 1024, 8192)  # how many symbols seen the law is worth
LIMIT = 8191  # of a prediction and of a feature, in units
WEIGHT_LIMIT = 1024  # of a weight, in 1/256
RIDGE = 245_760  # 60 levels squared
SCALE_RIDGE = 81_920  # 20 levels squared
SHARE_RIDGE = 1 << 25  # where errors are in 1/1024 of what was expected of them
SHARE = 1 << 18  # 1024 shares, of a scale in 1/256
LEAST_SCALE = 4096  # a quarter of a level
FIRST_SCALE, LATER_SCALE = (0, 128, 128, 0), (90, 102, 26, 26)
RATIOS = 6  # classes of the prediction to either side, in half magnitudes of the error
GAIN_PRIOR = 1 << 18  # 64 levels squared


class Regression:
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


class Magnitudes:
    """How large errors have been: by filter, by input, by output; in units."""

    def __init__(self, outputs: int, inputs: int, spread: int, *, refined: bool) -> None:
        self.filters = np.zeros((outputs, inputs), np.int64)
        self.inputs = np.zeros(inputs, np.int64)
        self.outputs = np.zeros(outputs, np.int64)
        self.rows = 0
        self.columns = np.zeros(inputs, np.int64)  # of this tap alone
        self.column_rows = 0
        self.spread = spread
        self.refined = refined

    def begin(self, *, neighbours: bool) -> None:
        """Turn to the next tap; taps that are no neighbours are columns of their own."""
        self.columns[:] = 0
        self.column_rows = 0
        if not neighbours:
            self.inputs[:] = 0
            self.rows = 0

    def features(self, tap: int, block: slice, predicted: Ints) -> Floats:
        """Return (k, n): the filter, output times input, overall, and the prediction's size.

        Refined: and the column, the input at this tap.
        """
        spread = self.spread
        width = self.inputs.size
        column = (self.inputs + 2 * spread) // (self.rows + 2)
        row = (self.outputs[block] + spread * width) // ((tap + 1) * width)
        out = np.empty((4 + self.refined, predicted.size), np.int64)
        out[0] = (self.filters[block] // tap).reshape(-1) if tap else 0
        out[1] = (row[:, None] * column // spread).reshape(-1)
        out[2] = spread
        out[3] = np.abs(predicted)
        if self.refined:
            out[4].reshape(-1, width)[:] = (self.columns + 2 * column) // (self.column_rows + 2)
        return np.minimum(out, LIMIT).astype(np.float64)

    def add(self, block: slice, errors: Ints) -> None:
        """Learn the absolute errors (h, inputs) of a block."""
        self.filters[block] += errors
        self.inputs += errors.sum(axis=0)
        self.outputs[block] += errors.sum(axis=1)
        self.rows += errors.shape[0]
        self.columns += errors.sum(axis=0)
        self.column_rows += errors.shape[0]


class Law:
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


class Gains:
    """How far each output follows its predictions."""

    def __init__(self, outputs: int) -> None:
        self.products = np.zeros((outputs, 1), np.int64)
        self.squares = np.zeros((outputs, 1), np.int64)

    def apply(self, block: slice, predicted: Ints) -> Ints:
        """Return ``predicted`` (h, inputs) times what their outputs have earned."""
        earned = np.maximum(self.products[block] + GAIN_PRIOR, 0)
        scaled: Ints = predicted * earned // (self.squares[block] + GAIN_PRIOR)
        return np.clip(scaled, -LIMIT, LIMIT)

    def add(self, block: slice, predicted: Ints, values: Ints) -> None:
        """Learn from predictions (h, inputs), before ``apply``, and the values they were for."""
        self.products[block] += (predicted * values).sum(axis=1, keepdims=True)
        self.squares[block] += (predicted * predicted).sum(axis=1, keepdims=True)


class Knowledge:
    """What is learnt of errors and symbols; the next matrix of a group begins with it.

    Attributes:
        refined: whether this is the model of ``joined``, and not that of ``adaptive``.
        law: weights of symbols.
        first, later: regressions of magnitudes, for the first tap and for those after it.
    """

    def __init__(self, size: int, strength: int, *, refined: bool) -> None:
        self.refined = refined
        self.law = Law(size, strength)
        more, ridge = ((0,), SHARE_RIDGE) if refined else ((), SCALE_RIDGE)
        self.first = Regression(FIRST_SCALE + more, ridge)
        self.later = Regression(LATER_SCALE + more, ridge)

    def add_errors(self, tap: int, features: Floats, errors: Floats, scale: Ints) -> None:
        """Learn how large ``errors`` (n,) were; refined: in shares of the expected ``scale``."""
        if self.refined:
            # A quotient of integers below 2**32 is rounded to no other floor.
            below = np.maximum(scale, LEAST_SCALE)
            features = np.minimum(np.floor(features * SHARE / below), LIMIT)
            errors = np.minimum(np.floor(errors * SHARE / below), LIMIT)
        (self.later if tap else self.first).add(features, errors)

    def fade(self) -> None:
        """Turn to another matrix: half of the counts and a quarter of the sums still count."""
        unit = float(WHOLE)
        self.law.counts = np.floor(self.law.counts / (2 * unit)) * unit
        for errors in (self.first, self.later):
            errors.squares = np.floor(errors.squares / 4)
            errors.right = np.floor(errors.right / 4)
            errors.seen = min(errors.seen, 1)
            errors.solved = 0
