"""Compiled kernels against their Python twins, and these against the obvious."""

import numpy as np
import pytest
import torch

from fewbits.ops.compiled import kernels
from fewbits.ops.levels.grid import Grid
from fewbits.ops.rate_distortion.cheapest_levels import PricedLevels, level_bits
from fewbits.ops.rate_distortion.descent import Descent
from fewbits.ops.rounding.path_following import follow_gram


def draws(*shape, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def both(name, arguments):
    """The arrays as the compiled kernel and as its twin leave them."""
    left = []
    for kernel in (kernels.compiled(), kernels.plain()):
        own = [a.copy() if isinstance(a, np.ndarray) else a for a in arguments]
        getattr(kernel, name)(*own)
        left.append([a for a in own if isinstance(a, np.ndarray)])
    return zip(*left, strict=True)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("levels", [4, 5])
def test_settle_grid(dtype, levels):
    grid, number = Grid(levels), dtype
    pending, feedback = draws(2, 9, 150, dtype=dtype), 0.3 * draws(2, 9, 9, seed=1, dtype=dtype)
    low, high = grid.offset - grid.top, grid.offset + grid.top
    ends = (number(grid.offset), number(low), number(high))
    for ours, twin in both("settle_grid", [pending, feedback, np.zeros_like(pending), 2, 8, *ends]):
        np.testing.assert_allclose(ours, twin, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("levels", [4, 5])
def test_settle_steps(dtype, levels):
    grid, number = Grid(levels), dtype
    pending, feedback = draws(2, 9, 150, dtype=dtype), 0.3 * draws(2, 9, 9, seed=1, dtype=dtype)
    steps = np.exp(draws(2, 9, 150, seed=2, dtype=dtype))
    low, high = grid.offset - grid.top, grid.offset + grid.top
    ends = (number(grid.offset), number(low), number(high))
    own = [pending, feedback, np.zeros_like(pending), steps, 2, 8, *ends]
    for ours, twin in both("settle_steps", own):
        np.testing.assert_allclose(ours, twin, rtol=1e-5, atol=1e-6)


def test_cheapest_is_the_least_of_all():
    rng = np.random.default_rng(0)
    for _ in range(500):
        count, lowest = int(rng.integers(1, 12)), int(rng.integers(-6, 3))
        value, energy, price = rng.normal(0, 6), rng.uniform(0.1, 3), rng.uniform(0, 3)
        bits = rng.uniform(0, 9, count)
        wanted = np.argmin(energy * (value - lowest - np.arange(count)) ** 2 + price * bits)
        for kernel in (kernels.compiled(), kernels.plain()):
            assert kernel.cheapest(value, energy, price, bits, lowest) == wanted


@pytest.mark.parametrize(("value", "wanted"), [(0.5, 0), (-0.5, -1), (1.5, 1), (9.0, 3)])
def test_ties_go_to_the_lowest(value, wanted):
    bits = np.zeros(7)
    assert kernels.plain().cheapest(value, 1.0, 0.0, bits, -3) - 3 == wanted


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_no_value_leads_out_of_bounds(value):
    for kernel in (kernels.compiled(), kernels.plain()):
        assert 0 <= kernel.cheapest(value, 1.0, 1.0, np.ones(5), -2) < 5


def table(levels):
    """A codebook of so many levels; none for 0."""
    return np.sort(2 * draws(levels, seed=9))


@pytest.mark.parametrize("values", [table(0), table(7)], ids=["integers", "codebook"])
def test_settle_priced(values):
    pending, feedback = 2 * draws(2, 6, 140), 0.2 * draws(2, 6, 6, seed=1)
    energy, price = np.exp(draws(2, 6, seed=2)), np.exp(draws(2, 140, seed=3))
    bits, sets = np.abs(draws(3, 7, seed=4)), np.random.default_rng(5).integers(0, 3, (2, 140))
    own = [pending, feedback, np.zeros_like(pending), 1, 6, energy, price, bits, sets, -3]
    own.append(values)
    for ours, twin in both("settle_priced", own):
        np.testing.assert_allclose(ours, twin, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("value", [*np.linspace(-5, 5, 41), np.nan])
@pytest.mark.parametrize("price", [0.0, 0.3, 5.0])
def test_the_cheapest_value_is_that_of_a_search_through_all(value, price):
    values, bits = table(9), np.abs(draws(9, seed=3))
    costs = 1.7 * (value - values) ** 2 + price * bits
    for module in (kernels.compiled(), kernels.plain()):
        place = module.cheapest_value(value, 1.7, price, bits, values)
        assert place == (0 if np.isnan(value) else costs.argmin())


@pytest.mark.parametrize("values", [table(0), table(9)], ids=["integers", "codebook"])
@pytest.mark.parametrize("tabled", [False, True])
@pytest.mark.parametrize("shifted", [False, True])
def test_descend(tabled, shifted, values):
    x = draws(1, 30, 8)
    metric = x.transpose(0, 2, 1) @ x
    units = 2 * draws(3, 5, 8, seed=1)
    levels = np.rint(units)
    shift = draws(3, 5, 8, seed=2) if shifted else np.zeros((0, 0, 0))
    bits = np.abs(draws(*((3, 5, 8, 9) if tabled else (3, 1, 1, 9)), seed=3))
    order = np.random.default_rng(4).permutation(8)[None]
    live = np.ones((1, 8), bool)
    live[0, 3] = False
    fixed = [units, levels, (units - levels) @ metric, shift, metric, live, order]
    own = [*fixed, np.full((3, 5), 20.0), bits, -4, 1, 2, values]
    for ours, twin in both("descend", own):
        np.testing.assert_allclose(ours, twin, rtol=1e-9, atol=1e-9)


def test_grouped_moments():
    x, y = draws(3, 20, 5, dtype=np.float32), draws(3, 20, 5, seed=1, dtype=np.float32)
    for ours, twin in both("grouped_moments", [x, y, np.ones((3, 5, 5))]):
        np.testing.assert_allclose(ours, twin, rtol=1e-9)
    moments = np.ones((3, 5, 5))
    kernels.plain().grouped_moments(x, y, moments)
    np.testing.assert_allclose(moments, 1 + x.transpose(0, 2, 1) @ y, rtol=1e-4, atol=1e-5)


class _Slow:
    """A projection without a compiled form."""

    def __init__(self, projection):
        self.projection = projection

    def __call__(self, values):
        self.projection.project_(values)


@pytest.mark.parametrize("kind", ["grid", "priced", "sets", "codebook"])
def test_path_following_is_the_same_compiled(kind):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 300, 70, generator=g, dtype=torch.float64)
    weight = 2 * torch.randn(2, 40, 70, generator=g, dtype=torch.float64)
    second = x.mT @ x
    bits = level_bits(weight.round().flatten(1), 9)
    if kind == "sets":
        bits = bits[:, None] * torch.rand(2, 40, 1, generator=g, dtype=torch.float64)

    def projection():
        if kind == "grid":
            return Grid(6)
        energy = second.diagonal(dim1=1, dim2=2)
        levels = torch.arange(-9, 10)
        if kind == "codebook":
            levels = levels.sign() * levels.double().abs() ** 1.3 / 2
        return PricedLevels(levels, energy, torch.full((2, 40), 30.0).double(), bits)

    compiled = follow_gram(weight, second, second, projection().project_)
    assert torch.equal(compiled, follow_gram(weight, second, second, _Slow(projection())))


def cost(units, levels, metric, price, bits):
    gap = units - levels
    place = (levels + bits.shape[-1] // 2).long()
    paid = price[..., None] * bits.flatten()[place]
    return float(((gap @ metric) * gap).sum() + paid.sum())


@pytest.mark.parametrize("parts", [1, 3])
def test_descent_never_costs_more_and_ends_where_no_single_level_helps(parts):
    g = torch.Generator().manual_seed(parts)
    x = torch.randn(1, 60, 12, generator=g, dtype=torch.float64)
    metric = x.mT @ x
    units = 2 * torch.randn(parts, 7, 12, generator=g, dtype=torch.float64)
    bits = 9 * torch.rand(1, 1, 1, 21, generator=g, dtype=torch.float64)
    price = torch.full((parts, 7), 8.0).double()
    order = torch.randperm(12, generator=g)[None]
    descent = Descent(units, units.round(), metric, order)
    before = cost(units, descent.levels, metric, price, bits)
    for _ in range(30):
        descent.sweep(price, bits.reshape(1, -1).expand(parts, -1), -10)
        after = cost(units, descent.levels, metric, price, bits)
        assert after <= before + 1e-9
        before = after
    gap = units - descent.levels
    torch.testing.assert_close(descent.errors(), ((gap @ metric) * gap).sum(2))
    for change in (-1, 1):
        for column in range(12):
            other = descent.levels.clone()
            other[:, :, column] += change
            for row in range(7):
                one = descent.levels.clone()
                one[:, row] = other[:, row]
                assert cost(units, one, metric, price, bits) >= before - 1e-9


def test_coupled_rows_see_the_errors_of_others():
    """The gradient of a row is its own plus what its coupling makes of the others'."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(1, 60, 9, generator=g, dtype=torch.float64)
    metric, order = x.mT @ x, torch.arange(9)[None]
    units = 2 * torch.randn(1, 8, 9, generator=g, dtype=torch.float64)
    coupling = 0.1 * torch.randn(1, 8, 8, generator=g, dtype=torch.float64)
    price, bits = torch.zeros(1, 8).double(), torch.zeros(1, 21).double()
    descent = Descent(units, units.round(), metric, order)
    descent.sweep(price, bits, -10, coupling=coupling, sets=4)
    levels = units.round()
    for first in range(4):
        rows = slice(first, None, 4)
        target = units[:, rows] + coupling[:, rows] @ (units - levels)
        part = Descent(target, levels[:, rows], metric, order)
        part.sweep(price[:, rows], bits, -10)
        levels[:, rows] = part.levels
    assert torch.equal(descent.levels, levels)
