"""Assignment at distance plus bits, against trying every level."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from fewbits.ops.levels.codebook import assign
from fewbits.ops.rate_distortion.entropy_constrained import assign_priced, envelope


def setting(seed, count=7):
    generator = torch.Generator().manual_seed(seed)
    levels = torch.randn(count, generator=generator, dtype=torch.float64).sort().values
    bits = torch.rand(count, generator=generator, dtype=torch.float64) * 8
    values = torch.randn(400, generator=generator, dtype=torch.float64) * 2
    return levels, bits, values


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("price", [0.0, 0.05, 0.5])
def test_one_law_gives_the_best_level_of_every_value(seed, price):
    levels, bits, values = setting(seed)
    found = assign_priced(values, levels, bits, price)
    costs = (values[:, None] - levels).square() + price * bits
    assert torch.equal(found, costs.argmin(1))


def test_without_a_price_it_is_the_nearest_level():
    levels, bits, values = setting(3)
    assert torch.equal(assign_priced(values, levels, bits, 0.0), assign(values, levels))


def test_a_high_price_leaves_the_cheapest_level():
    levels, bits, values = setting(4)
    found = assign_priced(values, levels, bits, 1e6)
    assert bool((found == bits.argmin()).all())


def test_envelope_keeps_thresholds_in_order():
    levels, bits, _ = setting(5, count=31)
    kept, edges = envelope(levels, bits, 0.1)
    assert bool((kept.diff() > 0).all())
    assert bool((edges.diff() > 0).all())
    assert len(edges) == len(kept) - 1


@pytest.mark.parametrize("order", [2, 3])
def test_tuples_are_at_a_minimum_that_no_single_change_betters(order):
    levels, _, values = setting(6, count=4)
    generator = torch.Generator().manual_seed(order)
    lengths = torch.rand((4,) * order, generator=generator, dtype=torch.float64) * 6
    found = assign_priced(values, levels, lengths, 0.2)
    whole = len(values) // order * order
    assert torch.equal(found[whole:], assign(values[whole:], levels))

    def cost(cell, part):
        distance = sum((float(v) - float(levels[c])) ** 2 for v, c in zip(part, cell, strict=True))
        return distance + 0.2 * float(lengths[cell])

    better = 0
    for start in range(0, whole, order):
        part, cell = values[start : start + order], tuple(found[start : start + order].tolist())
        plain = tuple(assign(part, levels).tolist())
        assert cost(cell, part) <= cost(plain, part) + 1e-12
        best = min(cost(other, part) for other in product(range(4), repeat=order))
        better += cost(cell, part) <= best + 1e-12
    assert better > 0.8 * whole / order  # taking turns finds the best of most tuples
