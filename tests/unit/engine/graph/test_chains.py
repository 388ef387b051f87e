"""Chains: which layers follow each other so plainly that a neuron can be moved."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fewbits.engine.graph.chains import find_chains


def pairs(net):
    return [(chain.layer, chain.reader) for chain in find_chains(net).found]


class Forward(nn.Module):
    """Layers a and b, and a forward pass of the test's own."""

    def __init__(self, a, b, forward, **more):
        super().__init__()
        self.a, self.b = a, b
        for name, module in more.items():
            self.add_module(name, module)
        self._forward = forward

    def forward(self, x):
        return self._forward(self, x)


def linears(forward, **more):
    return Forward(nn.Linear(6, 8), nn.Linear(8, 4), forward, **more)


def convs(forward, b=None, **more):
    return Forward(nn.Conv2d(3, 8, 3), b or nn.Linear(8 * 4, 5), forward, **more)


def _by_size(h):
    return h.view(h.size(0), -1)


def _by_shape(h):
    return h.reshape(h.shape[0], -1)


def _with_input(layer, h):
    return layer(h) + h.sum(), h


PLAIN = {
    "linear": linears(lambda s, x: s.b(F.relu(s.a(x)))),
    "alone": linears(lambda s, x: s.b(s.a(x))),
    "modules": linears(lambda s, x: s.b(s.drop(s.norm(s.act(s.a(x))))), act=nn.GELU(),
                       drop=nn.Dropout(), norm=nn.BatchNorm1d(8)),
    "method": linears(lambda s, x: s.b(s.a(x).tanh())),
    "dropout": linears(lambda s, x: s.b(F.dropout(s.a(x), 0.5, s.training))),
    "pooled": convs(lambda s, x: s.b(F.max_pool2d(s.a(x), 3).flatten(1))),
    "means": convs(lambda s, x: s.b(torch.flatten(F.avg_pool2d(s.a(x), 3), 1))),
    "view": convs(lambda s, x: s.b(_by_size(F.relu(s.a(x))))),
    "shape": convs(lambda s, x: s.b(_by_shape(F.relu(s.a(x))))),
    "global": convs(lambda s, x: s.b(s.a(x).mean((2, 3))), nn.Linear(8, 5)),
    "conv": convs(lambda s, x: s.b(F.relu(s.norm(s.a(x)))), nn.Conv2d(8, 2, 3, padding=1),
                  norm=nn.BatchNorm2d(8)),
}  # fmt: skip

OTHER = {
    "two readers": linears(lambda s, x: _with_input(s.b, s.a(x))[0]),
    "output": linears(lambda s, x: _with_input(s.b, s.a(x))),
    "residual": linears(lambda s, x: s.b(s.a(x) + x.sum())),
    "twice": linears(lambda s, x: s.b(s.a(x)) + s.b(s.a(x))),
    "softmax": linears(lambda s, x: s.b(s.a(x).softmax(1))),
    "layer norm": linears(lambda s, x: s.b(s.norm(s.a(x))), norm=nn.LayerNorm(8)),
    "own weight": linears(lambda s, x: s.b(s.a(x)) + s.a.weight.sum()),
    "grouped": convs(lambda s, x: s.b(s.a(x)), nn.Conv2d(8, 8, 3, groups=2)),
    "channels last": convs(lambda s, x: s.b(s.a(x)), nn.Linear(8, 5)),
    "fixed view": convs(lambda s, x: s.b(s.a(x).view(-1, 32))),
    "always dropped": linears(lambda s, x: s.b(F.dropout(s.a(x)))),
    "norm of places": convs(lambda s, x: s.b(s.norm(s.a(x).flatten(1))), norm=nn.BatchNorm1d(32)),
    "pooled neurons": linears(lambda s, x: s.b(s.pool(s.a(x))), pool=nn.MaxPool1d(1)),
    "prelu": linears(lambda s, x: s.b(s.act(s.a(x))), act=nn.PReLU(8)),
    "rescaled": convs(lambda s, x: s.b(s.pool(s.a(x)).flatten(1)),
                      pool=nn.AvgPool2d(3, divisor_override=2)),
    "recurrent": Forward(nn.LSTM(6, 8), nn.Linear(8, 4), lambda s, x: s.b(s.a(x)[0])),
}  # fmt: skip


@pytest.mark.parametrize("kind", PLAIN)
def test_plain_sequences_are_chains(kind):
    assert pairs(PLAIN[kind]) == [("a", "b")]


@pytest.mark.parametrize("kind", OTHER)
def test_what_mixes_or_shows_neurons_is_no_chain(kind):
    assert pairs(OTHER[kind]) == []


def test_hooks_and_untraceable_networks():
    net = linears(lambda s, x: s.b(s.a(x)))
    net.a.register_forward_hook(lambda module, args, output: output * 2)
    assert pairs(net) == []
    seen = []
    branching = linears(lambda s, x: (seen.append(s), s.b(s.a(x)) if x.sum() > 0 else x)[1])
    found = find_chains(branching)
    assert found.found == ()
    assert "cannot be traced" in found.reason
    assert seen
    assert seen[0] is not branching  # a copy runs, which may keep what it is given


def test_blocks_of_a_residual_network_are_chains(digits_net):
    assert pairs(digits_net) == [("conv3", "linear")]
    block = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3))
    net = Forward(block, nn.Conv2d(4, 4, 1), lambda s, x: sum(_with_input(s.b, s.a(x))))
    assert pairs(net) == [("a.0", "a.3")]
    assert find_chains(net).found[0].norms == ("a.1",)


def test_steps_and_borders():
    chain = find_chains(PLAIN["conv"]).found[0]
    assert chain.borders
    values = torch.tensor([[-1.0, 2.0] * 4]).reshape(1, 8, 1, 1)
    for step in chain.steps:
        values = step(values)
    torch.testing.assert_close(values.reshape(-1), torch.tensor([0.0, 2.0] * 4), rtol=1e-4, atol=0)
    assert not find_chains(PLAIN["pooled"]).found[0].borders
    mirrored = nn.Conv2d(8, 2, 3, padding=1, padding_mode="reflect")
    assert not find_chains(convs(lambda s, x: s.b(s.a(x)), mirrored)).found[0].borders
    pooled = convs(lambda s, x: s.b(s.pool(s.a(x)).flatten(1)), pool=nn.AvgPool2d(3, padding=1))
    assert find_chains(pooled).found[0].borders
