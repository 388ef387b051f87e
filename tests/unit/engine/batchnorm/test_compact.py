"""Batch normalizations settled at the end of a training: the function stays, two vectors go."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import fewbits
from fewbits import HEMP
from fewbits.coded import GridTensor, RawTensor
from fewbits.engine.batchnorm.merge import BatchNormMerge, mergeable

EXACT = HEMP(levels=1023, spacing="even", rate_weight=0)
PIECES = ("weight", "bias", "running_mean", "running_var")


def lively(norm, seed=0):
    """Give a normalization statistics and an affine map as training leaves them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, low in (
            ("weight", 0.2),
            ("bias", -1),
            ("running_mean", -2),
            ("running_var", 0.1),
        ):
            values = getattr(norm, name)
            values.copy_(torch.rand(values.shape, generator=generator) * 2 + low)
        norm.num_batches_tracked.fill_(7)
    return norm


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 24, 3, bias=False),
        lively(nn.BatchNorm2d(24)),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24 * 36, 40),
        lively(nn.BatchNorm1d(40, eps=1e-3), 1),
    ).eval()


def inputs():
    return torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_the_function_stays_and_the_statistics_become_constants():
    net = network()
    wanted, last = net(inputs()), copy.deepcopy(net[5])
    tuner = fewbits.prepare(net, EXACT)
    with tuner.quantized():
        during = net(inputs())
    coded = tuner.finish()
    torch.testing.assert_close(net(inputs()), during, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(net(inputs()), wanted, rtol=0, atol=0.1)
    assert bool((net[5].running_mean == 0).all())
    assert bool((net[5].running_var == 1 - 1e-3).all())
    assert int(net[5].num_batches_tracked) == 7
    pairs = zip(last.weight.tolist(), last.running_var.tolist(), strict=True)
    slow = [gamma / (variance + 1e-3) ** 0.5 for gamma, variance in pairs]
    torch.testing.assert_close(net[5].weight.detach(), torch.tensor(slow))
    assert coded.notes == ("2 batch normalizations merged: a gain and a bias",)
    fresh = network()
    coded.load_into(fresh)
    assert torch.equal(fresh(inputs()), net(inputs()))
    assert "merged with its statistics at the end" in coded.plan.kept["1.weight"]


def test_two_vectors_of_four_cost_next_to_nothing(monkeypatch):
    coded = fewbits.prepare(network(), EXACT).finish()
    monkeypatch.setattr(BatchNormMerge, "settle", lambda self: {})
    before = fewbits.prepare(network(), EXACT).finish()
    assert len(coded.data) < len(before.data) - 1.5 * 4 * (24 + 40)


@pytest.mark.parametrize("bits", [4, 8])
def test_gains_and_biases_on_grids_of_so_many_bits(bits, tmp_path):
    net = network()
    wanted = network()(inputs()).detach()
    tuner = fewbits.prepare(net, EXACT, vector_bits=bits)
    floats = {name: values.clone() for name, values in net.state_dict().items()}
    with tuner.quantized():
        during = net(inputs())
        assert not torch.equal(net[1].weight, floats["1.weight"])
        assert torch.equal(net[1].running_var, floats["1.running_var"])
    assert torch.equal(net[1].weight, floats["1.weight"])
    coded = tuner.finish()
    torch.testing.assert_close(net(inputs()), during, rtol=1e-4, atol=1e-4)
    assert float((net(inputs()) - wanted).abs().mean().detach()) < (0.3 if bits == 4 else 0.05)
    for name in ("1.weight", "1.bias", "5.weight", "5.bias"):
        assert isinstance(coded.tensors[name], GridTensor)
        assert coded.tensors[name].index.max() - coded.tensors[name].index.min() < 2**bits
    assert isinstance(coded.tensors["1.running_var"], RawTensor)
    coded.save(tmp_path / "net.fewbits")
    loaded = fewbits.load(tmp_path / "net.fewbits", into=network())
    assert torch.equal(loaded(inputs()), net(inputs()))
    assert "4.bias" not in coded.plan.kept  # trained on its grid, as all other vectors
    assert f"on a grid of {bits} bits" in coded.plan.kept["1.weight"]


def test_the_bias_takes_up_what_the_grid_does_to_the_mean():
    net = nn.Sequential(lively(nn.BatchNorm1d(64)))
    norm = copy.deepcopy(net[0])
    BatchNormMerge(net, mergeable(net, {}), 3).settle()
    gain, at_mean = net[0].weight.detach(), net.eval()(norm.running_mean[None]).detach()
    before = norm.weight.detach() / (norm.running_var + norm.eps).sqrt()
    assert float((gain - before).abs().max()) > 0.05
    exact = norm.eval()(norm.running_mean[None]).detach()
    steps = exact.max() - exact.min()
    assert float((at_mean - exact).abs().max()) <= float(steps) / 7  # the bias's own grid alone


def test_dead_channels_stay_dead_and_constant_vectors_cost_no_grid():
    net = nn.Sequential(lively(nn.BatchNorm1d(32)))
    with torch.no_grad():
        net[0].weight[3] = 0
        net[0].bias.zero_()
        net[0].running_mean.zero_()
    results = BatchNormMerge(net, mergeable(net, {}), 5).settle()
    assert list(results) == ["0.weight"]
    assert float(net[0].weight[3].detach()) == 0


def test_what_cannot_be_settled_is_left_as_it_is():
    tied = lively(nn.BatchNorm1d(4))
    other = lively(nn.BatchNorm1d(4), 1)
    other.weight = tied.weight

    class Own(nn.BatchNorm1d):
        def forward(self, x):
            return x * self.running_var

    twice = lively(nn.BatchNorm1d(4), 2)
    net = nn.Sequential(
        nn.BatchNorm1d(4, affine=False),
        nn.BatchNorm1d(4, track_running_stats=False),
        Own(4),
        tied,
        other,
        twice,
        nn.ReLU(),
        twice,
        lively(nn.BatchNorm1d(4), 3),
        nn.Linear(4, 4),
    )
    aliases = {"4.weight": "3.weight", **{f"7.{leaf}": f"5.{leaf}" for leaf in PIECES}}
    assert mergeable(net, aliases, held=("8",)) == ("5",)
    wanted = net.eval()(torch.randn(3, 4, generator=torch.Generator().manual_seed(0)))
    tuner = fewbits.prepare(net, EXACT)
    assert tuner._norm_merge.names == ("5", "8")
    tuner.finish()
    found = net(torch.randn(3, 4, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(found, wanted, rtol=0.01, atol=0.01)


def test_a_gain_that_is_not_finite_is_left():
    norm = lively(nn.BatchNorm1d(3, eps=0.0))
    norm.running_var[1] = 0
    net = nn.Sequential(norm)
    before = {name: values.clone() for name, values in net.state_dict().items()}
    assert BatchNormMerge(net, ("0",)).settle() == {}
    assert all(torch.equal(net.state_dict()[name], values) for name, values in before.items())


def test_training_goes_on_from_a_settled_network():
    coded = fewbits.prepare(network(), EXACT).finish()
    net = network()
    tuner = fewbits.prepare(net, EXACT, start=coded, vector_bits=6)
    assert not net.train()[1].training
    assert net[1].weight.requires_grad
    assert {"1.weight", "1.bias"} <= {weight.name for weight in tuner.weights}
    again = tuner.finish()
    assert torch.equal(again.state_dict()["1.running_var"], coded.state_dict()["1.running_var"])
    assert net.train()[1].training
