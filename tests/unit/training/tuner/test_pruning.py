"""Pruning in training: by share, by loss, and what is pruned stays so."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import fewbits
from fewbits import HEMP, Ramp
from fewbits.errors import ConfigError
from fewbits.training import Lobster, Magnitude
from fewbits.training.tuner.pruning import share_threshold

METHOD = HEMP(levels=9, refresh=3)


def zeros(net):
    weights = [p for name, p in net.state_dict().items() if p.dim() > 1]
    return sum(int((p == 0).sum()) for p in weights) / sum(p.numel() for p in weights)


def loop(net, tuner, data, steps):
    optimizer = torch.optim.SGD(net.parameters(), lr=2e-3, momentum=0.9, weight_decay=1e-4)
    for k in range(steps):
        rows = torch.arange(k * 64, (k + 1) * 64) % len(data[0])
        optimizer.zero_grad()
        F.cross_entropy(net(data[0][rows]), data[1][rows]).backward()
        optimizer.step()
        tuner.step()
        tuner.advance((k + 1) / steps)


def test_threshold_is_the_rank_among_all_magnitudes():
    tensors = [torch.tensor([3.0, -1.0]), torch.tensor([[2.0, -4.0]])]
    assert share_threshold(tensors, 0.5) == 2
    assert share_threshold(tensors, 0) == -1
    assert share_threshold(tensors, 1) == 4


@pytest.mark.parametrize("scope", ["network", "tensor"])
def test_magnitude_follows_its_ramp_and_never_frees_a_weight(scope, digits_net, digits):
    prune = Magnitude(share=Ramp(0, 0.6, until=0.5), scope=scope)
    tuner = fewbits.prepare(digits_net, METHOD, prune=prune)
    loop(digits_net, tuner, digits, 10)
    masks = {w.name: w.mask.clone() for w in tuner.weights}
    assert tuner.measures()["pruned"] == pytest.approx(0.6, abs=0.01)
    shares = [float((~mask).float().mean()) for mask in masks.values()]
    assert (max(shares) - min(shares) < 0.05) == (scope == "tensor")
    loop(digits_net, tuner, digits, 5)
    assert all(bool((w.parameter[~masks[w.name]] == 0).all()) for w in tuner.weights)
    tuner.finish()
    assert zeros(digits_net) >= 0.599


def test_zeros_of_a_pruned_network_stay_zero_unless_told_otherwise(digits_net, digits):
    with torch.no_grad():
        digits_net.conv2.weight[:, :8] = 0
    tuner = fewbits.prepare(digits_net, METHOD)
    loop(digits_net, tuner, digits, 5)
    assert bool((digits_net.conv2.weight[:, :8] == 0).all())
    tuner.finish()
    assert bool((digits_net.conv2.weight[:, :8] == 0).all())
    free = fewbits.prepare(digits_net, METHOD, zeros=False)
    assert all(weight.mask is None for weight in free.weights)


def test_masks_hold_in_the_quantized_forward_pass(digits_net, digits):
    method = HEMP(levels=7, spacing="even", forward="quantized", assign="rate", refresh=3)
    tuner = fewbits.prepare(digits_net, method, prune=Magnitude(share=0.5))
    tuner.advance(0.0)
    loop(digits_net, tuner, digits, 4)
    for weight in tuner.weights:
        assert bool((digits_net.get_parameter(_original(weight.name))[~weight.mask] == 0).all())
        seen = digits_net.get_submodule(weight.name.rpartition(".")[0]).weight
        assert bool((seen[~weight.mask] == 0).all())


def _original(name):
    path, _, leaf = name.rpartition(".")
    return f"{path}.parametrizations.{leaf}.original"


def test_lobster_shrinks_insensitive_weights_and_prunes_within_the_tolerance(digits_net, digits):
    tuner = fewbits.prepare(digits_net, METHOD, prune=Lobster(strength=1e-2))
    before = digits_net.conv1.weight.detach().clone()
    x, y = digits[0][:400], digits[1][:400]

    def loss():
        with torch.no_grad():
            return float(F.cross_entropy(digits_net(x), y))

    allowed = loss() * 1.2
    share = tuner.prune(loss, tolerance=0.2)
    assert 0 < share < 1
    assert loss() <= allowed
    assert share == pytest.approx(zeros(digits_net), abs=1e-6)
    prune = Lobster(strength=0.1)
    weight = tuner.weights[0]
    values = weight.parameter.detach().clone()
    weight.parameter.grad = torch.zeros_like(values)
    weight.parameter.grad.view(-1)[0] = 3.0
    prune.step(tuner.weights[:1])
    torch.testing.assert_close(weight.parameter.view(-1)[1:].detach(), values.view(-1)[1:] * 0.9)
    assert float(weight.parameter.view(-1)[0].detach()) == float(values.view(-1)[0])
    assert before.shape == values.shape


@pytest.mark.parametrize(
    "make",
    [
        lambda: Magnitude(share=1.0),
        lambda: Magnitude(share=-0.1),
        lambda: Magnitude(share=Ramp(0, 1)),
        lambda: Magnitude(share=0.5, scope="layer"),
        lambda: Lobster(strength=0),
    ],
)
def test_settings_out_of_range_are_refused(make):
    with pytest.raises(ConfigError):
        make()
