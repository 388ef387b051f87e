"""Gates of stochastic precision, which choose the parts to compute in low precision in a step.

This is a reconstruction: the paper only says that "sub-networks are sampled at random and
quantized", not what a sub-network is nor how its probability develops.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn

from ....ops.seeds import seed_at
from .inputs import LowBitInput
from .weights import LowBitWeight

__all__ = ["blocks_of", "draw_gates", "group_parts", "open_gates"]

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_STREAM = 4  # stream of random numbers; lower ones belong to the training loop


def blocks_of(model: nn.Module) -> dict[str, str]:
    """Return the block of each module by name: the closest parent with its own forward pass.

    Sequential containers and lists are skipped, so the convolution of a shortcut belongs to its
    residual block. If the only such parent is the network, as in VGG, a module is its own block.
    """
    modules = dict(model.named_modules())
    blocks = {}
    for path in modules:
        parent = path.rpartition(".")[0]
        while parent and type(modules[parent]) in _CONTAINERS:
            parent = parent.rpartition(".")[0]
        blocks[path] = parent or path
    return blocks


def group_parts(
    how: str, blocks: Mapping[str, str], parts: Iterable[tuple[str, LowBitWeight | LowBitInput]]
) -> list[tuple[str, LowBitWeight | LowBitInput]]:
    """Return ``parts`` with the names of their groups instead of those of their modules.

    Args:
        how: "parts" (weights and inputs separately), "layer" (all of one module) or "block".
        blocks: the blocks of the network, from :func:`blocks_of`.
        parts: quantizers with the names of their modules.
    """
    groups = []
    for path, part in parts:
        what = "weights" if isinstance(part, LowBitWeight) else "inputs"
        names = {"parts": f"{path}:{what}", "layer": path, "block": blocks.get(path, path)}
        groups.append((names[how], part))
    return groups


@torch.no_grad()
def open_gates(parts: Iterable[LowBitWeight | LowBitInput]) -> None:
    """Compute every part in low precision."""
    for part in parts:
        part.gate.fill_(1.0)
        part.gated = False


@torch.no_grad()
def draw_gates(
    groups: Sequence[tuple[str, LowBitWeight | LowBitInput]], chance: float, seed: int, step: int
) -> None:
    """Open the gate of each group with probability ``chance``; depends on seed and step only."""
    generator = torch.Generator().manual_seed(seed_at(seed, step, 0, _STREAM))
    names = list(dict.fromkeys(name for name, _ in groups))
    drawn = (torch.rand(len(names), generator=generator) < chance).float().tolist()
    opened = dict(zip(names, drawn, strict=True))
    for name, part in groups:
        part.gate.fill_(opened[name])
        part.gated = True
