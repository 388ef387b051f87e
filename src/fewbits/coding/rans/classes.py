"""Classes of symbols by magnitude in their row, input and tap, each with a frequency table.

Rows, inputs and taps of a matrix get levels: logarithms of their mean distance from the centre.
The class of a symbol is the sum of its three levels. Neighbouring classes that are similar, or too
small for a table of their own, share one.
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
    "code_classes",
    "code_roots",
    "fit",
    "roots_of",
    "shares_of",
    "slots_of",
    "starts_of",
]


MOST_LEVELS, MOST_TABLES = 16, 16
STEPS = (0.7, 0.35)  # of levels, in octaves
SAMPLE = 1 << 18  # symbols on which a division is chosen
# Whether rows, inputs and taps divide the matrix; earlier entries win ties.
SUBSETS = (
    (True, True, True),
    (True, True, False),
    (False, True, True),
    (True, False, True),
    (True, False, False),
    (False, True, False),
    (False, False, True),
)
LEAST = 8  # fewest symbols per level
BLOCK = 1 << 16  # levels written or read at a time; bounds scratch memory
PRIOR = 2.0  # weight of the overall mean in that of a row, input or tap, in symbols

Ints = NDArray[np.int64]
Bins = NDArray[np.uint8]
MOST_ROOT = 255
STEP = 1.73
FIRST_KIND = 4  # kinds of numbers below are for levels
POWERS = 1 << np.arange(9)  # kinds by the number of bits of the root before


@dataclass(frozen=True, eq=False)
class Classes:
    """A division of a matrix into classes.

    Attributes:
        rows, inputs, taps: level of each, from 0; all zeros if it does not divide the matrix.
        tables: (sums of levels,) table of each class, rising by steps of 0 or 1.
        roots: (tables, alphabet) square roots of the frequencies.
    """

    rows: Bins
    inputs: Bins
    taps: Bins
    tables: Ints
    roots: Ints

    def cells(self) -> tuple[Bins, Bins]:
        """Return tables by used row level and column, and the index of each row's level.

        There are at most as many cells as symbols.
        """
        levels = [level for level in range(MOST_LEVELS) if (self.rows == level).any()]
        place = np.zeros(MOST_LEVELS, np.uint8)
        place[levels] = np.arange(len(levels))
        tables = self.tables.astype(np.uint8)
        cells = np.empty((len(levels), self.inputs.size * self.taps.size), np.uint8)
        if not self.inputs.any() and not self.taps.any():
            cells[:] = tables[levels][:, None]
            return cells, place[self.rows]
        columns = (self.inputs[:, None] + self.taps).reshape(-1)
        for row, level in zip(cells, levels, strict=True):
            np.take(tables[level:], columns, out=row, mode="clip")
        return cells, place[self.rows]

    def part(self, rows: slice) -> Classes:
        """Return the division of some rows."""
        return replace(self, rows=self.rows[rows])


def single_class(layout: Layout) -> Classes:
    """Return a division with a single class, whose table is still empty."""
    sizes = (layout.rows, layout.columns // layout.taps, layout.taps)
    rows, inputs, taps = (np.zeros(size, np.uint8) for size in sizes)
    return Classes(rows, inputs, taps, np.zeros(1, np.int64), np.zeros((1, 2), np.int64))


def _levels(sums: Ints, count: int, usual: float, step: float) -> Bins:
    """Return levels of rows, inputs or taps, whose ``sums`` are of ``count`` distances each."""
    if count < LEAST:
        return np.zeros(sums.size, np.uint8)
    means = (sums + PRIOR * usual) / (count + PRIOR)
    levels = np.rint(np.log2(np.maximum(means / usual, 2.0**-16)) / step).astype(np.int64)
    lowest = max(int(levels.min()), int(np.median(levels)) - MOST_LEVELS // 2)
    clipped: Bins = np.clip(levels - lowest, 0, MOST_LEVELS - 1).astype(np.uint8)
    return clipped


def _divisions(bins: Bins, layout: Layout, kernels: SimpleNamespace) -> list[Classes]:
    """Return all divisions worth trying; their tables are still empty."""
    none = single_class(layout)
    if layout.rows == layout.taps == 1:  # one row, of inputs that each have one symbol
        return [none]
    centre = int(np.bincount(bins[: max(1, SAMPLE // layout.columns)].reshape(-1)).argmax())
    by_row, by_column = np.zeros(layout.rows, np.int64), np.zeros(layout.columns, np.int64)
    kernels.sum_sizes(bins, centre, by_row, by_column)
    usual = max(float(by_row.sum()) / layout.size, 1e-9)
    filters = by_column.reshape(-1, layout.taps)
    counts = (layout.columns, layout.rows * layout.taps, layout.rows * len(filters))
    sums = (by_row, filters.sum(axis=1), filters.sum(axis=0))
    divisions = [none]
    for step in STEPS:
        levels = [_levels(*of, usual, step) for of in zip(sums, counts, strict=True)]
        for used in SUBSETS:
            if all(part.any() for part, use in zip(levels, used, strict=True) if use):
                rows, inputs, taps = (part * use for part, use in zip(levels, used, strict=True))
                divisions.append(replace(none, rows=rows, inputs=inputs, taps=taps))
    return divisions


def _count(bins: Bins, classes: Classes, kernels: SimpleNamespace) -> Ints:
    """Return counts (sums of levels, 256) of each symbol in each class."""
    most = int(classes.rows.max()) + int(classes.inputs.max()) + int(classes.taps.max())
    every = replace(classes, tables=np.arange(most + 1))
    counts = np.zeros((most + 1, 256), np.int64)
    kernels.count_symbols(bins, *every.cells(), counts)
    return counts


def _bits(counts: Ints) -> NDArray[np.float64]:
    """Estimate the bits of symbols with counts (tables, 256), including their tables."""
    roots = roots_of(counts)
    squares = (roots * roots).astype(np.float64)
    shares = np.maximum(squares / squares.sum(axis=1, keepdims=True), 1 / TOTAL)
    tables = np.log2(roots + 1).sum(axis=1) + 2.5 * (roots > 0).sum(axis=1) + 4
    bits: NDArray[np.float64] = tables - (counts * np.log2(shares)).sum(axis=1)
    return bits


def _merge(counts: Ints) -> tuple[float, Ints, Ints]:
    """Merge neighbouring classes greedily; return bits, table of each class, counts per table."""
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
    """Return the division with the fewest bits, and an estimate of all bits including tables.

    It is chosen on a sample of a large matrix. Cost: counting the sample for each division, and the
    whole matrix once.
    """
    size = max(2, int(bins.max()) + 1)
    stride = max(1, layout.size // SAMPLE)
    sample = np.ascontiguousarray(bins[::stride])
    share = len(bins) / len(sample)
    divisions = _divisions(bins, layout, kernels)
    best, merged = divisions[0], None
    if len(divisions) == 1 and share == 1:
        merged = _merge(_count(bins, best, kernels))
        bits = merged[0] + _side_bits(best)
    else:
        tried: list[tuple[float, int, Classes]] = []
        for division in divisions:
            part = division.part(slice(None, None, stride))
            bits = _merge(_count(sample, part, kernels))[0] * share
            tried.append((bits + _side_bits(division), len(tried), division))
        bits, _, best = min(tried, key=lambda item: item[:2])
    _, tables, groups = merged or _merge(_count(bins, best, kernels))
    roots = roots_of(groups[:, :size])
    roots = np.pad(roots, [(0, 0), (0, size - roots.shape[1])])
    return replace(best, tables=tables, roots=roots), bits


def _side_bits(classes: Classes) -> float:
    numbers = Numbers.meter()
    _code_levels(numbers, classes)
    return numbers.bits()


def _code_levels(numbers: Numbers, classes: Classes) -> Classes:
    """Write or read the levels: only a flag if all are 0."""
    coded = []
    for kind, known in enumerate((classes.rows, classes.inputs, classes.taps)):
        top = int(known.max())
        middle = int(np.sort(known)[known.size // 2]) if top else 0
        head = numbers.code(np.array([top, middle], np.int64), 3)
        if not 0 <= head[0] < MOST_LEVELS or not 0 <= head[1] < MOST_LEVELS:
            raise CorruptFileError(f"levels up to {head[0]}: at most {MOST_LEVELS - 1} are allowed")
        levels = np.zeros_like(known)
        for start in range(0, known.size if head[0] else 0, BLOCK):
            part = known[start : start + BLOCK].astype(np.int64)
            part = head[1] + numbers.code(part - head[1], kind)
            if part.min() < 0 or part.max() > head[0]:
                raise CorruptFileError(f"a level exceeds {head[0]}")
            levels[start : start + BLOCK] = part
        coded.append(levels)
    return replace(classes, rows=coded[0], inputs=coded[1], taps=coded[2])


def code_classes(numbers: Numbers, classes: Classes, alphabet: int) -> Classes:
    """Write a division and its tables, or read them (only the sizes in ``classes`` are known)."""
    levels = _code_levels(numbers, classes)
    most = int(levels.rows.max()) + int(levels.inputs.max()) + int(levels.taps.max())
    steps = np.diff(classes.tables) if classes.tables.size == most + 1 else np.zeros(most, np.int64)
    tables = np.concatenate([[0], np.cumsum(numbers.code(steps, 3))]).astype(np.int64)
    if tables.min() < 0 or tables.max() >= MOST_TABLES or (np.diff(tables) < 0).any():
        raise CorruptFileError(
            f"{tables.max() + 1} tables of classes; at most {MOST_TABLES} allowed"
        )
    roots = classes.roots
    if roots.shape != (tables.max() + 1, alphabet):
        roots = np.zeros((int(tables.max()) + 1, alphabet), np.int64)
    return replace(levels, tables=tables, roots=code_roots(numbers, roots))


def roots_of(counts: Ints) -> Ints:
    """Return rounded square roots (tables, A) of counts: at least 1 for symbols that occur."""
    roots = np.sqrt(counts)
    largest = np.maximum(roots.max(axis=1, keepdims=True), 1.0)
    scale = np.minimum(1 / STEP, MOST_ROOT / largest)
    rounded: Ints = np.maximum(np.rint(roots * scale), counts > 0).astype(np.int64)
    return rounded


def shares_of(roots: Ints) -> Ints:
    """Return shares of 4096 for roots, not all 0: at least 1 for each nonzero root, never all."""
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


def code_roots(numbers: Numbers, roots: Ints) -> Ints:
    """Write or read the roots of all tables (tables, A), each predicted from the table before."""
    coded = np.zeros_like(roots)
    before = np.zeros(roots.shape[1], np.int64)
    for table in range(len(roots)):
        kinds = FIRST_KIND + np.searchsorted(POWERS, before, side="right")
        before = before + numbers.code(roots[table] - before, kinds)
        if before.min() < 0 or before.max() > MOST_ROOT or not before.any():
            raise CorruptFileError(f"table {table} has roots of frequencies out of range")
        coded[table] = before
    return coded


def starts_of(shares: Ints) -> Ints:
    """Return (tables, 256, 3): start of each symbol's share, the share, and 2**32 over it."""
    out = np.zeros((len(shares), 256, 3), np.int64)
    out[:, : shares.shape[1], 0] = np.cumsum(shares, axis=1) - shares
    out[:, : shares.shape[1], 1] = shares
    out[:, : shares.shape[1], 2] = (1 << 32) // np.maximum(shares, 1)
    return out


def slots_of(shares: Ints) -> NDArray[np.uint32]:
    """Return (tables * 4096,): symbol, share and position in the share for each slot."""
    rows = []
    for row in shares:
        symbol = np.repeat(np.arange(row.size), row)
        place = np.arange(TOTAL) - np.repeat(np.cumsum(row) - row, row)
        rows.append(symbol | row[symbol] << 8 | place << 20)
    return np.concatenate(rows).astype(np.uint32)
