"""How many threads PyTorch computes with: sums depend on it in their last bits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["thread_count"]


@contextmanager
def thread_count(count: int | None) -> Iterator[None]:
    """Run the block on so many threads; None leaves the number as it is."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if count is not None:
            torch.set_num_threads(before)
