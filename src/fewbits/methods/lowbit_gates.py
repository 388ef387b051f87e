"""Gates of stochastic precision: which parts of the network a step computes in low precision.

A reconstruction: of the paper's method only the abstract is known ("sub-networks are sampled at
random and quantized"), neither what a sub-network is nor how its chance goes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from ..ops.seeds import seed_at
from .lowbit_inputs import LowBitInput
from .lowbit_weights import LowBitWeight

__all__ = ["draw_gates", "group_of", "open_gates"]

_STREAM = 4  # of random numbers; those before are the training loop's


def group_of(how: str, module: str, part: str) -> str:
    """Return the name of the group of a part: "parts", "layer", or "block" (one parent)."""
    if how == "parts":
        return f"{module}:{part}"
    parent = module.rpartition(".")[0]
    return parent if how == "block" and parent else module


@torch.no_grad()
def open_gates(parts: Iterable[LowBitWeight | LowBitInput]) -> None:
    """Let every part compute in low precision."""
    for part in parts:
        part.gate.fill_(1.0)
        part.gated = False


@torch.no_grad()
def draw_gates(
    grouped: Sequence[tuple[str, LowBitWeight | LowBitInput]], chance: float, seed: int, step: int
) -> None:
    """Open the gate of each group with ``chance``, independently; a function of seed and step."""
    generator = torch.Generator().manual_seed(seed_at(seed, step, 0, _STREAM))
    names = list(dict.fromkeys(name for name, _ in grouped))
    drawn = (torch.rand(len(names), generator=generator) < chance).float().tolist()
    opened = dict(zip(names, drawn, strict=True))
    for name, part in grouped:
        part.gate.fill_(opened[name])
        part.gated = True
