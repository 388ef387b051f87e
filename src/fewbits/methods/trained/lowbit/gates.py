"""Gates of stochastic precision: which parts of the network a step computes in low precision.

A reconstruction: of the paper's method only the abstract is known ("sub-networks are sampled at
random and quantized"), neither what a sub-network is nor how its chance goes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn

from ....ops.seeds import seed_at
from .inputs import LowBitInput
from .weights import LowBitWeight

__all__ = ["blocks_of", "draw_gates", "grouped", "open_gates"]

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_STREAM = 4  # of random numbers; those before are the training loop's


def blocks_of(model: nn.Module) -> dict[str, str]:
    """Return the block of each module, by name: the nearest module around it with a forward pass.

    Sequences and lists are looked past: a shortcut's convolution belongs to its residual block.
    Where only the network itself is around, as with VGG's layers, a module is its own block.
    """
    modules = dict(model.named_modules())
    found = {}
    for path in modules:
        around = path.rpartition(".")[0]
        while around and type(modules[around]) in _CONTAINERS:
            around = around.rpartition(".")[0]
        found[path] = around or path
    return found


def grouped(
    how: str, blocks: Mapping[str, str], parts: Iterable[tuple[str, LowBitWeight | LowBitInput]]
) -> list[tuple[str, LowBitWeight | LowBitInput]]:
    """Return ``parts`` with the names of their groups in place of those of their modules.

    Args:
        how: "parts" (weights and inputs apart), "layer" (what belongs to one module) or "block".
        blocks: of the network, from :func:`blocks_of`.
        parts: quantizers with the names of their modules.
    """
    found = []
    for path, part in parts:
        what = "weights" if isinstance(part, LowBitWeight) else "inputs"
        names = {"parts": f"{path}:{what}", "layer": path, "block": blocks.get(path, path)}
        found.append((names[how], part))
    return found


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
