"""GPTQ and Qronos: rounding that re-optimizes the remaining weights.

Both are equivalent to path following. Write the damped H = R R^T with R *upper* triangular (a
Cholesky factor computed from the last column backwards). GPTQ's feedback of column j on column
t > j is then ``R[j, t] / R[t, t]``, which is GPFQ's ``H[t, j] / H[t, t]`` with R^T in place of H.
So the blocked kernel of :mod:`fewbits.ops.rounding.path_following` is used unchanged, nothing is
inverted, and the only extra cost is one factorization of ``N^3 / 3`` flops.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..levels.grid import Project
from .path_following import (
    follow_gram,
    neuron_parts,
    permute_columns,
    permute_moments,
    refine_gram,
    restore_columns,
)

__all__ = ["Factor", "backward_cholesky", "gptq", "largest_eigenvalue", "qronos"]


@dataclass(frozen=True, eq=False)
class Factor:
    """H + damping I = R R^T.

    Attributes:
        upper: R, (groups, columns, columns), upper triangular.
        damping: (groups,) amount added to the diagonal of H.
        retries: number of times the damping was raised tenfold until factorization succeeded.
        failed: (groups,) bool; where True, ``upper`` is diagonal, so rounding has no feedback.
    """

    upper: Tensor
    damping: Tensor
    retries: int
    failed: Tensor


def backward_cholesky(second: Tensor, damping: Tensor, attempts: int = 6) -> Factor:
    """Factor ``H + damping I = R R^T``, raising ``damping`` (groups,) tenfold on failure.

    After ``attempts`` failures a group falls back to the square roots of its diagonal: no feedback.
    """
    damping = damping.clone()
    energy = second.diagonal(dim1=1, dim2=2)
    floor = energy.mean(1).clamp_min(0) * torch.finfo(second.dtype).eps
    upper = second.new_zeros(())
    bad = torch.ones_like(damping, dtype=torch.bool)
    retries = 0
    for retries in range(attempts):
        if retries:
            damping = torch.where(bad, torch.maximum(damping * 10, floor), damping)
        damped = second.flip(1, 2)  # a copy
        damped.diagonal(dim1=1, dim2=2).add_(damping[:, None])
        lower, status = torch.linalg.cholesky_ex(damped)
        del damped
        upper, bad = lower.flip(1, 2), status != 0
        if not bool(bad.any()):
            break
    if bool(bad.any()):
        plain = torch.diag_embed((energy + damping[:, None]).clamp_min(0).sqrt())
        upper = torch.where(bad[:, None, None], plain, upper)
    return Factor(upper, damping, retries, bad)


def gptq(
    weight: Tensor,
    second: Tensor,
    project_: Project,
    *,
    damping: Tensor,
    order: Tensor | None = None,
    steps: Tensor | None = None,
    passes: int = 0,
) -> tuple[Tensor, Factor]:
    """Return the levels (groups, neurons, columns) of GPTQ, and the factor used.

    After column t is rounded, all later weights move to the minimizer of ``||X (w - q)||`` with the
    rounded ones fixed (Frantar et al., "GPTQ", 2022).

    Args:
        weight: (groups, neurons, columns) in grid units; not changed.
        second: H, (groups, columns, columns).
        project_: overwrites values with levels; called once per column, in order.
        damping: (groups,) added to the diagonal of H; raised if that is not enough.
        order: (groups, columns) permutation: the order in which columns are visited.
        steps: (groups, neurons, columns) steps in the unit of ``weight``; the result is then levels
            times steps. None: all are 1.
        passes: sweeps of coordinate descent at the end, which the paper has not.

    Cost: ``N^3 / 3 + n N^2`` flops, and ``3 n N^2`` for a pass.
    """
    factor = backward_cholesky(second if order is None else permute_moments(second, order), damping)
    levels = torch.empty_like(weight, memory_format=torch.contiguous_format)
    damped = second + torch.diag_embed(factor.damping[:, None].expand(second.shape[:2]))
    for part in neuron_parts(weight):
        chosen, sizes = weight[:, part], None if steps is None else steps[:, part]
        if order is not None:
            chosen = permute_columns(chosen, order)
            sizes = None if sizes is None else permute_columns(sizes, order)
        chosen = follow_gram(chosen, factor.upper.mT, factor.upper.mT, project_, steps=sizes)
        chosen = chosen if order is None else restore_columns(chosen, order)
        if passes:
            chosen = refine_gram(
                chosen,
                weight[:, part],
                damped,
                damped,
                project_,
                order=order,
                passes=passes,
                steps=None if steps is None else steps[:, part],
            )
        levels[:, part] = chosen
    return levels, factor


def qronos(
    weight: Tensor,
    second: Tensor,
    cross: Tensor,
    project_: Project,
    *,
    damping: Tensor,
    order: Tensor | None = None,
    steps: Tensor | None = None,
    passes: int = 0,
) -> tuple[Tensor, Factor]:
    """Return the levels (groups, neurons, columns) of Qronos, and the factor used.

    The first column is rounded to the best choice given all others (Zhang et al., "Qronos", 2025)::

        q_1 = nearest(((G w)_1 + damping w_1 - sum_{j>1} H_1j w_j) / (H_11 + damping))
        w_{>1} <- (H_{>1,>1} + damping)^-1 (G_{>1,:} w + damping w_{>1} - H_{>1,1} q_1)

    and GPTQ continues from there. ``damping w`` is not in the paper: with it, damping holds weights
    near their values where the rows say little, instead of pulling them to zero. Columns without
    signal keep their weight. Arguments as in :func:`gptq`; ``cross`` is G. Cost:
    ``N^3 / 3 + 5 n N^2`` flops.
    """
    if order is not None:
        same = cross is second
        weight, second = permute_columns(weight, order), permute_moments(second, order)
        steps = None if steps is None else permute_columns(steps, order)
        cross = second if same else permute_moments(cross, order)
    factor = backward_cholesky(second, damping)
    sizes = None if steps is None else steps.mT
    levels = _qronos_sweep(weight.mT, second, cross, factor, project_, steps=sizes)
    if passes:
        extra = torch.diag_embed(factor.damping[:, None].expand(second.shape[:2]))
        damped = second + extra
        levels = refine_gram(
            levels,
            weight,
            damped,
            damped if cross is second else cross + extra,
            project_,
            passes=passes,
            steps=steps,
        )
    return (levels if order is None else restore_columns(levels, order)), factor


def _qronos_sweep(
    weight: Tensor,
    second: Tensor,
    cross: Tensor,
    factor: Factor,
    project_: Project,
    *,
    steps: Tensor | None,
) -> Tensor:
    """Round ``weight`` (groups, columns, neurons) in the given column order."""
    energy = second.diagonal(dim1=1, dim2=2)[..., None]
    live = energy > torch.finfo(second.dtype).eps * energy.mean(1, keepdim=True)
    damping = factor.damping[:, None, None]
    target = (cross @ weight).add_(damping * weight)
    energy = energy + damping
    first = target[:, :1] - second[:, :1, 1:] @ weight[:, 1:]
    first = torch.where(live[:, :1], first / torch.where(live, energy, 1)[:, :1], weight[:, :1])
    if steps is None:
        project_(first)
    else:
        project_(first.div_(steps[:, :1]))
        first.mul_(steps[:, :1])
    pending = target[:, 1:].baddbmm_(second[:, 1:, :1], first, alpha=-1)
    upper = factor.upper[:, 1:, 1:]
    pending = torch.linalg.solve_triangular(upper, pending, upper=True)
    pending = torch.linalg.solve_triangular(upper.mT, pending, upper=False)
    usable = live[:, 1:] & ~factor.failed[:, None, None]
    moved = torch.where(usable, pending, weight[:, 1:])
    sizes = None if steps is None else steps[:, 1:].mT
    rest = follow_gram(moved.mT, upper.mT, upper.mT, project_, steps=sizes)
    return torch.cat([first.mT, rest], 2)


def largest_eigenvalue(second: Tensor, iterations: int = 30) -> Tensor:
    """Estimate the largest eigenvalue (groups,) of H by power iteration."""
    vector = second.new_ones(*second.shape[:2], 1)
    vector = vector * torch.linspace(1, 2, second.shape[1]).to(second)[:, None]
    for _ in range(iterations):
        vector = vector / vector.norm(dim=1, keepdim=True).clamp_min(torch.finfo(second.dtype).tiny)
        vector = second @ vector
    largest: Tensor = vector.norm(dim=1)[:, 0]
    return largest
