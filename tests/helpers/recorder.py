"""An observer of the lockstep engine that keeps all it is shown, and coarsens what is complete."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from fewbits.engine.network.batches import Call

__all__ = ["Recorder", "Seen", "assert_same", "coarsen", "copied", "plain"]

Seen: TypeAlias = tuple[str, int, int, list[Any], list[Any]]


def plain(network: nn.Module, batch: Any) -> Any:
    """Call the network on the batch."""
    return network(batch)


def coarsen(network: nn.Module, name: str) -> None:
    """Round the weights of one module to quarters."""
    for parameter in network.get_submodule(name).parameters(recurse=False):
        parameter.data.mul_(4).round_().div_(4)


def copied(call: Call) -> list[Any]:
    """Return the leaves of the arguments, tensors as copies."""
    leaves = tree_leaves((call.args, sorted(call.kwargs.items())))
    return [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]


@dataclass
class Recorder:
    """``seen``: every call; ``shared``: whether both networks' calls were one object."""

    network: nn.Module
    seen: list[Seen] = field(default_factory=list)
    completed: list[str] = field(default_factory=list)
    shared: list[bool] = field(default_factory=list)

    def observe(self, module: str, batch: int, call: int, reference: Call, quantized: Call) -> None:
        assert threading.current_thread() is threading.main_thread()
        self.seen.append((module, batch, call, copied(reference), copied(quantized)))
        self.shared.append(reference is quantized)

    def complete(self, module: str) -> None:
        self.completed.append(module)
        coarsen(self.network, module)


def assert_same(actual: list[Seen], expected: list[Seen]) -> None:
    """Both saw the same modules, batches and calls, and the very same values."""
    assert [s[:3] for s in actual] == [s[:3] for s in expected]
    for mine, theirs in zip(actual, expected, strict=True):
        for a, b in zip(mine[3] + mine[4], theirs[3] + theirs[4], strict=True):
            same = torch.equal(a, b) if isinstance(a, Tensor) else a == b
            assert same, mine[:3]
