"""Outputs on grids: which ones, what they become, and through a file."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fewbits
from fewbits.engine.activations.hooks import apply_grid, remove_inputs
from fewbits.engine.activations.outputs import unquantized_outputs
from fewbits.engine.network.batches import call_model
from fewbits.errors import CalibrationError, ConfigError, ModelError

X = torch.randn(48, 1, 8, 8, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """Two blocks that share a module after their sums; the second ends without a normalization."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv3, self.mix = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 1)
        self.fc = nn.Linear(6, 10)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(x + self.bn2(self.conv2(x)))
        x = self.mix(self.conv3(x)) + self.mix(x)
        return self.fc(x.mean((2, 3)))


LAYERS = ["conv1", "conv2", "conv3", "mix", "fc"]


@pytest.fixture
def net():
    torch.manual_seed(0)
    made = Net()
    with torch.no_grad():
        for _ in range(5):
            made(X)
    return made.eval()


def test_which_outputs_go_on_in_floats(net):
    found = unquantized_outputs(net, LAYERS, X, call_model)
    assert found == ["bn2", "mix"]  # conv1's goes through bn1 into conv2, conv3's into mix
    assert unquantized_outputs(net, ["conv1", "fc"], X, call_model) == ["bn1"]
    assert (
        unquantized_outputs(nn.Sequential(nn.Linear(4, 4)), ["0"], torch.ones(2, 4), call_model)
        == []
    )


def compressed(net, **settings):
    method = fewbits.Nearest(bits=8)
    settings = {"bits": 8, "outputs": True, **settings}
    return fewbits.compress(net, method, X, activations=settings)


@pytest.mark.parametrize("ranges", ["mse", "percentile"])
def test_grids_of_outputs_through_a_file(net, tmp_path, ranges):
    coded = compressed(net, ranges=ranges, bits=4)
    grids = coded.contents.activations
    outer = {name: grid for name, grid in grids.items() if ":out" in name}
    assert list(outer) == ["bn2:out", "mix:out@0", "mix:out@1"]
    assert all(g.bits == 8 and not g.signed and 0 < g.zero < 255 for g in outer.values())
    assert any("8 inputs" in note or "inputs, 3 outputs" in note for note in coded.notes)
    coded.save(tmp_path / "net.fewbits")
    loaded = fewbits.load(tmp_path / "net.fewbits", into=copy.deepcopy(net)).eval()
    plain = copy.deepcopy(loaded)
    remove_inputs(plain)

    def on(name, x):
        return apply_grid(x, grids[name])

    x = F.relu(plain.bn1(plain.conv1(on("conv1", X))))
    x = F.relu(x + on("bn2:out", plain.bn2(plain.conv2(on("conv2", x)))))
    first = on("mix:out@0", plain.mix(on("mix@0", plain.conv3(on("conv3", x)))))
    x = first + on("mix:out@1", plain.mix(on("mix@1", x)))
    assert torch.equal(loaded(X), plain.fc(on("fc", x.mean((2, 3)))))
    assert not torch.equal(loaded(X), plain(X))


def test_it_costs_little(net):
    with torch.no_grad():
        wanted = net(X)
        found = compressed(net).load_into(copy.deepcopy(net)).eval()(X)
    assert float((found - wanted).norm() / wanted.norm()) < 0.03


def test_a_file_without_grids_takes_them_away(net):
    loaded = compressed(net).load_into(copy.deepcopy(net))
    plain = fewbits.compress(net, fewbits.Nearest(bits=8)).load_into(loaded)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in plain.modules())


def test_errors_name_the_output(net):
    with pytest.raises(ConfigError, match="activations: outputs"):
        fewbits.Activations(outputs="yes")
    coded = compressed(net)

    class Other(Net):
        def __init__(self):
            super().__init__()
            self.norm = self.bn2
            del self.bn2

    renamed = {k.replace("bn2", "norm"): v for k, v in coded.contents.tensors.items()}
    from dataclasses import replace

    contents = replace(coded.contents, tensors=renamed)
    with pytest.raises(ModelError, match=r"quantized output 'bn2:out'"):
        replace(coded, contents=contents).load_into(Other())
    bad = copy.deepcopy(net)
    bad.bn2.running_var.fill_(0).sub_(1)
    with pytest.raises(CalibrationError, match=r"'(bn2|conv3|fc)' contains NaN"):
        compressed(bad)
