"""The kernels against the definition, and the identities the dossier of the method lists."""

import itertools
import math

import pytest
import torch

from fewbits.ops.levels.grid import Grid
from fewbits.ops.rounding.path_following import descending, follow_gram, follow_samples, gram_error
from fewbits.ops.rounding.projections import CodebookProjection, SoftThreshold

F64 = torch.float64


def alphabet(grid):
    return torch.arange(grid.levels, dtype=F64) - grid.top


def oracle(weight, x, y, levels):
    """The definition for one group, literally: argmin over the alphabet, neuron by neuron."""
    result = torch.empty_like(weight)
    energy = y.square().sum(0)
    for i, w in enumerate(weight):
        u = torch.zeros(len(x), dtype=x.dtype)
        for t in range(weight.shape[1]):
            v = u + w[t] * x[:, t]
            if energy[t] <= 1e-12 * energy.mean():
                q = levels[(levels - w[t]).abs().argmin()]
            else:
                q = levels[(v - levels[:, None] * y[:, t]).square().sum(1).argmin()]
            result[i, t] = q
            u = v - q * y[:, t]
    return result


def problem(m, columns, neurons, *, seed=0, groups=1, noise=0.2, scale=2.0):
    g = torch.Generator().manual_seed(seed)
    w = torch.rand(groups, neurons, columns, generator=g, dtype=F64) * 2 * scale - scale
    x = torch.randn(groups, m, columns, generator=g, dtype=F64)
    y = x + noise * torch.randn(groups, m, columns, generator=g, dtype=F64)
    return w, x, y


def moments(x, y):
    return y.mT @ y, y.mT @ x


def quantize(form, w, x, y, project_, **kwargs):
    if form == "sample":
        return follow_samples(w, x, y, project_, **kwargs)[0]
    second = y.mT @ y
    return follow_gram(w, second, second if x is y else y.mT @ x, project_, **kwargs)


BOTH = pytest.mark.parametrize("form", ["sample", "gram"])


@pytest.mark.parametrize("m", [40, 300])
@pytest.mark.parametrize("levels", [3, 4, 16])
def test_a1_both_forms_equal_the_definition_at_any_block_size(m, levels):
    w, x, y = problem(m, 120, 16)
    y[:, :, [3, 50]] = 0
    x[:, :, [7, 50]] = 0
    grid = Grid(levels)
    expected = oracle(w[0], x[0], y[0], alphabet(grid))
    for form, block in itertools.product(["sample", "gram"], [1, 7, 32, 120, 125]):
        assert torch.equal(quantize(form, w, x, y, grid.project_, block=block)[0], expected)
    # any square root of the moments will do: thin QR
    factor, root = torch.linalg.qr(y)
    assert torch.equal(quantize("sample", w, factor.mT @ x, root, grid.project_)[0], expected)


@BOTH
def test_a1_the_short_cut_where_both_inputs_are_one(form):
    w, x, _ = problem(60, 150, 8)
    expected = oracle(w[0], x[0], x[0], alphabet(Grid(5)))
    assert torch.equal(quantize(form, w, x, x, Grid(5).project_)[0], expected)


def test_a2_the_residual_and_the_gram_objective_are_the_output_error():
    w, x, y = problem(200, 90, 12)
    q, u = follow_samples(w, x, y, Grid(7).project_)
    direct = x @ w.mT - y @ q.mT
    torch.testing.assert_close(u, direct, rtol=0, atol=1e-10)
    energy = (x @ w.mT).square().sum(1)
    squared = gram_error(w, q, *moments(x, y)) + energy
    torch.testing.assert_close(squared, direct.square().sum(1), rtol=1e-10, atol=1e-9)
    second = x.mT @ x
    matched = gram_error(w, q, second, second)
    torch.testing.assert_close(matched, (x @ (w - q).mT).square().sum(1), rtol=1e-10, atol=1e-9)


def test_a3_energy_identities_hold_at_every_step():
    w, x, y = problem(30, 25, 3)
    grid = Grid(5)
    q = quantize("gram", w, x, y, grid.project_)[0]
    for i, w_i in enumerate(w[0]):
        u = torch.zeros(30, dtype=F64)
        for t in range(25):
            v = u + w_i[t] * x[0, :, t]
            column, power = y[0, :, t], y[0, :, t].square().sum()
            z = column @ v / power
            u = v - q[i, t] * column
            gap = z - q[i, t]
            assert math.isclose(column @ u, gap * power, rel_tol=1e-9, abs_tol=1e-9)
            orthogonal = v - column * (column @ v) / power
            total = orthogonal.square().sum() + gap**2 * power
            assert math.isclose(u.square().sum(), total, rel_tol=1e-9)


@BOTH
@pytest.mark.parametrize("levels", [2, 3, 4, 16])
def test_a4_every_entry_is_in_the_alphabet_dead_columns_too(form, levels):
    w, x, y = problem(40, 60, 8, scale=20)
    y[:, :, ::5] = 0
    grid = Grid(levels)
    q = quantize(form, w, x, y, grid.project_)
    assert set(q.unique().tolist()) <= set(alphabet(grid).tolist())
    dead = w[..., ::5].clone()
    grid.project_(dead)
    assert torch.equal(q[..., ::5], dead)


@BOTH
def test_a5_weights_in_the_alphabet_stay(form):
    w, x, _ = problem(50, 70, 6)
    w = w.round()
    assert torch.equal(quantize(form, w, x, x, Grid(5).project_), w)
    assert follow_samples(w, x, x, Grid(5).project_)[1].abs().max() == 0


@BOTH
def test_a6_orthogonal_columns_and_single_columns_are_plainly_rounded(form):
    w, x, _ = problem(80, 40, 6)
    plain = w.clone()
    Grid(5).project_(plain)
    orthogonal = torch.linalg.qr(x)[0] * 3
    assert torch.equal(quantize(form, w, orthogonal, orthogonal, Grid(5).project_), plain)
    one = x[:, :, :1]
    found = quantize(form, w[..., :1], one, one, Grid(5).project_)
    assert torch.equal(found, plain[..., :1])


def test_a7_one_row_of_ones_is_a_sigma_delta_modulator():
    w, _, _ = problem(1, 500, 4, scale=1.0)
    x = torch.ones(1, 1, 500, dtype=F64)
    q, _ = follow_samples(w, x, x, Grid(3).project_)
    assert (w - q).cumsum(2).abs().max() <= 0.5 + 1e-12


@BOTH
def test_a8_scaling_by_a_power_of_two_and_sign_symmetry(form):
    w, x, y = problem(50, 60, 6)
    levels = torch.tensor([-2.0, -0.75, 0.0, 0.75, 2.0], dtype=F64)
    q = quantize(form, w, x, y, CodebookProjection(levels).project_)
    scaled = quantize(form, 4 * w, x, y, CodebookProjection(4 * levels).project_)
    assert torch.equal(scaled, 4 * q)
    assert torch.equal(quantize(form, -w, x, y, CodebookProjection(levels).project_), -q)


def test_a9_only_inner_products_of_the_data_matter():
    w, x, y = problem(50, 60, 6)
    project_ = Grid(5).project_
    q = quantize("sample", w, x, y, project_)
    shuffled = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    assert torch.equal(quantize("sample", w, x[:, shuffled], y[:, shuffled], project_), q)
    rotation = torch.linalg.qr(problem(50, 50, 1, seed=2)[1])[0]
    assert torch.equal(quantize("sample", w, rotation @ x, rotation @ y, project_), q)
    twice = [torch.cat([part, part], 1) for part in (x, y)]
    assert torch.equal(quantize("sample", w, *twice, project_), q)
    assert torch.equal(quantize("gram", w, 3 * x, 3 * y, project_), q)


@BOTH
def test_a10_neurons_and_groups_never_meet(form):
    w, x, y = problem(50, 60, 6, groups=3)
    project_ = Grid(5).project_
    q = quantize(form, w, x, y, project_)
    assert torch.equal(quantize(form, w.flip(1), x, y, project_), q.flip(1))
    for group, neuron in itertools.product(range(3), range(6)):
        part = slice(group, group + 1)
        alone = quantize(form, w[part, neuron : neuron + 1], x[part], y[part], project_)
        assert torch.equal(alone[0, 0], q[group, neuron])


@BOTH
def test_a14_refinement_never_raises_the_objective(form):
    w, x, y = problem(70, 90, 8)
    errors = []
    for passes in range(4):
        q = quantize(form, w, x, y, Grid(3).project_, passes=passes, block=16)
        errors.append((x @ w.mT - y @ q.mT).square().sum(1))
    for before, after in itertools.pairwise(errors):
        assert (after <= before + 1e-9).all()
    assert errors[1].sum() < 0.999 * errors[0].sum()


def test_a14_refinement_is_coordinate_descent():
    w, x, y = problem(40, 30, 4)
    grid = Grid(3)
    expected = oracle(w[0], x[0], y[0], alphabet(grid))
    for i in range(4):
        for t in range(30):
            u = x[0] @ w[0, i] - y[0] @ expected[i]
            z = expected[i, t] + y[0, :, t] @ u / y[0, :, t].square().sum()
            expected[i, t] = z.round().clamp(-1, 1)
    for form in ("sample", "gram"):
        assert torch.equal(quantize(form, w, x, y, grid.project_, passes=1, block=8)[0], expected)


@BOTH
def test_an_order_is_a_permutation_of_the_problem(form):
    w, x, y = problem(60, 50, 5, groups=2)
    order = descending(y.square().sum(1))
    assert (y.square().sum(1).gather(1, order).diff(dim=1) <= 0).all()
    q = quantize(form, w, x, y, Grid(5).project_, order=order, passes=1, block=16)
    for g in range(2):
        p, part = order[g], slice(g, g + 1)
        moved = quantize(
            form, w[part][..., p], x[part][..., p], y[part][..., p], Grid(5).project_, passes=1
        )
        assert torch.equal(q[part][..., p], moved)


@BOTH
def test_any_codebook_may_be_the_alphabet(form):
    w, x, y = problem(50, 60, 4)
    levels = torch.tensor([-1.9, -0.4, 0.1, 0.5, 2.2], dtype=F64)
    expected = oracle(w[0], x[0], y[0], levels)
    assert torch.equal(quantize(form, w, x, y, CodebookProjection(levels).project_)[0], expected)


@BOTH
def test_the_inputs_are_left_alone(form):
    w, x, y = problem(50, 60, 4)
    before = [part.clone() for part in (w, x, y)]
    quantize(form, w, x, y, SoftThreshold(0.3, Grid(5).project_).project_, passes=1)
    for part, copy in zip((w, x, y), before, strict=True):
        assert torch.equal(part, copy)


@BOTH
@pytest.mark.parametrize("shape", [(1, 0, 5), (1, 3, 0), (2, 3, 1)])
def test_empty_and_narrow_matrices(form, shape):
    w = torch.ones(shape, dtype=F64)
    x = torch.ones(shape[0], 4, shape[2], dtype=F64)
    assert quantize(form, w, x, x, Grid(3).project_).shape == shape


def test_no_rows_at_all_is_plain_rounding():
    w, x, _ = problem(0, 20, 3)
    plain = w.clone()
    Grid(3).project_(plain)
    assert torch.equal(quantize("sample", w, x, x, Grid(3).project_), plain)
    assert torch.equal(quantize("gram", w, x, x, Grid(3).project_), plain)
