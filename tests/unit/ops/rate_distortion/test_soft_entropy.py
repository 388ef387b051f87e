"""Soft entropy of order n against brute force, autograd and finite differences."""

from __future__ import annotations

import math
import time
from itertools import product

import pytest
import torch

from fewbits.errors import ConfigError
from fewbits.ops.rate_distortion.soft_entropy import (
    entropy_gradient,
    joint_histogram,
    largest_order,
    soft_brackets,
)


def levels_of(count, generator):
    steps = torch.rand(count, generator=generator, dtype=torch.float64) + 0.3
    return steps.cumsum(0) - steps.sum() / 2


@pytest.fixture
def case():
    """Two tensors of odd sizes with non-uniform levels, more on one side of zero than the other."""
    generator = torch.Generator().manual_seed(5)
    levels = [levels_of(7, generator), levels_of(5, generator)]
    values = [torch.randn(n, generator=generator, dtype=torch.float64) for n in (3001, 778)]
    zeros = [int(table.abs().argmin()) for table in levels]
    return values, levels, zeros


def brackets(values, levels, zeros):
    return [soft_brackets(v, t, z) for v, t, z in zip(values, levels, zeros, strict=True)]


def dense(values, levels, zeros, order):
    """The obvious way: a soft one-hot vector for each weight, outer products, one at a time."""
    shift = max(zeros)
    base = shift + max(len(t) - z for t, z in zip(levels, zeros, strict=True))
    table, tuples = torch.zeros((base,) * order, dtype=torch.float64), 0
    for v, t, z in zip(values, levels, zeros, strict=True):
        soft = torch.zeros(len(v), base, dtype=torch.float64)
        for j, value in enumerate(v.clamp(t[0], t[-1]).tolist()):
            k = max(i for i in range(len(t) - 1) if t[i] <= value or i == 0)
            share = (value - float(t[k])) / float(t[k + 1] - t[k])
            soft[j, k - z + shift] += 1 - share
            soft[j, k + 1 - z + shift] += share
        for m in range(len(v) // order):
            part = soft[m * order]
            for n in range(1, order):
                part = part[..., None] * soft[m * order + n]
            table += part
            tuples += 1
    return table / tuples, tuples


@pytest.mark.parametrize("order", [1, 2, 3])
def test_histogram_is_that_of_outer_products(case, order):
    values, levels, zeros = case
    values = [v[:301] for v in values]
    wanted, tuples = dense(values, levels, zeros, order)
    found = joint_histogram(brackets(values, levels, zeros), order)
    assert found.tuples == tuples
    assert found.order == order
    torch.testing.assert_close(found.chances, wanted, rtol=0, atol=1e-15)
    assert float(found.chances.sum()) == pytest.approx(1, abs=1e-12)
    positive = wanted[wanted > 0]
    bits = -(positive * positive.log2()).sum() / order
    assert float(found.entropy()) == pytest.approx(float(bits), abs=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_gradient_is_autograds_and_that_of_differences(case, order):
    values, levels, zeros = case
    levels = [t[1:5] if len(t) > 5 else t[:4] for t in levels]  # few cells: none is empty
    zeros = [1, 2]
    values = [v.clamp(t[0] + 0.01, t[-1] - 0.01) for v, t in zip(values, levels, strict=True)]
    leaves = [v.requires_grad_() for v in values]
    histogram = joint_histogram(brackets(leaves, levels, zeros), order)
    by_autograd = torch.autograd.grad(histogram.entropy(), leaves)
    with torch.no_grad():
        groups = brackets(leaves, levels, zeros)
        found = entropy_gradient(groups, joint_histogram(groups, order))
    scale = max(float(g.abs().max()) for g in by_autograd)
    for ours, theirs in zip(found, by_autograd, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-8 * scale)
    for place in (0, 7, 1500):
        sides = []
        for side in (1, -1):
            moved = [v.detach().clone() for v in leaves]
            moved[0][place] += side * 1e-5
            sides.append(float(joint_histogram(brackets(moved, levels, zeros), order).entropy()))
        slope = (sides[0] - sides[1]) / 2e-5
        assert float(found[0][place]) == pytest.approx(slope, abs=1e-5 * scale)


def test_values_that_no_tuple_holds_have_no_gradient(case):
    values, levels, zeros = case
    groups = brackets(values, levels, zeros)
    found = entropy_gradient(groups, joint_histogram(groups, 3))
    assert bool(found[0][3000:].eq(0).all())
    assert bool(found[1][777:].eq(0).all())
    assert bool(found[0][:3000].ne(0).any())


def test_soft_entropy_goes_to_the_hard_one_on_the_way_to_the_levels():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(30_000, generator=generator, dtype=torch.float64).clamp(-2.2, 2.2)
    levels = torch.linspace(-2.25, 2.25, 10, dtype=torch.float64)
    nearest = levels[(values[:, None] - levels).abs().argmin(1)]
    for order in (1, 3):
        hard = soft = None
        gaps = []
        for share in (0.0, 0.01, 0.1, 0.5, 1.0):
            group = soft_brackets(nearest + share * (values - nearest), levels)
            soft = float(joint_histogram([group], order).entropy())
            hard = soft if hard is None else hard
            gaps.append(abs(soft - hard))
        assert gaps == sorted(gaps)
        index = torch.searchsorted(levels, nearest)[: 30_000 // order * order].reshape(-1, order)
        cells = index @ (10 ** torch.arange(order))
        counts = torch.bincount(cells).double()
        chances = counts[counts > 0] / counts.sum()
        assert hard == pytest.approx(float(-(chances * chances.log2()).sum()) / order, abs=1e-12)


@pytest.mark.parametrize(("base", "order", "weights"), [(18, 3, 100_000), (6, 4, 100_000)])
def test_bias_of_the_plug_in_entropy_is_that_of_the_formula(base, order, weights):
    generator = torch.Generator().manual_seed(1)
    index = torch.randint(0, base, (weights,), generator=generator).double()
    group = soft_brackets(index, torch.arange(base, dtype=torch.float64))
    found = float(joint_histogram([group], order).entropy())
    tuples = weights // order
    bias = (base**order - 1) / (2 * tuples * order * math.log(2))
    assert found == pytest.approx(math.log2(base) - bias, abs=0.01)


def test_unused_outer_levels_of_one_tensor_change_nothing(case):
    values, levels, zeros = case
    values = [v.clamp(t[0], t[-1]) for v, t in zip(values, levels, strict=True)]
    plain = joint_histogram(brackets(values, levels, zeros), 2).entropy()
    low, high = levels[0][:1] - torch.tensor([2.0, 1.0]), levels[0][-1:] + torch.tensor([1.0, 2.0])
    wider = [torch.cat([low, levels[0], high]), levels[1]]
    shifted = joint_histogram(brackets(values, wider, [zeros[0] + 2, zeros[1]]), 2).entropy()
    assert float(shifted) == pytest.approx(float(plain), abs=1e-12)


def test_values_outside_count_as_on_the_outermost_level():
    levels = torch.tensor([-1.0, 0.0, 2.0])
    group = soft_brackets(torch.tensor([-5.0, -1.0, 0.0, 1.0, 2.0, 9.0]), levels, 1)
    assert (group.lower + group.fraction).tolist() == [0, 0, 1, 1.5, 2, 2]


def test_one_level_has_no_entropy_and_no_gradient():
    group = soft_brackets(torch.randn(9), torch.zeros(1))
    histogram = joint_histogram([group], 2)
    assert float(histogram.entropy()) == 0
    assert bool(entropy_gradient([group], histogram)[0].eq(0).all())


def test_no_values_have_no_entropy():
    assert float(joint_histogram([], 1).entropy()) == 0


def test_statistical_guard_on_the_order():
    assert largest_order(6, 1_000_000) == 4
    assert largest_order(18, 1_000_000) == 3
    assert largest_order(34, 1_000_000) == 2
    assert largest_order(255, 1_000) == 1


@pytest.mark.parametrize("order", [0, 5])
def test_other_orders_are_refused(order):
    with pytest.raises(ConfigError, match="order"):
        joint_histogram([], order)


def test_too_large_a_table_is_refused():
    group = soft_brackets(torch.zeros(4), torch.arange(300.0))
    with pytest.raises(ConfigError, match=r"2\*\*24"):
        joint_histogram([group], 3)


def test_chunks_change_nothing(case, monkeypatch):
    values, levels, zeros = case
    groups = brackets(values, levels, zeros)
    whole = joint_histogram(groups, 2)
    gradient = entropy_gradient(groups, whole)
    monkeypatch.setattr("fewbits.ops.rate_distortion.soft_entropy._CHUNK", 100)
    parts = joint_histogram(groups, 2)
    torch.testing.assert_close(parts.chances, whole.chances, rtol=0, atol=1e-15)
    again = entropy_gradient(groups, whole)
    assert all(torch.equal(a, b) for a, b in zip(again, gradient, strict=True))


def test_smoothing_adds_tuples_to_every_cell():
    group = soft_brackets(torch.tensor([0.0, 0.0, 1.0]), torch.arange(3.0))
    smooth = joint_histogram([group], 1).smoothed(1.0)
    assert smooth.chances.tolist() == pytest.approx([3 / 6, 2 / 6, 1 / 6])
    assert smooth.lengths().tolist() == pytest.approx([1, math.log2(3), math.log2(6)])


def test_cells_are_digits(case):
    """Every cell of a table of order 3 is reached by the tuple that it stands for."""
    for cell in product(range(3), repeat=3):
        group = soft_brackets(torch.tensor(cell, dtype=torch.float64), torch.arange(3.0).double())
        assert float(joint_histogram([group], 3).chances[cell]) == 1


@pytest.mark.slow
def test_the_number_of_levels_costs_no_time():
    values = torch.randn(300_000, generator=torch.Generator().manual_seed(0))
    seconds = {}
    for count in (6, 34):
        levels = torch.linspace(-2, 2, count)
        times = []
        for _ in range(7):
            start = time.process_time()
            groups = [soft_brackets(values, levels)]
            entropy_gradient(groups, joint_histogram(groups, 3))
            times.append(time.process_time() - start)
        seconds[count] = min(times)
    assert seconds[34] < 1.5 * seconds[6]
