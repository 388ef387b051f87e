"""The rounds of PWFN, on the weights of a network flattened into one vector."""

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

__all__ = [
    "FixingState",
    "Round",
    "count_codes",
    "finest_exponent",
    "fix_more",
    "quota",
    "round_record",
]

_FINEST = 7  # as in the paper
_LIMIT = 24
_QUARTER = 0.25  # largest allowed size of the finest value, relative to a layer's root mean square


@dataclass(frozen=True)
class Round:
    """The record of one round, for logs.

    Attributes:
        progress: finished share of the training.
        fraction: share of all weights to be fixed after this round.
        fixed: number of weights that are fixed.
        values: number of different values among them.
        entropy: entropy of their values, in bits.
        zeros: share of them that is zero.
        deviation: mean deviation of the weights that were free before, without biases.
        picks: the chosen values, in order.
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
        """Build a record from the values returned by :meth:`to_dict`."""
        return cls(**{**data, "picks": tuple(Pick(**pick) for pick in data["picks"])})


@dataclass(frozen=True, eq=False)
class FixingState:
    """All weights of a network in one vector.

    Attributes:
        values: (n,) float32; multiples of ``2**-finest`` where fixed.
        deviations: (n,) float32.
        fixed: (n,) bool.
        pruned: (n,) bool, fixed at zero permanently.
    """

    values: NDArray[np.float32]
    deviations: NDArray[np.float32]
    fixed: NDArray[np.bool_]
    pruned: NDArray[np.bool_]


def fix_more(
    state: FixingState, fraction: float, ladder: Ladder, *, lock: bool
) -> tuple[FixingState, Clustering]:
    """Fix weights until ``fraction`` of all are fixed.

    With ``lock``, fixed weights stay fixed; without, all are clustered again and some may become
    free. Weights get the deviation of the value that they are fixed to.

    Returns:
        The new state, and the clustering of the weights that could move.
    """
    held = state.pruned | state.fixed if lock else state.pruned
    values, deviations = state.values.copy(), state.deviations.copy()
    values[state.pruned], deviations[state.pruned] = 0, 0
    free = np.flatnonzero(~held)
    count = min(len(free), max(0, quota(fraction, len(values)) - int(held.sum())))
    used = None if ladder.most is None else count_codes(values[held], ladder.unit)[0]
    clustering = cluster(values[free], deviations[free], count, ladder, used)
    chosen = clustering.pick >= 0
    moved = free[chosen]
    values[moved] = clustering.codes()[chosen] / ladder.unit
    deviations[moved] = clustering.deviations()[chosen]
    fixed = held.copy()
    fixed[moved] = True
    return FixingState(values, deviations, fixed, state.pruned), clustering


def quota(fraction: float, count: int) -> int:
    """Return a fraction of ``count``, rounded up."""
    return min(count, math.ceil(round(fraction * count, 6)))


def count_codes(
    values: NDArray[np.float32], unit: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]:
    """Return the codes in ascending order, the count of each, and the index of each value.

    Linear in time, where np.unique would sort.

    Args:
        values: (n,) codes divided by ``unit``.
        unit: the code of the value 1.
    """
    codes = np.rint(values * np.float32(unit)).astype(np.int32)
    low = int(codes.min()) if codes.size else 0
    counts = np.bincount(codes - low)
    place = (np.cumsum(counts > 0) - 1).astype(np.int32)
    known = np.flatnonzero(counts)
    return known + low, counts[known], place[codes - low]


def round_record(
    state: FixingState,
    clustering: Clustering,
    progress: float,
    fraction: float,
    *,
    deviation: float,
    unit: float,
) -> Round:
    """Build the record of a round that resulted in ``state``."""
    codes, counts, _ = count_codes(state.values[state.fixed], unit)
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
        picks=clustering.picks,
    )


def finest_exponent(tensors: Sequence[tuple[str, NDArray[np.float32]]], given: int | None) -> int:
    """Return the exponent of the finest value, or refuse one that would set a layer to zero.

    Args:
        tensors: name and values of each weight of two or more dimensions.
        given: the requested exponent; None for one that suits the smallest layer.

    Raises:
        ConfigError: more than 99% of a layer would become zero.
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
                f"weight {name!r}: {below:.1%} of it is below the finest value 2**-{given} and "
                f"would become zero; its root mean square is {sizes[name]:.2g}. Use a larger "
                "'finest', or None."
            )
    return given


def _root_mean_square(values: NDArray[np.float32]) -> float:
    nonzero = values[values != 0].astype(np.float64)
    return math.sqrt(float((nonzero * nonzero).mean())) if nonzero.size else 0.0
