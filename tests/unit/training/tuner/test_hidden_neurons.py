"""Dead neurons folded and neurons sorted: the function stays, the codes follow the values."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import fewbits
from fewbits import HEMP
from fewbits.engine.layers.layer import QuantizedMatrix
from fewbits.training.tuner.hidden_neurons import Neurons, simplify_neurons

EXACT = HEMP(levels=255, spacing="even", rate_weight=0)
BOOK = HEMP(levels=31, rate_weight=0)


def mlp():
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 16), nn.BatchNorm1d(16), nn.Sigmoid()),
        *(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 5)),
    ).eval()
    with torch.no_grad():
        net[3].running_mean.uniform_(-1, 1)
        net[3].weight.uniform_(0.5, 2)
        net[0].weight[3] = 0  # a constant above zero, and one below
        net[0].bias[3] = 0.7
        net[0].weight[4] = 0
        net[0].bias[4] = -0.7
        net[2].weight[:, 7] = 0  # nobody reads it
        net[2].weight[5] = 0  # a constant through a norm and a sigmoid
        net[5].weight[2] = 0
        net[7].weight[:, 2] = 0  # neither
    return net


def lenet(padding=0):
    torch.manual_seed(0)
    places = 4 if padding else 1
    net = nn.Sequential(
        *(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3, padding=padding)),
        *(nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8 * places, 4)),
    ).eval()
    with torch.no_grad():
        net[0].weight[2] = 0
        net[0].bias[2] = 0.4
        net[0].weight[3] = 0
        net[0].bias[3] = -0.4
        net[3].weight[1] = 0
        net[7].weight[:, 5 * places : 6 * places] = 0
    return net


INPUTS = {"mlp": torch.randn(64, 12), "conv": torch.randn(16, 1, 10, 10)}


def finished(net, method=EXACT, **finish):
    bits = finish.pop("vector_bits", None)
    tuner = fewbits.prepare(net, method, vector_bits=bits)
    return tuner.finish(**finish)


CASES = {
    "mlp": (mlp, INPUTS["mlp"]),
    "conv": (lenet, INPUTS["conv"]),
    "padded": (lambda: lenet(1), INPUTS["conv"]),
}


@torch.no_grad()
def outputs(net, x):
    return net.eval()(x)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("method", [EXACT, BOOK], ids=["grid", "codebook"])
@pytest.mark.parametrize(("bits", "sort"), [(None, False), (None, True), (6, True)])
def test_the_function_stays_and_the_file_holds_it(case, method, bits, sort, tmp_path):
    make, x = CASES[case]
    plain, tidied = make(), make()
    finished(plain, method, vector_bits=bits, fold=False)
    coded = finished(tidied, method, vector_bits=bits, sort=sort)
    torch.testing.assert_close(outputs(tidied, x), outputs(plain, x), rtol=1e-5, atol=1e-5)
    coded.save(tmp_path / "net.fewbits")
    loaded = fewbits.load(tmp_path / "net.fewbits", into=make())
    assert torch.equal(outputs(loaded, x), outputs(tidied, x))
    assert any("dead ones folded" in note for note in coded.notes)


def test_neurons_that_groups_of_the_next_layer_read_keep_their_places(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 5))
    ).eval()
    with torch.no_grad():
        net[0].weight[3] = 0
        net[2].weight[5] = 0
    x = torch.randn(64, 16)
    start = fewbits.compress(net, fewbits.Nearest(bits=3, group=8))
    plain, sorted_ = copy.deepcopy(net), copy.deepcopy(net)
    how = HEMP(rate_weight=0, forward="quantized")
    fewbits.prepare(plain, how, start=start).finish(fold=False)
    coded = fewbits.prepare(sorted_, how, start=start).finish(sort=True)
    torch.testing.assert_close(outputs(sorted_, x), outputs(plain, x), rtol=1e-5, atol=1e-5)
    assert "neurons: those of 1 layers sorted" in coded.notes  # the last layer has no groups
    assert any("1 layers not sorted" in note for note in coded.notes)
    coded.save(tmp_path / "net.fewbits")
    loaded = fewbits.load(tmp_path / "net.fewbits", into=copy.deepcopy(net))
    assert torch.equal(outputs(loaded, x), outputs(sorted_, x))
    assert coded.tensors["2.weight"].blocks == 2


def test_dead_neurons_have_no_weights_left():
    net = mlp()
    coded = finished(net)
    assert "neurons: 4 dead ones folded" in coded.notes  # the fifth was gone already
    for layer, reader, gone in ((0, 2, [3, 4, 7]), (2, 5, [5]), (5, 7, [2])):
        assert not bool(net[layer].weight[gone].any())
        assert not bool(net[layer].bias[gone].any())
        assert not bool(net[reader].weight[:, gone].any())
    assert not bool(net[3].bias[5].any())


def test_a_constant_that_cannot_be_taken_up_stays():
    """At borders of a padded convolution, and where the next bias is on a grid."""
    net = lenet(1)
    finished(net)
    assert bool(net[3].weight[:, 2].any())
    assert not bool(net[3].weight[:, 3].any())  # zero after its activation
    net = mlp()
    finished(net, vector_bits=6)
    assert bool(net[2].weight[:, 3].any())
    assert not bool(net[2].weight[:, 4].any())
    bare = nn.Sequential(nn.Linear(4, 4), nn.Sigmoid(), nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        bare[0].weight[1] = 0
    finished(bare)
    assert bool(bare[2].weight[:, 1].any())


def test_constants_go_on_through_layers_that_get_constants_only():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    with torch.no_grad():
        net[0].weight[:, :] = 0
        net[0].bias[:] = torch.tensor([1.0, -1.0, 2.0, 0.5])
    wanted = outputs(net, torch.randn(5, 3))
    finished(net)
    assert all(not bool(net[k].weight.any()) for k in (0, 2, 4))
    torch.testing.assert_close(outputs(net, torch.randn(5, 3)), wanted, rtol=0.02, atol=0.02)


def test_sorted_by_nonzeros_most_first():
    net = lenet()
    with torch.no_grad():
        for k in (0, 3, 7):
            net[k].weight.mul_(torch.rand_like(net[k].weight) < 0.5)
    coded = finished(net, sort=True)
    assert "neurons: those of 2 layers sorted" in coded.notes
    for layer, reader in ((0, 3), (3, 7)):
        inputs = (net[layer].weight != 0).flatten(1).sum(1)
        values = (net[reader].weight != 0).reshape(len(net[reader].weight), len(inputs), -1)
        counts = inputs + values.sum((0, 2))
        assert bool((counts.diff() <= 0).all())


def test_tables_of_rows_move_with_their_rows():
    """Steps, offsets and scales by row, against the same permutation of the values."""
    net = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(-1, 2, (1, 6, 5), generator=generator)
    steps, offset = torch.rand(6, generator=generator), torch.tensor([0.0, 1, 0, 0, 1, 0])
    levels = torch.tensor([-1.0, 0.0, 2.0])
    results = {
        "0.weight": QuantizedMatrix(index.int(), steps, offset),
        "2.weight": QuantizedMatrix(
            torch.randint(0, 3, (1, 3, 6), generator=generator).int(), None, levels=levels
        ),
    }
    for name, result in results.items():
        net.get_parameter(name).data.copy_(result.dequantize()[0])
    before = copy.deepcopy(net)
    changed = dict(results)
    simplify_neurons(net, changed, {}, fold=True, sort=True)
    assert not torch.equal(net[0].weight, before[0].weight)
    for name, result in changed.items():
        assert torch.equal(result.dequantize()[0], net.get_parameter(name).detach())
    x = torch.randn(9, 5, generator=generator)
    torch.testing.assert_close(outputs(net, x), outputs(before, x), rtol=1e-5, atol=1e-6)


def test_layers_without_a_zero_or_with_tied_tensors_stay():
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    half = QuantizedMatrix(torch.zeros(1, 4, 4, dtype=torch.int32), torch.ones(1), 0.5)
    none = QuantizedMatrix(torch.zeros(1, 4, 4, dtype=torch.int32), torch.ones(1))
    chain = fewbits.engine.graph.chains.find_chains(net).found
    for name, values in (("0.weight", none), ("2.weight", half)):
        net.get_parameter(name).data.copy_(values.dequantize()[0])
    results = {"0.weight": none, "2.weight": half}
    assert Neurons(net, chain, results).fold() == 0
    assert results["2.weight"] is half
    assert Neurons(net, chain, results, {"0.bias"}).chains == []


def test_networks_that_cannot_be_traced_are_left_and_it_is_said():
    class Branching(nn.Sequential):
        def forward(self, x):
            return super().forward(x) if x.sum() < 1e9 else x

    net = Branching(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    assert finished(net).notes == ()  # no zeros, so nobody looked
    with torch.no_grad():
        net[0].weight[2] = 0
    notes = finished(net, sort=True).notes
    assert notes[0].startswith("neurons: not changed, the network cannot be traced")
