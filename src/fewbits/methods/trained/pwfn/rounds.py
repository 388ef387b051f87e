"""The rounds of PWFN on the weights of a network, seen as one long vector."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....coded import entropy_of
from ....errors import ConfigError
from ....ops.weight_fixing import Clustering, Ladder, Pick, cluster

__all__ = ["Fixed", "Round", "counted", "finest_of", "fix_more", "quota", "told"]

_FINEST = 7  # the paper's
_LIMIT = 24
_QUARTER = 0.25  # of a layer's root mean square: what the finest value may be


@dataclass(frozen=True)
class Round:
    """What one round did, for logs.

    Attributes:
        progress: share of the training that was done.
        fraction: of all weights, that was to be fixed.
        fixed: weights that are fixed now.
        values: different ones among them.
        entropy: bits, of their values.
        zeros: share of them that is zero.
        deviation: mean of the weights that were free before, biases left out.
        picks: in order of choice.
    """

    progress: float
    fraction: float
    fixed: int
    values: int
    entropy: float
    zeros: float
    deviation: float
    picks: tuple[Pick, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self) | {"picks": [asdict(pick) for pick in self.picks]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Round:
        """Return what :meth:`to_dict` described."""
        return cls(**{**data, "picks": tuple(Pick(**pick) for pick in data["picks"])})


@dataclass(frozen=True, eq=False)
class Fixed:
    """The weights of a network in a row.

    Attributes:
        values: (n,) float32, codes times ``2**-finest`` where fixed.
        deviations: (n,) float32.
        fixed: (n,) bool.
        dead: (n,) bool: pruned, so fixed at zero for good.
    """

    values: NDArray[np.float32]
    deviations: NDArray[np.float32]
    fixed: NDArray[np.bool_]
    dead: NDArray[np.bool_]


def fix_more(
    state: Fixed, fraction: float, ladder: Ladder, *, lock: bool
) -> tuple[Fixed, Clustering]:
    """Fix weights until ``fraction`` of all are fixed.

    With ``lock`` those that are fixed stay; without, all begin anew, and some may become free.
    Members of a pick get its deviation.

    Returns:
        The new state, and the clustering of those that could move.
    """
    held = state.dead | state.fixed if lock else state.dead
    values, deviations = state.values.copy(), state.deviations.copy()
    values[state.dead], deviations[state.dead] = 0, 0
    free = np.flatnonzero(~held)
    count = min(len(free), max(0, quota(fraction, len(values)) - int(held.sum())))
    used = None if ladder.most is None else counted(values[held], ladder.unit)[0]
    found = cluster(values[free], deviations[free], count, ladder, used)
    chosen = found.pick >= 0
    moved = free[chosen]
    values[moved] = found.codes()[chosen] / ladder.unit
    deviations[moved] = found.deviations()[chosen]
    fixed = held.copy()
    fixed[moved] = True
    return Fixed(values, deviations, fixed, state.dead), found


def quota(fraction: float, count: int) -> int:
    """Return how many of ``count`` weights are a fraction of them, rounded up."""
    return min(count, math.ceil(round(fraction * count, 6)))


def counted(
    values: NDArray[np.float32], unit: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]:
    """Return increasing codes, how often each occurs, and the place of each value among them.

    Args:
        values: (n,) codes over ``unit``.
        unit: codes to a value of 1.

    Cost: counting, where np.unique would sort.
    """
    codes = np.rint(values * np.float32(unit)).astype(np.int32)
    low = int(codes.min()) if codes.size else 0
    counts = np.bincount(codes - low)
    place = (np.cumsum(counts > 0) - 1).astype(np.int32)
    known = np.flatnonzero(counts)
    return known + low, counts[known], place[codes - low]


def told(
    state: Fixed,
    found: Clustering,
    progress: float,
    fraction: float,
    *,
    deviation: float,
    unit: float,
) -> Round:
    """Return the record of a round that led to ``state``."""
    codes, counts, _ = counted(state.values[state.fixed], unit)
    fixed = int(state.fixed.sum())
    zeros = int(counts[codes == 0].sum()) / max(1, fixed)
    return Round(
        progress=progress,
        fraction=fraction,
        fixed=fixed,
        values=len(counts),
        entropy=entropy_of(counts),
        zeros=zeros,
        deviation=deviation,
        picks=found.picks,
    )


def finest_of(tensors: Sequence[tuple[str, NDArray[np.float32]]], given: int | None) -> int:
    """Return the exponent of the finest value, and refuse one that would zero a layer.

    Args:
        tensors: name and values of each weight of two or more dimensions.
        given: the exponent asked for; None for one that suits the smallest layer.

    Raises:
        ConfigError: 99 % of a layer would become zero.
    """
    sizes = {name: _root_mean_square(values) for name, values in tensors}
    sizes = {name: size for name, size in sizes.items() if size > 0}
    if given is None:
        smallest = min(sizes.values(), default=1.0)
        return min(_LIMIT, max(_FINEST, math.ceil(-math.log2(_QUARTER * smallest))))
    for name, values in tensors:
        below = float((np.abs(values) < 2.0**-given).mean()) if values.size else 0.0
        if below > 0.99 and float((values == 0).mean()) <= 0.99:
            raise ConfigError(
                f"weight {name!r}: {below:.1%} of it are below the finest value 2**-{given}, and "
                f"would become zero; its root mean square is {sizes[name]:.2g}. Take a larger "
                "finest, or None."
            )
    return given


def _root_mean_square(values: NDArray[np.float32]) -> float:
    some = values[values != 0].astype(np.float64)
    return math.sqrt(float((some * some).mean())) if some.size else 0.0
