"""Thresholds, chance and codebooks against brute force (acceptance test A 12)."""

import itertools

import pytest
import torch

from fewbits.ops.levels.grid import Grid
from fewbits.ops.rounding.projections import (
    CodebookProjection,
    HardThreshold,
    SoftThreshold,
    StochasticRounding,
)

F64 = torch.float64
SIZES = pytest.mark.parametrize(
    ("levels", "size"), list(itertools.product([3, 7, 17], [0.1, 0.3, 0.7]))
)


def draws(count=2000, scale=12.0):
    g = torch.Generator().manual_seed(3)
    return (torch.rand(count, generator=g, dtype=F64) - 0.5) * scale


def projected(projection, z):
    found = z.clone()
    projection.project_(found)
    return found


@SIZES
def test_a12_soft_threshold_is_the_penalised_argmin(levels, size):
    grid, z = Grid(levels), draws()
    alphabet = torch.arange(levels, dtype=F64) - grid.top
    cost = (alphabet - z[:, None]).square() / 2 + size * alphabet.abs()
    found = projected(SoftThreshold(size, grid.project_), z)
    assert torch.equal(found, alphabet[cost.argmin(1)])


@SIZES
def test_a12_hard_threshold_is_the_penalised_argmin(levels, size):
    projection, z = HardThreshold(size, Grid(levels)), draws()
    alphabet = projection.levels.to(F64)
    assert len(alphabet) == levels + 2
    assert float(alphabet[-1]) == Grid(levels).top
    cost = (alphabet - z[:, None]).square() / 2 + size**2 / 2 * (alphabet != 0)
    found = projected(projection, z)
    assert torch.equal(found, alphabet[cost.argmin(1)])
    assert torch.equal(projection.levels[projection.index(found).long()].to(F64), found)


@pytest.mark.parametrize("levels", [3, 4, 7])
def test_a12_stochastic_rounding_keeps_the_mean(levels):
    grid = Grid(levels)
    generator = torch.Generator().manual_seed(0)
    for z in (-0.93, -0.2, 0.0, 0.41, 0.5, 0.99):
        values = torch.full((10_000,), z, dtype=F64)
        found = projected(StochasticRounding(grid, generator), values)
        error = abs(float(found.mean()) - z)
        assert error <= 4 * float(found.std()) / 100 + 1e-12
        assert len(found.unique()) <= 2


def test_a12_stochastic_rounding_is_reproducible_and_stays_inside():
    def run(seed):
        generator = torch.Generator().manual_seed(seed)
        return projected(StochasticRounding(Grid(5), generator), draws())

    assert torch.equal(run(0), run(0))
    assert not torch.equal(run(0), run(1))
    assert run(0).abs().max() == 2


def test_levels_of_a_hard_threshold_are_built_once():
    projection = HardThreshold(0.4, Grid(7))
    assert projection.table(draws()) is projection.table(draws())
    assert projection.table(draws()).dtype == F64
    assert projection.table(torch.zeros(1)).dtype == torch.float32
    assert projection == HardThreshold(0.4, Grid(7))
    assert projection.levels is not projection.levels  # what is handed out may be changed


def test_codebook_takes_the_nearest_and_the_lower_of_two():
    levels = torch.tensor([-3.0, -1.0, 0.5, 4.0], dtype=F64)
    z = draws()
    projection = CodebookProjection(levels)
    found = projected(projection, z)
    assert torch.equal(found, levels[(levels - z[:, None]).abs().argmin(1)])
    assert torch.equal(levels[projection.index(found).long()], found)
    assert projected(projection, torch.tensor([-2.0], dtype=F64)).tolist() == [-3.0]
    assert projected(CodebookProjection(levels[:1]), z).unique().tolist() == [-3.0]
