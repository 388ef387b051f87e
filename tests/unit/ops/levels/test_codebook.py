"""Lloyd-Max with a zero, even steps, and assignment, against exhaustive search."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from fewbits.ops.levels.codebook import assign, even_step, lloyd_max, offset_grid, thresholds


def error(values, levels):
    return float((values[:, None].double() - levels.double()).abs().amin(1).square().sum())


def test_levels_are_fixed_points_with_an_exact_zero():
    values = torch.randn(5000, generator=torch.Generator().manual_seed(0)) * 0.1 + 0.02
    levels = lloyd_max(values, 9)
    assert len(levels) == 9
    assert bool((levels.diff() > 0).all())
    assert int((levels == 0).sum()) == 1
    cells = assign(values, levels)
    for k, level in enumerate(levels.tolist()):
        if level:
            mean = float(values[cells == k].double().mean())
            assert level == pytest.approx(mean, rel=5e-3)  # bfloat16


def test_near_the_best_of_all_cuts():
    """Against the best of all partitions of sorted values into runs, zero pinned."""
    values = torch.randn(13, generator=torch.Generator().manual_seed(3)).sort().values
    best = None
    for cuts in combinations(range(1, 13), 4):
        runs = torch.tensor_split(values, cuts)
        for pinned in range(5):
            centres = [0.0 if k == pinned else float(run.mean()) for k, run in enumerate(runs)]
            cost = sum(
                float((run - c).square().sum()) for run, c in zip(runs, centres, strict=True)
            )
            best = cost if best is None else min(best, cost)
    assert error(values, lloyd_max(values, 5)) <= 1.35 * best
    assert error(values, lloyd_max(values, 5)) >= best * 0.99


def test_beats_even_levels():
    values = torch.randn(5000, generator=torch.Generator().manual_seed(1)) ** 3
    step = even_step(values, 7)
    grid = torch.arange(-3, 4) * step
    assert error(values, lloyd_max(values, 7)) < error(values, grid)


@pytest.mark.parametrize("values", [[1.0, 2.0], [0.0, 0.0], [-3.0], [0.5, 0.0, -0.5, 0.5]])
def test_few_values_are_kept_exactly(values):
    levels = lloyd_max(torch.tensor(values), 7)
    assert set(levels.tolist()) == {*values, 0.0}


def test_one_sided_values_get_a_zero_too():
    for sign in (1, -1):
        values = sign * (torch.rand(1000, generator=torch.Generator().manual_seed(0)) + 1)
        levels = lloyd_max(values, 5)
        assert 0 in levels.tolist()
        assert bool((levels.diff() > 0).all())


def test_warm_start_goes_on_from_the_levels_given():
    values = torch.randn(4000, generator=torch.Generator().manual_seed(2))
    far = torch.tensor([-4.0, -3.0, 0.0, 3.0, 4.0])
    once = lloyd_max(values, 5, start=far, iterations=1)
    more = lloyd_max(values, 5, start=far)
    assert error(values, more) < error(values, once) < error(values, far)


def test_even_step_is_the_best_of_its_candidates():
    values = torch.randn(3000, generator=torch.Generator().manual_seed(4))
    step = even_step(values, 15)
    grid = torch.arange(-7, 8)
    for other in (0.8 * step, 0.95 * step, 1.05 * step, 1.2 * step):
        assert error(values, grid * step) <= error(values, grid * other) * 1.001
    assert step == float(torch.tensor(step).bfloat16())


def test_even_step_of_nothing_to_measure_is_one():
    assert even_step(torch.zeros(5), 7) == 1
    assert even_step(torch.zeros(0), 7) == 1


def test_assignment_is_the_nearest_level_and_ties_go_down():
    levels = torch.tensor([-1.0, 0.0, 0.5, 2.0])
    values = torch.randn(500, generator=torch.Generator().manual_seed(5))
    assert torch.equal(assign(values, levels), (values[:, None] - levels).abs().argmin(1))
    assert assign(thresholds(levels), levels).tolist() == [0, 1, 2]


@pytest.mark.parametrize("shift", [0.0, 3.0, -40.0])
def test_windows_err_about_as_little_as_the_best_grid_anywhere(shift):
    """Against grids of any step and any place, which a file could not hold without an offset."""
    values = torch.rand(24, generator=torch.Generator().manual_seed(5)) + shift
    step, lowest = offset_grid(values, 8)
    assert step == float(torch.tensor(step).bfloat16())
    found = error(values, (lowest + torch.arange(8)) * step)
    spans = torch.linspace(0.5, 1.1, 61).tolist()
    starts = torch.linspace(-0.1, 0.3, 81).tolist()
    places = torch.arange(8).double() / 7
    best = min(error(values, shift + a + b * places) for a in starts for b in spans)
    assert found <= 1.5 * best


def test_windows_weigh_errors_by_their_cost():
    values = torch.tensor([1.0, 1.13, 1.29, 1.4, 9.0])
    step, lowest = offset_grid(values, 4, torch.tensor([1.0, 1, 1, 1, 0]))
    assert step < 1
    assert step * (lowest + 3) < 5
    step, lowest = offset_grid(values, 4)
    assert step * (lowest + 3) > 8
    assert offset_grid(torch.zeros(3), 4) == (1.0, 0)
