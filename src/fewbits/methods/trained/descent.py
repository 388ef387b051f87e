"""The direction in which each weight lowers the entropy, and the level at which that ends.

The entropy of soft indices has a kink at every level. A weight on a level, as all are after a
compressed start, has a derivative on either side: it descends on the steeper of those sides on
which the entropy falls, and stays if there is none. One derivative for both sides would move all
zeros of a network the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...ops.rate_distortion.soft_entropy import Brackets, Histogram, entropy_gradient

__all__ = ["Descent", "descents"]

_NEAR = 1e-3  # share of the distance between two levels; closer, a weight is on its level


@dataclass(frozen=True, eq=False)
class Descent:
    """Where the entropy falls, for each weight of a tensor; all of shape (values,).

    Attributes:
        gradient: derivative of the entropy in the units of the weight; 0 where no side falls.
        width: distance between the two levels around the weight, on the side of its descent.
        goal: the level at which the descent ends.
    """

    gradient: Tensor
    width: Tensor
    goal: Tensor


def descents(
    groups: Sequence[Brackets], tables: Sequence[Tensor], histogram: Histogram
) -> list[Descent]:
    """Return the descent of the entropy of ``histogram`` from every weight.

    Args:
        groups: the weights between their levels.
        tables: the levels of each group, increasing.
        histogram: of all groups.

    Cost: that of the gradient, twice if any weight is on a level.
    """
    pairs = list(zip(groups, tables, strict=True))
    above = [_from(group, levels, 1) for group, levels in pairs]
    below = [_from(group, levels, 0) for group, levels in pairs]
    rising = entropy_gradient(above, histogram)
    alike = all(torch.equal(a.lower, b.lower) for a, b in zip(above, below, strict=True))
    falling = rising if alike else entropy_gradient(below, histogram)
    sides = zip(above, below, rising, falling, tables, strict=True)
    return [_steeper(*side) for side in sides]


def _from(group: Brackets, levels: Tensor, side: int) -> Brackets:
    """Return the weights that are on a level in the cell above (``side`` 1) or below (0) it."""
    if group.levels == 1:
        return group
    position = group.lower + (group.fraction > 0.5)
    on = (group.fraction - group.fraction.round()).abs() <= _NEAR
    lower = (position - 1 + side).clamp(0, group.levels - 2).where(on, group.lower)
    fraction = (position - lower).to(group.fraction).where(on, group.fraction)
    return replace(group, lower=lower, fraction=fraction, width=levels[lower + 1] - levels[lower])


def _steeper(
    above: Brackets, below: Brackets, rising: Tensor, falling: Tensor, levels: Tensor
) -> Descent:
    down, up = falling.clamp_min(0), (-rising).clamp_min(0)
    descends = down >= up
    upper = (above.lower + 1).clamp_max(len(levels) - 1)
    return Descent(
        gradient=down.where(descends, -up),
        width=below.width.where(descends, above.width),
        goal=levels[below.lower].where(descends, levels[upper]),
    )
