"""Both networks draw alike, whatever they draw from, and the caller's draws stay as they were."""

# ruff: noqa: NPY002 - the generator that all share is what is looked at

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fewbits
from fewbits.engine.network.isolation import Draws, OwnGenerators, isolated_pass, preserved_draws


def drawn() -> tuple[float, float, float]:
    return float(torch.rand(())), float(np.random.rand()), random.random()


def test_a_seed_gives_the_same_draws_and_the_callers_go_on():
    Draws.seed(3)
    expected = [drawn(), drawn()]
    Draws.seed(3)
    first = drawn()
    with preserved_draws():
        Draws.seed(7)
        inside = drawn()
    with preserved_draws():
        Draws.seed(7)
        assert drawn() == inside
    assert [first, drawn()] == expected


class Noisy(nn.Module):
    """Shuffles its rows by what ``draw`` says."""

    def __init__(self, draw) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 6)
        self.draw = draw

    def forward(self, x: Tensor) -> Tensor:
        order = self.draw.order(len(x))
        return self.second(self.first(x)[order])


class OfNumpy:
    def order(self, count):
        return torch.from_numpy(np.random.permutation(count))


class OfPython:
    def order(self, count):
        return torch.tensor(random.sample(range(count), count))


class Held:
    """A generator beside which nothing else is drawn from."""

    def __init__(self, generator):
        self.generator = generator

    def order(self, count):
        if isinstance(self.generator, random.Random):
            return torch.tensor(self.generator.sample(range(count), count))
        if isinstance(self.generator, torch.Generator):
            return torch.randperm(count, generator=self.generator)
        return torch.from_numpy(self.generator.permutation(count))


class OnModule(Noisy):
    """Keeps the generator as its own attribute."""

    def __init__(self, generator) -> None:
        super().__init__(None)
        self.generator = generator

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x)[Held(self.generator).order(len(x))])


def generators():
    return [
        np.random.default_rng(1),
        np.random.RandomState(1),
        random.Random(1),
        torch.Generator().manual_seed(1),
    ]


def networks():
    return [Noisy(OfNumpy()), Noisy(OfPython()), *map(OnModule, generators())]


@pytest.mark.parametrize("place", range(6))
def test_rows_that_are_shuffled_alike_are_paired(place):
    net = networks()[place].eval()
    x = torch.randn(128, 16, generator=torch.Generator().manual_seed(0))
    coded = fewbits.compress(net, fewbits.GPFQ(bits=3), calibration=list(x.split(32)))
    assert not any(entry.reason for entry in coded.plan.entries)
    other = coded.load_into(copy.deepcopy(net))

    @torch.no_grad()
    def outputs(network: nn.Module) -> Tensor:
        return network.second(network.first(x))

    plain = fewbits.compress(net, fewbits.Nearest(bits=3)).load_into(copy.deepcopy(net))
    errors = [float((outputs(m) - outputs(net)).norm()) for m in (other, plain)]
    assert errors[0] < errors[1]


@pytest.mark.parametrize("generator", generators(), ids=lambda g: type(g).__module__)
def test_a_pass_leaves_generators_of_the_network_where_they_were(generator):
    net, x = OnModule(generator), torch.randn(30, 16)
    first, again = (isolated_pass(lambda m, b: m(b), net, x, 0) for _ in range(2))
    assert torch.equal(first, again)


def test_a_copy_is_put_back_to_where_the_network_was():
    net = OnModule(random.Random(5))
    start = OwnGenerators(net)
    twin = copy.deepcopy(net)
    expected = net.generator.random()
    twin.generator.random()
    start.rewind(twin)
    assert twin.generator.random() == expected
