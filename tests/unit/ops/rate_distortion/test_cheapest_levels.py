"""Levels that cost the least in distortion and bits: against choosing among all of them."""

import pytest
import torch

from fewbits.ops.rate_distortion.cheapest_levels import PricedLevels, level_bits, total_bits
from fewbits.ops.rounding.path_following import follow_gram
from slow_descent import descend

TOP = 6
GRID = torch.arange(-TOP, TOP + 1)


def problem(groups, neurons, columns, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight = 2 * torch.randn(groups, neurons, columns, generator=generator, dtype=torch.float64)
    inputs = torch.randn(groups, 3 * columns, columns, generator=generator, dtype=torch.float64)
    mixed = inputs @ (
        torch.eye(columns) + 0.3 * torch.randn(columns, columns, generator=generator)
    ).to(inputs)
    return weight, mixed.mT @ mixed


def cost(weight, levels, second, price, bits):
    """Distortion and bits of every neuron, by the book."""
    error = weight - levels
    squared = ((error @ second) * error).sum(2)
    places = (levels + TOP).long()
    if bits.dim() == 2:
        paid = torch.stack([b[p] for b, p in zip(bits, places, strict=True)]).sum(2)
    else:
        paid = bits.gather(3, places[..., None])[..., 0].sum(2)
    return squared + price * paid


@pytest.mark.parametrize("tabled", [False, True])
def test_every_choice_is_the_cheapest(tabled):
    weight, second = problem(2, 5, 4)
    energy = second.diagonal(dim1=1, dim2=2)
    price = torch.rand(2, 5, dtype=torch.float64) * 30
    generator = torch.Generator().manual_seed(1)
    shape = (2, 5, 4, 2 * TOP + 1) if tabled else (2, 2 * TOP + 1)
    bits = 10 * torch.rand(shape, generator=generator, dtype=torch.float64)
    chooser = PricedLevels(GRID, energy, price, bits)
    for _ in range(2):  # the second sweep begins with the first column again
        for column in range(4):
            values = weight[:, None, :, column].clone()
            chooser.project_(values)
            for group in range(2):
                for neuron in range(5):
                    wanted = float(weight[group, neuron, column])
                    law = bits[group, neuron, column] if tabled else bits[group]

                    def price_of(q, law=law, wanted=wanted, at=(group, neuron), c=column):
                        distortion = float(energy[at[0], c]) * (q - wanted) ** 2
                        return distortion + float(price[at] * law[q + TOP])

                    got = int(values[group, 0, neuron])
                    assert price_of(got) <= min(map(price_of, range(-TOP, TOP + 1))) + 1e-9


def test_any_codebook_will_do():
    """Levels anywhere: each choice is the cheapest, and a sweep never costs more."""
    weight, second = problem(2, 5, 6)
    book = torch.tensor([-4.0, -1.7, -0.6, 0.1, 0.5, 1.1, 2.9, 5.0], dtype=torch.float64)
    energy = second.diagonal(dim1=1, dim2=2)
    price = torch.rand(2, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 30
    bits = torch.tensor([[7.0, 4, 3, 1, 3, 4, 5, 8], [6.0, 5, 2, 2, 2, 3, 6, 9]]).double()

    def total(levels):
        paid = torch.stack(
            [b[torch.searchsorted(book, q.contiguous())] for b, q in zip(bits, levels, strict=True)]
        )
        error = weight - levels
        return ((error @ second) * error).sum(2) + price * paid.sum(2)

    first = PricedLevels(book, energy, price, bits)
    values = weight[:, None, :, 0].clone()
    first.project_(values)
    costs = (
        energy[:, 0, None, None] * (book - weight[:, :, :1]) ** 2 + price[..., None] * bits[:, None]
    )
    assert torch.equal(values[:, 0], book[costs.argmin(2)])
    levels = book[(book - weight[..., None]).abs().argmin(3)]
    last = total(levels)
    for _ in range(4):
        chooser = PricedLevels(book, energy, price, bits)
        levels = descend(weight, levels, second, chooser.project_)
        assert (total(levels) <= last + 1e-9).all()
        last = total(levels)


@pytest.mark.parametrize("ordered", [False, True])
def test_descent_never_costs_more_and_ends_where_no_single_change_helps(ordered):
    weight, second = problem(2, 4, 7)
    energy = second.diagonal(dim1=1, dim2=2)
    order = energy.argsort(1, descending=True) if ordered else None
    sorted_energy = energy if order is None else energy.gather(1, order)
    price = torch.full((2, 4), 8.0, dtype=torch.float64)
    levels = weight.round().clamp(-TOP, TOP)
    bits = level_bits(levels, TOP)
    last = cost(weight, levels, second, price, bits)
    for _ in range(12):
        chooser = PricedLevels(GRID, sorted_energy, price, bits)
        levels = descend(weight, levels, second, chooser.project_, order=order)
        now = cost(weight, levels, second, price, bits)
        assert (now <= last + 1e-9).all()
        last = now
    for column in range(7):
        for change in (-1, 1):
            other = levels.clone()
            other[:, :, column] = (other[:, :, column] + change).clamp(-TOP, TOP)
            assert (cost(weight, other, second, price, bits) >= last - 1e-9).all()


def test_without_a_price_it_is_coordinate_descent_to_the_nearest_level():
    weight, second = problem(1, 3, 5)
    energy = second.diagonal(dim1=1, dim2=2)
    chooser = PricedLevels(torch.arange(-40, 41), energy, torch.zeros(1, 3), torch.zeros(1, 81))
    got = descend(weight, weight.round(), second, chooser.project_)
    want = weight.round()
    for column in range(5):
        rest = second[0, column] @ (weight - want)[0].T + energy[0, column] * want[0, :, column]
        want[0, :, column] = (rest / energy[0, column]).round()
    torch.testing.assert_close(got, want)


def test_a_price_makes_path_following_cheaper():
    weight, second = problem(1, 16, 20)
    energy = second.diagonal(dim1=1, dim2=2)
    flat = torch.zeros(1, 2 * TOP + 1, dtype=torch.float64)
    zero = torch.zeros(1, 16, dtype=torch.float64)
    plain = follow_gram(weight, second, second, PricedLevels(GRID, energy, zero, flat).project_)
    bits, price = level_bits(plain, TOP), torch.full((1, 16), 200.0, dtype=torch.float64)
    priced = follow_gram(weight, second, second, PricedLevels(GRID, energy, price, bits).project_)
    assert total_bits(priced, TOP) < 0.9 * total_bits(plain, TOP)


def test_a_table_is_left_as_it_was():
    """Also one that lies in memory as it is used: of a single column."""
    table = torch.rand(1, 3, 1, 2 * TOP + 1, dtype=torch.float64)
    before = table.clone()
    one = torch.ones(1, 1, dtype=torch.float64)
    PricedLevels(GRID, one, torch.full((1, 3), 7.0, dtype=torch.float64), table)
    assert torch.equal(table, before)


def test_the_bits_of_a_law():
    levels = torch.tensor([[[0, 0, 0, 0, 1, 1, -1, 3]], [[2, 2, 2, 2, 2, 2, 2, 2]]]).double()
    bits = level_bits(levels, 5)
    assert bits.shape == (2, 11)
    inside = 2.0 ** -bits[0, 4:9]
    assert float(inside.sum()) == pytest.approx(1)
    assert (inside[1:].diff()[:1] < 0).all()  # 0 is likelier than 1
    assert (bits[0, 9:].diff() > 0).all()
    assert (bits[0, :4].diff() < 0).all()
    assert bits[0, [3, 9]].min() >= 12
    entropy = torch.tensor([8.0 * (0.5 * 1 + 0.25 * 2 + 2 * 0.125 * 3), 0.0]).double()
    torch.testing.assert_close(total_bits(levels, 5), entropy)
