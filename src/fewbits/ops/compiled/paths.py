"""Loops that find the best path of a trellis down a column (Viterbi 1967); see ``kernels.py``.

A path assigns an integer to every row. Its state says whether the next integer is even or odd; of
these the state allows two subsets, by the remainder modulo 4, and each leads to another state.
"""

# ruff: noqa: PLR0917 - compiled functions take no keywords
from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "best_path",
    "cheapest_of_subsets",
    "descend_paths",
    "project_paths",
    "take_path",
]

Floats = NDArray[np.float64]
Whole = NDArray[np.int64]


def cheapest_of_subsets(
    value: float, cost: float, price: float, bits: Floats, lowest: int, least: Floats, picks: Whole
) -> None:
    """Find the integer of least cost * squared error + price * bits with each remainder modulo 4.

    Only the two next to ``value`` on either side are tried, and 0. There are at least 8 integers,
    from ``lowest`` < 0 on. ``least`` and ``picks`` (4,) are written.
    """
    highest = lowest + bits.shape[0] - 1
    if np.isnan(value):
        value = 0.0
    value = min(max(value, lowest - 1e6), highest + 1e6)
    near = int(np.rint(min(max(value, float(lowest)), float(highest))))
    first = max(lowest, min(near - 4, highest - 7))
    last = min(highest, first + 8)
    least[:4] = np.inf
    for number in range(first, last + 1):
        gap = value - number
        total = cost * gap * gap + price * bits[number - lowest]
        subset = number & 3
        if total < least[subset]:
            least[subset], picks[subset] = total, number
    total = cost * value * value + price * bits[-lowest]
    if total < least[0]:
        least[0], picks[0] = total, 0


def best_path(
    values: Floats,
    costs: Floats,
    price: float,
    bits: Floats,
    column: int,
    lowest: int,
    following: Whole,
    totals: Floats,
    picks: Whole,
    back: Whole,
    path: Floats,
) -> None:
    """Find the path from state 0 with the least sum of costs * squared errors + price * bits.

    Args:
        values, costs: (rows,) what to approximate, and the cost of a squared error.
        price: of a bit.
        bits: (rows or 1, columns or 1, integers) of the integers from ``lowest`` on, each given
            its parity; those of ``column`` are used.
        column: see ``bits``.
        lowest: the lowest integer.
        following: (states, 2) next state, by bit 1 of the integer. State s takes integers of the
            parity of s.
        totals: (3, states), ``picks`` (rows, 4), ``back`` (rows, states): scratch.
        picks: scratch.
        back: scratch, valid from the start (zeros).
        path: (rows,) the integers; written.
    """
    states, rows = following.shape[0], values.shape[0]
    place = min(column, bits.shape[1] - 1)
    totals[0, :] = np.inf
    totals[0, 0] = 0.0
    for row in range(rows):
        own = bits[min(row, bits.shape[0] - 1), place]
        cheapest_of_subsets(values[row], costs[row], price, own, lowest, totals[2], picks[row])
        totals[1, :] = np.inf
        for state in range(states):
            for branch in range(2):
                total = totals[0, state] + totals[2, (state & 1) + 2 * branch]
                after = following[state, branch]
                if total < totals[1, after]:
                    totals[1, after] = total
                    back[row, after] = 2 * state + branch
        totals[0, :] = totals[1]
    state = 0
    for other in range(1, states):
        if totals[0, other] < totals[0, state]:
            state = other
    for row in range(rows - 1, -1, -1):
        step = back[row, state]
        state = step >> 1
        path[row] = picks[row, (state & 1) + 2 * (step & 1)]


def project_paths(
    values: Any,
    costs: Floats,
    price: Floats,
    bits: Floats,
    lowest: int,
    following: Whole,
    wanted: Floats,
    totals: Floats,
    picks: Whole,
    back: Whole,
    path: Floats,
) -> None:
    """Overwrite a column (groups, 1, trials * neurons) by the best path of each trial.

    A path runs through all groups. ``costs`` are (groups * neurons,), ``price`` (trials,), ``bits``
    (trials, 1, 1, integers); ``wanted`` and ``path`` (groups * neurons,) are scratch, and the rest
    is as for :func:`best_path`.
    """
    groups, trials = values.shape[0], price.shape[0]
    neurons = values.shape[2] // trials
    for k in range(trials):
        for g in range(groups):
            for n in range(neurons):
                wanted[g * neurons + n] = values[g, 0, k * neurons + n]
        best_path(wanted, costs, price[k], bits[k], 0, lowest, following, totals, picks, back, path)
        for g in range(groups):
            for n in range(neurons):
                values[g, 0, k * neurons + n] = path[g * neurons + n]


def take_path(levels: Floats, residual: Floats, metric: Floats, column: int, path: Floats) -> None:
    """Write a path to a column of ``levels`` (groups, neurons, columns); update the residual."""
    groups, neurons, columns = levels.shape
    for g in range(groups):
        for n in range(neurons):
            new, old = path[g * neurons + n], levels[g, n, column]
            if new != old:
                levels[g, n, column] = new
                for j in range(columns):
                    residual[g, n, j] += (old - new) * metric[g, column, j]


def descend_paths(
    units: Floats,
    levels: Floats,
    residual: Floats,
    metric: Floats,
    live: NDArray[np.bool_],
    order: Whole,
    weights: Floats,
    price: Floats,
    bits: Floats,
    lowest: int,
    following: Whole,
    wanted: Floats,
    costs: Floats,
    totals: Floats,
    picks: Whole,
    back: Whole,
    path: Floats,
) -> None:
    """Replace every column of ``levels`` (trials, groups, neurons, columns) by its best path.

    ``order`` (columns,) is that in which they are visited. ``metric`` is (groups, columns,
    columns), ``live`` (groups, columns), ``weights`` (groups, neurons), ``price`` (trials,), and
    ``bits`` (trials, rows or 1, columns or 1, integers). ``residual`` is
    ``(units - levels) metric``, and is kept up to date; only changes cost time. The rest is
    scratch, as for :func:`project_paths`.
    """
    trials, groups, neurons, columns = levels.shape
    for k in range(trials):
        for i in range(columns):
            t = order[i]
            for g in range(groups):
                energy = metric[g, t, t]
                for n in range(neurons):
                    row = g * neurons + n
                    wanted[row] = units[k, g, n, t]
                    if live[g, t]:
                        wanted[row] = levels[k, g, n, t] + residual[k, g, n, t] / energy
                    costs[row] = weights[g, n] * energy
            best_path(
                wanted, costs, price[k], bits[k], t, lowest, following, totals, picks, back, path
            )
            take_path(levels[k], residual[k], metric, t, path)
