"""A layer is what it computes: a class of torch's says nothing of what a subclass does."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fewbits
from fewbits.engine.layers.targets import survey
from fewbits.engine.lockstep.layer_check import check_layers
from fewbits.engine.network.batches import call_model

INPUTS = torch.randn(96, 12, generator=torch.Generator().manual_seed(0))


def checked(net: nn.Module, *batches: Tensor):
    net = net.eval()
    return check_layers(net, survey(net).targets, batches or (INPUTS,), call_model)


class Around(nn.Module):
    """A network of one layer, called by ``call(layer, x)``."""

    def __init__(self, layer: nn.Module, call=lambda layer, x: layer(x)) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer, self.call = layer, call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.layer, x)


class Scaled(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight * 3.0, self.bias)


class Standardized(nn.Conv2d):
    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight / weight.std(), self.bias)


class MaskFirst(nn.Linear):
    def forward(self, mask, x):
        return super().forward(x) * mask


class Activated(nn.Linear):
    def forward(self, x):
        return super().forward(x).relu()


class BiasApart(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight), self.bias


class NamedInput(nn.Linear):
    def forward(self, hidden):
        return super().forward(hidden)


class Attention(nn.MultiheadAttention):
    def forward(self, x):
        return super().forward(x, x, x, need_weights=False)[0]


def negative(layer: nn.Linear) -> nn.Linear:
    layer.forward = lambda x: F.linear(x, -layer.weight, layer.bias)
    return layer


OTHERS = {
    "scaled weight": Around(Scaled(12, 5)),
    "another argument": Around(MaskFirst(12, 5), lambda m, x: m(torch.ones(5), x)),
    "activation inside": Around(Activated(12, 5)),
    "forward replaced": Around(negative(nn.Linear(12, 5))),
    "standardized": Around(Standardized(3, 5, 2), lambda m, x: m(x.reshape(-1, 3, 2, 2))),
    "attention": Around(Attention(12, 2), lambda m, x: m(x[:, None])),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_product_with_the_weight_is_noticed(name):
    found = checked(OTHERS[name])
    assert found.failed
    assert all("layer." in weight for weight in found.failed)


SAME = {
    "linear": Around(nn.Linear(12, 5)),
    "no bias": Around(nn.Linear(12, 5, bias=False)),
    "more axes": Around(nn.Linear(3, 5), lambda m, x: m(x.reshape(8, 12, 4, 3))),
    "keyword": Around(NamedInput(12, 5), lambda m, x: m(hidden=x)),
    "subclass that only logs": Around(NamedInput(12, 5)),
    "bfloat16": Around(nn.Linear(12, 5).bfloat16(), lambda m, x: m(x.bfloat16())),
    "grouped": Around(nn.Conv1d(4, 6, 3, groups=2), lambda m, x: m(x.reshape(-1, 4, 3))),
    "transposed": Around(
        nn.ConvTranspose2d(3, 4, 2, stride=2), lambda m, x: m(x.reshape(-1, 3, 2, 2))
    ),
    "attention": Around(nn.MultiheadAttention(12, 2), lambda m, x: m(x, x, x)[0]),
    "recurrent": Around(nn.LSTM(12, 4), lambda m, x: m(x)[0]),
    "hooked": Around(nn.Linear(12, 5)),
}
SAME["hooked"].layer.register_forward_hook(lambda module, args, output: output * 2)


@pytest.mark.parametrize("name", SAME)
def test_what_is_a_product_with_the_weight_is_followed(name):
    found = checked(SAME[name])
    assert not found.failed
    assert not found.without_bias


def test_a_bias_that_the_layer_does_not_add_takes_no_correction():
    net = Around(BiasApart(12, 5), lambda m, x: m(x)[0] * 2 + 1)
    assert checked(net).without_bias == {"layer.weight"}
    with torch.no_grad():
        net.layer.bias.fill_(4)
    coded = fewbits.compress(net.eval(), fewbits.GPFQ(bits=2), calibration=[INPUTS])
    assert torch.equal(coded.state_dict()["layer.bias"], net.layer.bias)
    assert "bias not corrected" in coded.plan.entries[0].reason


class Choice(nn.Module):
    """Its second layer is called by the second batch only."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(12, 12), Scaled(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) if x.shape[0] == 96 else self.two(self.one(x))


def test_layers_of_their_own_are_looked_for_in_later_batches():
    assert not checked(Choice()).failed
    assert set(checked(Choice(), INPUTS, INPUTS[:7]).failed) == {"two.weight"}


def test_one_pass_of_one_batch_is_all_it_costs():
    calls = []
    net = Around(nn.Linear(12, 5), lambda m, x: calls.append(len(x)) or m(x))
    checked(net, INPUTS, INPUTS[:7])
    assert calls == [96]


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("method", [fewbits.GPFQ(bits=3), fewbits.RDOQ(), fewbits.Transform()])
def test_methods_fall_back_on_such_layers_and_say_so(name, method):
    net = OTHERS[name].eval()
    coded = fewbits.compress(net, method, calibration=[INPUTS])
    entry = coded.plan.entries[0]
    assert entry.method.name == "nearest"
    assert f"instead of {method.name}" in entry.reason


def test_sensitivity_and_activations_leave_the_inputs_of_such_layers():
    net = nn.Sequential(nn.Linear(12, 12), Scaled(12, 12), nn.Linear(12, 4)).eval()
    rows = {row.name: row for row in fewbits.sensitivity(net, "gpfq", [INPUTS], bits=(4,))}
    assert rows["1.weight"].method == "nearest"
    assert rows["0.weight"].method == "gpfq"
    coded = fewbits.compress(net, fewbits.Nearest(bits=8), calibration=[INPUTS], activations=8)
    assert set(coded.contents.activations) == {"0", "2"}
    assert any("1.weight" in note for note in coded.notes)
    with pytest.warns(UserWarning, match=r"1\.weight"):
        tuner = fewbits.prepare(
            copy.deepcopy(net), fewbits.LowBit(weights=4, activations=4), calibration=[INPUTS]
        )
    assert set(tuner.finish().contents.activations) == {"0", "2"}
