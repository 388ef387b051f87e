"""Pairing rows of the float network with rows of the quantized one, if they correspond.

Error feedback compares a layer's inputs in both networks, row by row. Rows are paired by position,
which is right as long as both networks put the same sample, token or pixel there. If order or
number depend on values (tokens sorted by a score, a choice of experts, nearest neighbours), a small
change of values moves rows, and unrelated things would be compared. Rows computed before the first
such choice are paired without a check (:mod:`..graph.data_dependence`); for those after it, the
rows themselves are examined here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..layers.rows import Rows
from ..network.batches import Call

__all__ = ["Pairing", "alike", "sampled", "unified"]

_BLOCK = 256  # rows compared with each other; rows that moved are usually near each other
_CLOSER = 4.0  # how much closer a partner elsewhere must be, in squared distance
_FAR = 0.05  # share of other rows that must be nearer than the one at a row's own position
_SMALL, _TINY = 1e-2, 1e-30  # features of a smaller relative deviation count as nearly constant
_MOVED = 0.01  # share of the rows; fewer may have moved by chance
_DRAWS = 3  # draws of noise as large as that observed, to estimate chance
_ROUNDING = 1e-9  # relative to the mean square; float32 rounding is about 1e-13
_ENOUGH = 24  # rows needed for a reliable mean rank
_SAMPLED = 4096  # values of a tensor that are compared with those of another pass
_REPEATED = 2e-2  # relative difference; 16-bit sums in another order differ by less
_UNRELATED = 0.3  # mean rank; 0.5 if partners are no closer than random rows

_ORDER = "their order depends on values"
_STRANGE = "they have too little in common with the float network's to be paired"


class Pairing:
    """Checks call by call whether the rows of one weight can be paired by position.

    Rows of small calls are collected until there are enough to tell.
    """

    def __init__(self) -> None:
        self._held: list[tuple[Tensor, Tensor]] = []

    def look(
        self, reference: Rows, quantized: Rows, seed: int, *, moved_before: bool = False
    ) -> str:
        """Return why the rows of a call cannot be paired; "" if they can or it is not yet known.

        Args:
            reference: rows of a call in the float network.
            quantized: rows of the same call in the quantized network.
            seed: seed of the position of the examined rows, up to 256 consecutive ones.
            moved_before: rows of an earlier layer moved, so weaker evidence is enough.

        Cost: about ``3 * 256^2 * features`` products per 256 rows or large call.
        """
        if reference.count != quantized.count:
            return (
                f"their number depends on values ({reference.count} in the float network, "
                f"{quantized.count} in the quantized one)"
            )
        ours, theirs = reference.points or reference, quantized.points or quantized
        if ours.count != theirs.count:
            return "the positions of its inputs depend on values"
        picks = _block(ours.count, seed)
        self._held.append((_kept(ours.take(picks)), _kept(theirs.take(picks))))
        enough = sum(x.shape[1] for x, _ in self._held) >= _BLOCK
        return self.judge(moved_before=moved_before) if enough else ""

    def judge(self, *, moved_before: bool = False) -> str:
        """Return the verdict on the rows collected since the last one; "" if they can be paired."""
        held, self._held = self._held, []
        if not held:
            return ""
        far = 0.0 if moved_before else _FAR
        sides = (torch.cat(side, 1) for side in zip(*held, strict=True))
        causes = [_cause(x, y, far) for x, y in zip(*sides, strict=True)]
        return next(filter(None, causes), "")


def _kept(rows: Tensor) -> Tensor:
    return rows.cpu().double()


def _block(count: int, seed: int) -> Tensor:
    room = max(0, count - _BLOCK)
    start = int(torch.randint(room + 1, (), generator=torch.Generator().manual_seed(seed)))
    return torch.arange(start, min(count, start + _BLOCK))


def _cause(x: Tensor, y: Tensor, far: float) -> str:
    """Return why rows of X (rows, features) and X~ cannot be paired by position, or "".

    There are two signs: more rows have moved than noise alone would explain, where the noise is the
    observed difference assigned to other rows; or rows are no nearer to the one at their own
    position than to any other.
    """
    rows = len(x)
    if rows < 2:
        return ""
    x, y = x - x.mean(0), y - y.mean(0)
    deviation = x.square().mean(0).sqrt()  # normalize: a few huge features would dominate
    deviation = deviation.clamp_min(_SMALL * deviation.square().mean().sqrt() + _TINY)
    x, y = x / deviation, y / deviation
    distances = _distances(x, y)
    moved = _moved(distances, far)
    if moved >= max(2, round(_MOVED * rows)):
        chance = 0.0
        for draw in range(_DRAWS):
            order = torch.randperm(rows, generator=torch.Generator().manual_seed(draw))
            chance += _moved(_distances(x, x + (y - x)[order]), far) / _DRAWS
        if moved >= 2 * (chance + chance**0.5 + 1):
            return _ORDER
    apart = rows >= _ENOUGH and bool(_rank(distances).mean() >= _UNRELATED)
    return _STRANGE if apart else ""


def _moved(distances: Tensor, far: float) -> int:
    """Count the rows whose partner is elsewhere, while their own position holds another's.

    A partner is much nearer than what either has at its own position, and both are each other's
    nearest (if several rows are equal, each counts). Noise moves rows away from their partners, but
    rarely onto each other's positions in a cycle.

    Args:
        distances: squared distances from rows of X to rows of X~.
        far: share of the other rows that must be nearer than the one at a row's own position for
            the row to count as moved.
    """
    own = distances.diagonal()
    nearest = (distances <= distances.amin(1, keepdim=True)) & (distances <= distances.amin(0))
    strange = _rank(distances) > far
    apart = _CLOSER * distances < torch.minimum(own[:, None], own)
    partners = nearest & apart & strange[:, None] & strange
    return int((partners.any(0) & partners.any(1)).sum())


def _rank(distances: Tensor) -> Tensor:
    """Return the share of other rows that are nearer than the one at a row's own position."""
    own = distances.diagonal()
    return (distances < own[:, None]).double().sum(1) / (len(own) - 1)


def _distances(x: Tensor, y: Tensor) -> Tensor:
    """Return squared distances, slightly reduced at equal positions so that ties stay in place."""
    distances = torch.cdist(x, y).square()
    distances.diagonal().sub_(_ROUNDING * x.square().sum(1).mean())
    return distances


def sampled(call: Call) -> list[Tensor]:
    """Return evenly spread values of every tensor argument of a call, float64."""
    given = [value for value in (*call.args, *call.kwargs.values()) if isinstance(value, Tensor)]
    kept = []
    for value in given:
        if value.layout == torch.strided and not (value.is_nested or value.is_complex()):
            flat = value.detach().reshape(-1)
            part = flat[:: max(1, len(flat) // _SAMPLED)]
            kept.append(part.to("cpu", torch.float64, copy=True))
    return kept


def alike(before: list[Tensor], after: list[Tensor]) -> bool:
    """Return whether two samples have equal values, up to rounding in another order."""
    if [len(values) for values in before] != [len(values) for values in after]:
        return False
    pairs = zip(before, after, strict=True)
    return all(bool((a - b).norm() <= _REPEATED * a.norm()) or torch.equal(a, b) for a, b in pairs)


def unified(reference: Call, quantized: Call) -> Call:
    """Return ``quantized`` with the objects of ``reference`` wherever their values are equal."""
    if len(reference.args) != len(quantized.args) or list(reference.kwargs) != list(
        quantized.kwargs
    ):
        return quantized
    values = [*reference.args, *reference.kwargs.values()]
    others = [*quantized.args, *quantized.kwargs.values()]
    same = [_equal(a, b) for a, b in zip(values, others, strict=True)]
    if all(same):
        return reference
    merged = [a if equal else b for a, b, equal in zip(values, others, same, strict=True)]
    split = len(reference.args)
    return Call(tuple(merged[:split]), dict(zip(reference.kwargs, merged[split:], strict=True)))


def _equal(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        plain = a.layout == b.layout == torch.strided and not (a.is_nested or a.is_quantized)
        like = (a.dtype, a.device, a.shape) == (b.dtype, b.device, b.shape)
        return plain and like and torch.equal(a, b)
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(_equal(a[key], b[key]) for key in a)
    return isinstance(a, (bool, int, float, str)) and bool(a == b)
