"""Classes of symbols by how large they are in their row, input and tap: a table for each.

Rows, inputs and taps of a matrix get levels, logarithms of their mean distance from the centre.
The class of a symbol is the sum of its three levels. Classes next to each other that are alike,
or too small for a table of their own, share one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
from numpy.typing import NDArray

from ...errors import CorruptFileError
from ..codec import Layout
from ..numbers import Numbers
from .lanes import TOTAL

__all__ = [
    "MOST_ROOT",
    "Classes",
    "fit",
    "roots_of",
    "shares_of",
    "slots_of",
    "starts_of",
    "take_classes",
    "take_roots",
]


MOST_LEVELS, MOST_TABLES = 16, 16
STEPS = (0.7, 0.35)  # of levels, in octaves
SAMPLE = 1 << 18  # symbols on which a division is chosen
# Whether rows, inputs and taps divide a matrix, in the order in which equals are preferred.
SUBSETS = (
    (True, True, True),
    (True, True, False),
    (False, True, True),
    (True, False, True),
    (True, False, False),
    (False, True, False),
    (False, False, True),
)
LEAST = 8  # symbols that share a level
BLOCK = 1 << 16  # levels that are written or read at a time; bounds scratch
PRIOR = 2.0  # symbols of the usual size that each row, input and tap begins with

Ints = NDArray[np.int64]
Bins = NDArray[np.uint8]
MOST_ROOT = 255
STEP = 1.73
FIRST_KIND = 4  # of numbers: those before are levels
POWERS = 1 << np.arange(9)  # kinds by the bits of the root before


@dataclass(frozen=True, eq=False)
class Classes:
    """How a matrix is divided.

    Attributes:
        rows, inputs, taps: levels of each, from 0; an array of zeros where they do not matter.
        tables: (sums of levels,) the table of each class, rising by steps of 0 or 1.
        roots: (tables, alphabet) of the frequencies.
    """

    rows: Bins
    inputs: Bins
    taps: Bins
    tables: Ints
    roots: Ints

    def cells(self) -> tuple[Bins, Bins]:
        """Return the table by level (of those that rows have) and column; which one a row has.

        There are at most as many cells as symbols.
        """
        levels = [level for level in range(MOST_LEVELS) if (self.rows == level).any()]
        place = np.zeros(MOST_LEVELS, np.uint8)
        place[levels] = np.arange(len(levels))
        columns = (self.inputs[:, None] + self.taps).reshape(-1)
        tables = self.tables.astype(np.uint8)
        cells = np.empty((len(levels), columns.size), np.uint8)
        for row, level in zip(cells, levels, strict=True):
            np.take(tables[level:], columns, out=row, mode="clip")
        return cells, place[self.rows]

    def part(self, rows: slice) -> Classes:
        """Return the classes of some rows."""
        return replace(self, rows=self.rows[rows])


def undivided(layout: Layout) -> Classes:
    """Return a single class, its table still empty."""
    sizes = (layout.rows, layout.columns // layout.taps, layout.taps)
    rows, inputs, taps = (np.zeros(size, np.uint8) for size in sizes)
    return Classes(rows, inputs, taps, np.zeros(1, np.int64), np.zeros((1, 2), np.int64))


def _levels(sums: Ints, count: int, usual: float, step: float) -> Bins:
    """Return the levels of rows, inputs or taps with these sums of ``count`` distances each."""
    if count < LEAST:
        return np.zeros(sums.size, np.uint8)
    means = (sums + PRIOR * usual) / (count + PRIOR)
    levels = np.rint(np.log2(np.maximum(means / usual, 2.0**-16)) / step).astype(np.int64)
    lowest = max(int(levels.min()), int(np.median(levels)) - MOST_LEVELS // 2)
    found: Bins = np.clip(levels - lowest, 0, MOST_LEVELS - 1).astype(np.uint8)
    return found


def _divisions(bins: Bins, layout: Layout, centre: int, kernels: SimpleNamespace) -> list[Classes]:
    """Return every way to divide the matrix that is worth a try; tables are still empty."""
    by_row, by_column = np.zeros(layout.rows, np.int64), np.zeros(layout.columns, np.int64)
    kernels.sum_sizes(bins, centre, by_row, by_column)
    usual = max(float(by_row.sum()) / layout.size, 1e-9)
    filters = by_column.reshape(-1, layout.taps)
    counts = (layout.columns, layout.rows * layout.taps, layout.rows * len(filters))
    sums = (by_row, filters.sum(axis=1), filters.sum(axis=0))
    none = undivided(layout)
    found = [none]
    for step in STEPS:
        levels = [_levels(*of, usual, step) for of in zip(sums, counts, strict=True)]
        for used in SUBSETS:
            if all(part.any() for part, use in zip(levels, used, strict=True) if use):
                rows, inputs, taps = (part * use for part, use in zip(levels, used, strict=True))
                found.append(replace(none, rows=rows, inputs=inputs, taps=taps))
    return found


def _count(bins: Bins, classes: Classes, kernels: SimpleNamespace) -> Ints:
    """Return (sums of levels, 256) how often each class has each symbol."""
    most = int(classes.rows.max()) + int(classes.inputs.max()) + int(classes.taps.max())
    every = replace(classes, tables=np.arange(most + 1))
    counts = np.zeros((most + 1, 256), np.int64)
    kernels.count_symbols(bins, *every.cells(), counts)
    return counts


def _bits(counts: Ints) -> NDArray[np.float64]:
    """Return about the bits of symbols with counts (tables, 256), their tables included."""
    roots = roots_of(counts)
    squares = (roots * roots).astype(np.float64)
    shares = np.maximum(squares / squares.sum(axis=1, keepdims=True), 1 / TOTAL)
    tables = np.log2(roots + 1).sum(axis=1) + 2.5 * (roots > 0).sum(axis=1) + 4
    found: NDArray[np.float64] = tables - (counts * np.log2(shares)).sum(axis=1)
    return found


def _merge(counts: Ints) -> tuple[float, Ints, Ints]:
    """Return bits, table of each class, and counts of each table: neighbours joined greedily."""
    alive = np.flatnonzero(counts.any(axis=1))
    groups = counts[alive]
    groups = groups[:, : int(np.flatnonzero(groups.any(axis=0))[-1]) + 1]
    pairs = groups[:-1] + groups[1:]
    bits, joined = _bits(groups), _bits(pairs) if len(pairs) else np.zeros(0)
    first = alive  # of each group
    while len(groups) > 1:
        gains = bits[:-1] + bits[1:] - joined
        best = int(gains.argmax())
        if gains[best] < 0 and len(groups) <= MOST_TABLES:
            break
        groups[best], bits[best] = pairs[best], joined[best]
        groups, bits = np.delete(groups, best + 1, 0), np.delete(bits, best + 1)
        pairs, joined = np.delete(pairs, best, 0), np.delete(joined, best)
        first = np.delete(first, best + 1)
        near = slice(max(best - 1, 0), min(best + 1, len(pairs)))
        if near.start < near.stop:
            pairs[near] = groups[near] + groups[near.start + 1 : near.stop + 1]
            joined[near] = _bits(pairs[near])
    tables = np.searchsorted(first[1:], np.arange(len(counts)), side="right")
    return float(bits.sum()), tables.astype(np.int64), groups


def fit(bins: Bins, layout: Layout, kernels: SimpleNamespace) -> tuple[Classes, float]:
    """Return the division with the fewest bits, and about how many: in all, and in tables.

    Chosen on a part of a large matrix. Cost: a count of the part for each division, and one of all.
    """
    size = max(2, int(bins.max()) + 1)
    centre = int(np.bincount(bins[: max(1, SAMPLE // layout.columns)].reshape(-1)).argmax())
    stride = max(1, layout.size // SAMPLE)
    sample = np.ascontiguousarray(bins[::stride])
    share = len(bins) / len(sample)
    tried: list[tuple[float, int, Classes]] = []
    for division in _divisions(bins, layout, centre, kernels):
        part = division.part(slice(None, None, stride))
        bits = _merge(_count(sample, part, kernels))[0] * share
        tried.append((bits + _side_bits(division), len(tried), division))
    bits, _, best = min(tried, key=lambda item: item[:2])
    _, tables, groups = _merge(_count(bins, best, kernels))
    roots = roots_of(groups[:, :size])
    roots = np.pad(roots, [(0, 0), (0, size - roots.shape[1])])
    return replace(best, tables=tables, roots=roots), bits


def _side_bits(classes: Classes) -> float:
    numbers = Numbers.meter()
    _take_levels(numbers, classes)
    return numbers.bits()


def _take_levels(numbers: Numbers, classes: Classes) -> Classes:
    """Write the levels, or read them: nothing but a flag where all are 0."""
    found = []
    for kind, known in enumerate((classes.rows, classes.inputs, classes.taps)):
        top = int(known.max())
        middle = int(np.sort(known)[known.size // 2]) if top else 0
        head = numbers.take(np.array([top, middle], np.int64), 3)
        if not 0 <= head[0] < MOST_LEVELS or not 0 <= head[1] < MOST_LEVELS:
            raise CorruptFileError(f"levels up to {head[0]}: at most {MOST_LEVELS - 1} are allowed")
        levels = np.zeros_like(known)
        for start in range(0, known.size if head[0] else 0, BLOCK):
            part = known[start : start + BLOCK].astype(np.int64)
            part = head[1] + numbers.take(part - head[1], kind)
            if part.min() < 0 or part.max() > head[0]:
                raise CorruptFileError(f"a level beyond {head[0]}")
            levels[start : start + BLOCK] = part
        found.append(levels)
    return replace(classes, rows=found[0], inputs=found[1], taps=found[2])


def take_classes(numbers: Numbers, classes: Classes, alphabet: int) -> Classes:
    """Write a division and its tables, or read them (of ``classes``, the sizes are known)."""
    found = _take_levels(numbers, classes)
    most = int(found.rows.max()) + int(found.inputs.max()) + int(found.taps.max())
    steps = np.diff(classes.tables) if classes.tables.size == most + 1 else np.zeros(most, np.int64)
    tables = np.concatenate([[0], np.cumsum(numbers.take(steps, 3))]).astype(np.int64)
    if tables.min() < 0 or tables.max() >= MOST_TABLES or (np.diff(tables) < 0).any():
        raise CorruptFileError(f"classes have up to {MOST_TABLES} tables, not {tables.max() + 1}")
    roots = classes.roots
    if roots.shape != (tables.max() + 1, alphabet):
        roots = np.zeros((int(tables.max()) + 1, alphabet), np.int64)
    return replace(found, tables=tables, roots=take_roots(numbers, roots))


def roots_of(counts: Ints) -> Ints:
    """Return the rounded roots (tables, A) of counts: at least 1 where a symbol occurs."""
    roots = np.sqrt(counts)
    largest = np.maximum(roots.max(axis=1, keepdims=True), 1.0)
    scale = np.minimum(1 / STEP, MOST_ROOT / largest)
    found: Ints = np.maximum(np.rint(roots * scale), counts > 0).astype(np.int64)
    return found


def shares_of(roots: Ints) -> Ints:
    """Return shares of 4096 for roots, not all 0: who has one gets at least 1, none gets all."""
    squares = roots * roots
    total = int(squares.sum())
    shares: Ints = np.maximum((2 * squares * TOTAL + total) // (2 * total), roots > 0)
    largest = int(shares.argmax())
    if np.count_nonzero(roots) == 1:
        shares[largest ^ 1 if (largest ^ 1) < shares.size else largest - 1] = 1
    excess = int(shares.sum()) - TOTAL
    for place in np.argsort(-shares, kind="stable").tolist():
        taken = min(int(shares[place]) - 1, excess)
        shares[place] -= taken
        excess -= taken
        if excess <= 0:
            break
    return shares


def take_roots(numbers: Numbers, roots: Ints) -> Ints:
    """Write the roots of all tables (tables, A), or read them: each from the one before."""
    found = np.zeros_like(roots)
    before = np.zeros(roots.shape[1], np.int64)
    for table in range(len(roots)):
        kinds = FIRST_KIND + np.searchsorted(POWERS, before, side="right")
        before = before + numbers.take(roots[table] - before, kinds)
        if before.min() < 0 or before.max() > MOST_ROOT or not before.any():
            raise CorruptFileError(f"table {table} has roots of frequencies out of bounds")
        found[table] = before
    return found


def starts_of(shares: Ints) -> Ints:
    """Return (tables, 256, 3): where each symbol's share begins, the share, 2**32 over it."""
    out = np.zeros((len(shares), 256, 3), np.int64)
    out[:, : shares.shape[1], 0] = np.cumsum(shares, axis=1) - shares
    out[:, : shares.shape[1], 1] = shares
    out[:, : shares.shape[1], 2] = (1 << 32) // np.maximum(shares, 1)
    return out


def slots_of(shares: Ints) -> NDArray[np.uint32]:
    """Return (tables * 4096,): symbol, share and place in the share, for each of 4096 slots."""
    rows = []
    for row in shares:
        symbol = np.repeat(np.arange(row.size), row)
        place = np.arange(TOTAL) - np.repeat(np.cumsum(row) - row, row)
        rows.append(symbol | row[symbol] << 8 | place << 20)
    return np.concatenate(rows).astype(np.uint32)
