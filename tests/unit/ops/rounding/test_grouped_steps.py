"""Steps that change along the columns of a neuron: the kernels against one column at a time."""

import itertools

import pytest
import torch

from fewbits.ops.levels.grid import Grid, round_up_to_bfloat16
from fewbits.ops.rounding.path_following import descending, follow_gram, follow_samples, gram_error
from fewbits.ops.rounding.projections import SoftThreshold
from fewbits.ops.rounding.second_order import gptq, qronos

F64 = torch.float64
GROUP = 8


def problem(rows=120, columns=48, neurons=40, *, groups=2, noise=0.2, seed=0):
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(groups, neurons, columns, generator=g, dtype=F64)
    mix = torch.randn(groups, columns, columns, generator=g, dtype=F64) / columns**0.5
    x = torch.randn(groups, rows, columns, generator=g, dtype=F64) @ mix
    y = x + noise * torch.randn(x.shape, generator=g, dtype=F64) if noise else x
    steps = torch.exp(torch.randn(groups, neurons, columns // GROUP, generator=g)) / 2
    return w, x, y, round_up_to_bfloat16(steps).double().repeat_interleave(GROUP, 2)


def nearest(value, step, grid):
    levels = value / step
    grid.project_(levels)
    return levels * step


def one_column_at_a_time(w, x, y, steps, *, grid, order, passes):
    """For one group: each column becomes the best level, given the error so far."""
    q = torch.zeros_like(w)
    for sweep in range(1 + passes):
        error = w @ x.mT - q @ y.mT if sweep else torch.zeros(len(w), len(x), dtype=F64)
        for t in order.tolist():
            left = error + (q if sweep else w)[:, t : t + 1] * (y if sweep else x)[:, t]
            value = left @ y[:, t] / y[:, t].square().sum()
            q[:, t] = nearest(value, steps[:, t], grid)
            error = left - q[:, t : t + 1] * y[:, t]
    return q


def gptq_by_columns(w, second, steps, grid, order):
    """Round a column; the columns not yet rounded move to the optimum."""
    w, q = w.clone(), torch.zeros_like(w)
    order = order.tolist()
    for place, t in enumerate(order):
        q[:, t] = nearest(w[:, t], steps[:, t], grid)
        later = order[place + 1 :]
        if later:
            part = torch.linalg.solve(second[later][:, later], second[later, t])
            w[:, later] += torch.outer(w[:, t] - q[:, t], part)
    return q


def orders(y, kind):
    natural = torch.arange(y.shape[2]).expand(len(y), -1)
    return (natural, None) if kind == "natural" else (descending(y.square().sum(1)),) * 2


@pytest.mark.parametrize("levels", [4, 15])
@pytest.mark.parametrize("kind", ["natural", "descending"])
@pytest.mark.parametrize(("noise", "passes"), [(0.2, 0), (0.2, 2), (0.0, 1)])
def test_both_forms_of_path_following(levels, kind, noise, passes):
    w, x, y, steps = problem(noise=noise)
    grid, (order, given) = Grid(levels), orders(y, kind)
    expected = torch.stack(
        [
            one_column_at_a_time(
                w[g], x[g], y[g], steps[g], grid=grid, order=order[g], passes=passes
            )
            for g in range(len(w))
        ]
    )
    second = y.mT @ y
    cross = second if x is y else y.mT @ x
    for block in (7, 48):
        how = {"order": given, "passes": passes, "block": block, "steps": steps}
        gram = follow_gram(w, second, cross, grid.project_, **how)
        samples, residual = follow_samples(w, x, y, grid.project_, **how)
        assert torch.allclose(gram, expected, atol=1e-12)
        assert torch.allclose(samples, expected, atol=1e-12)
        left = x @ w.mT - y @ expected.mT
        torch.testing.assert_close(residual, left)
        if x is y:
            error = gram_error(w, gram, second, cross)
            torch.testing.assert_close(error, left.square().sum(1))


@pytest.mark.parametrize("kind", ["natural", "descending"])
def test_gptq(kind):
    w, _, y, steps = problem()
    second, (order, given) = y.mT @ y, orders(y, kind)
    damping = torch.full((2,), 0.1, dtype=F64)
    damped = second + 0.1 * torch.eye(48, dtype=F64)
    levels, _ = gptq(w, second, Grid(7).project_, damping=damping, order=given, steps=steps)
    for g in range(2):
        expected = gptq_by_columns(w[g], damped[g], steps[g], Grid(7), order[g])
        assert torch.allclose(levels[g], expected, atol=1e-12)


@pytest.mark.parametrize("kind", ["natural", "descending"])
def test_qronos(kind):
    w, x, y, steps = problem()
    second, cross, (order, given) = y.mT @ y, y.mT @ x, orders(y, kind)
    damping = torch.full((2,), 1e-3, dtype=F64)
    levels, _ = qronos(
        w, second, cross, Grid(7).project_, damping=damping, order=given, steps=steps
    )
    for g in range(2):
        first, later = order[g, 0], order[g, 1:]
        target = w[g] @ cross[g].mT
        value = (target[:, first] - w[g][:, later] @ second[g][first, later]) / second[g][
            first, first
        ]
        q = nearest(value, steps[g][:, first], Grid(7))
        assert torch.allclose(levels[g][:, first], q, atol=1e-12)
        damped = (second[g] + 1e-3 * torch.eye(48, dtype=F64))[later][:, later]
        right = target[:, later] - torch.outer(q, second[g][later, first])
        moved = torch.linalg.solve(damped, right.mT).mT
        natural = torch.arange(47)
        rest = gptq_by_columns(moved, damped, steps[g][:, later], Grid(7), natural)
        assert torch.allclose(levels[g][:, later], rest, atol=1e-12)


def test_equal_steps_are_one_step():
    w, x, y, _ = problem()
    steps = torch.full_like(w, 0.25)
    second, cross = y.mT @ y, y.mT @ x
    for project_ in (Grid(7).project_, SoftThreshold(0.3, Grid(7).project_).project_):
        plain = follow_gram(w / 0.25, second, cross, project_, passes=1)
        stepped = follow_gram(w, second, cross, project_, passes=1, steps=steps)
        assert torch.equal(plain, stepped / steps)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_the_compiled_loop_gives_what_the_plain_one_gives(dtype):
    w, x, y, steps = (part.to(dtype) for part in problem(neurons=60, columns=96))
    grid = Grid(15)
    second, cross = y.mT @ y, y.mT @ x
    # A threshold of nothing, which has no compiled form
    plain = follow_gram(w, second, cross, SoftThreshold(0.0, grid.project_).project_, steps=steps)
    compiled = follow_gram(w, second, cross, grid.project_, steps=steps)
    assert float((plain != compiled).double().mean()) < (0.01 if dtype == torch.float32 else 1e-9)


def test_levels_times_steps_are_exact():
    steps = round_up_to_bfloat16(torch.exp(torch.randn(500, generator=torch.manual_seed(0)) * 9))
    levels = torch.arange(-(2**14) + 1, 2**14)[:, None].float()
    for shift, part in itertools.product((0.0, 0.5), steps.split(50)):
        assert bool(((levels + shift) * part / part == levels + shift).all())
