"""Every registered method on every layer kind, through the whole path to the file and back."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch
from torch import nn

import fewbits
from fewbits.coded import RawTensor
from fewbits.engine.layers.views import KINDS
from fewbits.methods import post_training_methods


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        return self.inner(x, x, x, need_weights=False)[0]


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.LSTM(6, 5, num_layers=2, bidirectional=True, batch_first=True)

    def forward(self, x):
        return self.inner(x)[0]


class Embedded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Embedding(12, 6)

    def forward(self, x):
        return self.inner(x)


def _conv1d_of_transformers(inputs=6):
    kind = type("Conv1D", (nn.Module,), {"__module__": "transformers.pytorch_utils"})

    def forward(self, x):
        return x @ self.weight + self.bias

    kind.forward = forward
    layer = kind()
    layer.weight = nn.Parameter(torch.randn(inputs, 9))
    layer.bias = nn.Parameter(torch.zeros(9))
    return layer


class TinyExperts(nn.Module):
    """Experts in one tensor, as transformers has them."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(3, 8, 6))

    def forward(self, x):
        return torch.einsum("nc,erc->ner", x, self.gate_up_proj).sum(1)


NETS = {
    "linear": (lambda: nn.Linear(6, 5), (7, 6)),
    "conv": (lambda: nn.Conv2d(4, 6, 3, 2, 1, groups=2), (5, 4, 6, 6)),
    "conv depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4), (5, 4, 6, 6)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, dilation=2), (5, 4, 9)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2), (5, 2, 4, 4, 4)),
    "conv_transpose": (lambda: nn.ConvTranspose2d(4, 6, 3, 2, groups=2), (5, 4, 4, 4)),
    "embedding": (Embedded, None),
    "recurrent": (Recurrent, (5, 4, 6)),
    "attention": (Attention, (5, 4, 8)),
    "experts": (TinyExperts, (5, 6)),
    "transposed_linear": (_conv1d_of_transformers, (7, 6)),
    "one neuron, one column": (lambda: nn.Linear(1, 1), (4, 1)),
}


TAKE_LEVELS = [name for name, kind in fewbits.METHODS.items() if kind.capabilities.takes_levels]


def _case(name):
    torch.manual_seed(0)
    make, shape = NETS[name]
    batches = [torch.randint(0, 12, (5, 3)) if shape is None else torch.randn(shape)] * 2
    return make().eval(), batches


def _settings(method, bits):
    """Of a method that has no bits, its own default."""
    kind = fewbits.METHODS[method]
    return kind(bits=bits) if "bits" in {entry.name for entry in fields(kind)} else kind()


@pytest.mark.parametrize("layer", NETS)
@pytest.mark.parametrize("method", post_training_methods())
def test_every_method_on_every_layer_kind(method, layer, tmp_path):
    net, batches = _case(layer)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    settings = _settings(method, bits=3)
    coded = fewbits.compress(net, settings, calibration=batches)
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name]), f"{name} of the person's own network changed"
    assert {n for n, t in coded.tensors.items() if not isinstance(t, RawTensor)} == {
        entry.target.name for entry in coded.plan.entries
    }
    assert fewbits.compress(net, settings, calibration=batches).data == coded.data
    size = coded.save(tmp_path / "net.fewbits")
    report = coded.size_report()
    assert size == (tmp_path / "net.fewbits").stat().st_size == sum(r.bytes for r in report.rows)
    state = fewbits.load(tmp_path / "net.fewbits")
    for name, tensor in coded.state_dict().items():
        assert torch.equal(state[name], tensor)
        assert state[name].dtype == before[name].dtype
        assert bool(torch.isfinite(tensor).all())
    fewbits.load(tmp_path / "net.fewbits", into=net)
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, state[name])


@pytest.mark.parametrize("layer", NETS)
@pytest.mark.parametrize("method", TAKE_LEVELS)
def test_levels_of_a_start_on_every_layer_kind(method, layer):
    net, batches = _case(layer)
    start = fewbits.compress(net, fewbits.Nearest(bits=3), calibration=batches)
    coded = fewbits.compress(net, fewbits.METHODS[method](), calibration=batches, start=start)
    for name, old in start.tensors.items():
        if isinstance(old, RawTensor):
            continue
        new = coded.tensors[name]
        assert np.array_equal(new.step, old.step)
        assert old.index.min() <= new.index.min()
        assert new.index.max() <= old.index.max()
        assert bool(torch.isfinite(coded.state_dict()[name]).all())


GROUPED = {
    "linear": (lambda: nn.Linear(16, 5), (30, 16), ()),
    "conv": (lambda: nn.Conv2d(8, 6, 3, 2, 1, groups=2), (5, 8, 6, 6), ()),
    "conv_transpose": (lambda: nn.ConvTranspose2d(16, 6, 3, 2, groups=2), (5, 16, 4, 4), ()),
    "transposed_linear": (lambda: _conv1d_of_transformers(16), (30, 16), ()),
    "does not divide": (lambda: nn.Linear(18, 5), (30, 18), ("weight",)),
    "one group": (lambda: nn.Linear(12, 5), (30, 12), ()),
}


def _has_group(method):
    return "group" in {entry.name for entry in fields(fewbits.METHODS[method])}


@pytest.mark.parametrize("layer", GROUPED)
@pytest.mark.parametrize("method", [m for m in post_training_methods() if _has_group(m)])
def test_groups_on_every_layer_kind(method, layer, tmp_path):
    torch.manual_seed(0)
    make, shape, whole = GROUPED[layer]
    net, batches = make().eval(), [torch.randn(shape)] * 2
    group = 12 if "conv" in layer or layer == "one group" else 8
    coded = fewbits.compress(net, fewbits.METHODS[method](group=group), calibration=batches)
    tensor = coded.tensors["weight"]
    noted = {e.target.name: e.reason for e in coded.plan.entries if "group=" in e.reason}
    assert set(noted) == set(whole)
    neurons = coded.plan.entries[0].target.view.rows
    blocks = 1 if whole or layer == "one group" else tensor.index.size // neurons // group
    assert tensor.blocks == blocks
    assert tensor.step.size == neurons * blocks
    size = coded.save(tmp_path / "net.fewbits")
    assert size == sum(row.bytes for row in coded.size_report().rows)
    state = fewbits.load(tmp_path / "net.fewbits")
    assert torch.equal(state["weight"], coded.state_dict()["weight"])
    weight = net.weight.detach().clone()
    fewbits.load(tmp_path / "net.fewbits", into=net, lazy=True)
    assert torch.equal(net(batches[0]), coded.load_into(make().eval())(batches[0]))
    if method == "nearest" and blocks > 1:  # groups are adjacent inputs of one neuron
        matrix = coded.plan.entries[0].target.view.matrix(weight).reshape(-1, group)
        ends = matrix.abs().amax(1) / 7
        assert bool((torch.from_numpy(tensor.step) >= ends).all())
        assert bool((torch.from_numpy(tensor.step) <= 1.01 * ends).all())


def test_every_kind_is_here():
    assert set(KINDS) <= set(NETS)


@pytest.mark.parametrize("method", post_training_methods())
def test_weights_out_of_sight_fall_back_to_a_stated_method(method):
    for layer, blind in (("embedding", "inner.weight"), ("attention", "inner.out_proj.weight")):
        net, batches = _case(layer)
        plan = fewbits.compress(net, _settings(method, bits=4), calibration=batches).plan
        if layer == "embedding" and fewbits.METHODS[method].capabilities.codes_lookups:
            continue
        entry = next(e for e in plan.entries if e.target.name == blind)
        assert entry.method.capabilities.needs_inputs == "none"
        if fewbits.METHODS[method].capabilities.needs_inputs != "none":
            assert entry.reason.startswith(f"instead of {method}: ")
            assert entry.reason.split(": ")[1] in str(plan)
