"""Networks that have run are copied; what cannot be copied is named."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import fewbits
from fewbits.engine.copying import copied
from fewbits.errors import ModelError


class Keeping(nn.Module):
    """Leaves what it computed on itself, in one form or another."""

    def __init__(self, form) -> None:
        super().__init__()
        self.layer, self.form = nn.Linear(6, 4), form

    def forward(self, x: Tensor) -> Tensor:
        self.kept = self.form(self.layer(x))
        return self.layer(x)


def plain(y):
    return y


def listed(y):
    return [y, {"again": (y, y.exp())}]


def inside(y):
    return SimpleNamespace(cache=[y])


@pytest.mark.parametrize("form", [plain, listed, inside])
def test_a_network_that_has_run_with_gradients_is_copied(form):
    net = Keeping(form)
    net(torch.randn(3, 6))
    twin = copied(net)
    assert torch.equal(twin.layer.weight, net.layer.weight)
    assert twin.layer.weight is not net.layer.weight
    assert twin.layer.weight.requires_grad
    inputs = torch.randn(40, 6)
    net(inputs)
    assert fewbits.compress(net, fewbits.GPFQ(bits=4), calibration=[inputs]).plan.entries
    assert fewbits.sensitivity(net, [inputs], bits=(4,))


def test_one_activation_in_two_places_stays_one():
    net = Keeping(listed)
    net(torch.randn(3, 6))
    first, rest = copied(net).kept
    assert first is rest["again"][0]
    assert not first.requires_grad


@pytest.mark.parametrize(
    ("thing", "kind"), [(threading.Lock(), "lock"), ((n for n in ()), "generator")]
)
def test_what_cannot_be_copied_is_named(thing, kind):
    net = nn.Sequential(nn.Linear(6, 4), nn.ReLU())
    net[1].extra = thing
    with pytest.raises(ModelError, match=rf"attribute 'extra' of module '1' \(ReLU\), a {kind}"):
        fewbits.compress(net, fewbits.Nearest(bits=4))


def test_the_history_of_a_network_is_named():
    net = nn.Linear(6, 4)
    net.graph = net(torch.randn(2, 6)).grad_fn
    with pytest.raises(ModelError, match="attribute 'graph' of Linear"):
        fewbits.compress(net, fewbits.Nearest(bits=4))
