"""The domains in which a layer can be coded: directly, or in a basis of its inputs or outputs.

In every domain the coefficients form a matrix (groups, rows, columns) whose errors cost
``sum over rows of weight * e H e'``, so the code that rounds them does not depend on the basis.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...ops.transforms import elt, fold, klt, pooled, quantize_basis, refit, unfold
from .rate_problem import RateProblem

__all__ = ["Domain", "ErrorMetric", "best_basis", "plain_domain", "transformed"]

_FLOOR = 1e-3  # least weight of a vector, relative to the mean: rows may cancel to almost nothing


@dataclass(frozen=True, eq=False)
class ErrorMetric:
    """The distortion of an error E of a weight: ``sum over groups of trace(E' R E C)``. float64.

    Attributes:
        outputs: R (groups, neurons, neurons).
        inputs: C (groups, columns, columns).
        kernel: columns per input channel, that is taps of a convolution.
        width: width of the kernel in columns; 0 if it has no rows.
        coupling: R without its diagonal, each row divided by its diagonal element; None if rows do
            not compensate each other's errors.
    """

    outputs: Tensor
    inputs: Tensor
    kernel: int
    width: int = 0
    coupling: Tensor | None = None

    @classmethod
    def of(cls, problem: RateProblem) -> ErrorMetric:
        """Build the metric of a layer's rate-distortion problem."""
        outputs = torch.diag_embed(problem.rows)
        coupling = problem.damped_coupling()
        if coupling is not None:
            outputs = outputs + coupling * problem.rows[..., None]
        taps, width = problem.taps, problem.width
        return cls(outputs, problem.metric, taps, width, coupling)

    @property
    def rows(self) -> Tensor:
        """The diagonal of R, (groups, neurons)."""
        return self.outputs.diagonal(dim1=1, dim2=2)

    def cost(self, error: Tensor) -> float:
        """Return the squared output change caused by ``error`` (groups, neurons, columns)."""
        return float(((self.outputs @ error @ self.inputs) * error).sum())

    def channels(self, side: str) -> Tensor:
        """Return C_gamma, the metric of the channels mixed by a transform of ``side``."""
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
        weights: (groups, rows) or (1, rows), weight of each row in the distortion.
        second: H, (groups, columns, columns).
        shape: (groups, neurons, columns), shape of the layer's weight.
        kernel: columns per input channel.
        basis: (channels, vectors) int32 index of the basis; empty for "none".
        basis_step: step of the basis.
        coupling: (groups, rows, rows), how errors of rows compensate each other; None if they do
            not.
        width: width of the kernel in columns; 0 if it has no rows.
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
        """Reduce (groups, rows, columns) over the values of each step; ``how`` is "mean" or "amax".

        There is one step per neuron, or per vector of the basis.
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
        """Reshape one step per neuron or vector so that it broadcasts over ``values``."""
        if self.side == "row":
            return steps.repeat_interleave(self.kernel)[None, None]
        if self.side == "column":
            return steps[None, :, None]
        return steps.reshape(*self.shape[:2], 1)

    def matrix(self, levels: Tensor) -> Tensor:
        """Reshape levels (groups, rows, columns) to the stored matrix, with one step per row."""
        if self.side == "none":
            return levels.flatten(0, 1)
        return unfold(levels, self.kernel, self.side)

    def problem(self, steps: Tensor, feedback: bool) -> RateProblem:
        """Build the rate-distortion problem of the coefficients, in units of ``steps``.

        Without feedback coefficients are independent: only the diagonal of H counts.
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
        transposed = self.side == "row"
        return replace(problem, taps=self.kernel, width=self.width, transposed=transposed)


def plain_domain(weight: Tensor, metric: ErrorMetric) -> Domain:
    """Return the domain without a transform, of ``weight`` (groups, neurons, columns) float64."""
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


def best_basis(weight: Tensor, metric: ErrorMetric, side: str, kind: str) -> Tensor:
    """Return the basis (channels, channels) of a layer, before it is quantized.

    Args:
        weight: (groups, neurons, columns) float64.
        metric: the distortion of its errors.
        side: "row" or "column".
        kind: "klt" or "elt".

    Cost: one eigendecomposition, of "elt" two.
    """
    matrix = unfold(weight, metric.kernel, side)
    moments = matrix @ matrix.mT / max(1, matrix.shape[1])
    basis = klt(moments) if kind == "klt" else elt(moments, metric.channels(side))
    return basis.synthesis


def transformed(
    weight: Tensor,
    metric: ErrorMetric,
    side: str,
    basis: Tensor,
    *,
    bits: float,
    keep: Tensor | None = None,
) -> Domain:
    """Return the layer in a quantized basis, with coefficients fitted to that basis.

    Args:
        weight: (groups, neurons, columns) float64.
        metric: the distortion of its errors.
        side: "row" or "column".
        basis: (channels, channels), to be quantized.
        bits: bits per value of the basis.
        keep: (channels,) bool: vectors of the basis to keep; None for all.
    """
    groups, neurons, columns = weight.shape
    matrix, channel_metric = unfold(weight, metric.kernel, side), metric.channels(side)
    index, step = quantize_basis(basis, bits)
    if keep is not None:
        index = index[:, keep]
    synthesis = (index.double() * step).contiguous()
    shape = (groups, neurons, columns)
    values = fold(refit(matrix, synthesis, channel_metric), shape, metric.kernel, side)
    if side == "row":
        expanded = torch.kron(synthesis, torch.eye(metric.kernel).to(synthesis))
        second = expanded.mT @ metric.inputs @ expanded
        weights, coupling = metric.rows, metric.coupling
    else:
        second, coupling = metric.inputs, None
        weights = ((metric.outputs @ synthesis) * synthesis).sum(1)
        weights = weights.clamp_min(_FLOOR * float(weights.mean()))
    where = (shape, metric.kernel, index, step)
    return Domain(side, values, weights, second, *where, coupling, metric.width)
