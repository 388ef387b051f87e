"""Which rows of the float and of the quantized network belong together, if any do.

Error feedback compares what a layer gets in both networks, row by row. Rows are paired by position,
which is right as long as both networks put the same sample, token or pixel there. Where order or
number follows from values (tokens sorted by a score, a choice of experts, nearest neighbours) a
small change of the values moves rows, and what is compared belongs to different things.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .rows import Rows
from .tasks import Call

__all__ = ["mispairing", "unified"]

_BLOCK = 256  # rows that are compared with each other: partners that moved are near, as a rule
_CLOSER = 4.0  # squared distance: a partner elsewhere is that much closer than the one in place
_FAR = 0.05  # of the other rows are nearer than what is at a row's own position
_CROWDED = 5.0  # dimensions: in fewer, rows of another sample are near by chance
_SMALL, _TINY = 1e-2, 1e-30  # of the typical deviation: below it a feature is next to constant
_MOVED = 0.01  # of the rows: fewer could be chance
_ROUNDING = 1e-9  # of the mean square: float32 arithmetic makes about 1e-13
_ENOUGH = 24  # rows whose mean rank is no chance
_UNRELATED = 0.3  # mean rank; 0.5 where a row's partner is no closer than any other row


def mispairing(reference: Rows, quantized: Rows, seed: int, *, moved_before: bool = False) -> str:
    """Return why the rows of two calls cannot be paired by position; "" where they can.

    Args:
        reference: rows of a call in the float network.
        quantized: rows of the same call in the quantized network.
        seed: places the rows that are looked at, up to 256 that follow each other.
        moved_before: rows of an earlier layer had other places, so that a weaker sign is enough.

    Cost: ``256^2 * features`` products.
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
    for x, y in zip(ours.take(picks), theirs.take(picks), strict=True):
        if _moved(x, y, 0.0 if moved_before else _FAR):
            return "their order depends on values"
    return ""


def _block(count: int, seed: int) -> Tensor:
    room = max(0, count - _BLOCK)
    start = int(torch.randint(room + 1, (), generator=torch.Generator().manual_seed(seed)))
    return torch.arange(start, min(count, start + _BLOCK))


def _moved(x: Tensor, y: Tensor, far: float) -> bool:
    """Tell whether rows of X have their partners in X~ elsewhere, or none that can be told.

    Two signs. Rows that a partner elsewhere is far nearer to than what is at their own position,
    and the same from the other side: what is at their position belongs elsewhere too. And rows that
    are no nearer to the one at their position than to any other. Noise as large as the signal gives
    neither: it moves rows away from their partners, but not onto other rows' places in a circle.

    Args:
        x: rows (rows, features) of the float network.
        y: rows of the quantized network.
        far: share of the other rows that are nearer than what is at a row's own position, before
            the row may count as moved.
    """
    x, y = (part.cpu().double() - part.cpu().double().mean(0) for part in (x, y))
    rows, places = len(x), torch.arange(len(x))
    if rows < 2:
        return False
    deviation = x.square().mean(0).sqrt()  # a few features far larger than all others tell little
    deviation = deviation.clamp_min(_SMALL * deviation.square().mean().sqrt() + _TINY)
    x, y = x / deviation, y / deviation
    distances = torch.cdist(x, y).square()
    own = distances.diagonal() - _ROUNDING * x.square().sum(1).mean()  # rows that are alike stay
    rank = (distances < own[:, None]).double().sum(1) / (rows - 1)
    nearest, back = distances.min(1), distances.argmin(0)
    there = nearest.indices
    strange = (_CLOSER * nearest.values < own) & (rank > far)
    gone = strange & strange[there] & (back[there] == places) & (there != places)
    gone &= _CLOSER * nearest.values < own[there]
    came = torch.zeros(rows, dtype=torch.bool)
    came[there[gone]] = True
    moved = int((gone & came).sum())
    if moved >= max(2, round(_MOVED * rows)) and _dimension(x) >= _CROWDED:
        return True
    return rows >= _ENOUGH and bool(rank.mean() >= _UNRELATED)


def _dimension(x: Tensor) -> float:
    """Return how many directions of equal strength would have the spread of the rows of X."""
    gram = x @ x.mT
    return float(gram.trace().square() / gram.square().sum().clamp_min(_TINY))


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
