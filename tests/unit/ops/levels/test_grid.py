"""Alphabets, steps and radius rules, against hand-made figures."""

import pytest
import torch

from fewbits.ops.levels.grid import (
    Grid,
    best_clip,
    mean_max_radius,
    median_radius,
    percentile_radius,
    round_up_to_bfloat16,
    row_radius,
    steps,
)


@pytest.mark.parametrize(
    ("levels", "expected"),
    [(2, [-0.5, 0.5]), (3, [-1, 0, 1]), (4, [-1.5, -0.5, 0.5, 1.5]), (5, [-2, -1, 0, 1, 2])],
)
def test_projection_reaches_exactly_the_levels(levels, expected):
    grid = Grid(levels)
    values = torch.linspace(-5, 5, 1001)
    nearest = torch.tensor(expected)[(values[:, None] - torch.tensor(expected)).abs().argmin(1)]
    found = values.clone()
    grid.project_(found)
    tie = ((values[:, None] - torch.tensor(expected)).abs().sort(1).values.diff(dim=1)[:, 0]) < 1e-5
    assert found.unique().tolist() == expected
    assert torch.equal(found[~tie], nearest[~tie])
    index = grid.index(found)
    assert index.dtype == torch.int32
    assert torch.equal(index - grid.offset, found)


def test_ties_go_to_the_even_index():
    odd = torch.tensor([-1.5, -0.5, 0.5, 1.5, 2.5])
    Grid(9).project_(odd)
    assert odd.tolist() == [-2, 0, 0, 2, 2]
    even = torch.tensor([-1.0, 0.0, 1.0])
    Grid(8).project_(even)
    assert even.tolist() == [-0.5, -0.5, 1.5]


def test_steps_are_bfloat16_rounded_upwards():
    g = torch.Generator().manual_seed(0)
    values = torch.rand(1000, generator=g) * 10.0 ** torch.randint(-30, 30, (1000,), generator=g)
    up = round_up_to_bfloat16(values)
    assert torch.equal(up, up.bfloat16().float())
    assert (up >= values).all()
    assert (up <= values * (1 + 2**-7)).all()
    exact = torch.tensor([1.0, 0.5, 1.5])
    assert torch.equal(round_up_to_bfloat16(exact), exact)


def test_the_largest_weight_never_saturates():
    w = torch.randn(200, 30, generator=torch.Generator().manual_seed(0))
    for levels in (2, 3, 15, 16, 255):
        grid = Grid(levels)
        step = steps(row_radius(w), row_radius(w), grid)
        assert (w.abs().amax(1) / step <= grid.top + 1e-6).all()


def test_steps_of_rows_without_weight():
    radius, fallback = torch.tensor([0.0, 0.0, 2.0]), torch.tensor([0.0, 4.0, 9.0])
    assert steps(radius, fallback, Grid(3)).tolist() == [1.0, 4.0, 2.0]
    tiny = steps(torch.tensor([1e-44]), torch.tensor([1e-44]), Grid(255))
    assert tiny.isfinite().all()
    assert (tiny > 0).all()


LIMITS = {dtype: torch.finfo(dtype).max for dtype in (torch.float16, torch.bfloat16, torch.float32)}


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("levels", [3, 4, 8, 15, 255, 65536, 2**24])
def test_no_level_leaves_the_dtype_and_next_to_nothing_is_cut(dtype, levels):
    grid, limit = Grid(levels), LIMITS[dtype]
    for radius in (limit, limit * 0.9999, limit / 2):
        step = steps(torch.tensor([radius]), torch.ones(1), grid, limit)
        assert torch.equal(step, step.bfloat16().float())
        top = step * grid.top
        assert float(top) <= limit
        assert top.to(dtype).isfinite()
        assert float(top) >= radius * (1 - 2**-7)
    beyond = steps(torch.tensor([float("inf")]), torch.ones(1), grid, limit)
    assert (beyond * grid.top).to(dtype).isfinite()


def test_two_levels_reach_as_far_as_a_float32_step_does():
    far = steps(torch.tensor([3e38]), torch.ones(1), Grid(2))
    assert far.isfinite()
    assert float(far) == torch.finfo(torch.bfloat16).max
    assert float(steps(torch.tensor([6e4]), torch.ones(1), Grid(2), 65504.0) / 2) >= 6e4


def test_radius_rules_by_hand():
    w = torch.tensor([[1.0, -4.0, 2.0, 0.5], [0.0, 3.0, -1.0, 8.0]])
    assert row_radius(w).tolist() == [4.0, 8.0]
    assert percentile_radius(w, 75).tolist() == [2.0, 3.0]
    assert percentile_radius(w, 100).tolist() == [4.0, 8.0]
    assert percentile_radius(w, 1e-9).tolist() == [0.5, 0.0]
    assert float(median_radius(w)) == 1.0  # the lower of the middle two
    assert float(mean_max_radius(w)) == 6.0


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_radius_rules_of_nothing(shape):
    w = torch.zeros(shape)
    assert row_radius(w).shape == percentile_radius(w, 50).shape == (shape[0],)
    assert float(median_radius(w)) == 0
    assert float(mean_max_radius(w)) == 0


def test_best_clip_is_elementwise_and_takes_the_first_of_equals():
    table = {1.0: [3.0, 1.0, 2.0], 2.0: [2.0, 1.0, 5.0], 3.0: [4.0, 0.5, 2.0]}
    clip, error = best_clip(lambda c: torch.tensor(table[c]), (1.0, 2.0, 3.0))
    assert clip.tolist() == [2.0, 3.0, 1.0]
    assert error.tolist() == [2.0, 0.5, 2.0]
    with pytest.raises(ValueError, match="candidate"):
        best_clip(lambda c: torch.zeros(1), ())
