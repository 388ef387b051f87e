"""Weights that are told as differences from those of another network, the base."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["restored"]


def restored(base: Tensor, difference: Tensor) -> Tensor:
    """Return a weight in the dtype of its base, given the difference in float32.

    The sum is one of float32 (of float64 where the base is), and is rounded to the dtype once: to
    the bit what SPEC.md, section 9.3, says.
    """
    wide = torch.float64 if base.dtype == torch.float64 else torch.float32
    return (base.to(wide) + difference.to(wide)).to(base.dtype)
