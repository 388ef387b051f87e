"""Differentiable entropy of order n: soft indices, their joint histogram, and its gradient.

Each weight shares a unit of mass between the two levels around it, linearly in distance. Disjoint
runs of n weights multiply their masses into a histogram of n-tuples, whose entropy is what a coder
of tuples would pay (HEMP, Tartaglione et al. 2021, section 3). Only the 2^n cells around a tuple
are touched, so neither time nor memory depend on the number of levels but for the table itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from ...errors import require

__all__ = [
    "ORDERS",
    "Brackets",
    "Histogram",
    "entropy_gradient",
    "joint_histogram",
    "largest_order",
    "soft_brackets",
]

ORDERS = (1, 2, 3, 4)

_CHUNK = 1 << 18  # tuples at a time
_SPARSE = 10  # tuples for each cell, below which the histogram tells of noise
_LARGEST_TABLE = 1 << 24


@dataclass(frozen=True, eq=False)
class Brackets:
    """Values between levels.

    Attributes:
        lower: (values,) int64 position of the level below.
        fraction: (values,) in [0, 1], the share of the level above.
        width: (values,) > 0, the distance between the two.
        levels: how many levels there are.
        zero: position that is called zero in a histogram shared with others.
    """

    lower: Tensor
    fraction: Tensor
    width: Tensor
    levels: int
    zero: int = 0


def soft_brackets(values: Tensor, levels: Tensor, zero: int = 0) -> Brackets:
    """Find the two levels around each value; those outside count as on the outermost level.

    Args:
        values: any shape, taken in row order.
        levels: (levels,) increasing, in the dtype of ``values``.
        zero: see :class:`Brackets`.

    Differentiable by autograd in ``values`` inside the levels. Cost: one binary search for each.
    """
    flat, count = values.reshape(-1), len(levels)
    if count == 1:
        lower = torch.zeros(flat.shape, dtype=torch.int64, device=flat.device)
        return Brackets(lower, flat * 0, torch.ones_like(flat), 1, zero)
    flat = flat.clamp(levels[0], levels[-1])
    lower = torch.searchsorted(levels, flat.detach(), right=True).sub_(1).clamp_(0, count - 2)
    below = levels[lower]
    width = levels[lower + 1] - below
    return Brackets(lower, (flat - below) / width, width, count, zero)


@dataclass(frozen=True, eq=False)
class Histogram:
    """Chances of n-tuples of indices.

    Attributes:
        chances: (cells,) * order, float64; they sum to 1 (all zero where there is no tuple).
        tuples: how many were counted.
        shift: the place in a row of the table where every group has its zero.
    """

    chances: Tensor
    tuples: int
    shift: int

    @property
    def order(self) -> int:
        """Weights in a tuple."""
        return self.chances.dim()

    def entropy(self) -> Tensor:
        """Return the bits per weight, a float64 scalar: the entropy of a tuple over its length."""
        total: Tensor = torch.special.entr(self.chances).sum() / (math.log(2) * self.order)
        return total

    def smoothed(self, tuples: float = 0.5) -> Histogram:
        """Return it with so many tuples more in every cell, so that none is out of reach."""
        counts = self.chances * self.tuples + tuples
        return Histogram(counts / counts.sum(), self.tuples, self.shift)

    def lengths(self) -> Tensor:
        """Return the bits of each tuple, -log2 of its chance, in the shape of ``chances``."""
        return -self.chances.clamp_min(1e-12).log2()


def largest_order(levels: int, weights: int) -> int:
    """Return the largest order whose table has ten tuples for each cell; at least 1.

    With fewer, the plug-in entropy is too low by about (levels^n - 1) / (2 weights ln 2) bits per
    weight, and what is minimized is noise.
    """
    fitting = [n for n in ORDERS if levels**n * _SPARSE <= weights // n]
    return max(fitting, default=1)


def joint_histogram(groups: Sequence[Brackets], order: int) -> Histogram:
    """Count soft n-tuples over all ``groups``, whose zeros are put in one place.

    A tuple never straddles two groups; the last ``values % order`` of each are left out. Masses
    add up in float64. Autograd works through ``fraction``. Cost: 2^order scattered additions for
    each tuple, and a table of levels^order cells.

    Raises:
        ConfigError: the order is none of ``ORDERS``, or the table has over 2^24 cells.
    """
    require(order in ORDERS, "order", f"one of {ORDERS}", order)
    shift = max((group.zero for group in groups), default=0)
    base = shift + max((group.levels - group.zero for group in groups), default=1)
    cells = base**order
    require(cells <= _LARGEST_TABLE, "order", f"such that {base}**order <= 2**24", order)
    device = groups[0].fraction.device if groups else None
    mass = torch.zeros(cells, dtype=torch.float64, device=device)
    tuples = 0
    for group in groups:
        tuples += group.fraction.numel() // order
        for lower, fraction in _tuples(group, order, shift):
            for corner in product((0, 1), repeat=order):
                mass = mass.index_add(0, _cell(lower, corner, base), _share(fraction, corner))
    return Histogram((mass / max(1, tuples)).reshape((base,) * order), tuples, shift)


def entropy_gradient(groups: Sequence[Brackets], histogram: Histogram) -> list[Tensor]:
    """Return the exact gradient of ``histogram.entropy()`` in the values of each group.

    ``1/(n M width_j) * sum over the partners' corners of their masses times log2 of the chance of
    the lower over that of the upper cell``: every weight goes to the more likely of
    its two levels. Zero for the values that no tuple holds. float64 inside, then the dtype of the
    values. Cost: as the histogram.
    """
    lengths = histogram.lengths()
    return [_group_gradient(group, histogram, lengths) for group in groups]


def _group_gradient(group: Brackets, histogram: Histogram, lengths: Tensor) -> Tensor:
    order, base, flat = histogram.order, len(lengths), lengths.reshape(-1)
    gradient = torch.zeros_like(group.fraction)
    done = 0
    corners = list(product((0, 1), repeat=order))
    for lower, fraction in _tuples(group, order, histogram.shift):
        rows = len(lower)
        bits = torch.stack([flat[_cell(lower, corner, base)] for corner in corners])
        bits = bits.reshape(*[2] * order, rows)
        parts = [_along(bits, fraction.double(), k) for k in range(order)]
        gradient[done : done + rows * order] = torch.stack(parts, 1).reshape(-1).to(gradient)
        done += rows * order
    if group.levels == 1:
        return gradient.zero_()
    return gradient / (group.width * (order * max(1, histogram.tuples)))


def _along(bits: Tensor, fraction: Tensor, kept: int) -> Tensor:
    """Return how the mean bits of a tuple change with one fraction: the others interpolate."""
    for k in reversed(range(bits.dim() - 1)):
        low, high = bits.unbind(k)
        bits = high - low if k == kept else torch.lerp(low, high, fraction[:, k])
    return bits


def _tuples(group: Brackets, order: int, shift: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (lower, fraction) as (tuples, order), a bounded number at a time."""
    whole = group.fraction.numel() // order * order
    step = _CHUNK * order
    for start in range(0, whole, step):
        part = slice(start, min(start + step, whole))
        lower = group.lower[part].reshape(-1, order) + (shift - group.zero)
        yield lower, group.fraction[part].reshape(-1, order)


def _cell(lower: Tensor, corner: Sequence[int], base: int) -> Tensor:
    """Return the flat cell of a corner; beyond the last level, where no mass goes, the last."""
    cell = torch.zeros_like(lower[:, 0])
    for k, up in enumerate(corner):
        cell = cell * base + (lower[:, k] + up).clamp_max(base - 1)
    return cell


def _share(fraction: Tensor, corner: Sequence[int]) -> Tensor:
    share = torch.ones_like(fraction[:, 0], dtype=torch.float64)
    for k, up in enumerate(corner):
        share = share * (fraction[:, k] if up else 1 - fraction[:, k])
    return share
