"""Which rows of the float and of the quantized network belong together, if any do.

Error feedback compares what a layer gets in both networks, row by row. Rows are paired by position,
which is right as long as both networks put the same sample, token or pixel there. Where order or
number follows from values (tokens sorted by a score, a choice of experts, nearest neighbours) a
small change of the values moves rows, and what is compared belongs to different things. What runs
before the first such choice is paired without asking (:mod:`.choices`); of what runs behind it, the
rows themselves are looked at here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..layers.rows import Rows
from ..network.batches import Call

__all__ = ["Pairing", "alike", "sampled", "unified"]

_BLOCK = 256  # rows that are compared with each other: partners that moved are near, as a rule
_CLOSER = 4.0  # squared distance: a partner elsewhere is that much closer than the one in place
_FAR = 0.05  # of the other rows are nearer than what is at a row's own position
_SMALL, _TINY = 1e-2, 1e-30  # of the typical deviation: below it a feature is next to constant
_MOVED = 0.01  # of the rows: fewer could be chance
_DRAWS = 3  # of noise as large as what is seen, to know what chance gives
_ROUNDING = 1e-9  # of the mean square: float32 arithmetic makes about 1e-13
_ENOUGH = 24  # rows whose mean rank is no chance
_SAMPLED = 4096  # values of a tensor that are compared with those of another pass
_REPEATED = 2e-2  # relative difference: 16 bits added in another order differ by less
_UNRELATED = 0.3  # mean rank; 0.5 where a row's partner is no closer than any other row

_ORDER = "their order depends on values"
_STRANGE = "they have too little in common with the float network's to be paired"


class Pairing:
    """Whether the rows of one weight are paired by position, looked at call by call.

    Rows of small calls are put together until there are enough of them to tell.
    """

    def __init__(self) -> None:
        self._held: list[tuple[Tensor, Tensor]] = []

    def look(
        self, reference: Rows, quantized: Rows, seed: int, *, moved_before: bool = False
    ) -> str:
        """Return why the rows of a call cannot be paired; "" where they can, or it is too early.

        Args:
            reference: rows of a call in the float network.
            quantized: rows of the same call in the quantized network.
            seed: places the rows that are looked at, up to 256 that follow each other.
            moved_before: rows of an earlier layer had other places: a weaker sign is enough.

        Cost: about ``3 * 256^2 * features`` products for every 256 rows, or large call.
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
        """Return what the rows tell that were put together since they were last looked at."""
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
    """Return why rows of X (rows, features) and of X~ cannot be paired by position, or "".

    Two signs. More rows have moved than noise alone would move: noise is what is seen, put on other
    rows. Or rows are no nearer to the one at their position than to any other.
    """
    rows = len(x)
    if rows < 2:
        return ""
    x, y = x - x.mean(0), y - y.mean(0)
    deviation = x.square().mean(0).sqrt()  # a few features far larger than all others tell little
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
    """Return how many rows have a partner elsewhere, as has what is in their place.

    A partner is far nearer than what either has at its own position, and each other's nearest (of
    rows that are alike, each is). Noise moves rows away from their partners, but seldom onto other
    rows' places in a circle.

    Args:
        distances: from rows of X to rows of X~, squared.
        far: share of the other rows that are nearer than the one at a row's own position, above
            which a row may count as moved.
    """
    own = distances.diagonal()
    nearest = (distances <= distances.amin(1, keepdim=True)) & (distances <= distances.amin(0))
    strange = _rank(distances) > far
    apart = _CLOSER * distances < torch.minimum(own[:, None], own)
    partners = nearest & apart & strange[:, None] & strange
    return int((partners.any(0) & partners.any(1)).sum())


def _rank(distances: Tensor) -> Tensor:
    """Return which share of the other rows is nearer than the one at a row's own position."""
    own = distances.diagonal()
    return (distances < own[:, None]).double().sum(1) / (len(own) - 1)


def _distances(x: Tensor, y: Tensor) -> Tensor:
    """Return squared distances, those of rows at one position a little less: rows alike stay."""
    distances = torch.cdist(x, y).square()
    distances.diagonal().sub_(_ROUNDING * x.square().sum(1).mean())
    return distances


def sampled(call: Call) -> list[Tensor]:
    """Return some values of every tensor that a call is made with, evenly spread, float64."""
    given = [value for value in (*call.args, *call.kwargs.values()) if isinstance(value, Tensor)]
    kept = []
    for value in given:
        if value.layout == torch.strided and not (value.is_nested or value.is_complex()):
            flat = value.detach().reshape(-1)
            part = flat[:: max(1, len(flat) // _SAMPLED)]
            kept.append(part.to("cpu", torch.float64, copy=True))
    return kept


def alike(before: list[Tensor], after: list[Tensor]) -> bool:
    """Tell whether two samples have equal values, but for rounding in another order."""
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
