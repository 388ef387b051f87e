"""Products of two small matrices, as of LoRA adapters: their singular values, and their errors."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["balanced", "product_energy"]


def balanced(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return singular vectors and values of ``left @ right``, without making the product.

    Args:
        left: (n, r).
        right: (r, m).

    Returns:
        U (n, r), s (r,) descending and V (r, m) in float64, with ``U * s @ V`` the product. Cost:
        ``O((n + m) r^2)``.
    """
    outer, first = torch.linalg.qr(left.double())
    inner, second = torch.linalg.qr(right.double().mT)
    u, s, v = torch.linalg.svd(first @ second.mT)
    rank = len(s)
    return outer @ u[:, :rank], s, v[:rank] @ inner.mT


def product_energy(left: Tensor, right: Tensor) -> float:
    """Return the sum of squares of ``left @ right``, (n, r) and (r, m), in ``O((n + m) r^2)``."""
    left, right = left.double(), right.double()
    return float(((left.mT @ left) * (right @ right.mT)).sum().clamp_min(0))
