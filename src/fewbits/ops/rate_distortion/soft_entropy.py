"""Differentiable entropy of order n: soft indices, their joint histogram, and its gradient.

Each weight splits a unit of mass linearly between the two levels around it. Disjoint runs of n
weights multiply their masses into a histogram of n-tuples, whose entropy is the rate of an ideal
coder of tuples (HEMP, Tartaglione et al. 2021, section 3). Only the 2^n cells around a tuple are
touched, so except for the table itself neither time nor memory depend on the number of levels.
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

_CHUNK = 1 << 18  # tuples processed at a time
_SPARSE = 10  # tuples per cell below which the histogram is mostly noise
_LARGEST_TABLE = 1 << 24


@dataclass(frozen=True, eq=False)
class Brackets:
    """Values located between levels.

    Attributes:
        lower: (values,) int64 position of the level below.
        fraction: (values,) in [0, 1], the share of the level above.
        width: (values,) > 0, the distance between the two.
        levels: number of levels.
        zero: position of zero, at which groups are aligned in a shared histogram.
    """

    lower: Tensor
    fraction: Tensor
    width: Tensor
    levels: int
    zero: int = 0


def soft_brackets(values: Tensor, levels: Tensor, zero: int = 0) -> Brackets:
    """Find the two levels around each value; values outside are clamped to the outermost level.

    Args:
        values: any shape, taken in row order.
        levels: (levels,) increasing, in the dtype of ``values``.
        zero: see :class:`Brackets`.

    Differentiable in ``values`` between the outermost levels. Cost: a binary search per value.
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
    """Probabilities of n-tuples of indices.

    Attributes:
        chances: (cells,) * order, float64; sums to 1 (all zero if there are no tuples).
        tuples: number of tuples counted.
        shift: position of zero along each axis.
    """

    chances: Tensor
    tuples: int
    shift: int

    @property
    def order(self) -> int:
        """Number of weights in a tuple."""
        return self.chances.dim()

    def entropy(self) -> Tensor:
        """Return bits per weight, a float64 scalar: the entropy of a tuple over its length."""
        total: Tensor = torch.special.entr(self.chances).sum() / (math.log(2) * self.order)
        return total

    def smoothed(self, tuples: float = 0.5) -> Histogram:
        """Return the histogram with ``tuples`` pseudo-counts added to every cell."""
        counts = self.chances * self.tuples + tuples
        return Histogram(counts / counts.sum(), self.tuples, self.shift)

    def lengths(self) -> Tensor:
        """Return the bits of each tuple, -log2 of its probability, in the shape of ``chances``."""
        return -self.chances.clamp_min(1e-12).log2()


def largest_order(levels: int, weights: int) -> int:
    """Return the largest order whose table has at least ten tuples per cell; at least 1.

    With fewer, the plug-in entropy is too low by about (levels^n - 1) / (2 weights ln 2) bits per
    weight, and minimizing it fits noise.
    """
    fitting = [n for n in ORDERS if levels**n * _SPARSE <= weights // n]
    return max(fitting, default=1)


def joint_histogram(groups: Sequence[Brackets], order: int) -> Histogram:
    """Count soft n-tuples over all ``groups``, aligned at their zeros.

    Tuples do not cross groups; the last ``values % order`` values of each are left out. Masses add
    up in float64. Autograd works through ``fraction``. Cost: 2^order scattered additions per tuple,
    and a table of levels^order cells.

    Raises:
        ConfigError: the order is not in ``ORDERS``, or the table has over 2^24 cells.
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

    ``1/(n M width_j) * sum over the partners' corners of their masses times log2 of the probability
    of the lower over that of the upper cell``: every weight moves to the more likely of its two
    levels. Zero for values outside of tuples. Computed in float64, returned in the dtype of the
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
    """Return the derivative of a tuple's mean bits in one fraction; the others interpolate."""
    for k in reversed(range(bits.dim() - 1)):
        low, high = bits.unbind(k)
        bits = high - low if k == kept else torch.lerp(low, high, fraction[:, k])
    return bits


def _tuples(group: Brackets, order: int, shift: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (lower, fraction) as (tuples, order), a bounded number of tuples at a time."""
    whole = group.fraction.numel() // order * order
    step = _CHUNK * order
    for start in range(0, whole, step):
        part = slice(start, min(start + step, whole))
        lower = group.lower[part].reshape(-1, order) + (shift - group.zero)
        yield lower, group.fraction[part].reshape(-1, order)


def _cell(lower: Tensor, corner: Sequence[int], base: int) -> Tensor:
    """Return the flat cell of a corner; clamped beyond the last level, where there is no mass."""
    cell = torch.zeros_like(lower[:, 0])
    for k, up in enumerate(corner):
        cell = cell * base + (lower[:, k] + up).clamp_max(base - 1)
    return cell


def _share(fraction: Tensor, corner: Sequence[int]) -> Tensor:
    share = torch.ones_like(fraction[:, 0], dtype=torch.float64)
    for k, up in enumerate(corner):
        share = share * (fraction[:, k] if up else 1 - fraction[:, k])
    return share
