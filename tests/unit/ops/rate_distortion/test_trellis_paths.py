"""Best paths against all paths, one by one."""

from itertools import product

import numpy as np
import pytest
import torch

from fewbits.ops.compiled.kernels import compiled, plain
from fewbits.ops.rate_distortion.cheapest_levels import level_bits, total_bits
from fewbits.ops.rate_distortion.trellis_paths import (
    PathDescent,
    PathLevels,
    nearest_paths,
    path_bits,
    total_path_bits,
)
from small_trellis import FOLLOWING, LOWEST, TOP, follows

RNG = np.random.default_rng(0)


def cost(path, values, costs, price, bits):
    own = [bits[row if len(bits) > 1 else 0, number - LOWEST] for row, number in enumerate(path)]
    return sum(costs * (values - path) ** 2) + price * sum(own)


def cheapest(values, costs, price, bits):
    """The least cost of all paths."""
    numbers = range(LOWEST, TOP + 1)
    paths = (np.array(path) for path in product(numbers, repeat=len(values)) if follows(path))
    return min(cost(path, values, costs, price, bits) for path in paths)


def case(rows, own):
    values, costs = RNG.normal(0, 2, rows), RNG.random(rows) + 0.1
    bits = RNG.random((rows if own else 1, 1, TOP - LOWEST + 1)) * 4
    return values, costs, float(RNG.random() * 2), bits


def best(kernels, values, costs, price, bits):
    rows, path = len(values), np.zeros(len(values))
    scratch = np.zeros((3, 4)), np.zeros((rows, 4), np.int64), np.zeros((rows, 4), np.int64)
    kernels.best_path(values, costs, price, bits, 0, LOWEST, FOLLOWING, *scratch, path)
    return path.astype(int)


@pytest.mark.parametrize("kernels", [plain, compiled])
def test_the_best_path_is_the_cheapest_of_all(kernels):
    for trial in range(12):
        values, costs, price, bits = case(1 + trial % 4, trial % 2)
        path = best(kernels(), values, costs, price, bits)
        assert follows(path)
        least = cheapest(values, costs, price, bits[:, 0])
        assert cost(path, values, costs, price, bits[:, 0]) == pytest.approx(least)


def test_values_far_out_or_missing_keep_the_path_within_its_integers():
    for value in (1e30, -1e30, np.inf, np.nan):
        values, costs, price, bits = case(6, own=False)
        values[3] = value
        path = best(plain(), values, costs, price, bits)
        assert follows(path)
        assert abs(path).max() <= TOP


def setting(groups=2, neurons=3, columns=6, trials=2):
    units = torch.from_numpy(RNG.normal(0, 2, (trials, groups, neurons, columns)))
    root = torch.from_numpy(RNG.normal(size=(groups, columns, columns)))
    metric = root @ root.mT + torch.eye(columns)
    weights = torch.from_numpy(RNG.random((groups, neurons)) + 0.2)
    return units, metric, weights


def is_path(levels):
    return all(follows(row.int().tolist()) for row in levels.flatten(0, 1).T)


def test_projection_runs_through_all_groups_of_each_trial():
    units, _, weights = setting()
    energy = torch.rand(2, 6, dtype=torch.float64) + 0.1
    bits, price = torch.rand(2, 11, dtype=torch.float64), torch.tensor([0.5, 2.0]).double()
    levels = PathLevels(
        lowest=LOWEST,
        energy=energy,
        weights=weights,
        price=price,
        bits=bits,
        following=FOLLOWING,
    )
    for t in range(6):
        column = units[..., t].transpose(0, 1).reshape(2, 1, 6).clone()  # groups, trials x neurons
        levels.project_(column)
        for k in range(2):
            path = column[:, 0, 3 * k : 3 * k + 3].flatten().int().numpy()
            values = units[k, :, :, t].flatten().numpy()
            costs = (weights * energy[:, t, None]).flatten().numpy()
            own = best(plain(), values, costs, float(price[k]), bits[k].numpy()[None, None])
            assert path.tolist() == own.tolist()


@pytest.mark.parametrize("own", [False, True])
def test_descent_never_raises_the_cost_and_keeps_the_residual(own):
    units, metric, weights = setting()
    order = torch.arange(5, -1, -1)
    descent = PathDescent(
        units,
        torch.zeros_like(units),
        metric,
        order=order,
        weights=weights,
        following=FOLLOWING,
    )
    shape = (2, 6, 6, 11) if own else (2, 11)
    bits, price = torch.rand(shape, dtype=torch.float64) * 3, torch.tensor([0.3, 1.0]).double()
    before = torch.full((2,), torch.inf)
    for _ in range(3):
        descent.sweep(price, bits, LOWEST)
        error = units - descent.levels
        squares = ((error @ metric) * error).sum(3)
        torch.testing.assert_close(descent.errors(), squares)
        rows = descent.levels.flatten(1, 2).long() - LOWEST
        paid = bits.gather(3, rows[..., None]) if own else bits.gather(1, rows.flatten(1))
        total = (squares * weights).sum((1, 2)) + price * paid.flatten(1).sum(1)
        assert (total <= before + 1e-9).all()
        assert all(is_path(levels) for levels in descent.levels)
        before = total


def test_bits_are_those_of_each_parity():
    levels = torch.tensor([[0, 0, 2, 1, -1, 1, 1, -3], [0, 0, 0, 0, 4, 2, 0, -2]]).double()
    bits = path_bits(levels, 7)
    even = torch.tensor([[0, 0, 2], [0, 1, 0]])  # halves of even numbers, as numbers
    own = level_bits(even[:1].double() / 2 * 1, 4)
    assert bits.shape == (2, 15)
    torch.testing.assert_close(bits[0, 7 + 2], own[0, 4 + 1])
    shares = torch.exp2(-bits)
    for odd in (0, 1):
        numbers = torch.arange(-7, 8) % 2 == odd
        assert (shares[0, numbers].sum() < 1.01).all()
        assert (shares[0, numbers].sum() > 0.97).all()
    expected = total_bits(torch.tensor([[0.0, 0, 1]]), 7) + total_bits(
        torch.tensor([[0.0, -1, 0, 0, -2]]), 7
    )
    torch.testing.assert_close(total_path_bits(levels, 7)[:1], expected)


def test_integers_that_do_not_occur_are_priced():
    bits = path_bits(torch.zeros(1, 20), 127)
    assert bits.isfinite().all()
    assert bits[0, 127] == bits.min()


def test_the_nearest_paths_of_a_matrix_are_those_of_its_columns():
    values = torch.from_numpy(RNG.normal(0, 2, (4, 5)))
    found = nearest_paths(values, LOWEST, TOP, FOLLOWING)
    assert found.shape == values.shape
    for own, path in zip(values.mT.numpy(), found.mT.numpy(), strict=True):
        assert follows(path.astype(int))
        free = np.zeros((1, TOP - LOWEST + 1))
        least = cheapest(own, np.ones(4), 0.0, free)
        assert ((own - path) ** 2).sum() == pytest.approx(least)


def test_a_path_is_the_nearest_to_itself():
    values = torch.from_numpy(RNG.normal(0, 3, (20, 7))).float()
    path = nearest_paths(values, LOWEST, TOP, FOLLOWING)
    assert torch.equal(nearest_paths(path, LOWEST, TOP, FOLLOWING), path)
    assert path.dtype == torch.float32
