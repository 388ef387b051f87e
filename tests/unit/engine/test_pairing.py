"""Rows of the two networks that do not belong together are noticed, and then not compared."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import fewbits
from fewbits.engine.pairing import mispairing
from fewbits.engine.rows import conv_rows, feature_rows

ALONE = "calibrated on the quantized network's inputs alone"


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def told(x: Tensor, y: Tensor) -> str:
    return mispairing(feature_rows(x), feature_rows(y), seed=0)


@pytest.mark.parametrize("noise", [0.0, 0.01, 0.3, 1.0, 2.0])
@pytest.mark.parametrize("rows", [1, 2, 3, 40, 5000])
def test_noise_alone_is_no_mispairing(noise, rows):
    x = numbers(rows, 24)
    assert told(x, 0.7 * x + noise * numbers(rows, 24, seed=1) + 3) == ""


def test_rows_that_are_alike_are_in_no_order():
    x = numbers(1, 16).expand(64, 16) + 1e-7 * numbers(64, 16, seed=1)
    assert told(x, x + 1e-7 * numbers(64, 16, seed=2)) == ""
    padded = torch.cat([numbers(20, 16), torch.zeros(44, 16)])
    assert told(padded, padded + 0.3 * numbers(64, 16, seed=1)) == ""


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.3])
def test_a_few_rows_that_change_places_are_noticed(noise):
    x = numbers(200, 24)
    order = torch.arange(200)
    order[50], order[51] = 51, 50
    order[[90, 97]] = order[[97, 90]]
    assert "order" in told(x, x[order] + noise * numbers(200, 24, seed=1))


def test_a_row_that_comes_in_between_moves_all_behind_it():
    x = numbers(80, 24)
    assert "order" in told(x[:-1], torch.cat([x[:30], x[31:]]))


def test_rows_from_anywhere_are_noticed_in_a_part_of_them():
    x = numbers(20000, 24)
    order = torch.randperm(20000, generator=torch.Generator().manual_seed(3))
    assert "order" in told(x, x[order] + 0.1 * numbers(20000, 24, seed=1))


def test_other_numbers_are_told():
    reason = told(numbers(41, 8), numbers(40, 8))
    assert "41 in the float network" in reason
    assert "40 in the quantized one" in reason


@pytest.mark.parametrize("kernel", [1, 3])
def test_samples_of_a_convolution_that_change_places_are_noticed(kernel):
    layer, x = nn.Conv2d(8, 4, kernel, padding=1, stride=2), numbers(6, 8, 5, 5)

    def check(y: Tensor) -> str:
        return mispairing(conv_rows(x, layer), conv_rows(y, layer), seed=0)

    assert check(x + 0.2 * numbers(6, 8, 5, 5, seed=1)) == ""
    assert "order" in check(x.flip(0) + 0.2 * numbers(6, 8, 5, 5, seed=1))


class Tokens(nn.Module):
    """Two layers, with something between them that may put rows elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.score = nn.Linear(24, 24), nn.Linear(24, 1)
        self.second, self.last = nn.Linear(24, 24), nn.Linear(24, 6)

    def moved(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.second(self.moved(self.first(x)))))


class ByScore(Tokens):
    def moved(self, x: Tensor) -> Tensor:
        order = self.score(x)[..., 0].argsort(-1)
        return x.gather(1, order[..., None].expand_as(x))


class BestQueries(Tokens):
    def moved(self, x: Tensor) -> Tensor:
        best = self.score(x)[..., 0].topk(6, -1).indices
        return x.gather(1, best[..., None].expand(-1, -1, x.shape[-1]))


class Neighbours(Tokens):
    def moved(self, x: Tensor) -> Tensor:
        near = torch.cdist(x, x).topk(3, largest=False).indices
        return torch.stack([one[places] for one, places in zip(x, near, strict=True)])


class Threshold(Tokens):
    """How many rows go on depends on values."""

    def moved(self, x: Tensor) -> Tensor:
        return x[self.score(x)[..., 0] > 0]


def error(net: nn.Module, method: fewbits.Method, inputs: Tensor) -> tuple[float, fewbits.Plan]:
    coded = fewbits.compress(net, method, calibration=list(inputs.split(16)))
    other = coded.load_into(copy.deepcopy(net))
    with torch.no_grad():
        here, there = (m.last(torch.relu(m.second(m.first(inputs)))) for m in (net, other))
    return float((here - there).norm() / here.norm()), coded.plan


@pytest.mark.parametrize("kind", [ByScore, BestQueries, Neighbours, Threshold])
def test_layers_behind_a_choice_follow_the_quantized_network_alone(kind):
    net, x = kind().eval(), numbers(64, 16, 24)
    fed, plan = error(net, fewbits.GPFQ(bits=4), x)
    plain, _ = error(net, fewbits.Nearest(bits=4), x)
    reasons = {entry.target.name: entry.reason for entry in plan.entries}
    assert ALONE in reasons["second.weight"]
    assert ALONE not in reasons["first.weight"]
    assert fed < plain


def test_layers_without_a_choice_follow_both_networks():
    _, plan = error(Tokens().eval(), fewbits.GPFQ(bits=2), numbers(64, 16, 24))
    assert not any(ALONE in entry.reason for entry in plan.entries)


class Routed(nn.Module):
    """Each row goes to one of the experts: which one may change, and with it how many they get."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.router = nn.Linear(16, 16), nn.Linear(16, 4)
        self.experts = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        chosen, out = self.router(x).argmax(-1), torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            rows = chosen == number
            if rows.any():
                out[rows] = expert(x[rows])
        return out


@pytest.mark.parametrize("name", ["gpfq", "qronos", "gptq", "rdoq", "transform"])
def test_a_mixture_of_experts_compresses(name):
    method = fewbits.METHODS[name]()
    coded = fewbits.compress(Routed().eval(), method, calibration=[numbers(300, 16)])
    assert len(coded.plan.entries) == 6
