"""Paths whose rows feel each other's errors, against all paths and against the exact quadratic."""

from itertools import product

import numpy as np
import pytest
import torch

from fewbits.ops.compiled.kernels import compiled, plain
from fewbits.ops.rate_distortion.trellis_paths import PathDescent
from small_trellis import FOLLOWING, LOWEST, TOP, follows

PRICE = 0.5
RNG = np.random.default_rng(1)


def all_paths(rows):
    numbers = product(range(LOWEST, TOP + 1), repeat=rows)
    return [path for path in map(np.array, numbers) if follows(path)]


def form_of(groups, neurons):
    """A positive definite form of the rows, and what the kernel takes: (form, weights, coupling).

    ``coupling[p, r]`` is that of row r to row p.
    """
    rows = groups * neurons
    form, coupling = np.zeros((rows, rows)), np.zeros((groups, neurons, neurons))
    for g in range(groups):
        root = RNG.normal(size=(neurons, 3 * neurons))
        own = slice(g * neurons, (g + 1) * neurons)
        form[own, own] = root @ root.T
        coupling[g] = (form[own, own] / form.diagonal()[own, None]).T
        np.fill_diagonal(coupling[g], 0)
    return form, form.diagonal().copy(), coupling


def best(kernels, values, costs, bits, old, *, coupling):
    rows = len(values)
    path = np.zeros(rows)
    kernels.best_coupled_path(
        values, costs, PRICE, bits, 0, LOWEST, old, coupling, FOLLOWING,
        np.full((2, 4, rows), np.nan), np.zeros((3, 4)), np.zeros((rows + 1, 8), np.int64),
        np.zeros((rows, 4), np.int64), path,
    )  # fmt: skip
    return path.astype(int)


def total(path, old, form, values, bits):
    """The exact change of the quadratic, plus bits: ``values`` are where each row alone is best."""
    change = path - old
    pull = form.diagonal() * (values - old)
    paid = sum(bits[0, 0, number - LOWEST] for number in path)
    return change @ form @ change - 2 * pull @ change + PRICE * paid


@pytest.mark.parametrize("kernels", [plain, compiled])
@pytest.mark.parametrize(("groups", "neurons"), [(1, 4), (2, 2)])
def test_a_path_is_nearer_to_the_best_of_all_than_without_the_coupling(kernels, groups, neurons):
    paths, gaps, alone = all_paths(groups * neurons), [], []
    for _ in range(12):
        form, costs, coupling = form_of(groups, neurons)
        values = RNG.normal(0, 2, groups * neurons)
        old = paths[RNG.integers(len(paths))].astype(float)
        bits = RNG.random((1, 1, TOP - LOWEST + 1)) * 4
        given = old, form, values, bits
        least = min(total(path, *given) for path in paths)
        path = best(kernels(), values, costs, bits, old, coupling=coupling)
        assert follows(path)
        gaps.append(total(path, *given) - least)
        apart = best(kernels(), values, costs, bits, old, coupling=0 * coupling)
        alone.append(total(apart, *given) - least)
        assert gaps[-1] >= -1e-9
    assert sum(gaps) < 0.5 * sum(alone)


def test_without_a_coupling_it_is_the_best_path():
    for rows in (1, 4, 9):
        values, costs = RNG.normal(0, 2, rows), RNG.random(rows) + 0.1
        bits, old = RNG.random((rows, 1, TOP - LOWEST + 1)) * 4, np.zeros(rows)
        path = best(plain(), values, costs, bits, old, coupling=np.zeros((1, rows, rows)))
        other = np.zeros(rows)
        scratch = np.zeros((3, 4)), np.zeros((rows, 4), np.int64), np.zeros((rows, 4), np.int64)
        plain().best_path(values, costs, PRICE, bits, 0, LOWEST, FOLLOWING, *scratch, other)
        assert path.tolist() == other.astype(int).tolist()


def test_values_far_out_or_missing_keep_the_path_within_its_integers():
    _, costs, coupling = form_of(1, 6)
    for value in (1e30, -1e30, np.inf, np.nan):
        values = RNG.normal(0, 2, 6)
        values[3] = value
        bits = RNG.random((1, 1, TOP - LOWEST + 1))
        path = best(plain(), values, costs, bits, np.zeros(6), coupling=coupling)
        assert follows(path)
        assert abs(path).max() <= TOP


def test_sweeps_lower_the_exact_quadratic_and_keep_the_residual():
    groups, neurons, columns = 2, 5, 6
    units = torch.from_numpy(RNG.normal(0, 2, (1, groups, neurons, columns)))
    root = torch.from_numpy(RNG.normal(size=(groups, columns, columns)))
    metric = root @ root.mT + torch.eye(columns)
    forms = [form_of(1, neurons) for _ in range(groups)]
    form = torch.from_numpy(np.stack([f for f, _, _ in forms]))
    weights = form.diagonal(dim1=1, dim2=2).contiguous()
    coupling = form / weights[..., None] - torch.eye(neurons)
    bits, price = torch.rand(1, 11, dtype=torch.float64) * 3, torch.tensor([0.3]).double()

    def cost(levels):
        error = (units - levels)[0]
        paid = bits[0][levels.flatten().long() - LOWEST].sum()
        return float((form @ error @ metric * error).sum() + price * paid)

    totals = {}
    for name, given in (("together", coupling), ("apart", None)):
        descent = PathDescent(
            units,
            torch.zeros_like(units),
            metric,
            order=torch.arange(5, -1, -1),
            weights=weights,
            following=FOLLOWING,
        )
        for _ in range(4):
            descent.sweep(price, bits, LOWEST, given)
            error = units - descent.levels
            torch.testing.assert_close(descent.errors(), ((error @ metric) * error).sum(3))
        assert all(follows(c.int().tolist()) for c in descent.levels[0].flatten(0, 1).T)
        totals[name] = cost(descent.levels)
    assert totals["together"] < totals["apart"]
