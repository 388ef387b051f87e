"""What the theory of path following predicts, measured (section 6 of the method's dossier)."""

import math

import pytest
import torch

from fewbits.ops.levels.grid import Grid
from fewbits.ops.rounding.path_following import follow_gram, follow_samples

F64 = torch.float64
TERNARY = Grid(3)


def gaussian(m, columns, neurons=32, seed=0, rank=None):
    g = torch.Generator().manual_seed(seed)
    w = torch.rand(1, neurons, columns, generator=g, dtype=F64) * 2 - 1
    x = torch.randn(1, m, rank or columns, generator=g, dtype=F64)
    if rank:
        x = x @ torch.randn(1, rank, columns, generator=g, dtype=F64)
    return w, x


def nearest(w, grid=TERNARY):
    q = w.clone()
    grid.project_(q)
    return q


def median_error(w, q, x):
    gap, target = x @ (w - q).mT, x @ w.mT
    return float((gap.norm(dim=1) / target.norm(dim=1)).median())


def test_c20_the_error_falls_as_the_root_of_rows_over_columns():
    sizes, errors = (256, 1024, 4096), []
    for columns in sizes:
        w, x = gaussian(50, columns)
        errors.append(median_error(w, follow_samples(w, x, x, TERNARY.project_)[0], x))
        assert 0.44 <= errors[-1] / math.sqrt(50 / columns) <= 0.56
        assert 0.45 <= median_error(w, nearest(w), x) <= 0.55
    slope = math.log(errors[2] / errors[0]) / math.log(sizes[2] / sizes[0])
    assert -0.56 <= slope <= -0.44


def test_c21_the_residual_stays_bounded():
    w, x = gaussian(50, 20_000, neurons=16)
    q, u = follow_samples(w, x, x, TERNARY.project_)
    gap = w - q
    states = torch.zeros(50, 16, dtype=F64)
    worst, late = 0.0, []
    for t in range(0, 20_000, 50):  # ||u|| moves little in 50 steps
        states += x[0, :, t : t + 50] @ gap[0, :, t : t + 50].mT
        norms = states.norm(dim=0) / 50
        worst = max(worst, float(norms.max()))
        if t >= 500:
            late.append(norms)
    torch.testing.assert_close(states, u[0], rtol=0, atol=1e-8)
    assert worst < 0.5
    assert 0.26 <= float(torch.cat(late).median()) <= 0.32


def test_c22_the_rank_of_the_data_counts_not_the_rows():
    errors = {}
    bounds = {10: (0.75, 1.3), 50: (0.85, 1.15), 500: (0.75, 1.0)}
    for rank, (low, high) in bounds.items():
        w, x = gaussian(500, 2048, rank=rank)
        errors[rank] = median_error(w, follow_samples(w, x, x, TERNARY.project_)[0], x)
        assert low <= errors[rank] / (0.5 * math.sqrt(rank / 2048)) <= high
    assert errors[10] < errors[50] < errors[500]


@pytest.mark.parametrize("m", [5, 300])
def test_c23_without_saturation_the_error_is_at_most_half_a_step_of_the_frobenius_norm(m):
    w, x = gaussian(m, 100)
    x[:, :, 40:60] *= 100  # arbitrary data: uneven, repeated, shifted
    x[:, :, 1] = x[:, :, 0]
    x[:, :, 80:] += 7
    second = x.mT @ x
    q = follow_gram(w, second, second, Grid(100_001).project_)
    assert (x @ (w - q).mT).norm(dim=1).max() <= 0.5 * x.norm()


def test_c24_on_fresh_isotropic_data_path_following_loses_to_rounding():
    w, x = gaussian(50, 2048)
    fresh = gaussian(2000, 2048, seed=1)[1]
    q = follow_samples(w, x, x, TERNARY.project_)[0]
    assert 0.65 <= median_error(w, q, fresh) <= 0.73
    assert 0.48 <= median_error(w, nearest(w), fresh) <= 0.52


def test_c25_the_mismatched_target_beats_the_matched_one():
    g = torch.Generator().manual_seed(0)
    w = torch.randn(1, 32, 300, generator=g, dtype=F64)
    mix = torch.randn(1, 300, 300, generator=g, dtype=F64) / 300**0.5
    x = (torch.randn(1, 3000, 300, generator=g, dtype=F64) @ mix).relu()
    y = (x + 0.15 * torch.randn(x.shape, generator=g, dtype=F64)).relu()
    step = w.abs().amax() / 7
    second, cross = y.mT @ y, y.mT @ x

    def error(q):
        return float((x @ w.mT - y @ (q * step).mT).norm() / (x @ w.mT).norm())

    project_ = Grid(15).project_
    mismatched = error(follow_gram(w / step, second, cross, project_))
    matched = error(follow_gram(w / step, second, second, project_))
    assert mismatched < 0.99 * matched
    assert matched < error(nearest(w / step, Grid(15)))
