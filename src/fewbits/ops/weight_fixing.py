"""Which weights move to which value: the greedy choice of PWFN (Subia-Waud, Dasmahapatra 2023).

On one *level*, weight i may move to a code c where ``|c - v_i| <= distance * s_i``. The code that
the most weights may move to takes them all, then the next one, until none is left that any weight
may move to. Then the next level allows sums of one more power of two, or twice the distance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import ModelError, require
from .fixing_level import Floats, Ints, Ladder, Level, Pick, Small
from .powers_of_two import MAX_CODE

__all__ = ["Clustering", "Ladder", "Pick", "cluster"]


@dataclass(frozen=True, eq=False)
class Clustering:
    """Where ``count`` weights went.

    Attributes:
        pick: (n,) int32 position in ``picks``, -1 for weights that stay free.
        picks: in the order of choice; a code may come again on a later level.
    """

    pick: Small
    picks: tuple[Pick, ...]

    def codes(self) -> Small:
        """Return the (n,) int32 codes; 0 for weights that stay free."""
        table = np.array([*(pick.code for pick in self.picks), 0], np.int32)
        codes: Small = table[self.pick]
        return codes

    def deviations(self) -> Floats:
        """Return the (n,) float32 deviations that weights share now; 0 for those that are free."""
        table = np.array([*(pick.deviation for pick in self.picks), 0], np.float32)
        deviations: Floats = table[self.pick]
        return deviations


def cluster(
    values: Floats, deviations: Floats, count: int, ladder: Ladder, used: Ints | None = None
) -> Clustering:
    """Move exactly ``count`` of the weights to values that many of them may move to.

    Deterministic. Where two codes take equally many, the lower one is chosen; where a code may
    take only some of those that could move, the nearest in deviations do, then the smallest, then
    the first.

    Args:
        values: (n,) float32 weights.
        deviations: (n,) float32, how far a weight may move; counted as at least 2**-20.
        count: of weights to move, at most n.
        ladder: what they may move to.
        used: codes in use from earlier rounds; of interest where ``ladder.most`` is set.

    Raises:
        ModelError: NaN or infinity, more to move than there are, or weights too large for codes.

    Cost: a few passes over the weights that are still free for each level; about 40 bytes a weight.
    """
    _check(values, deviations, count, ladder)
    pick = np.full(len(values), -1, np.int32)
    picks: list[Pick] = []
    known = {0} if used is None else {0, *map(int, used)}
    free: Ints | None = None  # all of them
    for order, distance in ladder.levels():
        left = count - sum(p.count for p in picks)
        if left == 0:
            break
        some = (values, deviations) if free is None else (values[free], deviations[free])
        level = Level(*some, order, distance, ladder, frozenset(known))
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
            f"{count - sum(p.count for p in picks)} weights found no value within "
            f"{distance:g} deviations of theirs. Look at their deviations."
        )
    return Clustering(pick, tuple(picks))


def _check(values: Floats, deviations: Floats, count: int, ladder: Ladder) -> None:
    for name, array in (("weights", values), ("deviations", deviations)):
        bad = len(array) - int(np.isfinite(array).sum())
        if bad:
            raise ModelError(
                f"{bad} {name} of {len(array)} are NaN or infinite; none can be fixed."
            )
    if not 0 <= count <= len(values):
        raise ModelError(f"{count} weights are to be fixed, and only {len(values)} are free.")
    require(ladder.terms >= 1, "terms", "an integer >= 1", ladder.terms)
    top = float(np.abs(values).max()) * ladder.unit if len(values) else 0.0
    if top > MAX_CODE:
        raise ModelError(
            f"the largest weight is {top:g} times the finest value 2**-{ladder.finest}; at most "
            f"{MAX_CODE} is possible. Choose a coarser one (finest), or keep the layer."
        )
