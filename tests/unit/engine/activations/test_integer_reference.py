"""The integer network gives the answers of the network with rounded floats."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import fewbits
from fewbits.engine.activations.integer_reference import fake_quantized_network, integer_network
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


def test_layers_with_steps_for_groups_stay_floats(net):
    coded = fewbits.compress(net, fewbits.GPFQ(bits=8, group=16), X, activations=8)
    loaded = coded.load_into(copy.deepcopy(net))
    whole, layers = integer_network(loaded, coded.contents)
    assert layers == ["0", "3"]
    exact = fake_quantized_network(loaded, coded.contents)(X)
    assert torch.allclose(exact, whole(X), rtol=0, atol=1e-12)
    assert torch.allclose(exact.float(), loaded(X), rtol=0, atol=0.1)


def test_a_network_without_quantized_inputs(net):
    coded = fewbits.compress(net, fewbits.Nearest(bits=8))
    with pytest.raises(ModelError, match="both"):
        integer_network(net, coded.contents)


def test_a_network_that_was_not_loaded(net):
    coded = fewbits.compress(net, fewbits.GPFQ(bits=8), X, activations=8)
    for made in (integer_network, fake_quantized_network):
        with pytest.raises(ModelError, match=r"input of '0'.*load_into"):
            made(net, coded.contents)


class Twice(nn.Module):
    """Calls a layer twice in a pass: a grid for each call."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)
        self.relu, self.times = nn.ReLU(), 2

    def forward(self, x):
        x = self.a(x)
        for _ in range(self.times):
            x = self.b(self.relu(x))
        return self.c(self.relu(x))


ROWS = torch.randn(256, 8, generator=torch.Generator().manual_seed(3))


def agree(model, contents, x, layers, example=None):
    """Check that integers give what rounded floats of 64 bits give, in these layers."""
    whole, done = integer_network(model, contents, example)
    assert done == layers
    exact = fake_quantized_network(model, contents)
    with torch.no_grad():
        assert torch.allclose(exact(x), whole(x), rtol=0, atol=1e-12)
    return whole


@pytest.mark.parametrize("bits", [4, 8])
def test_a_layer_that_is_called_twice(bits):
    torch.manual_seed(0)
    coded = fewbits.compress(Twice().eval(), fewbits.Nearest(bits=4), ROWS, activations=bits)
    assert {"b@0", "b@1"} < set(coded.contents.activations)
    model = coded.load_into(Twice().eval())
    agree(model, coded.contents, ROWS, ["a", "b", "c"])


def test_a_call_more_than_the_file_knows_is_refused():
    coded = fewbits.compress(Twice().eval(), fewbits.Nearest(bits=4), ROWS, activations=4)
    whole, _ = integer_network(coded.load_into(Twice().eval()), coded.contents)
    whole.times = 3
    with pytest.raises(ModelError, match="input of 'b' is on no grid"):
        whole(ROWS)


@pytest.fixture
def deep():
    """A network with a shortcut of quantized values, pooling and a change of shape."""

    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(2, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
            self.conv2, self.bn2 = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
            self.pool, self.average = nn.MaxPool2d(2), nn.AvgPool2d(2)
            self.conv3 = nn.Conv2d(6, 6, 1)
            self.relu, self.fc1, self.fc2 = nn.ReLU(), nn.Linear(96, 16), nn.Linear(16, 5)

        def forward(self, x):
            x = self.relu(self.bn1(self.conv1(x)))
            x = self.relu(x + self.bn2(self.conv2(x)) + self.conv3(x - x.mean()))
            return self.fc2(self.relu(self.fc1(self.pool(x).flatten(1))))

    torch.manual_seed(0)
    deep = Deep()
    with torch.no_grad():
        for _ in range(5):
            deep(X)
    return deep.eval()


@pytest.mark.filterwarnings("ignore:.*entropy")
@pytest.mark.parametrize("first_last", ["fp", "same", "8bit"])
@pytest.mark.parametrize("quantizer", ["dorefa", "lsq"])
def test_grids_on_the_output_of_relus(quantizer, first_last, deep):
    method = fewbits.LowBit(
        weights=2, activations=2, quantizer=quantizer, first_last=first_last, placement="output"
    )
    coded = fewbits.prepare(deep, method, calibration=X).finish()
    # conv3 reads differences from a mean, which are on no grid.
    layers = ["conv1", "conv2", "fc1", "fc2"]
    layers = [name for name in layers if f"{name}.weight" in coded.contents.tensors]
    if first_last == "fp":
        layers = ["conv2", "fc1"]
        with pytest.raises(ModelError, match=r"placement='output'.*example="):
            integer_network(deep, coded.contents)
    else:
        assert integer_network(deep, coded.contents)[1] == ["conv1"]
    agree(deep, coded.contents, X, layers, example=X[:8])


def test_an_example_that_is_not_like_what_comes(deep):
    activations = fewbits.Activations(bits=8, placement="output")
    coded = fewbits.compress(deep, fewbits.Nearest(bits=8), X, activations=activations)
    model = coded.load_into(copy.deepcopy(deep))
    model.conv3.register_forward_pre_hook(lambda module, args: args[0].clamp_max(0).round() * 0)
    whole, layers = integer_network(model, coded.contents, X[:2])
    assert "conv3" in layers
    whole.conv3._forward_pre_hooks.clear()
    with pytest.raises(ModelError, match="input of 'conv3' is on no grid"):
        whole(X)


@pytest.mark.parametrize("kind", [dict, list, tuple])
def test_inputs_in_containers(kind):
    class Fed(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 4)

        def forward(self, held):
            return self.fc(held["deep"][0] if isinstance(held, dict) else held[0]["deep"])

    def held(x):
        return {"deep": [x]} if kind is dict else kind([{"deep": x}])

    torch.manual_seed(0)
    coded = fewbits.compress(
        Fed(),
        fewbits.Nearest(bits=4),
        [ROWS],
        activations=4,
        forward=lambda model, x: model(held(x)),
    )
    model = coded.load_into(Fed())
    given = held(ROWS)
    agree(model, coded.contents, given, ["fc"])
    found = given["deep"][0] if kind is dict else given[0]["deep"]
    assert found is ROWS  # the caller's own stays as it is


def test_weights_are_on_the_device_of_the_network(net):
    coded = fewbits.compress(net, fewbits.Nearest(bits=8), X, activations=8)
    elsewhere = coded.load_into(copy.deepcopy(net)).to("meta")
    for made in (
        integer_network(elsewhere, coded.contents)[0],
        fake_quantized_network(elsewhere, coded.contents),
    ):
        assert {value.device.type for value in made.state_dict().values()} == {"meta"}
    whole, layers = integer_network(elsewhere, coded.contents)
    for name in layers:
        layer = whole.get_submodule(name).forward
        assert {layer.weight.device.type, layer.step.device.type} == {"meta"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu(net):
    coded = fewbits.compress(net, fewbits.Nearest(bits=8), X, activations=8)
    model = coded.load_into(copy.deepcopy(net)).cuda()
    agree(model, coded.contents, X.cuda(), ["0", "3", "7"])
