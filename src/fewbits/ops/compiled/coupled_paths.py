"""Loops that find a good path of a trellis where rows feel each other's errors; see ``paths.py``.

Of all paths into a state the cheapest survives, with what its own changes mean for the rows to come
(per-survivor processing: Raheli, Polydoros and Tzou 1995). Costs are exact for every path that is
compared; the best of all paths may have been dropped on the way, as an earlier loss can pay later.
"""

# ruff: noqa: PLR0917 - compiled functions take no keywords
from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .paths import take_path

__all__ = ["best_coupled_path", "cheapest_of_parity", "descend_coupled_paths", "owe"]

Floats = NDArray[np.float64]
Whole = NDArray[np.int64]


def cheapest_of_parity(
    value: float, cost: float, price: float, bits: Floats, lowest: int, least: Floats, picks: Whole
) -> None:
    """Find the integer of least cost * squared error + price * bits with each remainder modulo 4.

    The remainders are those of the parity of ``picks[2]``: ``picks[0]`` has bit 1 clear, and
    ``picks[1]`` has it set. Only the two next to ``value`` on either side are tried, and 0. There
    are at least 8 integers, from ``lowest`` < 0 on. ``least`` (2,) and ``picks`` are written.
    """
    highest = lowest + bits.shape[0] - 1
    if np.isnan(value):
        value = 0.0
    value = min(max(value, lowest - 1e6), highest + 1e6)
    near = int(np.rint(min(max(value, float(lowest)), float(highest))))
    first = max(lowest, min(near - 4, highest - 7))
    last = min(highest, first + 8)
    odd = picks[2]
    least[0] = least[1] = np.inf
    for number in range(first + ((first ^ odd) & 1), last + 1, 2):
        gap = value - number
        total = cost * gap * gap + price * bits[number - lowest]
        branch = number >> 1 & 1
        if total < least[branch]:
            least[branch], picks[branch] = total, number
    if odd == 0:
        total = cost * value * value + price * bits[-lowest]
        if total < least[0]:
            least[0], picks[0] = total, 0


def owe(
    totals: Floats,
    back: Whole,
    picks: Whole,
    old: float,
    coupling: Floats,
    before: Floats,
    after: Floats,
) -> None:
    """Write what the paths that survive a row owe to later rows: ``after`` (states, later rows).

    That is what their past owed, ``before``, and ``coupling`` times the change of the row.
    """
    for state in range(totals.shape[0]):
        if totals[state] < np.inf:
            step = back[state]
            change = picks[step] - old
            for later in range(coupling.shape[0]):
                after[state, later] = before[step >> 1, later] + change * coupling[later]


def best_coupled_path(
    values: Floats,
    costs: Floats,
    price: float,
    bits: Floats,
    column: int,
    lowest: int,
    old: Floats,
    coupling: Floats,
    following: Whole,
    debts: Floats,
    totals: Floats,
    picks: Whole,
    back: Whole,
    path: Floats,
) -> None:
    """Find a path from state 0 of little cost, where changes move what later rows should become.

    That is ``w[r] = values[r] - sum over p < r of coupling[p, r] * (path[p] - old[p])`` in row r,
    and a path costs the sum of ``costs * ((path - w)^2 - (old - w)^2) + price * bits``.

    Args:
        values, costs, price, bits, column, lowest, following: as for ``best_path``.
        costs, price, bits, column, lowest, following: see ``values``.
        old: (rows,) the integers so far.
        coupling: (groups, neurons, neurons) of the rows of a group: ``[p, r]`` is that of row r to
            row p.
        debts: (2, states, rows), ``totals`` (3, states), ``picks`` (rows + 1, 2 states), ``back``
            (rows, states): scratch.
        totals, picks, back: see ``debts``.
        path: (rows,) the integers; written.
    """
    states, rows, neurons = following.shape[0], values.shape[0], coupling.shape[1]
    place, now = min(column, bits.shape[1] - 1), 0
    found, near = totals[2], picks[rows]
    totals[0, :] = np.inf
    totals[0, 0] = 0.0
    for row in range(rows):
        g, n = row // neurons, row % neurons
        end = row - n + neurons
        if n == 0:
            debts[now, :, row:end] = 0.0
        own = bits[min(row, bits.shape[0] - 1), place]
        totals[1, :] = np.inf
        for state in range(states):
            if totals[0, state] == np.inf:
                continue
            near[2] = state & 1
            value = values[row] - debts[now, state, row]
            cheapest_of_parity(value, costs[row], price, own, lowest, found, near)
            stays = costs[row] * (value - old[row]) * (value - old[row])
            for branch in range(2):
                picks[row, 2 * state + branch] = near[branch]
                total, target = totals[0, state] + found[branch] - stays, following[state, branch]
                if total < totals[1, target]:
                    totals[1, target] = total
                    back[row, target] = 2 * state + branch
        after, before = debts[1 - now, :, row + 1 : end], debts[now, :, row + 1 : end]
        owe(totals[1], back[row], picks[row], old[row], coupling[g, n, n + 1 :], before, after)
        now = 1 - now
        totals[0, :] = totals[1]
    state = 0
    for other in range(1, states):
        if totals[0, other] < totals[0, state]:
            state = other
    for row in range(rows - 1, -1, -1):
        step = back[row, state]
        state = step >> 1
        path[row] = picks[row, step]


def descend_coupled_paths(
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
    coupling: Floats,
    following: Whole,
    wanted: Floats,
    costs: Floats,
    old: Floats,
    debts: Floats,
    totals: Floats,
    picks: Whole,
    back: Whole,
    path: Floats,
) -> None:
    """Like ``descend_paths``, with a ``coupling`` (groups, neurons, neurons) of rows.

    The gradient of row n is also that of ``coupling[p, n]`` times the rows p.
    """
    trials, groups, neurons, columns = levels.shape
    for k in range(trials):
        for i in range(columns):
            t = order[i]
            for g in range(groups):
                energy = metric[g, t, t]
                for n in range(neurons):
                    row = g * neurons + n
                    old[row] = levels[k, g, n, t]
                    wanted[row] = units[k, g, n, t]
                    if live[g, t]:
                        wanted[row] = old[row] + residual[k, g, n, t] / energy
                    costs[row] = weights[g, n] * energy
                if live[g, t]:
                    for p in range(neurons):
                        share = residual[k, g, p, t] / energy
                        for n in range(neurons):
                            wanted[g * neurons + n] += share * coupling[g, p, n]
            best_coupled_path(
                wanted, costs, price[k], bits[k], t, lowest, old, coupling, following,
                debts, totals, picks, back, path,
            )  # fmt: skip
            take_path(levels[k], residual[k], metric, t, path)
