"""Which weights to prune: the smallest, by share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["share_threshold"]


def share_threshold(tensors: Sequence[Tensor], share: float) -> float:
    """Return the magnitude that a ``share`` of all values lies at or below; -1 for a share of 0.

    Nearest rank, over all tensors together. Cost: a selection among all magnitudes.
    """
    sizes = torch.cat([tensor.detach().reshape(-1).abs().float() for tensor in tensors])
    rank = round(share * sizes.numel())
    return float(sizes.kthvalue(rank).values) if rank else -1.0
