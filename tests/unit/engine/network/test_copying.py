"""Networks that have run are copied; what cannot be copied is named."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import fewbits
from fewbits.engine.network.copying import copied
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
    assert fewbits.sensitivity(net, "gpfq", [inputs], bits=(4,))


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


@pytest.mark.filterwarnings("ignore:Sparse .* support is in beta state")
@pytest.mark.parametrize("layout", ["csr", "csc", "coo"])
def test_sparse_tensors_that_no_file_holds_are_copied(layout):
    class Graph(nn.Module):
        def __init__(self):
            super().__init__()
            dense = torch.eye(6) + torch.eye(6).roll(1, 0)
            edges = dense.to_sparse(layout=getattr(torch, f"sparse_{layout}"))
            self.register_buffer("edges", edges, persistent=False)
            self.layer = nn.Linear(5, 5)

        def forward(self, x):
            return self.edges @ self.layer(x)

    coded = fewbits.compress(Graph(), fewbits.GPFQ(bits=4), calibration=[torch.randn(6, 5)] * 3)
    assert not coded.plan.entries[0].reason


class Stubborn(torch.Tensor):
    def __deepcopy__(self, memo):
        raise RuntimeError("not me")


def test_a_parameter_that_cannot_be_copied_is_named():
    net = nn.Sequential(nn.Linear(3, 2))
    net[0].register_buffer("mask", torch.ones(2).as_subclass(Stubborn), persistent=False)
    with pytest.raises(ModelError, match=r"'mask' of module '0' \(Linear\), a Stubborn"):
        fewbits.compress(net, fewbits.Nearest(bits=4))


class Marked(torch.Tensor):
    """A subclass of which torch makes no copies."""


@pytest.mark.parametrize("place", ["weight", "scale"])
def test_weights_and_buffers_are_not_told_to_be_deleted(place):
    net = nn.Sequential(nn.Linear(4, 4))
    net[0].register_buffer("scale", torch.ones(3))
    values = torch.ones(4, 4).as_subclass(Marked)
    setattr(net[0], place, nn.Parameter(values) if place == "weight" else values)
    with pytest.raises(ModelError, match=rf"{place}.*as_subclass\(torch.Tensor\)") as told:
        fewbits.compress(net, fewbits.Nearest(bits=4))
    remedy = str(told.value).rpartition("values: ")[2].rstrip(".")
    exec(remedy, {"module": net[0], "torch": torch})
    assert fewbits.compress(net, fewbits.Nearest(bits=4))


def test_a_plain_buffer_that_carries_something_is_named_with_its_remedy():
    net = nn.Sequential(nn.Linear(4, 4))
    net[0].register_buffer("scale", torch.ones(3))
    net[0].scale.guard = threading.Lock()
    with pytest.raises(ModelError, match=r"buffer 'scale' of module '0'.*module.scale = "):
        fewbits.compress(net, fewbits.Nearest(bits=4))
    net[0].scale = net[0].scale.detach().as_subclass(torch.Tensor)
    assert fewbits.compress(net, fewbits.Nearest(bits=4))
