"""Synchronize tensors between the processes of a ``torch.distributed`` group; no-ops if alone.

``DistributedDataParallel`` does so for the network inside it, but not for learnables of a method or
for teachers that are trained along.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch import distributed as dist

__all__ = ["average", "average_gradients", "in_group", "process_count", "take_from_first"]


def in_group() -> bool:
    """Return whether this process belongs to a group, even if alone in it."""
    return dist.is_available() and dist.is_initialized()


def process_count() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if in_group() else 1


@torch.no_grad()
def average(tensors: Iterable[Tensor]) -> None:
    """Replace every tensor by its mean over the processes."""
    count = process_count()
    if count == 1:
        return
    own = [tensor.detach() for tensor in tensors]
    # Start all at once: for small tensors latency matters, not bandwidth.
    for work in [dist.all_reduce(tensor, async_op=True) for tensor in own]:
        work.wait()
    for tensor in own:
        tensor.div_(count)


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace every existing gradient by its mean over the processes.

    All processes must have gradients of the same parameters, in the same order.
    """
    average(p.grad for p in parameters if p.grad is not None)


@torch.no_grad()
def take_from_first(tensors: Iterable[Tensor]) -> None:
    """Broadcast the first process's values to all others."""
    if process_count() == 1:
        return
    for work in [dist.broadcast(tensor.detach(), 0, async_op=True) for tensor in tensors]:
        work.wait()
