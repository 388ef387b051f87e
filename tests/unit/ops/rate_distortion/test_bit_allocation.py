"""Allocation: measured curves against the literature, slopes at the optimum, strict levels."""

from __future__ import annotations

import itertools

import pytest
import torch

from fewbits.ops.rate_distortion.bit_allocation import (
    DEPTHS,
    Curve,
    allocate,
    at_slope,
    block_curve,
    block_levels,
    lower_hull,
)

ONE = torch.ones(1, dtype=torch.float64)
PLACES = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
GAUSS = torch.special.ndtri(PLACES)[None]
LAPLACE = (torch.sign(PLACES - 0.5) * -torch.log1p(-2 * (PLACES - 0.5).abs()) / 2**0.5)[None]
# Mean squared error of the best uniform midrise quantizer of unit variance, R = 1 to 5 bits.
KNOWN = {"gauss": (0.3634, 0.1189, 0.0375, 0.0115, 0.0035),
         "laplace": (0.5, 0.1963, 0.0718, 0.0254, 0.0087)}  # fmt: skip


@pytest.fixture(scope="module")
def curves():
    g = torch.Generator().manual_seed(0)
    found = []
    for scale in (2.0, 1.0, 1.0, 0.3, 0.05, 0.0):
        values = scale * torch.randn(4, 60, generator=g, dtype=torch.float64)
        found.append(block_curve(values, torch.rand(4, generator=g, dtype=torch.float64) + 0.5))
    return found


@pytest.mark.parametrize(("law", "values"), [("gauss", GAUSS), ("laplace", LAPLACE)])
def test_curves_are_those_of_the_best_uniform_quantizer(law, values):
    """T7 asks for 1 %: steps tried an eighth of an octave apart cost 1.3 % at 4 bits."""
    curve = block_curve(values, ONE)
    assert float(curve.distortion[0]) == pytest.approx(values.numel(), rel=5e-3)
    for depth, known in enumerate(KNOWN[law], 1):
        found = float(curve.distortion[depth]) / values.numel()
        assert found == pytest.approx(known, rel=0.015, abs=6e-5)  # known to four digits
    assert (curve.distortion.diff() <= 0).all()


@pytest.mark.parametrize("offset", [0.0, 0.5])
@pytest.mark.parametrize("depth", range(1, DEPTHS))
def test_never_more_levels_than_the_depth_has(depth, offset):
    if depth == 1 and not offset:
        return
    found = block_levels(torch.linspace(-500, 500, 20_001, dtype=torch.float64), depth, 0.7, offset)
    assert len(found.unique()) == 2**depth - (0 if offset else 1)
    assert torch.equal(found.unique(), -found.unique().flip(0))


def test_a_curve_is_what_its_levels_give(curves):
    g = torch.Generator().manual_seed(0)
    values = 2 * torch.randn(4, 60, generator=g, dtype=torch.float64)
    weight = torch.rand(4, generator=g, dtype=torch.float64) + 0.5
    for depth in range(1, DEPTHS):
        step, offset = float(curves[0].step[depth]), float(curves[0].offset[depth])
        error = values - step * block_levels(values, depth, step, offset)
        assert float((error.square().sum(1) * weight).sum()) == pytest.approx(
            float(curves[0].distortion[depth])
        )


def test_the_hull_is_below_the_curve_and_convex():
    g = torch.Generator().manual_seed(0)
    for _ in range(200):
        curve = torch.rand(DEPTHS, generator=g, dtype=torch.float64).sort(descending=True).values
        hull = lower_hull(curve)
        assert hull[0] == 0
        slopes = [float(curve[a] - curve[b]) / (b - a) for a, b in itertools.pairwise(hull)]
        assert all(first > second for first, second in itertools.pairwise(slopes))
        for a, b in itertools.pairwise(hull):
            for depth in range(a, b + 1):
                line = curve[a] + (curve[b] - curve[a]) * (depth - a) / (b - a)
                assert curve[depth] >= line - 1e-12


@pytest.mark.parametrize("slope", [0.0, 1e-4, 1e-3, 0.01, 0.1, 1.0, 100.0])
def test_the_choice_at_a_slope_is_the_best_of_all(curves, slope):
    for curve in curves:
        costs = curve.distortion + slope * curve.count * torch.arange(DEPTHS)
        chosen = at_slope(curve, slope)
        assert float(costs[chosen]) <= float(costs.min()) * (1 + 1e-9) + 1e-12
        hull = lower_hull(curve.distortion)  # slopes on the hull bracket ours
        for a, b in itertools.pairwise(hull):
            fall = float(curve.distortion[a] - curve.distortion[b]) / ((b - a) * curve.count)
            assert fall >= slope * (1 - 1e-9) if b <= chosen else fall <= slope * (1 + 1e-9)


@pytest.mark.parametrize("budget", [0, 100, 700, 1440, 3000, 10_000, 100_000])
def test_a_budget_is_kept_and_no_swap_of_a_bit_helps(curves, budget):
    depths = allocate(curves, budget)
    assert sum(d * c.count for d, c in zip(depths, curves, strict=True)) <= budget
    total = lambda: sum(float(c.distortion[d]) for c, d in zip(curves, depths, strict=True))  # noqa: E731
    before = total()
    for a, b in itertools.permutations(range(len(curves)), 2):
        if depths[a] > 0 and depths[b] < DEPTHS - 1:
            hulls = lower_hull(curves[a].distortion), lower_hull(curves[b].distortion)
            if depths[a] - 1 in hulls[0] and depths[b] + 1 in hulls[1]:
                depths[a], depths[b] = depths[a] - 1, depths[b] + 1
                assert total() >= before - 1e-9
                depths[a], depths[b] = depths[a] + 1, depths[b] - 1


def test_more_bits_never_give_more_distortion(curves):
    totals = []
    for budget in range(0, 12_000, 240):
        depths = allocate(curves, budget)
        totals.append(sum(float(c.distortion[d]) for c, d in zip(curves, depths, strict=True)))
    assert all(a >= b - 1e-9 for a, b in itertools.pairwise(totals))
    assert allocate([], 10) == []


def test_the_frontier_that_is_foretold_is_convex(curves):
    points = []
    for k in range(60):
        depths = [at_slope(curve, 1e-5 * 2 ** (k / 3)) for curve in curves]
        bits = sum(d * c.count for d, c in zip(depths, curves, strict=True))
        points.append(
            (bits, sum(float(c.distortion[d]) for c, d in zip(curves, depths, strict=True)))
        )
    points = sorted(set(points))
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.pairwise(points)]
    assert len(slopes) > 10
    assert all(a <= b + 1e-12 for a, b in itertools.pairwise(slopes))


def test_ideal_codes_fill_water():
    """Codes of ``a s 2^-2R``: those in use are equally distorted, to one bit; others lie below."""
    energies, slope = [10.0**k for k in range(-6, 3)], 1e-3
    for energy in energies:
        ideal = 100 * energy * 4.0 ** -torch.arange(DEPTHS, dtype=torch.float64)
        depth = at_slope(Curve(ideal, ONE * 0, ONE * 0, 100), slope)
        distortion = float(ideal[depth]) / 100
        if 0 < depth < DEPTHS - 1:
            assert slope / 3 * (1 - 1e-9) <= distortion <= 4 * slope / 3
        elif depth == 0:
            assert energy <= 4 * slope / 3


def test_nothing_to_allocate():
    assert allocate([], 10) == []
    assert allocate([Curve(torch.tensor([1.0]), ONE * 0, ONE * 0, 5)], 10) == [0]
