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

from ..coded import CodedTensor, Contents, GridTensor, Layout, recognised
from ..engine.layers.pack import pack_raw, to_torch
from ..errors import ConfigError, is_number, require
from ..ops.levels.grid import all_finite
from ..ops.low_rank import balanced, product_energy
from .coded_model import CodedModel
from .deltas.states import Base, dtype_of, owned, read_base

__all__ = ["compress_adapter"]

_FIRST = re.compile(r"(.*\.)?lora_A((?:\.[^.]+)?\.weight)")
_FLOATS = ("float32", "float16", "bfloat16")
_ROUNDS = 24  # of the search for the step: to a part in 2**20 of its range
_OCTAVES = 16.0


@dataclass(frozen=True, eq=False)
class _Pair:
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
            GridTensor(tuple(a.shape), dtype_of(a), first, one),
            GridTensor(tuple(b.shape), dtype_of(b), second, two, layout=turned),
        )

    def error(self, step: float) -> float:
        """Return the squared error of the product."""
        a, b = (to_torch(tensor).double() for tensor in self.coded(step))
        u, s, v = self.parts
        wide = torch.cat([u * s, -_rows(b)], 1), torch.cat([v, a.flatten(1)])
        return product_energy(*wide)


def compress_adapter(adapter: Base, error: float = 0.05) -> CodedModel:
    """Compress a LoRA adapter at an error of the products that it adds to weights.

    Matrices with names such as ``*.lora_A.weight`` and ``*.lora_B.weight`` (the layout of PEFT)
    become others with nearly the same product, on grids; all other tensors are kept exactly, and so
    are these if their dtype has no room for the error. The file loads as a state dict of the same
    names, shapes and dtypes.

    Args:
        adapter: a state dict, a network whose state dict has such names, or the path of a file or
            of a folder with one, such as ``adapter_model.safetensors``.
        error: largest root mean square error of all products together, relative to their size.

    Raises:
        ConfigError: ``error`` is out of range, or there are no pairs.
        SourceError: the path cannot be read.
    """
    known = is_number(error) and 0 < error < 1
    require(known, "error", "a number between 0 and 1", error)
    state, aliases = owned(read_base(adapter), "adapter")
    pairs = _pairs(state)
    if not pairs:
        raise ConfigError(
            f"the adapter has no pairs of matrices *.lora_A.weight and *.lora_B.weight among its "
            f"{len(state)} tensors. Compress it as any other network, with fewbits.compress."
        )
    total = sum(float(pair.parts[1].square().sum()) for pair in pairs)
    tensors: dict[str, CodedTensor] = {}
    step = _step(pairs, error * error * total)
    if step:
        for pair in pairs:
            tensors |= dict(zip(pair.names, pair.coded(step), strict=True))
    ordered = {name: tensors.get(name) or recognised(pack_raw(state[name])) for name in state}
    return CodedModel(Contents(ordered, aliases, metadata={"adapter": {"error": float(error)}}))


def _pairs(state: Mapping[str, Tensor]) -> list[_Pair]:
    found = []
    for name, first in state.items():
        match = _FIRST.fullmatch(name)
        other = "" if match is None else f"{match[1] or ''}lora_B{match[2]}"
        second = state.get(other)
        if second is None or not _fit(first, second):
            continue
        halves = _rows(second.detach().cpu()), first.detach().cpu().flatten(1)
        if all(map(all_finite, halves)):
            found.append(_Pair((name, other), second, first, balanced(*halves)))
    return found


def _fit(first: Tensor, second: Tensor) -> bool:
    """Return whether two tensors are the matrices of a pair, of rank above 0."""
    if first.ndim < 2 or second.ndim < 2 or not len(first) == second.shape[1] > 0:
        return False
    flat = prod(second.shape[2:]) == 1 and first.numel() > 0 and second.numel() > 0
    small = len(first) <= min(prod(first.shape[1:]), len(second))
    return flat and small and {dtype_of(first), dtype_of(second)} <= {*_FLOATS}


def _rows(second: Tensor) -> Tensor:
    return second.flatten(1)


def _step(pairs: list[_Pair], allowed: float) -> float:
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


def _sides(pair: _Pair) -> tuple[Tensor, Tensor]:
    u, _, v = pair.parts
    return u, v.mT
