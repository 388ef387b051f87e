"""What the processes of a ``torch.distributed`` group do to have the same tensors; alone, nothing.

``DistributedDataParallel`` does so for the network inside it. Learnables of a method and teachers
that train along are outside.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch import distributed as dist

__all__ = ["average", "average_gradients", "in_group", "process_count", "take_from_first"]


def in_group() -> bool:
    """Whether this process is one of a group, be it alone there."""
    return dist.is_available() and dist.is_initialized()


def process_count() -> int:
    """Return how many processes train together."""
    return dist.get_world_size() if in_group() else 1


@torch.no_grad()
def average(tensors: Iterable[Tensor]) -> None:
    """Put the mean over the processes in the place of every tensor."""
    count = process_count()
    if count == 1:
        return
    own = [tensor.detach() for tensor in tensors]
    # All under way at once: small tensors wait for the network, not for its width.
    for work in [dist.all_reduce(tensor, async_op=True) for tensor in own]:
        work.wait()
    for tensor in own:
        tensor.div_(count)


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Put the mean over the processes in the place of every gradient that there is.

    All processes must have gradients of the same parameters, in the same order.
    """
    average(p.grad for p in parameters if p.grad is not None)


@torch.no_grad()
def take_from_first(tensors: Iterable[Tensor]) -> None:
    """Put the first process's values in the place of everybody's."""
    if process_count() == 1:
        return
    for work in [dist.broadcast(tensor.detach(), 0, async_op=True) for tensor in tensors]:
        work.wait()
