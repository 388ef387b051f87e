"""Greedy path following: round column by column, each compensating for the error made so far.

For one neuron w, with inputs X in the float network and X~ in the quantized one (Lybrand and Saab,
"A greedy algorithm for quantizing neural networks", JMLR 22, 2021; mismatched inputs as in Zhang,
Zhou and Saab, SIAM J. Math. Data Sci. 5, 2023)::

    z_t = <X~_t, u_{t-1} + w_t X_t> / ||X~_t||^2      q_t = nearest level to z_t
    u_t = u_{t-1} + w_t X_t - q_t X~_t                u_N = X w - X~ q is the layer's error

Both forms here are exact and blocked, so that nearly all work is matrix products: the *sample form*
keeps u, the *Gram form* keeps only H = X~^T X~ and G = X~^T X. Neurons never interact, so a whole
layer advances one column at a time, and groups (depthwise convolutions) advance together.

Weights and levels are in grid units (see :mod:`fewbits.ops.levels.grid`) and all tensors have a
leading dimension of groups. Results depend on block sizes only through float rounding.

Where the step of a neuron changes from column to column, weights are in any unit that its columns
share, a table has the steps in that unit, and the results are levels times steps: the feedback of a
column on a later one then needs no ratio of their steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from ..compiled.kernels import runs_compiled
from ..levels.grid import Project

__all__ = [
    "descending",
    "follow_gram",
    "follow_samples",
    "gram_error",
    "neuron_parts",
    "permute_columns",
    "permute_moments",
    "refine_gram",
    "restore_columns",
]


_PART = 1 << 22  # weights in a part of the neurons
_OUTER = 128  # columns per matrix product with the past
_INNER = 16  # columns per step of the sequential loop
_COMPILED = 32  # and of the compiled one


def follow_gram(
    weight: Tensor,
    second: Tensor,
    cross: Tensor,
    project_: Project,
    *,
    order: Tensor | None = None,
    passes: int = 0,
    block: int = _OUTER,
    steps: Tensor | None = None,
) -> Tensor:
    """Quantize ``weight`` to levels (groups, neurons, columns), given second moments.

    Args:
        weight: (groups, neurons, columns) in grid units; not changed.
        second: H, (groups, columns, columns). Only the lower triangle is read unless ``passes``.
        cross: G, likewise; pass ``second`` itself if X is X~, which halves the work.
        project_: overwrites values with levels; called once per column, in order.
        order: (groups, columns) permutation: the order in which columns are visited.
        passes: further sweeps of cyclic coordinate descent; none of them increases ``||XW - X~Q||``
            if ``project_`` rounds to the nearest level.
        block: columns per outer block.
        steps: (groups, neurons, columns) steps in the unit of ``weight``; the result is then levels
            times steps. None: all are 1.

    With n neurons and N columns a sweep costs ``2 n N^2`` flops (``n N^2`` if X is X~), a further
    pass ``3 n N^2`` (``5 n N^2`` if X is not X~).
    """
    analog = _to_columns(weight, order)
    sizes = None if steps is None else _to_columns(steps, order)
    if order is not None:
        same = cross is second
        second = permute_moments(second, order)
        cross = second if same else permute_moments(cross, order)
    live = _live(second.diagonal(dim1=1, dim2=2))
    values = analog.clone()
    _sweep_gram_(values, second, cross, live, project_, start=None, block=block, steps=sizes)
    for _ in range(passes):
        _refine_(values, analog, second, cross, project_=project_, block=block, steps=sizes)
    return _from_columns(values, order)


def refine_gram(
    levels: Tensor,
    weight: Tensor,
    second: Tensor,
    cross: Tensor,
    project_: Project,
    *,
    order: Tensor | None = None,
    passes: int = 1,
    block: int = _OUTER,
    steps: Tensor | None = None,
) -> Tensor:
    """Return better levels than ``levels``, by sweeps of coordinate descent; see follow_gram."""
    analog, values = _to_columns(weight, order), _to_columns(levels, order)
    sizes = None if steps is None else _to_columns(steps, order)
    if order is not None:
        same = cross is second
        second = permute_moments(second, order)
        cross = second if same else permute_moments(cross, order)
    for _ in range(passes):
        _refine_(values, analog, second, cross, project_=project_, block=block, steps=sizes)
    return _from_columns(values, order)


def _refine_(
    values: Tensor,
    analog: Tensor,
    second: Tensor,
    cross: Tensor,
    *,
    project_: Project,
    block: int,
    steps: Tensor | None,
) -> None:
    """Improve the levels ``values`` (groups, columns, neurons) of ``analog``, one by one."""
    if cross is second:
        start = second @ (analog - values)
    else:
        start = (cross @ analog).baddbmm_(second, values, alpha=-1)
    live = _live(second.diagonal(dim1=1, dim2=2))
    _sweep_gram_(values, second, second, live, project_, start=start, block=block, steps=steps)


def neuron_parts(weight: Tensor) -> Iterator[slice]:
    """Split the neurons of (groups, neurons, columns) into parts that bound scratch memory.

    Neurons do not interact. A part has some 4 million weights, or 256 neurons.
    """
    groups, neurons, columns = weight.shape
    width = max(256, _PART // max(1, groups * columns))
    return (slice(a, a + width) for a in range(0, neurons, width))


def follow_samples(
    weight: Tensor,
    reference: Tensor,
    quantized: Tensor,
    project_: Project,
    *,
    order: Tensor | None = None,
    passes: int = 0,
    block: int = _OUTER,
    steps: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the levels (groups, neurons, columns) and the error u (groups, rows, neurons).

    Args:
        weight: (groups, neurons, columns) in grid units; not changed.
        reference: X, (groups, rows, columns).
        quantized: X~, likewise; pass ``reference`` itself if X is X~, which saves a third.
        project_, order, passes, block, steps: as in :func:`follow_gram`.

    With m rows a sweep costs ``6 m n N`` flops (``4 m n N`` if X is X~) and needs, beyond the
    result, m n numbers and one block of columns: prefer this form if m <= N.
    """
    values = _to_columns(weight, order)
    residual = values.new_zeros(values.shape[0], reference.shape[1], values.shape[2])
    energy = quantized.square().sum(1)
    live = _live(energy if order is None else energy.gather(1, order))
    sizes = None if steps is None else _to_columns(steps, order)
    for sweep in range(1 + passes):
        _sweep_samples_(
            values,
            residual,
            quantized if sweep else reference,
            quantized,
            project_,
            order=order,
            live=live,
            block=block,
            steps=sizes,
        )
    return _from_columns(values, order), residual


def gram_error(weight: Tensor, levels: Tensor, second: Tensor, cross: Tensor) -> Tensor:
    """Return ``||X w - X~ q||^2 - ||X w||^2`` per neuron: (groups, neurons), float64.

    If X is X~ (``cross is second``), the error itself is returned.
    """
    error = weight.new_zeros(weight.shape[:2], dtype=torch.float64)
    for part in neuron_parts(weight):
        error[:, part] = _gram_error(weight[:, part], levels[:, part], second, cross)
    return error


def _gram_error(weight: Tensor, levels: Tensor, second: Tensor, cross: Tensor) -> Tensor:
    if cross is second:
        gap = weight - levels
        return ((gap @ second) * gap).sum(-1, dtype=torch.float64)
    linear = (levels * (weight @ cross.mT)).sum(-1, dtype=torch.float64)
    return (levels * (levels @ second)).sum(-1, dtype=torch.float64) - 2 * linear


def _live(energy: Tensor) -> Tensor:
    """Return which columns carry any signal: (groups, columns) bool. Others are just rounded."""
    tolerance = 1e-12 if energy.dtype == torch.float64 else 1e-7
    return energy > tolerance * energy.mean(1, keepdim=True)


def _to_columns(weight: Tensor, order: Tensor | None) -> Tensor:
    """Copy to a contiguous (groups, columns, neurons): one row per column, in visiting order."""
    turned = (weight if order is None else permute_columns(weight, order)).mT
    return turned.clone(memory_format=torch.contiguous_format)


def _from_columns(values: Tensor, order: Tensor | None) -> Tensor:
    """Undo :func:`_to_columns` (as a view if there is no order)."""
    return values.mT if order is None else restore_columns(values.mT, order)


def _columns(samples: Tensor, order: Tensor | None, start: int, stop: int) -> Tensor:
    """Return columns start..stop in visiting order: (groups, rows, stop - start)."""
    if order is None:
        return samples[:, :, start:stop]
    return permute_columns(samples, order[:, start:stop])


def _sweep_gram_(
    values: Tensor,
    second: Tensor,
    cross: Tensor,
    live: Tensor,
    project_: Project,
    *,
    start: Tensor | None,
    block: int,
    steps: Tensor | None,
) -> None:
    """Overwrite ``values`` (groups, columns, neurons) with levels; ``start`` is X~^T u."""
    same = cross is second
    before = values.clone()  # becomes value - level if X is X~
    for a in range(0, values.shape[1], block):
        b = min(a + block, values.shape[1])
        pending = cross[:, a:b, a:b].tril() @ values[:, a:b]
        if start is not None:
            pending += start[:, a:b]
        if a:
            pending.baddbmm_(cross[:, a:b, :a], before[:, :a])
            if not same:
                pending.baddbmm_(second[:, a:b, :a], values[:, :a], alpha=-1)
        levels = _solve_block(
            pending,
            second[:, a:b, a:b],
            values[:, a:b],
            live[:, a:b],
            project_,
            steps=None if steps is None else steps[:, a:b].contiguous(),
        )
        values[:, a:b] = levels
        if same:
            before[:, a:b] -= levels


def _sweep_samples_(
    values: Tensor,
    residual: Tensor,
    reference: Tensor,
    quantized: Tensor,
    project_: Project,
    *,
    order: Tensor | None,
    live: Tensor,
    block: int,
    steps: Tensor | None,
) -> None:
    """Overwrite ``values`` (groups, columns, neurons) with levels, updating ``residual``."""
    for a in range(0, values.shape[1], block):
        b = min(a + block, values.shape[1])
        analog = values[:, a:b]
        inputs = _columns(quantized, order, a, b)
        second = inputs.mT @ inputs
        if reference is quantized:
            pending = second.tril() @ analog
        else:
            targets = _columns(reference, order, a, b)
            pending = (inputs.mT @ targets).tril() @ analog
        pending.baddbmm_(inputs.mT, residual)
        sizes = None if steps is None else steps[:, a:b].contiguous()
        levels = _solve_block(pending, second, analog, live[:, a:b], project_, steps=sizes)
        if reference is quantized:
            residual.baddbmm_(inputs, analog - levels)
        else:
            residual.baddbmm_(targets, analog).baddbmm_(inputs, levels, alpha=-1)
        values[:, a:b] = levels


def _solve_block(
    pending: Tensor,
    second: Tensor,
    analog: Tensor,
    live: Tensor,
    project_: Project,
    *,
    steps: Tensor | None,
) -> Tensor:
    """Return the levels of one block (groups, width, neurons); ``pending`` is overwritten.

    ``pending`` holds ``<X~_t, u + sum of w_j X_j over the block up to t>``; only the feedback of
    the block's own levels, through the strictly lower triangle of ``second``, is still missing.
    ``steps`` has the shape of ``pending``, contiguous.
    """
    energy = second.diagonal(dim1=1, dim2=2)
    scale = torch.where(live, energy, 1).reciprocal_().mul_(live)[..., None]
    pending.mul_(scale)
    if not bool(live.all()):
        pending = torch.where(live[..., None], pending, analog)
    feedback = (second * -scale).tril_(-1)
    levels = torch.zeros_like(pending)
    settle_ = _compiled_form(project_, steps) if runs_compiled(pending) else None
    inner = _INNER if settle_ is None else _COMPILED
    if settle_ is not None:
        pending, feedback = pending.contiguous(), feedback.contiguous()
    for a in range(0, pending.shape[1], inner):
        stop = min(a + inner, pending.shape[1])
        todo = pending[:, a:stop]
        if a:
            todo.baddbmm_(feedback[:, a:stop, :a], levels[:, :a])
        if settle_ is not None:
            settle_(pending, feedback, levels, a, stop)
        else:
            sizes = None if steps is None else steps[:, a:stop]
            _solve_columns(todo, feedback[:, a:stop, a:stop], levels[:, a:stop], project_, sizes)
    return levels


def _compiled_form(
    project_: Project, steps: Tensor | None
) -> Callable[[Tensor, Tensor, Tensor, int, int], None] | None:
    """Return ``settle_`` of the object whose ``project_`` this is; None if it has none.

    With ``steps``, it is ``settle_steps_`` for these.
    """
    owner = getattr(project_, "__self__", None)
    own = getattr(type(owner), "project_", None)
    if own is None or getattr(project_, "__func__", None) is not own:
        return None
    name = "settle_" if steps is None else "settle_steps_"
    settle_: Callable[..., None] | None = getattr(owner, name, None)
    if steps is None or settle_ is None:
        return settle_
    return partial(settle_, steps=steps)


def _solve_columns(
    todo: Tensor, feedback: Tensor, levels: Tensor, project_: Project, steps: Tensor | None
) -> None:
    """Fill ``levels``, initially zero, column by column.

    Each product covers the full width, where unfinished columns are zero: in this loop, which runs
    once per column, a few wasted flops cost less than slicing views.
    """
    rows, weights, results = (torch.split(part, 1, 1) for part in (todo, feedback, levels))
    sizes = [None] * len(rows) if steps is None else torch.split(steps, 1, 1)
    for row, weight, level, size in zip(rows, weights, results, sizes, strict=True):
        row.baddbmm_(weight, levels)
        if size is None:
            project_(row)
        else:
            project_(row.div_(size))
            row.mul_(size)
        level.copy_(row)


def descending(energy: Tensor) -> Tensor:
    """Return the permutation (groups, columns) by decreasing energy; ties keep their order.

    Errors of the last columns cannot be compensated by later ones, so the weakest come last.
    """
    return energy.argsort(dim=1, descending=True, stable=True)


def permute_columns(matrix: Tensor, order: Tensor) -> Tensor:
    """Return a copy of (groups, rows, columns) with its columns in ``order``."""
    return matrix.gather(2, order[:, None].expand(-1, matrix.shape[1], -1))


def restore_columns(matrix: Tensor, order: Tensor) -> Tensor:
    """Undo :func:`permute_columns`."""
    return permute_columns(matrix, order.argsort(1))


def permute_moments(moments: Tensor, order: Tensor) -> Tensor:
    """Return a copy of (groups, columns, columns) with its rows and columns in ``order``."""
    groups, columns = order.shape
    first = torch.arange(groups, device=order.device)[:, None] * columns
    rows = moments.reshape(groups * columns, columns).index_select(0, (order + first).flatten())
    return permute_columns(rows.reshape(moments.shape), order)
