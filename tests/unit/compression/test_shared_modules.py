"""Modules under two names, weights that are one by memory, and names like those of calls."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fewbits
from fewbits.engine.activations.integer_reference import integer_network
from fewbits.errors import ModelError


class Shared(nn.Module):
    """One layer and one block under two names each, and two layers with one memory."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(8, 8)
        self.second = self.first
        self.block = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
        self.again = self.block
        self.left, self.right = nn.Linear(8, 8), nn.Linear(8, 8)
        self.right.weight = nn.Parameter(self.left.weight.data)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.second(self.first(x).relu())
        x = self.again(self.block(x))
        return self.head(self.right(self.left(x).relu()))


INPUTS = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
SITES = ["first@0", "first@1", "block.0@0", "block.0@1", "left", "right", "head"]


def loaded(coded, tmp_path, make=Shared):
    """The file in a fresh network, checked to hold the file's values in every name."""
    coded.save(tmp_path / "net.fewbits")
    network = fewbits.load(tmp_path / "net.fewbits", into=make().eval())
    told, own = fewbits.load(tmp_path / "net.fewbits"), network.state_dict()
    assert set(told) == set(own)
    assert all(torch.equal(told[name], own[name]) for name in own)
    return network


@pytest.mark.parametrize("outputs", [False, True])
def test_inputs_of_shared_modules_are_quantized_call_by_call(tmp_path, outputs):
    settings = fewbits.Activations(bits=8, outputs=outputs)
    coded = fewbits.compress(Shared().eval(), fewbits.GPFQ(bits=4), [INPUTS], activations=settings)
    assert list(coded.contents.activations)[: len(SITES)] == SITES
    network = loaded(coded, tmp_path)
    integers, done = integer_network(network, coded.contents, INPUTS)
    assert set(done) >= {"first", "block.0", "head"}
    torch.testing.assert_close(integers(INPUTS).float(), network(INPUTS), atol=1e-5, rtol=1e-4)


def test_sensitivity_takes_each_weight_once():
    harms = fewbits.sensitivity(Shared().eval(), "gpfq", [INPUTS], bits=(4,))
    expected = {"first.weight", "block.0.weight", "left.weight", "head.weight"}
    assert {harm.name for harm in harms} == expected


@pytest.mark.parametrize(
    "method",
    [fewbits.HEMP(levels=9), fewbits.PWFN(), fewbits.LowBit(weights=4, activations=4)],
    ids=lambda method: method.name,
)
def test_methods_that_train_install_on_each_module_once(tmp_path, method):
    network = Shared()
    tuner = fewbits.prepare(network, method, calibration=[INPUTS])
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
    network(INPUTS).square().mean().backward()
    optimizer.step()
    coded = tuner.finish()
    loaded(coded, tmp_path)
    if method.name == "lowbit":
        assert list(coded.contents.activations) == SITES


def test_two_layers_of_a_file_do_not_become_one(tmp_path):
    class Apart(nn.Module):
        def __init__(self, shared: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
            self.b.weight, self.b.bias = self.a.weight, self.a.bias
            if shared:
                self.b = self.a

        def forward(self, x):
            return self.b(self.a(x))

    coded = fewbits.compress(Apart(False).eval(), fewbits.Nearest(bits=8), [INPUTS], activations=8)
    assert list(coded.contents.activations) == ["a", "b"]
    coded.save(tmp_path / "net.fewbits")
    with pytest.raises(ModelError, match=r"'a' and 'b'.*one module"):
        fewbits.load(tmp_path / "net.fewbits", into=Apart(True))


class Called(nn.Module):
    """A layer that is called twice, beside layers whose names are those of its calls."""

    def __init__(self, *others: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.Linear(8, 8)
        for name in others:
            self.add_module(name, nn.Linear(8, 8))

    def forward(self, x):
        x = self.a(self.a(x) * 30)
        for name, module in self.named_children():
            x = module(x) if name != "a" else x
        return x


@pytest.mark.parametrize("others", [("a@1",), ("a@0", "a@00", "a@1@0"), ("a:out", "a@1:out")])
def test_layers_named_like_calls_have_grids_of_their_own(tmp_path, others):
    coded = fewbits.compress(
        Called(*others).eval(), fewbits.Nearest(bits=8), [INPUTS], activations=8
    )
    grids = coded.contents.activations
    assert len(grids) == 2 + len(others)
    assert set(grids) >= set(others)
    assert len({grid.clip for grid in grids.values()}) == len(grids)
    network = loaded(coded, tmp_path, lambda: Called(*others))
    direct = coded.load_into(Called(*others).eval())
    assert torch.equal(network(INPUTS), direct(INPUTS))
    float_network = Called(*others).eval()
    error = (network(INPUTS) - float_network(INPUTS)).norm() / float_network(INPUTS).norm()
    assert error < 0.05
