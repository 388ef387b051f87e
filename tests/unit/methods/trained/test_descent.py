"""The side on which the entropy falls, and how far a weight goes there."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fewbits import HEMP
from fewbits.engine.layers.layer import QuantizedMatrix
from fewbits.engine.layers.views import WeightView
from fewbits.methods import TunedWeight
from fewbits.methods.trained.descent import descents
from fewbits.ops.levels.codebook import assign
from fewbits.ops.rate_distortion.soft_entropy import joint_histogram, soft_brackets

GRID = torch.arange(-2.0, 3.0)


def peaked(grid=GRID):
    """Indices of a bell: the fewer, the farther from zero; all on their levels."""
    counts = (20, 100, 500, 100, 20)
    return torch.cat([torch.full((n,), float(v)) for n, v in zip(counts, grid, strict=True)])


def coded(values, levels):
    index = assign(values, levels).int()[None, None]
    start = QuantizedMatrix(index, None, levels=levels)
    parameter = nn.Parameter(values.clone()[None])
    return TunedWeight("weight", parameter, WeightView("weight", 1), start=start)


def descent_of(values, levels=GRID, order=1):
    groups = [soft_brackets(values, levels, int(levels.abs().argmin()))]
    return descents(groups, [levels], joint_histogram(groups, order).smoothed(1e-3))[0]


def test_from_a_level_the_entropy_falls_towards_zero_and_zeros_stay():
    values = peaked()
    found = descent_of(values)
    assert bool((found.gradient[values == 0] == 0).all())
    for sign in (1, -1):
        outside = values * sign > 0
        assert bool((found.gradient[outside] * sign > 0).all())
        assert torch.equal(found.goal[outside], values[outside] - sign)


@pytest.mark.parametrize("order", [1, 2])
def test_on_a_level_the_gradient_is_that_of_differences_on_its_side(order):
    values = peaked()[torch.randperm(740, generator=torch.Generator().manual_seed(0))]
    found = descent_of(values, order=order)
    for place in [int((values == level).nonzero()[0]) for level in (1, -1)]:
        moved = values.double()
        moved[place] -= 1e-4 * values[place]
        pair = [[soft_brackets(v.double(), GRID.double(), 2)] for v in (values, moved)]
        before, after = (float(joint_histogram(groups, order).entropy()) for groups in pair)
        fell = (before - after) / 1e-4 * float(values[place])
        assert float(found.gradient[place]) == pytest.approx(fell, rel=0.05)


def test_a_level_rarer_than_both_neighbours_is_left_on_the_steeper_side():
    values = torch.tensor([0.0] * 80 + [1.0] * 5 + [2.0] * 15)
    found = descent_of(values, torch.tensor([0.0, 1.0, 2.0]))
    assert bool((found.goal[values == 1] == 0).all())
    assert bool((found.gradient[values == 1] > 0).all())


def test_between_levels_the_descent_is_the_gradient():
    values = peaked() + 0.25
    groups = [soft_brackets(values, GRID, 2)]
    found = descent_of(values)
    down = found.gradient > 0
    assert torch.equal(found.goal, GRID[groups[0].lower + (~down).long()])


def test_one_level_has_no_descent():
    found = descent_of(torch.zeros(5), torch.zeros(1))
    assert bool((found.gradient == 0).all())


def test_a_start_on_its_levels_does_not_drift():
    """All zeros moved the same way before, and all others far from their levels at the end."""
    values = peaked()
    weight = coded(values, GRID)
    session = HEMP(rate_weight=0.1, insensitive=False).start([weight])
    for k in range(100):
        session.step()
        session.advance((k + 1) / 100)
        if k == 60:
            middle = weight.parameter.detach()[0].clone()
    assert torch.equal(middle[values == 0], values[values == 0])
    assert bool(((middle - values).abs()[values != 0] > 0.02).all())  # the term acts
    torch.testing.assert_close(weight.parameter.detach()[0], values, rtol=0, atol=1e-3)


def test_the_crossing_rule_has_the_scale_of_the_cell():
    """With the mean cell as scale, weights in narrow cells of a codebook crossed for nothing."""
    levels = torch.tensor([-16.0, -8.0, -4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0, 8.0, 16.0])
    counts = (2, 4, 8, 30, 120, 300, 120, 30, 8, 4, 2)
    values = torch.cat([torch.full((n,), float(v)) for n, v in zip(counts, levels, strict=True)])
    weight = coded(values, levels)
    session = HEMP(rate_weight=0.1, insensitive=False, pull=0.05).start([weight])
    for _ in range(100):
        session.step()
    assert torch.equal(session.quantized(weight).dequantize().flatten(), values)


@pytest.mark.parametrize("rate_weight", [0.1, 0.4])
def test_the_rule_holds_where_the_network_computes_with_levels(rate_weight):
    """1 is rarer than 0 by 4.3 bits: it is left at 1 / 0.4 bits, not at 1 / 0.1."""
    values = torch.tensor([0.0] * 1900 + [1.0] * 100)
    weight = coded(values, torch.tensor([0.0, 1.0]))
    method = HEMP(rate_weight=rate_weight, forward="quantized", insensitive=False, pull=0.05)
    session = method.start([weight])
    for _ in range(200):
        session.step()
    left = int((session.quantized(weight).index == 1).sum())
    assert left == (100 if rate_weight == 0.1 else 0)


def test_bits_in_the_loss_move_weights_in_proportion_to_their_cells():
    """With the gradient itself, weights in narrow cells jump over several levels in a step."""
    levels = torch.tensor([-2.0, -0.5, 0.0, 0.5, 2.0])
    weight = coded(peaked(levels), levels)
    session = HEMP(slope=1.0, forward="quantized").start([weight])
    session.penalty().backward()
    state = session._states["weight"]
    pace = weight.parameter.grad[0] / state.bit_gradient[0]
    wide, narrow = (pace[weight.parameter.detach()[0] == level] for level in (2.0, 0.5))
    assert float(wide[0] / narrow[0]) == pytest.approx(9)  # cells of 1.5 and 0.5
