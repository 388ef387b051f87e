"""The domains in which a layer can be coded: as it is, or in a basis of its inputs or outputs.

A domain shows coefficients as a matrix (groups, rows, columns) whose squared error costs
``sum over rows of weight * e H e'``, whatever the basis: what rounds them need not know it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops.transforms import elt, fold, klt, pooled, quantize_basis, refit, unfold

__all__ = ["Domain", "Felt", "plain_domain", "transformed"]


@dataclass(frozen=True, eq=False)
class Felt:
    """What errors of a weight cost: ``sum over groups of trace(E' R E C)``. float64.

    Attributes:
        outputs: R (groups, neurons, neurons).
        inputs: C (groups, columns, columns).
        kernel: columns for each input channel.
    """

    outputs: Tensor
    inputs: Tensor
    kernel: int

    @property
    def rows(self) -> Tensor:
        """The diagonal of R, (groups, neurons)."""
        return self.outputs.diagonal(dim1=1, dim2=2)

    def cost(self, error: Tensor) -> float:
        """Return the squared change of the output by ``error`` (groups, neurons, columns)."""
        return float(((self.outputs @ error @ self.inputs) * error).sum())

    def channels(self, side: str) -> Tensor:
        """Return C_gamma, the metric of the channels that a transform of ``side`` mixes."""
        if side == "row":
            return pooled(self.inputs * self.rows.sum(1)[:, None, None], self.kernel)
        energy = self.inputs.diagonal(dim1=1, dim2=2).sum(1)
        return (self.outputs * energy[:, None, None]).sum(0)


@dataclass(frozen=True, eq=False)
class Domain:
    """Coefficients of one layer in one basis.

    Attributes:
        side: "none", "row" or "column".
        values: (groups, rows, columns) float64 coefficients.
        weights: (groups, rows) or (1, rows).
        second: H, (groups, columns, columns).
        shape: (groups, neurons, columns) of the layer's weight.
        kernel: columns for each input channel.
        basis: (channels, vectors) int32 index of the basis; empty for "none".
        basis_step: its step.
    """

    side: str
    values: Tensor
    weights: Tensor
    second: Tensor
    shape: tuple[int, int, int]
    kernel: int
    basis: Tensor
    basis_step: float

    def shared(self, quantity: Tensor, how: str) -> Tensor:
        """Reduce (groups, rows, columns) over what shares a step; ``how`` is "mean" or "amax".

        Steps belong to each neuron, or to each vector of the basis.
        """
        if self.side == "row":
            parts = (
                quantity.reshape(*quantity.shape[:2], -1, self.kernel)
                .permute(2, 0, 1, 3)
                .flatten(1)
            )
        elif self.side == "column":
            parts = quantity.transpose(0, 1).flatten(1)
        else:
            parts = quantity.flatten(0, 1)
        if parts.shape[1] == 0:
            return parts.new_zeros(len(parts))
        reduced: Tensor = parts.mean(1) if how == "mean" else parts.abs().amax(1)
        return reduced

    def spread(self, steps: Tensor) -> Tensor:
        """Return one step for each neuron or vector so that it broadcasts over ``values``."""
        if self.side == "row":
            return steps.repeat_interleave(self.kernel)[None, None]
        if self.side == "column":
            return steps[None, :, None]
        return steps.reshape(*self.shape[:2], 1)

    def matrix(self, levels: Tensor) -> Tensor:
        """Return levels (groups, rows, columns) as the matrix that a file holds, by steps."""
        if self.side == "none":
            return levels.flatten(0, 1)
        return unfold(levels, self.kernel, self.side)


def plain_domain(weight: Tensor, felt: Felt) -> Domain:
    """Return the layer as it is: ``weight`` (groups, neurons, columns) float64."""
    groups, neurons, columns = weight.shape
    empty = torch.zeros(0, 0, dtype=torch.int32)
    shape = (groups, neurons, columns)
    return Domain("none", weight, felt.rows, felt.inputs, shape, felt.kernel, empty, 1.0)


def transformed(
    weight: Tensor, felt: Felt, side: str, kind: str, *, bits: float, keep: Tensor | None = None
) -> Domain:
    """Return the layer in a quantized basis, with the coefficients that go with that basis.

    Args:
        weight: (groups, neurons, columns) float64.
        felt: what its errors cost.
        side: "row" or "column".
        kind: "klt" or "elt".
        bits: for each value of the basis.
        keep: (channels,) bool: vectors of the basis that remain; None for all.
    """
    groups, neurons, columns = weight.shape
    matrix, metric = unfold(weight, felt.kernel, side), felt.channels(side)
    moments = matrix @ matrix.mT / max(1, matrix.shape[1])
    basis = klt(moments) if kind == "klt" else elt(moments, metric)
    index, step = quantize_basis(basis.synthesis, bits)
    if keep is not None:
        index = index[:, keep]
    synthesis = (index.double() * step).contiguous()
    shape = (groups, neurons, columns)
    values = fold(refit(matrix, synthesis, metric), shape, felt.kernel, side)
    if side == "row":
        turned = torch.kron(synthesis, torch.eye(felt.kernel).to(synthesis))
        second, weights = turned.mT @ felt.inputs @ turned, felt.rows
    else:
        second = felt.inputs
        weights = ((felt.outputs @ synthesis) * synthesis).sum(1)
    return Domain(side, values, weights, second, shape, felt.kernel, index, step)
