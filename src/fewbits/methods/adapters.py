"""LoRA adapters: each product of two matrices, at an error of the product, in few bytes.

Only the product B A of a pair counts (Hu et al. 2022), and many pairs have the same one. So each
becomes U sqrt(S), sqrt(S) V of its singular value decomposition U S V. An error of column k of the
one half, or of row k of the other, is then multiplied by sqrt(S_k): steps in proportion to
1 / sqrt(S_k) spread the error evenly over all codes, and what is small against the step vanishes.
All pairs share one factor, which is searched.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod, sqrt

import torch
from torch import Tensor

from ..coded import GridTensor, Layout
from ..engine.layers.pack import to_torch
from ..ops.levels.grid import all_finite
from ..ops.low_rank import balanced, product_energy

__all__ = ["LowRankPair", "code_pairs", "pairs_of"]

_FIRST = re.compile(r"(.*\.)?lora_A((?:\.[^.]+)?\.weight)")
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_ROUNDS = 24  # of the search for the step: to a part in 2**20 of its range
_OCTAVES = 16.0


@dataclass(frozen=True, eq=False)
class LowRankPair:
    """Two matrices, and the decomposition of their product."""

    names: tuple[str, str]
    left: Tensor
    right: Tensor
    parts: tuple[Tensor, Tensor, Tensor]

    def coded(self, step: float) -> tuple[GridTensor, GridTensor]:
        """Return A and B on grids, given the step of the singular vectors times values."""
        u, s, v = self.parts
        root = s.clamp_min(torch.finfo(torch.float64).tiny).sqrt()
        steps = (step / root).bfloat16().double()  # so that two of its bytes are zero in the file
        found = []
        for values in (v * root[:, None], u.mT * root[:, None]):
            index = (values / steps[:, None]).round().clamp(-(2**23), 2**23)
            steps_used = torch.where(index.any(1), steps, 1.0)
            found.append((index.to(torch.int32).contiguous().numpy(), steps_used.float().numpy()))
        (first, one), (second, two) = found
        a, b = self.right, self.left
        turned = Layout((len(s), prod(b.shape) // len(s)), (1, 0))
        return (
            GridTensor(tuple(a.shape), _name(a), first, one),
            GridTensor(tuple(b.shape), _name(b), second, two, layout=turned),
        )

    def error(self, step: float) -> float:
        """Return the squared error of the product."""
        a, b = (to_torch(tensor).double() for tensor in self.coded(step))
        u, s, v = self.parts
        wide = torch.cat([u * s, -_rows(b)], 1), torch.cat([v, a.flatten(1)])
        return product_energy(*wide)


def code_pairs(pairs: list[LowRankPair], error: float) -> dict[str, GridTensor]:
    """Return the matrices of all pairs on grids, by name.

    ``error`` is the largest root mean square error of all products, relative to their size. Empty
    if the products are zero, or if their dtype has no room for the error.
    """
    total = sum(float(pair.parts[1].square().sum()) for pair in pairs)
    step = _step(pairs, error * error * total)
    tensors: dict[str, GridTensor] = {}
    for pair in pairs if step else ():
        tensors |= dict(zip(pair.names, pair.coded(step), strict=True))
    return tensors


def pairs_of(state: Mapping[str, Tensor]) -> list[LowRankPair]:
    """Return the pairs of matrices ``*.lora_A.weight`` and ``*.lora_B.weight`` of a state dict."""
    found = []
    for name, first in state.items():
        match = _FIRST.fullmatch(name)
        other = "" if match is None else f"{match[1] or ''}lora_B{match[2]}"
        second = state.get(other)
        if second is None or not _fit(first, second):
            continue
        halves = _rows(second.detach().cpu()), first.detach().cpu().flatten(1)
        if all(map(all_finite, halves)):
            found.append(LowRankPair((name, other), second, first, balanced(*halves)))
    return found


def _fit(first: Tensor, second: Tensor) -> bool:
    """Return whether two tensors are the matrices of a pair, of rank above 0."""
    if first.ndim < 2 or second.ndim < 2 or not len(first) == second.shape[1] > 0:
        return False
    flat = prod(second.shape[2:]) == 1 and first.numel() > 0 and second.numel() > 0
    small = len(first) <= min(prod(first.shape[1:]), len(second))
    return flat and small and {first.dtype, second.dtype} <= {*_FLOATS}


def _rows(second: Tensor) -> Tensor:
    return second.flatten(1)


def _step(pairs: list[LowRankPair], allowed: float) -> float:
    """Return the largest step at which the squared error of all products is allowed.

    0 if there is none: nothing was trained, or the dtype alone has more error.
    """
    count = sum(len(pair.parts[1]) * sum(map(len, _sides(pair))) for pair in pairs)
    middle = sqrt(12 * allowed / max(1, count))  # if no code vanished
    low, high = -_OCTAVES, _OCTAVES
    for _ in range(_ROUNDS):
        place = (low + high) / 2
        fits = allowed > 0 and sum(pair.error(middle * 2**place) for pair in pairs) <= allowed
        low, high = (place, high) if fits else (low, place)
    return float(middle * 2**low) if low > -_OCTAVES else 0.0


def _sides(pair: LowRankPair) -> tuple[Tensor, Tensor]:
    u, _, v = pair.parts
    return u, v.mT


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
