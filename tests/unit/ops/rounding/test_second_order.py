"""GPTQ and Qronos against their definitions, and what they do where those break down."""

from functools import partial
from itertools import pairwise

import pytest
import torch

from fewbits.ops.levels.grid import Grid
from fewbits.ops.rounding.path_following import (
    descending,
    permute_columns,
    permute_moments,
    restore_columns,
)
from fewbits.ops.rounding.second_order import backward_cholesky, gptq, largest_eigenvalue, qronos

F64 = torch.float64
GRID = Grid(7)


def problem(m=400, columns=40, neurons=9, groups=1, seed=0):
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(groups, neurons, columns, generator=g, dtype=F64) * 1.5
    mix = torch.randn(groups, columns, columns, generator=g, dtype=F64)
    x = torch.randn(groups, m, columns, generator=g, dtype=F64) @ mix / columns**0.5
    return w, x, x + 0.2 * torch.randn(x.shape, generator=g, dtype=F64)


def nearest(z):
    return z.round().clamp(-GRID.top, GRID.top)


def gptq_by_projection(w, x):
    """q_t = nearest(w_t + <P X_t, u> / ||P X_t||^2), P the complement of all later columns."""
    q = torch.zeros_like(w)
    u = torch.zeros(len(x), len(w), dtype=F64)
    for t in range(w.shape[1]):
        later = x[:, t + 1 :]
        part = x[:, t] - later @ torch.linalg.lstsq(later, x[:, t]).solution
        q[:, t] = nearest(w[:, t] + part @ u / part.square().sum())
        u += torch.outer(x[:, t], w[:, t] - q[:, t])
    return q


def gptq_by_inverse(w, second):
    """The published loop: one row of the upper Cholesky factor of the inverse per column."""
    upper = torch.linalg.cholesky(torch.linalg.inv(second), upper=True)
    w, q = w.clone(), torch.zeros_like(w)
    for t in range(w.shape[1]):
        q[:, t] = nearest(w[:, t])
        error = (w[:, t] - q[:, t]) / upper[t, t]
        w[:, t:] -= torch.outer(error, upper[t, t:])
    return q


def qronos_literally(w, second, cross, damping):
    q = torch.zeros_like(w)
    target = w @ cross.mT + damping * w
    damped = second + damping * torch.eye(len(second), dtype=F64)
    q[:, 0] = nearest((target[:, 0] - w[:, 1:] @ second[0, 1:]) / damped[0, 0])
    right = target[:, 1:] - torch.outer(q[:, 0], second[1:, 0])
    moved = torch.linalg.solve(damped[1:, 1:], right.mT).mT
    q[:, 1:] = gptq_by_inverse(moved, damped[1:, 1:])
    return q


def test_gptq_is_the_projection_on_the_complement_of_later_columns():
    w, _, y = problem()
    found, factor = gptq(w, y.mT @ y, GRID.project_, damping=torch.zeros(1, dtype=F64))
    assert torch.equal(found[0], gptq_by_projection(w[0], y[0]))
    assert factor.retries == 0


@pytest.mark.parametrize("columns", [40, 150])
def test_gptq_is_the_published_loop(columns):
    w, _, y = problem(columns=columns)
    second = y.mT @ y
    damping = 0.01 * second.diagonal(dim1=1, dim2=2).mean(1)
    found, _ = gptq(w, second, GRID.project_, damping=damping)
    damped = second[0] + damping * torch.eye(columns, dtype=F64)
    assert torch.equal(found[0], gptq_by_inverse(w[0], damped))


@pytest.mark.parametrize("relative", [0.0, 1e-6, 1e-2])
def test_qronos_is_its_formula(relative):
    w, x, y = problem(columns=150)
    second, cross = y.mT @ y, y.mT @ x
    damping = relative * largest_eigenvalue(second)
    found, _ = qronos(w, second, cross, GRID.project_, damping=damping)
    expected = qronos_literally(w[0], second[0], cross[0], float(damping))
    assert torch.equal(found[0], expected)


def test_damping_of_qronos_holds_weights_where_they_are():
    w, x, y = problem(m=30)  # fewer rows than columns
    second, cross = y.mT @ y, y.mT @ x
    largest = largest_eigenvalue(second)
    found, _ = qronos(w, second, cross, GRID.project_, damping=1e6 * largest)
    assert torch.equal(found, nearest(w))
    moved = [
        float((qronos(w, second, cross, lambda z: None, damping=d * largest)[0] - w).norm())
        for d in (1e-8, 1e-4, 1e-2, 1)
    ]
    assert moved == sorted(moved, reverse=True)


def cost(w, q, second, cross, damping):
    """||X w - Y q||^2 + damping ||w - q||^2 but for a constant, of each neuron."""
    linear = (q * (w @ cross[0].mT + float(damping) * w)).sum(-1)
    damped = second[0] + float(damping) * torch.eye(len(second[0]), dtype=F64)
    return ((q @ damped) * q).sum(-1) - 2 * linear


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("name", ["gptq", "qronos"])
def test_passes_lower_the_damped_error_until_no_single_level_can(name, ordered):
    w, x, y = problem()
    second = y.mT @ y
    cross = y.mT @ x if name == "qronos" else second
    damping = 1e-3 * largest_eigenvalue(second)
    method = gptq if name == "gptq" else partial(qronos, cross=cross)
    order = descending(second.diagonal(dim1=1, dim2=2)) if ordered else None
    found = [
        method(w, second, project_=GRID.project_, damping=damping, order=order, passes=passes)[0]
        for passes in (0, 1, 2, 30)
    ]
    costs = [cost(w, levels, second, cross, damping) for levels in found]
    for before, after in pairwise(costs):
        assert (after <= before + 1e-6).all()
    assert (costs[1] < costs[0]).any()
    for column in range(w.shape[2]):
        for change in (-1, 1):
            other = found[-1].clone()
            other[..., column] = (other[..., column] + change).clamp(-GRID.top, GRID.top)
            assert (cost(w, other, second, cross, damping) >= costs[-1] - 1e-6).all()


def test_all_coincide_with_rounding_on_orthogonal_columns():
    w, x, _ = problem()
    x = torch.linalg.qr(x)[0] * 3
    second = x.mT @ x
    none = torch.zeros(1, dtype=F64)
    assert torch.equal(gptq(w, second, GRID.project_, damping=none)[0], nearest(w))
    assert torch.equal(qronos(w, second, second, GRID.project_, damping=none)[0], nearest(w))


def test_orders_and_groups_are_separate_problems():
    w, x, y = problem(groups=3)
    second, cross = y.mT @ y, y.mT @ x
    order = descending(second.diagonal(dim1=1, dim2=2))
    damping = torch.full((3,), 1e-3, dtype=F64)
    first, _ = gptq(w, second, GRID.project_, damping=damping, order=order)
    other, _ = qronos(w, second, cross, GRID.project_, damping=damping, order=order)
    for g in range(3):
        p = order[g]
        h, c = second[g][p][:, p] + 1e-3 * torch.eye(40, dtype=F64), cross[g][p][:, p]
        assert torch.equal(first[g][:, p], gptq_by_inverse(w[g][:, p], h))
        assert torch.equal(
            other[g][:, p], qronos_literally(w[g][:, p], second[g][p][:, p], c, 1e-3)
        )


def test_permutations_undo_each_other():
    w, _, y = problem(groups=2)
    second = y.mT @ y
    order = descending(second.diagonal(dim1=1, dim2=2))
    assert torch.equal(restore_columns(permute_columns(w, order), order), w)
    moved = permute_moments(second, order)
    for g in range(2):
        assert torch.equal(moved[g], second[g][order[g]][:, order[g]])


def test_dead_columns_are_plainly_rounded():
    w, x, y = problem()
    y[:, :, [0, 5, 39]] = 0
    second, cross = y.mT @ y, y.mT @ x
    damping = torch.full((1,), 1e-3, dtype=F64)
    for found, _ in (
        gptq(w, second, GRID.project_, damping=damping),
        qronos(w, second, cross, GRID.project_, damping=damping),
    ):
        assert torch.equal(found[..., [0, 5, 39]], nearest(w)[..., [0, 5, 39]])


def test_damping_is_raised_until_the_factor_exists():
    _, _, y = problem(m=5, groups=2)
    y[1] = problem(m=5, columns=40)[2][0] * 10
    second = (y.mT @ y).float()
    damping = torch.full((2,), 1e-12)
    factor = backward_cholesky(second, damping)
    assert factor.retries > 0
    assert not factor.failed.any()
    assert (factor.damping > damping).all()
    damped = second + torch.diag_embed(factor.damping[:, None].expand(2, 40))
    torch.testing.assert_close(factor.upper @ factor.upper.mT, damped, rtol=1e-3, atol=1e-3)
    assert (factor.upper.tril(-1) == 0).all()


def test_a_hopeless_group_falls_back_to_rounding():
    w, _, y = problem(groups=2)
    second = y.mT @ y
    second[1] -= 50 * second[1].diagonal().mean() * torch.eye(40, dtype=F64)  # not a moment matrix
    damping = torch.full((2,), 1e-3, dtype=F64)
    found, factor = gptq(w, second, GRID.project_, damping=damping)
    assert factor.failed.tolist() == [False, True]
    assert torch.equal(found[1], nearest(w[1]))
    assert not torch.equal(found[0], nearest(w[0]))
    both, _ = qronos(w, second, second, GRID.project_, damping=damping)
    assert both.isfinite().all()


def test_power_iteration_finds_the_largest_eigenvalue():
    _, _, y = problem(groups=3)
    second = y.mT @ y
    exact = torch.linalg.eigvalsh(second)[:, -1]
    torch.testing.assert_close(largest_eigenvalue(second), exact, rtol=0.05, atol=0)
    assert largest_eigenvalue(torch.zeros(1, 4, 4)).tolist() == [0.0]
