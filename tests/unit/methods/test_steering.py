"""The price of a bit follows the entropy that is wanted, on its own and in a training."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import fewbits
from fewbits.errors import ConfigError
from fewbits.methods.steering import Steering


def test_the_price_rises_while_there_are_too_many_bits():
    steering = Steering(1.0, 0.5, 0.1)
    steering.look(2.0, 0.0)
    assert steering.price == pytest.approx(0.1)  # the line begins at what there is
    steering.look(2.0, 0.25)  # 1.5 are due: beyond a fifth too many
    assert steering.price == pytest.approx(0.1 * math.exp(0.4))
    steering.look(0.9, 1.0)
    assert steering.price == pytest.approx(0.1 * math.exp(0.4) * math.exp(-0.2))


def test_the_price_stays_within_its_bounds_and_is_resumed():
    steering = Steering(1.0, 0.0, 0.1)
    for _ in range(100):
        steering.look(3.0, 0.5)
    assert steering.price == 3.0
    other = Steering(1.0, 0.0, 0.1)
    other.take_state(steering.state())
    assert other == steering
    for _ in range(100):
        steering.look(0.2, 0.5)
    assert steering.price == 1e-3


def _entropy(coded: fewbits.CodedModel) -> float:
    index = coded.contents.tensors["0.weight"].index.reshape(-1)
    chances = torch.from_numpy(index).unique(return_counts=True)[1].double()
    chances /= chances.sum()
    return float(-(chances * chances.log2()).sum())


@pytest.mark.parametrize("wanted", [1.0, 1.8])
def test_a_training_ends_at_the_entropy_that_is_wanted(wanted):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 64, bias=False))
    nn.init.normal_(net[0].weight, std=0.1)
    method = fewbits.HEMP(
        spacing="even", levels=15, forward="quantized", assign="rate", bits=wanted, steps="fixed"
    )
    tuner = fewbits.prepare(net, method)
    assert tuner.parameters() == []  # fixed steps are not trained
    optimizer = torch.optim.Adam(tuner.groups(1e-3))
    x = torch.randn(32, 64)
    target = x @ torch.randn(64, 64) / 8
    for done in range(400):
        loss = (net(x) - target).square().mean() + tuner.penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        tuner.step()
        tuner.advance((done + 1) / 400)
    assert _entropy(tuner.finish()) == pytest.approx(wanted, rel=0.05)


def test_the_entropy_is_steered_where_levels_are_chosen_by_rate():
    with pytest.raises(ConfigError, match="assign='rate' and forward='quantized'"):
        fewbits.HEMP(bits=1.0)
    with pytest.raises(ConfigError, match="steps"):
        fewbits.HEMP(steps="some")
    with pytest.raises(ConfigError, match="arrival"):
        fewbits.HEMP(arrival=1.5)
