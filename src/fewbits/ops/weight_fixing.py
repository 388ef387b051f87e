"""Greedy weight clustering of PWFN (Subia-Waud and Dasmahapatra 2023): which weight moves where.

On one *level* of the search, weight i may move to a code c if ``|c - v_i| <= distance * s_i``. The
code that most weights can move to takes them all, then the next one, until no remaining code has
candidates. The next level allows sums of one more power of two, or twice the distance.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import ModelError, require
from .levels.powers_of_two import MAX_CODE, candidates

__all__ = ["Clustering", "Floats", "Ints", "Ladder", "Level", "Pick", "Small", "cluster"]
Ints: TypeAlias = "NDArray[np.int64]"
Small: TypeAlias = "NDArray[np.int32]"
Floats: TypeAlias = "NDArray[np.float32]"
_LEAST = 2.0**-20  # lower bound on deviations
_CHUNK = 1 << 18
_CELLS = 1 << 24  # largest table for counting pairs of run ends; beyond it they are sorted
_LEVELS = 100


@dataclass(frozen=True, eq=False)
class Clustering:
    """The assignment of weights to picks.

    Attributes:
        pick: (n,) int32 position in ``picks``; -1 for weights that stay free.
        picks: in the order of choice; a code may occur again on a later level.
    """

    pick: Small
    picks: tuple[Pick, ...]

    def codes(self) -> Small:
        """Return the (n,) int32 codes; 0 for weights that stay free."""
        table = np.array([*(pick.code for pick in self.picks), 0], np.int32)
        codes: Small = table[self.pick]
        return codes

    def deviations(self) -> Floats:
        """Return the (n,) float32 deviations of each weight's pick; 0 for free weights."""
        table = np.array([*(pick.deviation for pick in self.picks), 0], np.float32)
        deviations: Floats = table[self.pick]
        return deviations


def cluster(
    values: Floats, deviations: Floats, count: int, ladder: Ladder, used: Ints | None = None
) -> Clustering:
    """Move exactly ``count`` of the weights to values that many of them can share.

    Deterministic. If two codes take equally many weights, the lower one is chosen. If a code may
    take only some of its candidates, it takes the nearest in deviations, then the smallest, then
    the first.

    Args:
        values: (n,) float32 weights.
        deviations: (n,) float32, how far each weight may move; at least 2**-20 is assumed.
        count: number of weights to move, at most n.
        ladder: the values that they may move to.
        used: codes in use from earlier rounds; matters only if ``ladder.most`` is set.

    Raises:
        ModelError: NaN or infinite values, more to move than there are, or weights too large.

    Cost: a few passes over the free weights per level; about 40 bytes per weight.
    """
    _check(values, deviations, count, ladder)
    pick = np.full(len(values), -1, np.int32)
    picks: list[Pick] = []
    known = {0} if used is None else {0, *map(int, used)}
    free: Ints | None = None  # None: all of them
    for order, distance in ladder.levels():
        left = count - sum(p.count for p in picks)
        if left == 0:
            break
        remaining = (values, deviations) if free is None else (values[free], deviations[free])
        level = Level(*remaining, order, distance, ladder, frozenset(known))
        taken, made = level.run(left, len(picks))
        known |= {p.code for p in made}
        picks += made
        if free is None:
            pick = taken
            free = np.flatnonzero(taken < 0)
        else:
            pick[free] = taken
            free = free[taken < 0]
    if sum(p.count for p in picks) < count:
        raise ModelError(
            f"{count - sum(p.count for p in picks)} weights have no value within {distance:g} "
            "deviations. Check their deviations."
        )
    return Clustering(pick, tuple(picks))


def _check(values: Floats, deviations: Floats, count: int, ladder: Ladder) -> None:
    for name, array in (("weights", values), ("deviations", deviations)):
        bad = len(array) - int(np.isfinite(array).sum())
        if bad:
            raise ModelError(
                f"{bad} of {len(array)} {name} are NaN or infinite; weights cannot be fixed."
            )
    if not 0 <= count <= len(values):
        raise ModelError(f"{count} weights are to be fixed, but only {len(values)} are free.")
    require(ladder.terms >= 1, "terms", "an integer >= 1", ladder.terms)
    top = float(np.abs(values).max()) * ladder.unit if len(values) else 0.0
    if top > MAX_CODE:
        raise ModelError(
            f"the largest weight is {top:g} times the finest value 2**-{ladder.finest}; the limit "
            f"is {MAX_CODE}. Choose a coarser 'finest', or keep the layer in float."
        )


@dataclass(frozen=True)
class Ladder:
    """The values that weights may move to, level by level.

    Attributes:
        finest: codes are multiples of ``2**-finest``.
        terms: most powers of two in a sum.
        distance: initial distance, in deviations.
        widen: factor by which the distance grows.
        signed: whether powers may be subtracted.
        most: most distinct values, including those in use; None for no bound. With a bound, values
            in use are candidates on every level.
        prefer_zero: 0 wins over a code that takes more weights by at most this fraction.
    """

    finest: int
    terms: int = 4
    distance: float = 1.0
    widen: float = 2.0
    signed: bool = False
    most: int | None = None
    prefer_zero: float = 0.0

    @property
    def unit(self) -> float:
        """Number of codes per unit of value."""
        return 2.0**self.finest

    def levels(self) -> Iterator[tuple[int, float]]:
        """Yield (order, distance): (1, 1) (2, 1) (2, 2) (3, 2) (3, 4) (4, 4) (4, 8) (4, 16) ..."""
        order, distance = 1, self.distance
        for count in range(1, _LEVELS):
            yield order, distance
            if order < self.terms and count % 2:
                order += 1
            else:
                distance *= self.widen


@dataclass(frozen=True)
class Pick:
    """A chosen value, and the weights that moved to it.

    Attributes:
        order: number of powers of two allowed on its level.
        distance: distance allowed on its level, in deviations.
        code: the value times ``2**finest``.
        count: number of weights.
        mean: their mean distance, in deviations; 0 for weights below ``2**-finest`` that became 0.
        furthest: their largest distance.
        deviation: standard deviation of their values.
    """

    order: int
    distance: float
    code: int
    count: int
    mean: float
    furthest: float
    deviation: float


@dataclass(frozen=True, eq=False)
class Level:
    """One level of the search: free weights, and the codes that they may move to.

    Attributes:
        values: (n,) float32 weights.
        deviations: (n,) float32.
        order: powers of two in a code.
        distance: distance that a weight may move, in deviations.
        ladder: the ladder to which the level belongs.
        known: codes in use.
    """

    values: Floats
    deviations: Floats
    order: int
    distance: float
    ladder: Ladder
    known: frozenset[int]

    def run(self, left: int, first: int) -> tuple[Small, list[Pick]]:
        """Return the position of each weight's pick, counted from ``first``, or -1; the picks."""
        group, starts, ends, sizes = self._groups()
        owner, chosen = self._choose(starts, ends, sizes, left)
        taken: Small = owner[group]
        over = int(sizes[owner == len(chosen) - 1].sum()) - chosen[-1][1] if chosen else 0
        if over:
            self._release(taken, *chosen[-1], len(chosen) - 1)
        picks = self._make_picks(taken, chosen)
        taken[taken >= 0] += first
        return taken, picks

    @cached_property
    def codes(self) -> Ints:
        """The codes that weights may move to, in increasing order."""
        ladder, bounded = self.ladder, self.ladder.most is not None
        if bounded and len(self.known) >= (ladder.most or 0):
            return np.array(sorted(self.known), np.int64)
        top = int(np.abs(self.values).max() * self.ladder.unit)
        codes = candidates(top, self.order, ladder.signed)
        return np.union1d(codes, list(self.known)).astype(np.int64) if bounded else codes

    def _groups(self) -> tuple[Small, Ints, Ints, Ints]:
        """Return the group of each weight; and first code, end of codes and size of each group.

        Weights in a group may move to the same run of codes; those of the last group to none.
        """
        width = len(self.codes) + 1
        pairs = np.empty(len(self.values), np.int32 if width**2 < 2**31 else np.int64)
        top = int(np.abs(self.codes[[0, -1]]).max())
        below = np.searchsorted(self.codes, np.arange(-top, top + 2)).astype(pairs.dtype)
        zero = int(below[top])
        for start in range(0, len(pairs), _CHUNK):
            part = slice(start, start + _CHUNK)
            units = self.values[part].astype(np.float64)
            reach = np.maximum(self.deviations[part].astype(np.float64), _LEAST) * self.distance
            low = np.ceil((units - reach) * self.ladder.unit).clip(-top, top + 1)
            high = np.floor((units + reach) * self.ladder.unit).clip(-top - 1, top) + 1
            first, end = below[low.astype(np.int64) + top], below[high.astype(np.int64) + top]
            tiny = np.abs(units) * self.ladder.unit < 1
            first[tiny] = np.minimum(first[tiny], zero)
            end[tiny] = np.maximum(end[tiny], zero + 1)
            pairs[part] = np.where(end > first, first * width + end, 0)
        runs, group = _unique_pairs(pairs, width**2)
        sizes = np.bincount(group, minlength=len(runs))
        return group, runs // width, runs % width, sizes

    def _choose(
        self, starts: Ints, ends: Ints, sizes: Ints, left: int
    ) -> tuple[Small, list[tuple[int, int]]]:
        """Return the pick of each group, or -1; and (code, weights to take) of each pick."""
        owner = np.full(len(starts), -1, np.int32)
        zero = int(np.searchsorted(self.codes, 0))
        is_known = np.isin(self.codes, list(self.known))
        chosen: list[tuple[int, int]] = []
        alive = ends > starts
        while left > 0:
            steps = np.bincount(starts[alive], sizes[alive], len(self.codes) + 1)
            steps -= np.bincount(ends[alive], sizes[alive], len(self.codes) + 1)
            counts = np.rint(np.cumsum(steps)[:-1]).astype(np.int64)
            most = self.ladder.most
            if most is not None and int(is_known.sum()) >= most:
                counts[~is_known] = 0
            best = int(counts.argmax())
            if counts[zero] and counts[zero] * (1 + self.ladder.prefer_zero) >= counts[best]:
                best = zero if self.ladder.prefer_zero else best
            if counts[best] == 0:
                break
            members = alive & (starts <= best) & (best < ends)
            owner[members] = len(chosen)
            chosen.append((int(self.codes[best]), min(left, int(counts[best]))))
            left -= chosen[-1][1]
            alive &= ~members
            is_known[best] = True
        return owner, chosen

    def _release(self, taken: Small, code: int, count: int, number: int) -> None:
        """Free the members of pick ``number``, except for the ``count`` nearest."""
        members = np.flatnonzero(taken == number)
        values = self.values[members]
        kept = _smallest([self._distances(members, code), np.abs(values)], count)
        taken[members] = -1
        taken[members[kept]] = number

    def _distances(self, members: Ints, codes: Ints | int) -> NDArray[np.float64]:
        """Return |c - v| / s of weights; 0 for weights next to zero that become 0."""
        values = self.values[members].astype(np.float64)
        scale = np.maximum(self.deviations[members].astype(np.float64), _LEAST)
        far: NDArray[np.float64] = np.abs(codes / self.ladder.unit - values) / scale
        far[(np.abs(values) * self.ladder.unit < 1) & (np.asarray(codes) == 0)] = 0
        return far

    def _make_picks(self, taken: Small, chosen: list[tuple[int, int]]) -> list[Pick]:
        """Return the picks with the statistics of their members."""
        totals = np.zeros((4, len(chosen)))
        codes = np.array([code for code, _ in chosen], np.int64)
        for start in range(0, len(taken), _CHUNK):
            members = start + np.flatnonzero(taken[start : start + _CHUNK] >= 0)
            number = taken[members]
            own = codes[number]
            far = self._distances(members, own)
            moved = self.values[members] - own / self.ladder.unit
            for row, weights in enumerate((far, moved, moved * moved)):
                totals[row] += np.bincount(number, weights, len(chosen))
            np.maximum.at(totals[3], number, far)
        picks = []
        for (code, count), (far, moved, square, furthest) in zip(chosen, totals.T, strict=True):
            deviation = max(0.0, square / count - (moved / count) ** 2) ** 0.5
            statistics = (float(far / count), float(furthest), float(deviation))
            picks.append(Pick(self.order, self.distance, code, count, *statistics))
        return picks


def _unique_pairs(pairs: NDArray[Any], cells: int) -> tuple[Ints, Small]:
    """Return the distinct pairs, increasing, and the position of each weight's pair."""
    if cells > _CELLS:
        distinct, group = np.unique(pairs, return_inverse=True)
        return distinct.astype(np.int64), group.astype(np.int32)
    used = np.bincount(pairs, minlength=cells) > 0
    place = (np.cumsum(used) - 1).astype(np.int32)
    return np.flatnonzero(used), place[pairs]


def _smallest(keys: list[NDArray[Any]], count: int) -> Ints:
    """Return the positions of the ``count`` smallest, by each key in turn, then by position."""
    if not keys:
        return np.arange(count)
    key = keys[0]
    if count >= len(key):
        return np.arange(len(key))
    edge = np.partition(key, count)[count] if count else key.min()
    inside = np.flatnonzero(key < edge)
    ties = np.flatnonzero(key == edge)
    rest = _smallest([other[ties] for other in keys[1:]], count - len(inside))
    return np.concatenate([inside, ties[rest]])
