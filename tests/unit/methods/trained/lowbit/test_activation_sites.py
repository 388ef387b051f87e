"""Which inputs are quantized, at which width, and what is said of those that are not."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import fewbits
from fewbits import GPFQ, HEMP, LowBit, Nearest, Rule
from fewbits.errors import ConfigError, ModelError
from fewbits.methods import Activations

pytestmark = pytest.mark.filterwarnings("ignore:.*(values are clipped|entropy)")
X = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))


class Named(nn.Module):
    """Four linear layers a to d with ReLUs between them."""

    def __init__(self, act=nn.ReLU):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.d = nn.Linear(8, 3)
        self.acts = nn.ModuleList(act() for _ in range(3))

    def forward(self, x):
        for layer, act in zip((self.a, self.b, self.c), self.acts, strict=True):
            x = act(layer(x))
        return self.d(x)


class Shared(nn.Module):
    """One ReLU module for two calls; recomputed in the backward pass where asked."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.relu, self.recompute = nn.ReLU(), False

    def encode(self, x):
        return self.c(self.relu(self.b(self.relu(self.a(x)))))

    def forward(self, x):
        return checkpoint(self.encode, x, use_reentrant=False) if self.recompute else self.encode(x)


def widths(tuner):
    return {name: made.bits for name, made in tuner.session.inputs.items()}


def prepare(net, method, **more):
    return fewbits.prepare(net, method, calibration=X, **more)


def test_the_grid_of_a_relu6_ends_where_it_cuts():
    net = Named(nn.ReLU6)
    with torch.no_grad():
        net.a.weight *= 40
    bits = Activations(bits=4, placement="output", ranges="percentile")
    grids = fewbits.compress(net, Nearest(bits=8), X, activations=bits).contents.activations
    assert 4 < grids["acts.0"].clip <= 6
    tuner = prepare(net, LowBit(activations=2, placement="output"))
    made = tuner.session.inputs["acts.0"]
    assert 4 < made.grid().clip <= 6
    with torch.no_grad():
        made.step.stretch += 0.5  # an optimizer's step
    tuner.step()
    assert made.grid().clip == pytest.approx(6)


@pytest.mark.parametrize("weights", [4, 32])
def test_ends_have_eight_bits(weights):
    tuner = prepare(Named(), LowBit(weights=weights, activations=3))
    assert widths(tuner) == {"a": 8, "b": 3, "c": 3, "d": 8}


def test_the_relu_before_an_end_has_its_bits():
    tuner = prepare(Named(), LowBit(activations=3, placement="output"))
    assert widths(tuner) == {"a": 8, "acts.0": 3, "acts.1": 3, "acts.2": 8}
    settings = Activations(bits=3, placement="output")
    grids = fewbits.compress(Named(), GPFQ(bits=4), X, activations=settings).contents.activations
    assert {name: grid.bits for name, grid in grids.items()} == widths(tuner)


def test_kept_layers_are_the_ends_that_they_are():
    tuner = prepare(Named(), LowBit(activations=3), keep=["a.*", "d.*"])
    assert widths(tuner) == {"b": 3, "c": 3}
    tuner = prepare(Named(), LowBit(activations=3, first_last="fp"), keep=["a.*"])
    assert widths(tuner) == {"b": 3, "c": 3}
    recipe = fewbits.Recipe(
        (Rule("*", GPFQ(bits=4)), Rule("[ad].*", None)), activations=Activations(bits=3)
    )
    grids = fewbits.compress(Named(), recipe, X).contents.activations
    assert {name: grid.bits for name, grid in grids.items()} == {"b": 3, "c": 3}


def test_layers_with_one_weight_are_quantized_all():
    net = Named()
    net.c.weight = net.b.weight
    tuner = prepare(copy.deepcopy(net), LowBit(activations=3))
    assert widths(tuner) == {"a": 8, "b": 3, "c": 3, "d": 8}
    grids = fewbits.compress(net, GPFQ(bits=4), X, activations=8).contents.activations
    assert list(grids) == ["a", "b", "c", "d"]


def test_inputs_that_stay_in_float_are_named():
    net = Named()
    net.aside = nn.Linear(8, 2)
    with pytest.warns(UserWarning, match=r"float: aside \(not called by calibration\)"):
        prepare(copy.deepcopy(net), LowBit(first_last="same"))
    coded = fewbits.compress(net, Nearest(bits=8), X, activations=8)
    assert any("aside (not called" in note for note in coded.notes)


def test_attention_is_named():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.core = nn.Linear(6, 8), nn.MultiheadAttention(8, 2, batch_first=True)
            self.head = nn.Linear(8, 3)

        def forward(self, x):
            x = self.up(x)[:, None]
            return self.head(self.core(x, x, x, need_weights=False)[0])

    with pytest.warns(UserWarning, match=r"float: core \(MultiheadAttention, whose inputs"):
        prepare(Attention(), LowBit())


def test_nothing_to_quantize():
    recipe = fewbits.Recipe((Rule("*", None),), activations=Activations())
    with pytest.raises(ConfigError, match=r"activations=8: no layer has quantized weights"):
        fewbits.compress(Named(), recipe, X)


def test_quantized_inputs_of_a_loaded_file_do_not_stop_gradients():
    net = fewbits.compress(Named(), GPFQ(bits=8), X, activations=8).load_into(Named())
    with pytest.warns(UserWarning, match=r"4 inputs or outputs of layers were quantized"):
        fewbits.prepare(net, HEMP())
    net(X).square().sum().backward()
    assert all(float(p.grad.abs().max()) > 0 for p in net.parameters())


def test_quantized_inputs_of_a_loaded_file_do_not_calibrate_another():
    loaded = fewbits.compress(Named(), GPFQ(bits=8), X, activations=2).load_into(Named())
    plain = Named()
    plain.load_state_dict(loaded.state_dict())
    ours = fewbits.compress(loaded, GPFQ(bits=4), X)
    theirs = fewbits.compress(plain, GPFQ(bits=4), X)
    assert ours.data == theirs.data
    assert any("4 inputs or outputs that were quantized before" in note for note in ours.notes)


@pytest.fixture
def loaded():
    settings = Activations(bits=4, placement="output", first_last="same")
    coded = fewbits.compress(Shared(), GPFQ(bits=4), X, activations=settings)
    assert {"relu@0", "relu@1"} < set(coded.contents.activations)
    return coded.load_into(Shared())


def test_a_call_that_can_not_be_counted_is_refused(loaded):
    twice = loaded(X), loaded(X)
    assert torch.equal(*twice)
    with pytest.raises(ModelError, match="outside of a forward pass"):
        loaded.encode(X)


def test_calls_are_not_counted_where_activations_are_computed_again(loaded):
    loaded.recompute = True
    with pytest.raises(ModelError, match="activation checkpointing"):
        loaded(X.clone().requires_grad_()).sum().backward()
