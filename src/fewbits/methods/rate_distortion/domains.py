"""The domains in which a layer can be coded: as it is, or in a basis of its inputs or outputs.

A domain shows coefficients as a matrix (groups, rows, columns) whose squared error costs
``sum over rows of weight * e H e'``, whatever the basis: what rounds them need not know it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...ops.transforms import elt, fold, klt, pooled, quantize_basis, refit, unfold
from .rate_problem import RateProblem

__all__ = ["Domain", "ErrorMetric", "plain_domain", "transformed"]

_FLOOR = 1e-3  # of the vectors' mean: the least that counts of a vector, though rows may cancel


@dataclass(frozen=True, eq=False)
class ErrorMetric:
    """What errors of a weight cost: ``sum over groups of trace(E' R E C)``. float64.

    Attributes:
        outputs: R (groups, neurons, neurons).
        inputs: C (groups, columns, columns).
        kernel: columns for each input channel, taps of a convolution.
        width: columns to the row above, in a kernel; 0 for none.
        coupling: R but for its diagonal, each row over its element of that; None where rows do not
            repay each other's errors.
    """

    outputs: Tensor
    inputs: Tensor
    kernel: int
    width: int = 0
    coupling: Tensor | None = None

    @classmethod
    def of(cls, problem: RateProblem) -> ErrorMetric:
        """Return what a layer's problem says of its errors."""
        outputs = torch.diag_embed(problem.rows)
        if problem.coupling is not None:
            outputs = outputs + problem.coupling * problem.rows[..., None]
        taps, width = problem.taps, problem.width
        return cls(outputs, problem.metric, taps, width, problem.coupling)

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
        coupling: (groups, rows, rows): how rows repay each other's errors; None where they do not.
        width: columns to the row above, in a kernel; 0 for none.
    """

    side: str
    values: Tensor
    weights: Tensor
    second: Tensor
    shape: tuple[int, int, int]
    kernel: int
    basis: Tensor
    basis_step: float
    coupling: Tensor | None = None
    width: int = 0

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

    def problem(self, steps: Tensor, feedback: bool) -> RateProblem:
        """Return what costs least in distortion and bits, its grid units a step of ``steps``.

        Without feedback every coefficient is alone: only the diagonal of H counts.
        """
        spread = self.spread(steps)
        rows = self.weights.expand(self.values.shape[:2])
        second, coupling = self.second, self.coupling
        if self.side == "row":
            second = second * spread * spread.mT
        else:
            rows = rows * spread[..., 0].square()
        if not feedback:
            second = torch.diag_embed(second.diagonal(dim1=1, dim2=2))
        if coupling is not None and self.side == "none":
            coupling = coupling * spread.mT / spread
        coupling = coupling if feedback else None
        problem = RateProblem.at(self.values / spread, second, rows, coupling)
        turned = self.side == "row"
        return replace(problem, taps=self.kernel, width=self.width, turned=turned)


def plain_domain(weight: Tensor, metric: ErrorMetric) -> Domain:
    """Return the layer as it is: ``weight`` (groups, neurons, columns) float64."""
    groups, neurons, columns = weight.shape
    empty = torch.zeros(0, 0, dtype=torch.int32)
    shape = (groups, neurons, columns)
    where = (shape, metric.kernel, empty, 1.0)
    return Domain(
        "none",
        weight,
        metric.rows,
        metric.inputs,
        *where,
        metric.coupling,
        metric.width,
    )


def transformed(
    weight: Tensor,
    metric: ErrorMetric,
    side: str,
    kind: str,
    *,
    bits: float,
    keep: Tensor | None = None,
) -> Domain:
    """Return the layer in a quantized basis, with the coefficients that go with that basis.

    Args:
        weight: (groups, neurons, columns) float64.
        metric: what its errors cost.
        side: "row" or "column".
        kind: "klt" or "elt".
        bits: for each value of the basis.
        keep: (channels,) bool: vectors of the basis that remain; None for all.
    """
    groups, neurons, columns = weight.shape
    matrix, channel_metric = unfold(weight, metric.kernel, side), metric.channels(side)
    moments = matrix @ matrix.mT / max(1, matrix.shape[1])
    basis = klt(moments) if kind == "klt" else elt(moments, channel_metric)
    index, step = quantize_basis(basis.synthesis, bits)
    if keep is not None:
        index = index[:, keep]
    synthesis = (index.double() * step).contiguous()
    shape = (groups, neurons, columns)
    values = fold(refit(matrix, synthesis, channel_metric), shape, metric.kernel, side)
    if side == "row":
        turned = torch.kron(synthesis, torch.eye(metric.kernel).to(synthesis))
        second, weights, coupling = (
            turned.mT @ metric.inputs @ turned,
            metric.rows,
            metric.coupling,
        )
    else:
        second, coupling = metric.inputs, None
        weights = ((metric.outputs @ synthesis) * synthesis).sum(1)
        weights = weights.clamp_min(_FLOOR * float(weights.mean()))
    where = (shape, metric.kernel, index, step)
    return Domain(side, values, weights, second, *where, coupling, metric.width)
