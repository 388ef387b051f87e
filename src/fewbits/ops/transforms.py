"""Transforms across the channels of a layer: KLT, ELT, and the coding gain of a basis.

A layer's weight W (groups, neurons, columns), with ``kernel`` columns per input channel, is
unfolded into a matrix M (channels, rest) whose rows are the channels that the transform mixes: the
inputs (the paper's "row" transform) or the outputs ("column"). Then ``M = S T`` with a basis S and
coefficients ``T = A M``, ``A = S^-1``. Everything is float64.

Reference:
    Young, Zhe, Taubman and Girod, "Transform quantization for CNN compression", TPAMI 2021.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "SIDES",
    "Basis",
    "coding_gain",
    "elt",
    "fold",
    "klt",
    "pooled",
    "quantize_basis",
    "refit",
    "unfold",
]

SIDES = ("row", "column")
RIDGE = 1e-3  # of the metric's Frobenius norm: rarely excited directions must not become free
_ENTROPY = 4.1327  # sqrt(2 pi e): step, in deviations of a normal distribution, that gives 0 bits


@dataclass(frozen=True, eq=False)
class Basis:
    """``synthesis`` S and ``analysis`` A = S^-1, each (channels, channels)."""

    synthesis: Tensor
    analysis: Tensor


def unfold(weight: Tensor, kernel: int, side: str) -> Tensor:
    """Return M: (inputs, groups * neurons * kernel) or (neurons, groups * inputs * kernel).

    >>> unfold(torch.zeros(2, 4, 27), 9, "row").shape
    torch.Size([3, 72])
    >>> unfold(torch.zeros(2, 4, 27), 9, "column").shape
    torch.Size([4, 54])
    """
    groups, neurons, columns = weight.shape
    parts = weight.reshape(groups, neurons, columns // kernel, kernel)
    order = (2, 0, 1, 3) if side == "row" else (1, 0, 2, 3)
    return parts.permute(order).flatten(1)


def fold(matrix: Tensor, shape: tuple[int, int, int], kernel: int, side: str) -> Tensor:
    """Return the weight of ``shape`` that :func:`unfold` turns into ``matrix``.

    If ``matrix`` has fewer rows than that has channels, the result has fewer channels.
    """
    groups, neurons, columns = shape
    inputs = columns // kernel
    if side == "row":
        parts = matrix.reshape(len(matrix), groups, neurons, kernel).permute(1, 2, 0, 3)
    else:
        parts = matrix.reshape(len(matrix), groups, inputs, kernel).permute(1, 0, 2, 3)
    return parts.flatten(2)


def pooled(moments: Tensor, kernel: int) -> Tensor:
    """Sum moments of columns (groups, columns, columns) over equal taps and groups.

    The result (inputs, inputs) is the row transform's C_gamma: the effect of errors in the
    channels, regardless of the position in the kernel.
    """
    inputs = moments.shape[1] // kernel
    return torch.einsum("gitjt->ij", moments.reshape(-1, inputs, kernel, inputs, kernel))


def klt(weights: Tensor) -> Basis:
    """Return the eigenvectors of the weights' second moments M M', largest first; orthonormal."""
    vectors = torch.linalg.eigh(weights)[1].flip(1)
    return Basis(vectors, vectors.mT)


def elt(weights: Tensor, metric: Tensor) -> Basis:
    """Return the basis in which both the weights and the output errors are uncorrelated.

    With P the metric plus a ridge, ``P^1/2 M M' P^1/2 = Q L Q'`` gives ``A = Q' P^1/2`` and
    ``S = P^-1/2 Q``, so that ``S' P S`` and ``A M M' A'`` are diagonal: the largest coding gain of
    all bases (Young et al. 2021, theorem 3). Columns of S have norm 1, largest coefficients first.

    Args:
        weights: M M' (channels, channels), or its mean.
        metric: C_gamma (channels, channels): second moments of the output's gradients.

    Cost: two eigendecompositions.
    """
    scale = metric.norm().clamp_min(torch.finfo(metric.dtype).tiny)
    eye = torch.eye(len(metric), dtype=metric.dtype, device=metric.device)
    values, vectors = torch.linalg.eigh(metric / scale + RIDGE * eye)
    root = values.clamp_min(RIDGE / 2).sqrt()
    half, inverse = (vectors * root) @ vectors.mT, (vectors / root) @ vectors.mT
    turned = half @ weights @ half
    rotation = torch.linalg.eigh((turned + turned.mT) / 2)[1].flip(1)
    synthesis, analysis = inverse @ rotation, rotation.mT @ half
    norms = synthesis.norm(dim=0)
    return Basis(synthesis / norms, analysis * norms[:, None])


def coding_gain(basis: Basis, weights: Tensor, metric: Tensor) -> float:
    """Return G, the factor by which the basis reduces distortion at high rates (equation 11).

    That is ``1/2 log2 G`` bits per coefficient, not counting the basis itself. Both moments must be
    positive definite.
    """
    transformed = basis.synthesis.mT @ metric @ basis.synthesis
    kept = basis.analysis @ weights @ basis.analysis.mT
    gain = _mean_log(metric) + _mean_log(weights) - _mean_log(transformed) - _mean_log(kept)
    return float(gain.exp())


def _mean_log(moments: Tensor) -> Tensor:
    return moments.diagonal().log().mean()


def quantize_basis(synthesis: Tensor, bits: float) -> tuple[Tensor, float]:
    """Return the index (channels, vectors) of a basis and its step, near ``bits`` bits per value.

    The step is halved until the quantized basis is well-conditioned (below 1000).
    """
    scale = float(synthesis.square().mean().sqrt()) if synthesis.numel() else 1.0
    step = _to_bfloat16(_ENTROPY * 2**-bits * scale)
    for _ in range(16):
        index = torch.round(synthesis / step)
        if float(torch.linalg.cond(index * step)) < 1e3:
            break
        step /= 2
    return index.to(torch.int32), step


def _to_bfloat16(value: float) -> float:
    """Round ``value`` to the 8 bits of a bfloat16, so that two bytes of a step are zero."""
    return float(torch.tensor(value, dtype=torch.float32).bfloat16())


def refit(matrix: Tensor, basis: Tensor, metric: Tensor) -> Tensor:
    """Return the coefficients (vectors, rest) for which ``basis @ T`` is nearest to M.

    ``T = (S' C S)^-1 S' C M``, exact if the basis is square: errors of the basis then cause no
    distortion, only less decorrelation. A ridge keeps C positive.
    """
    if basis.shape[0] == basis.shape[1]:
        exact: Tensor = torch.linalg.solve(basis, matrix)
        return exact
    ridge = RIDGE * metric.norm().clamp_min(torch.finfo(metric.dtype).tiny)
    transformed = basis.mT @ metric + ridge * basis.mT
    nearest: Tensor = torch.linalg.solve(transformed @ basis, transformed @ matrix)
    return nearest
