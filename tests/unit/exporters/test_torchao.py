"""State dicts with torchao's int4 tensors: the values of the compressed network, by its kernels."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from torch import nn

import fewbits
from fewbits.errors import MissingExtraError
from fewbits.exporters import export, exporter_name


def network(dtype=torch.float32):
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3, padding=1), nn.Flatten(), nn.Linear(256, 96), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(96, 32), nn.Linear(32, 10)).to(dtype).eval()


def read(path, net):
    """Return the network with the tensors of the file."""
    found = torch.load(path, weights_only=True)
    net.load_state_dict(found, assign=True)
    return net, found


def values(layer):
    """Return the weight of a layer, whose tensor has no values of its own: those of its product."""
    one = torch.eye(layer.in_features, dtype=layer.bias.dtype)
    return nn.functional.linear(one, layer.weight).T


@pytest.fixture(scope="module")
def int4():
    pytest.importorskip("torchao")
    from torchao.prototype.quantization.int4 import Int4OpaqueTensor

    return Int4OpaqueTensor


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("method", "groups"),
    [
        ({"bits": 4, "group": 32}, (32, 32)),
        ({"bits": 4, "group": 64}, (64, 32)),  # 64 does not divide 96 inputs: one step for them
        ({"bits": 3}, (256, 32)),
        ({"levels": 8}, (256, 32)),
        ({"bits": 8}, ()),
    ],
    ids=str,
)
def test_codes_and_values_are_ours(method, groups, dtype, int4, tmp_path):
    net = network(dtype)
    coded = fewbits.compress(net, fewbits.Nearest(**method))
    told = export(coded, tmp_path / "net.pt", model=net)
    found, state = read(tmp_path / "net.pt", network(dtype))
    wanted = coded.state_dict()
    assert state.keys() == wanted.keys()
    assert told.weights == dict.fromkeys(("2.weight", "4.weight")[: len(groups)], 4)
    for layer, group in zip((2, 4), groups, strict=False):
        weight = state[f"{layer}.weight"]
        assert isinstance(weight, int4)
        assert weight.block_size == [1, group]
        assert torch.equal(values(found[layer]), wanted[f"{layer}.weight"])
    for name in set(state) - set(told.weights):
        assert torch.equal(state[name], wanted[name])
    told_of = dict(note.split(": ", 1) for note in told.notes)
    assert "something other than a linear layer" in told_of["0.weight"]
    why = "its 10 neurons are no multiple of 16" if groups else "its integers take more than 4 bits"
    assert why in told_of["5.weight"]
    assert told.bytes == (tmp_path / "net.pt").stat().st_size


def test_outputs_are_those_of_the_network(int4, tmp_path):
    net, x = network(torch.bfloat16), torch.randn(8, 1, 8, 8).bfloat16()
    coded = fewbits.compress(net, fewbits.Nearest(bits=4, group=32))
    export(coded, tmp_path / "net.pt", model=net)
    found, _ = read(tmp_path / "net.pt", network(torch.bfloat16))
    with torch.no_grad():
        ours = coded.load_into(copy.deepcopy(net))(x).float()
        assert (found(x).float() - ours).norm() < 0.01 * ours.norm()


def test_a_tied_embedding_is_values_and_kept_tied(int4, tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(32, 64), nn.Linear(64, 32, bias=False)
            self.head.weight = self.embed.weight

    coded = fewbits.compress(Tied(), fewbits.Nearest(bits=4))
    told = export(coded, tmp_path / "net.pt", model=Tied())
    state = torch.load(tmp_path / "net.pt", weights_only=True)
    assert told.weights == {}
    assert state["head.weight"].data_ptr() == state["embed.weight"].data_ptr()


def test_without_torchao(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torchao.prototype.quantization.int4", None)
    net = network()
    with pytest.raises(MissingExtraError, match=r"fewbits\[torchao\]"):
        export(fewbits.compress(net, "nearest"), tmp_path / "net.pt", model=net)
    assert list(tmp_path.iterdir()) == []
    assert exporter_name("net.pt") == "torchao"
