"""Loops of rounding that visit one value at a time, compiled by numba.

A kernel is a function over numbers and C-contiguous NumPy arrays of one float dtype. :func:`plain`
returns it as Python, the slow twin that tests compare with; :func:`compiled` returns it compiled,
without the GIL. Kernels allocate nothing and reduce nothing in parallel, so they are deterministic.
numba is imported on the first compiled call, never earlier, and its cache on disk is used wherever
it can be written.
"""

# ruff: noqa: PLR0917 - compiled functions take no keywords
from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from types import FunctionType, SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .coupled_paths import best_coupled_path, cheapest_of_parity, descend_coupled_paths, owe
from .paths import (
    best_path,
    cheapest_of_subsets,
    descend_paths,
    project_paths,
    take_path,
)

__all__ = ["arrays", "compiled", "plain", "runs_compiled"]

_SMALL = 1 << 10  # values: below, torch is as fast as loading a compiled kernel

Floats = NDArray[Any]
Whole = NDArray[np.int64]

_lock = threading.Lock()


def runs_compiled(values: Tensor) -> bool:
    """Return whether kernels take this tensor; depends on its size, dtype and device alone."""
    known = values.dtype in {torch.float32, torch.float64}
    return known and values.device.type == "cpu" and values.numel() >= _SMALL


def arrays(*tensors: Tensor) -> list[NDArray[Any]]:
    """Return contiguous tensors in main memory as arrays that share their memory."""
    return [tensor.detach().numpy() for tensor in tensors]


def settle_grid(
    pending: Floats,
    feedback: Floats,
    levels: Floats,
    begin: int,
    end: int,
    offset: Any,
    low: Any,
    high: Any,
) -> None:
    """Round columns ``begin`` to ``end`` of (groups, columns, neurons) to a grid, in order.

    Every level changes the later columns by ``feedback`` (groups, columns, columns).
    """
    groups, _, neurons = pending.shape
    for g in range(groups):
        for first in range(0, neurons, 128):
            last = min(first + 128, neurons)
            for t in range(begin, end):
                for j in range(begin, t):
                    factor = feedback[g, t, j]
                    for n in range(first, last):
                        pending[g, t, n] += factor * levels[g, j, n]
                for n in range(first, last):
                    value = np.rint(pending[g, t, n] + offset)
                    if value < low:
                        value = low
                    elif value > high:
                        value = high
                    levels[g, t, n] = value - offset


def settle_steps(
    pending: Floats,
    feedback: Floats,
    levels: Floats,
    steps: Floats,
    begin: int,
    end: int,
    offset: Any,
    low: Any,
    high: Any,
) -> None:
    """Like ``settle_grid``, with a step for each value: ``levels`` become levels times steps."""
    groups, _, neurons = pending.shape
    for g in range(groups):
        for first in range(0, neurons, 128):
            last = min(first + 128, neurons)
            for t in range(begin, end):
                for j in range(begin, t):
                    factor = feedback[g, t, j]
                    for n in range(first, last):
                        pending[g, t, n] += factor * levels[g, j, n]
                for n in range(first, last):
                    value = np.rint(pending[g, t, n] / steps[g, t, n] + offset)
                    if value < low:
                        value = low
                    elif value > high:
                        value = high
                    levels[g, t, n] = (value - offset) * steps[g, t, n]


def cheapest(value: Any, energy: Any, price: Any, bits: Floats, lowest: int) -> int:
    """Return the place of the integer with the least energy * squared error + price * bits.

    Integers start at ``lowest``. Those further from ``value`` are only tried while their error
    alone costs less than the best, since no price is negative. Ties go to the lowest integer, and
    so does NaN.
    """
    count = bits.shape[0]
    if np.isnan(value):
        return 0
    near = np.rint(min(max(value, float(lowest)), float(lowest + count - 1)))
    middle = min(max(int(near) - lowest, 0), count - 1)
    gap = value - (lowest + middle)
    best: int = middle
    least = energy * gap * gap + price * bits[middle]
    for place in range(middle - 1, -1, -1):
        gap = value - (lowest + place)
        error = energy * gap * gap
        if error > least:
            break
        cost = error + price * bits[place]
        if cost <= least:
            best, least = place, cost
    for place in range(middle + 1, count):
        gap = value - (lowest + place)
        error = energy * gap * gap
        if error > least:
            break
        cost = error + price * bits[place]
        if cost < least:
            best, least = place, cost
    return best


def cheapest_value(value: Any, energy: Any, price: Any, bits: Floats, values: Floats) -> int:
    """Return the place of the least energy * squared error + price * bits among ``values``.

    These increase. The same search as in ``cheapest``, from the first that is not below ``value``.
    """
    count = values.shape[0]
    if np.isnan(value):
        return 0
    middle, last = 0, count - 1
    while middle < last:
        half = (middle + last) // 2
        if values[half] < value:
            middle = half + 1
        else:
            last = half
    gap = value - values[middle]
    best: int = middle
    least = energy * gap * gap + price * bits[middle]
    for place in range(middle - 1, -1, -1):
        gap = value - values[place]
        error = energy * gap * gap
        if error > least:
            break
        cost = error + price * bits[place]
        if cost <= least:
            best, least = place, cost
    for place in range(middle + 1, count):
        gap = value - values[place]
        error = energy * gap * gap
        if error > least:
            break
        cost = error + price * bits[place]
        if cost < least:
            best, least = place, cost
    return best


def settle_priced(
    pending: Floats,
    feedback: Floats,
    levels: Floats,
    begin: int,
    end: int,
    energy: Floats,
    price: Floats,
    bits: Floats,
    sets: Whole,
    lowest: int,
    values: Floats,
) -> None:
    """Like ``settle_grid``, but to the levels of least cost.

    They are ``values`` (levels,), or the integers from ``lowest`` on if there are none. ``energy``
    is (groups, columns) of this block, ``price`` (groups, neurons), ``bits`` (sets, levels), and
    ``sets`` (groups, neurons) says whose bits apply.
    """
    groups, _, neurons = pending.shape
    for g in range(groups):
        for first in range(0, neurons, 128):
            last = min(first + 128, neurons)
            for t in range(begin, end):
                for j in range(begin, t):
                    factor = feedback[g, t, j]
                    for n in range(first, last):
                        pending[g, t, n] += factor * levels[g, j, n]
                for n in range(first, last):
                    value, own = pending[g, t, n], bits[sets[g, n]]
                    if values.shape[0] > 0:
                        place = cheapest_value(value, energy[g, t], price[g, n], own, values)
                        levels[g, t, n] = values[place]
                    else:
                        place = cheapest(value, energy[g, t], price[g, n], own, lowest)
                        levels[g, t, n] = lowest + place


def descend(
    units: Floats,
    levels: Floats,
    residual: Floats,
    shift: Floats,
    metric: Floats,
    live: NDArray[np.bool_],
    order: Whole,
    price: Floats,
    bits: Floats,
    lowest: int,
    begin: int,
    stride: int,
    values: Floats,
) -> None:
    """Improve ``levels`` (parts, neurons, columns) by a sweep over every ``stride``-th neuron.

    ``metric`` is (groups, columns, columns), symmetric, and part p uses that of group
    ``p % groups``, as well as ``live`` and ``order`` (groups, columns). ``residual`` is
    ``(units - levels) metric``, and is kept up to date; only changes cost time. ``shift``
    (parts, neurons, columns), or (0, 0, 0) for none, is added to it for the choice. ``bits`` are
    (parts, 1, 1, levels), or (parts, neurons, columns, levels), of ``values`` (levels,), or of the
    integers from ``lowest`` on if there are none.
    """
    parts, neurons, columns = levels.shape
    shifted, tabled = shift.shape[0] > 0, bits.shape[1] > 1 or bits.shape[2] > 1
    for p in range(parts):
        g = p % metric.shape[0]
        for n in range(begin, neurons, stride):
            for i in range(columns):
                t = order[g, i]
                old = levels[p, n, t]
                value = units[p, n, t]
                energy = metric[g, t, t]
                if live[g, t]:
                    wanted = residual[p, n, t]
                    if shifted:
                        wanted += shift[p, n, t]
                    value = old + wanted / energy
                own = bits[p, n, t] if tabled else bits[p, 0, 0]
                if values.shape[0] > 0:
                    new = values[cheapest_value(value, energy, price[p, n], own, values)]
                else:
                    new = lowest + cheapest(value, energy, price[p, n], own, lowest)
                if new != old:
                    levels[p, n, t] = new
                    change = old - new
                    for j in range(columns):
                        residual[p, n, j] += change * metric[g, t, j]


def grouped_moments(first: Floats, second: Floats, moments: NDArray[np.float64]) -> None:
    """Add A^T B of rows A and B (groups, rows, columns) to ``moments`` of every group, float64."""
    groups, rows, columns = first.shape
    for g in range(groups):
        for row in range(rows):
            for i in range(columns):
                factor = float(first[g, row, i])
                for j in range(columns):
                    moments[g, i, j] += factor * second[g, row, j]


_SOURCES = (
    cheapest,
    cheapest_value,
    settle_grid,
    settle_steps,
    settle_priced,
    descend,
    grouped_moments,
    cheapest_of_subsets,
    best_path,
    project_paths,
    descend_paths,
    take_path,
    cheapest_of_parity,
    owe,
    best_coupled_path,
    descend_coupled_paths,
)


def plain() -> SimpleNamespace:
    """Return the kernels as plain Python functions."""
    return SimpleNamespace(**{function.__name__: function for function in _SOURCES})


def compiled() -> SimpleNamespace:
    """Return compiled kernels; numba compiles or loads each on its first call."""
    with _lock:
        return _compiled()


@cache
def _compiled() -> SimpleNamespace:
    scope: dict[str, Any] = dict(globals())
    for source in _SOURCES:
        copy = FunctionType(source.__code__, scope, source.__name__)
        copy.__qualname__ = source.__qualname__
        scope[source.__name__] = _dispatcher(copy)
    return SimpleNamespace(**{source.__name__: scope[source.__name__] for source in _SOURCES})


def _dispatcher(function: Callable[..., Any]) -> Any:
    from numba import njit  # noqa: PLC0415 - `import fewbits` must not wait for it

    # Without a writable cache folder, kernels are compiled for this process only.
    for options in ({"cache": True}, {}):
        with suppress(RuntimeError):
            return cast(Any, njit)(function, nogil=True, error_model="numpy", **options)
    raise RuntimeError(f"numba cannot compile {function.__name__}. Install another numba version.")
