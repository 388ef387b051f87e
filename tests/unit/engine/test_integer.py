"""The integer network gives the answers of the network with rounded floats."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import fewbits
from fewbits.engine.integer import fake_quantized_network, integer_network
from fewbits.errors import ModelError

X = torch.rand(128, 2, 8, 8, generator=torch.Generator().manual_seed(0)) - 0.3


@pytest.fixture
def net():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, 2, 1, groups=2),
        nn.BatchNorm2d(8),
        nn.Hardswish(),
        nn.Flatten(),
        nn.Linear(128, 10),
    )
    with torch.no_grad():
        for _ in range(5):
            net(X)
    return net.eval()


@pytest.mark.filterwarnings("ignore:.*entropy")
@pytest.mark.parametrize("quantizer", ["lsq", "lsq+", "dorefa", "pact"])
def test_the_same_answers_as_rounded_floats(quantizer, net):
    method = fewbits.LowBit(
        weights=3, activations=3, quantizer=quantizer, first_last="same", per="channel"
    )
    coded = fewbits.prepare(net, method, calibration=X).finish()
    grids = coded.contents.activations
    assert any(grid.zero for grid in grids.values()) == (quantizer == "lsq+")
    whole, layers = integer_network(net, coded.contents)
    assert layers == ["0", "3", "7"]
    ours, theirs = net(X), whole(X)
    assert torch.equal(ours.argmax(1), theirs.argmax(1))
    same = torch.isclose(ours.double(), theirs, rtol=0, atol=1e-4).all(1)
    assert float(same.float().mean()) > 0.95  # the rest has a value at the edge of two levels
    exact = fake_quantized_network(net, coded.contents)(X)
    assert torch.allclose(exact, theirs, rtol=0, atol=1e-12)  # all of them


def test_post_training_activations(net):
    coded = fewbits.compress(net, fewbits.GPFQ(bits=8), X, activations=8)
    loaded = coded.load_into(copy.deepcopy(net))
    assert float((loaded(X).argmax(1) == net(X).argmax(1)).float().mean()) > 0.9
    whole, layers = integer_network(loaded, coded.contents)
    assert len(layers) == 3
    assert torch.equal(whole(X).argmax(1), loaded(X).argmax(1))


def test_a_network_without_quantized_inputs(net):
    coded = fewbits.compress(net, fewbits.Nearest(bits=8))
    with pytest.raises(ModelError, match="both"):
        integer_network(net, coded.contents)


def test_a_network_that_was_not_loaded(net):
    coded = fewbits.compress(net, fewbits.GPFQ(bits=8), X, activations=8)
    for made in (integer_network, fake_quantized_network):
        with pytest.raises(ModelError, match=r"input of '0'.*load_into"):
            made(net, coded.contents)
