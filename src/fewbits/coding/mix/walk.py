"""The model of ``mix``: walks a matrix symbol by symbol, predicting each.

Rows are walked from left to right. A symbol's mean is predicted from its neighbours: earlier taps
of its filter, the filter before, the rows above. Its distance from that mean is predicted from
earlier errors in its filter, row, input and column. Both predictions are least squares over the
past. ``flags.py`` codes the symbol with a logistic distribution of this mean and distance.
"""

# ruff: noqa: PLR0917 - compiled functions take no keywords
from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .. import state as reg
from ..bitcoder import FAILED, octaves
from ..kernels import inlined, kernel
from ..trellis import next_state
from .flags import SHARPNESS, code_number, price_numbers, unit_of
from .mixer import PHASES, SPAN, accumulate, predict, solve_sweep

__all__ = [
    "DISTANCE_SHIFT",
    "MEAN_SHIFT",
    "walk",
    "walk_priced",
    "walk_trellis",
    "walk_trellis_priced",
]

MEAN_SHIFT, DISTANCE_SHIFT = 16, 14
MEAN_RIDGE, DISTANCE_RIDGE = 100, 16 << 16
EVERY = 63  # symbols between sweeps, minus 1
FAR = 1 << 13
FASTEST = 1 << 24  # largest ratio of a row's size to the usual
RATIO = 12  # fractional bits of that ratio
PLENTY = 1 << 16
LARGEST = 1023  # bound on a feature
LAST_COLUMN = (SPAN[3] >> 6) - 1

Ints = NDArray[np.int64]
Values = NDArray[np.int32]


@inlined
def value_at(values: Values, state: Ints, row: int, column: int) -> int:
    """Return a value minus the centre."""
    return int(values[row, column]) - int(state[reg.CENTRE])


@inlined
def level_at(values: Values, state: Ints, row: int, column: int) -> int:
    """Return a value minus the centre, in levels of the statistics; 0 outside the matrix."""
    if row < 0 or column < 0:
        return 0
    return value_at(values, state, row, column) >> int(state[reg.SHIFT])


@inlined
def back(values: Values, state: Ints, row: int, column: int, distance: int) -> int:
    """Return the level ``distance`` columns back in the row; 0 if there is none."""
    if distance <= 0:
        return 0
    return level_at(values, state, row, column - distance)


@inlined
def clip(number: int, bound: int) -> int:
    """Clip a number to [-bound, bound]."""
    return min(max(number, -bound), bound)


@inlined
def predict_mean(
    values: Values, near: Ints, means: Ints, state: Ints, row: int, column: int
) -> None:
    """Compute the features of the mean, and predict it."""
    taps, slot = int(state[reg.TAPS]), column % near.shape[0]
    for j in range(reg.NEAR):
        level = back(values, state, row, column, int(near[slot, j]))
        state[reg.AT_MEANS + j] = clip(level, LARGEST)
    above = level_at(values, state, row - 1, column)
    beside = level_at(values, state, row, column - taps)
    if taps == 1:
        beside = level_at(values, state, row - 1, column - 1)
    state[reg.AT_MEANS + reg.NEAR] = clip(above, LARGEST)
    state[reg.AT_MEANS + reg.NEAR + 1] = clip(level_at(values, state, row - 2, column), LARGEST)
    state[reg.AT_MEANS + reg.NEAR + 2] = clip(beside, LARGEST)
    state[reg.AT_MEANS + reg.NEAR + 3] = 2
    mean = predict(means, slot, state, reg.AT_MEANS, reg.MEANS)
    state[reg.MEAN] = clip(mean >> MEAN_SHIFT - 6, PLENTY)


@inlined
def predict_distance(
    tallies: Ints, distances: Ints, state: Ints, around: int, row: int, column: int
) -> int:
    """Compute the features of the distance from the mean, and return the expected distance."""
    taps = int(state[reg.TAPS])
    at = column // taps
    usual = max(
        (int(state[reg.TOTAL]) + (int(state[reg.COUNT]) >> 1)) // int(state[reg.COUNT]),
        1,
    )
    by_input = (int(tallies[0, at]) + 4 * usual) << RATIO
    by_input = min(max(by_input // (int(tallies[1, at]) + (4 << RATIO)), 1), FAR)
    rate = (int(state[reg.ROW]) + 4 * usual) << RATIO
    rate = min(rate // (int(state[reg.EXPECTED]) + 4 * usual), FASTEST)
    product = min(rate * by_input >> RATIO, FAR)
    by_column = (int(tallies[2, column]) + 2 * by_input) // (row + 2)
    by_filter = (int(state[reg.FILTER]) + 2 * product) // (int(state[reg.SEEN]) + 2)
    state[reg.AT_DISTANCES] = product
    state[reg.AT_DISTANCES + 1] = min(rate * usual >> RATIO, FAR)
    state[reg.AT_DISTANCES + 2] = by_input
    state[reg.AT_DISTANCES + 3] = by_column
    state[reg.AT_DISTANCES + 4] = by_filter
    state[reg.AT_DISTANCES + 5] = min(around << 5, FAR)
    state[reg.AT_DISTANCES + 6] = usual
    state[reg.AT_DISTANCES + 7] = min(abs(int(state[reg.MEAN])), FAR)
    state[reg.USUAL] = by_input
    state[reg.RATE] = rate
    distance = predict(distances, 1 if column % taps else 0, state, reg.AT_DISTANCES, reg.DISTANCES)
    return min(max(distance >> DISTANCE_SHIFT, 1), FAR)


@inlined
def set_contexts(
    state: Ints, left: int, upper: int, corners: int, previous: int, column: int
) -> None:
    """Set the contexts of a symbol from its neighbours and expected distances."""
    mean, scale, phase = (
        int(state[reg.MEAN]),
        int(state[reg.SCALE]),
        int(state[reg.PHASE]),
    )
    around = (clip(left, 3) + 3) * 7 + clip(upper, 3) + 3
    past = (clip(left, 7) + 7) * 15 + clip(int(state[reg.AT_MEANS + 1]), 7) + 7
    contexts = (
        (clip(mean >> 4, 20) + 20) * 53 + scale,
        around * 16 + corners,
        past * PHASES + phase,
        min((column << int(state[reg.TRELLIS])) + int(state[reg.ODD]), LAST_COLUMN),
        (clip((mean + 32) >> 6, 6) + 6) * 49 + around,
        (clip(previous, 15) + 15) * PHASES + phase,
    )
    base = 0
    for j in range(reg.COUNTERS):
        state[reg.AT_CONTEXTS + j] = base + contexts[j] * 64
        base += SPAN[j]
    state[reg.AROUND] = around
    state[reg.AT_CONTEXTS + reg.COUNTERS] = scale
    state[reg.AT_CONTEXTS + reg.COUNTERS + 1] = around
    for j in range(2):
        first = min(octaves(int(state[reg.AT_DISTANCES + 1 + 2 * j])) >> 2, 7)
        second = min(octaves(int(state[reg.AT_DISTANCES + 2 + 2 * j])) >> 2, 7)
        state[reg.AT_CONTEXTS + reg.COUNTERS + 2 + j] = first * 8 + second


@kernel
def expect(
    values: Values, near: Ints, tallies: Ints, means: Ints, distances: Ints, state: Ints,
    row: int, column: int,
) -> int:  # fmt: skip
    """Prepare the state for a symbol, and return its expected distance from the mean."""
    predict_mean(values, near, means, state, row, column)
    slot = column % near.shape[0]
    left = back(values, state, row, column, int(near[slot, reg.NEAR]))
    upper = back(values, state, row, column, int(near[slot, reg.NEAR + 1]))
    corner = min(abs(back(values, state, row, column, int(near[slot, reg.NEAR + 2]))), 3)
    other = min(abs(back(values, state, row, column, int(near[slot, reg.NEAR + 3]))), 3)
    expected = predict_distance(tallies, distances, state, abs(left) + abs(upper), row, column)
    state[reg.SCALE] = octaves(expected)
    state[reg.INVERSE] = (SHARPNESS << 16) // max(expected, 4)
    previous = level_at(values, state, row, column - 1)
    state[reg.PHASE] = (row * values.shape[1] + column) % int(state[reg.PERIOD])
    corners = corner * 4 + other
    if state[reg.TRELLIS]:  # the mean as seen from the number that is coded as 0
        odd = int(state[reg.ODD])
        state[reg.MEAN] -= unit_of(odd, int(state[reg.SHIFT]))
        state[reg.PHASE] = odd
        corners = (corner >> 1) * 4 + (other >> 1) * 2 + odd
    set_contexts(state, left, upper, corners, previous, column)
    return expected


@inlined
def learn_distance(
    tallies: Ints, distances: Ints, state: Ints, expected: int, off: int, column: int
) -> None:
    """Add a distance to all averages, and to the regression relative to the expected one."""
    taps = int(state[reg.TAPS])
    at = column // taps
    state[reg.FILTER] += off
    state[reg.SEEN] += 1
    state[reg.ROW] += off
    state[reg.EXPECTED] += state[reg.USUAL]
    state[reg.TOTAL] += off
    state[reg.COUNT] += 1
    if state[reg.COUNT] > PLENTY:
        state[reg.TOTAL] >>= 1
        state[reg.COUNT] >>= 1
    tallies[0, at] += off
    tallies[1, at] += state[reg.RATE]
    tallies[2, column] += off
    unit = max(expected, 4)
    for j in range(reg.DISTANCES):
        state[reg.AT_DISTANCES + j] = min((int(state[reg.AT_DISTANCES + j]) << 8) // unit, 4095)
    chosen, target = 1 if column % taps else 0, min((off << 8) // unit, 4095)
    accumulate(distances, chosen, state, reg.AT_DISTANCES, reg.DISTANCES, target)


@kernel
def refresh(means: Ints, distances: Ints, place: int, slot: int, last: bool) -> None:
    """Solve the regressions every 64 symbols; those of taps also at the end of a row."""
    due = place & EVERY == EVERY
    if due or last:
        solve_sweep(distances, 0, reg.DISTANCES, DISTANCE_RIDGE, DISTANCE_SHIFT)
        solve_sweep(distances, 1, reg.DISTANCES, DISTANCE_RIDGE, DISTANCE_SHIFT)
    for chosen in range(means.shape[0]):
        if last or (due and chosen == slot):
            solve_sweep(means, chosen, reg.MEANS, MEAN_RIDGE, MEAN_SHIFT)


@inlined
def update(
    values: Values, near: Ints, tallies: Ints, means: Ints, distances: Ints, state: Ints,
    expected: int, number: int, row: int, column: int,
) -> None:  # fmt: skip
    """Store a number that is now known, and learn from it."""
    columns = values.shape[1]
    values[row, column] = number + int(state[reg.CENTRE])
    shift = int(state[reg.SHIFT])
    off = min(abs(unit_of(number - int(state[reg.ODD]), shift) - int(state[reg.MEAN])), FAR)
    learn_distance(tallies, distances, state, expected, off, column)
    slot = column % near.shape[0]
    accumulate(means, slot, state, reg.AT_MEANS, reg.MEANS, clip(number >> shift, LARGEST))
    last = column == columns - 1 and near.shape[0] > 1
    refresh(means, distances, row * columns + column, slot, last)


@kernel
def walk(
    values: Values, near: Ints, tallies: Ints, means: Ints, distances: Ints,
    model: Values, state: Ints, buffer: NDArray[np.uint8],
) -> None:  # fmt: skip
    """Code a matrix.

    Args:
        values: (rows, columns); written when decoding.
        near: (taps or 1, reg.NEAR + 4) columns back to each neighbour, 0 for none; then to the
            left, upper, upper left and upper right ones.
        tallies: (3, columns) distances so far by input, the ratios expected for them, and
            distances by column.
        means, distances: tables of regressions.
        model: counters, maps and weights of the flags.
        state: the state array.
        buffer: bytes of the coder.
    """
    rows, columns = values.shape
    for row in range(rows):
        state[reg.ROW] = state[reg.EXPECTED] = 0
        for column in range(columns):
            if column % int(state[reg.TAPS]) == 0:
                state[reg.FILTER] = state[reg.SEEN] = 0
            expected = expect(values, near, tallies, means, distances, state, row, column)
            number = code_number(model, state, buffer, value_at(values, state, row, column))
            if state[reg.FLAGS] > state[reg.MOST_FLAGS]:
                state[FAILED] = 1
            if state[FAILED]:
                return
            update(values, near, tallies, means, distances, state, expected, number, row, column)


@kernel
def walk_priced(
    values: Values, near: Ints, tallies: Ints, means: Ints, distances: Ints,
    model: Values, state: Ints, buffer: NDArray[np.uint8], prices: NDArray[np.float32],
    reach: int,
) -> None:  # fmt: skip
    """Measure a matrix; fill ``prices`` (rows * columns * alphabet,) with the bits of alternatives.

    Otherwise like :func:`walk`, from which it is separate so that decoding does not compile it.
    """
    rows, columns = values.shape
    alphabet = int(state[reg.HIGHEST]) - int(state[reg.LOWEST]) + 1
    for row in range(rows):
        state[reg.ROW] = state[reg.EXPECTED] = 0
        for column in range(columns):
            if column % int(state[reg.TAPS]) == 0:
                state[reg.FILTER] = state[reg.SEEN] = 0
            expected = expect(values, near, tallies, means, distances, state, row, column)
            zero = (row * columns + column) * alphabet - int(state[reg.LOWEST])
            known = value_at(values, state, row, column)
            price_numbers(model, state, prices, zero, known, reach)
            number = code_number(model, state, buffer, known)
            update(values, near, tallies, means, distances, state, expected, number, row, column)


@inlined
def enter(tallies: Ints, state: Ints, column: int, lowest: int, highest: int, flip: int) -> None:
    """Set the parity that the trellis asks of the next number, and the alphabet of its half."""
    odd = (int(tallies[3, column]) & 1) ^ flip
    state[reg.ODD] = odd
    state[reg.LOWEST] = (lowest - odd + 1) >> 1
    state[reg.HIGHEST] = (highest - odd) >> 1


@kernel
def walk_trellis(
    values: Values, near: Ints, tallies: Ints, means: Ints, distances: Ints,
    model: Values, state: Ints, buffer: NDArray[np.uint8],
) -> None:  # fmt: skip
    """Code a matrix whose columns follow the trellis: of every number the half above its parity.

    Like :func:`walk`, from which it is separate so that others do not wait for it. ``tallies`` has
    a fourth row: the state of the trellis in every column.
    """
    rows, columns = values.shape
    lowest, highest = int(state[reg.LOWEST]), int(state[reg.HIGHEST])
    for row in range(rows):
        state[reg.ROW] = state[reg.EXPECTED] = 0
        for column in range(columns):
            if column % int(state[reg.TAPS]) == 0:
                state[reg.FILTER] = state[reg.SEEN] = 0
            enter(tallies, state, column, lowest, highest, 0)
            expected = expect(values, near, tallies, means, distances, state, row, column)
            odd = int(state[reg.ODD])
            known = (int(values[row, column]) - odd) >> 1
            number = 2 * code_number(model, state, buffer, known) + odd
            if state[reg.FLAGS] > state[reg.MOST_FLAGS]:
                state[FAILED] = 1
            if state[FAILED]:
                return
            update(values, near, tallies, means, distances, state, expected, number, row, column)
            tallies[3, column] = next_state(int(tallies[3, column]), number)


@kernel
def walk_trellis_priced(
    values: Values, near: Ints, tallies: Ints, means: Ints, distances: Ints,
    model: Values, state: Ints, buffer: NDArray[np.uint8], prices: NDArray[np.float32],
    reach: int, halves: NDArray[np.float32],
) -> None:  # fmt: skip
    """Measure a matrix that follows the trellis; fill ``prices`` with the bits of all numbers.

    Those of the other parity are the bits that they would take if the trellis asked for it.
    ``halves`` is scratch for the numbers of one parity.
    """
    rows, columns = values.shape
    lowest, highest = int(state[reg.LOWEST]), int(state[reg.HIGHEST])
    for row in range(rows):
        state[reg.ROW] = state[reg.EXPECTED] = 0
        for column in range(columns):
            if column % int(state[reg.TAPS]) == 0:
                state[reg.FILTER] = state[reg.SEEN] = 0
            zero = (row * columns + column) * (highest - lowest + 1) - lowest
            actual, expected = int(values[row, column]), 0
            for flip in range(1, -1, -1):
                enter(tallies, state, column, lowest, highest, flip)
                expected = expect(values, near, tallies, means, distances, state, row, column)
                odd, first = int(state[reg.ODD]), int(state[reg.LOWEST])
                price_numbers(model, state, halves, -first, (actual - odd) >> 1, reach)
                for number in range(first, int(state[reg.HIGHEST]) + 1):
                    prices[zero + 2 * number + odd] = halves[number - first]
            known = (actual - int(state[reg.ODD])) >> 1
            number = 2 * code_number(model, state, buffer, known) + int(state[reg.ODD])
            update(values, near, tallies, means, distances, state, expected, number, row, column)
            tallies[3, column] = next_state(int(tallies[3, column]), number)
