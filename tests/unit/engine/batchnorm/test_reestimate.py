from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from fewbits.engine.batchnorm.fold import fold_batchnorm
from fewbits.engine.batchnorm.reestimate import reestimate_batchnorm
from fewbits.engine.network.batches import call_model
from fewbits.errors import ConfigError


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 6, 3, padding=1),
        nn.BatchNorm2d(6),
    )
    with torch.no_grad():
        for norm in (net[1], net[4]):
            norm.weight.uniform_(0.5, 2)
            norm.bias.normal_()
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
    return net.eval()


BATCHES = [torch.randn(16, 3, 6, 6, generator=torch.Generator().manual_seed(i)) for i in range(3)]


def _damage(net: nn.Sequential) -> nn.Sequential:
    """What a normalization can undo: each neuron scaled and shifted."""
    net = copy.deepcopy(net)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        net[0].weight.mul_(torch.rand(8, 1, 1, 1, generator=generator) + 0.5)
        net[3].weight.mul_(torch.rand(6, 1, 1, 1, generator=generator) + 0.5)
        net[3].bias.add_(torch.randn(6, generator=generator))
    return net


def _largest_difference(a, b):
    with torch.no_grad():
        return max(float((a(x) - b(x)).abs().max()) for x in BATCHES)


@pytest.mark.parametrize("fold", [False, True])
def test_scaled_and_shifted_neurons_are_undone(fold):
    reference = _net()
    folded = fold_batchnorm(reference, BATCHES[0], call_model) if fold else ()
    damaged = _damage(reference)
    assert _largest_difference(reference, damaged) > 1
    names = reestimate_batchnorm(reference, damaged, BATCHES, call_model, folded)
    assert names == ("1", "4")
    assert _largest_difference(reference, damaged) < 1e-3
    assert not damaged[1]._forward_pre_hooks
    if fold:
        assert torch.equal(damaged[1].running_mean, torch.zeros(8))


def test_an_unchanged_network_stays_as_it_is():
    reference = _net()
    same = copy.deepcopy(reference)
    reestimate_batchnorm(reference, same, BATCHES, call_model)
    for name, tensor in reference.state_dict().items():
        torch.testing.assert_close(same.state_dict()[name], tensor, rtol=1e-6, atol=1e-6)


def test_the_change_is_that_of_the_moments():
    reference = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5)).eval()
    other = copy.deepcopy(reference)
    with torch.no_grad():
        other[0].weight.normal_(generator=torch.Generator().manual_seed(1))
    batches = [torch.randn(64, 4)]
    reestimate_batchnorm(reference, other, batches, call_model)
    with torch.no_grad():
        want, got = reference(batches[0]), other(batches[0])
    torch.testing.assert_close(got.mean(0), want.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got.std(0), want.std(0), rtol=1e-4, atol=1e-5)


def test_a_network_without_batchnorm_is_an_error():
    net = nn.Linear(2, 2)
    with pytest.raises(ConfigError, match="no batch normalization"):
        reestimate_batchnorm(net, net, [torch.zeros(1, 2)], call_model)


class Awkward(nn.Module):
    """Writes into its input, always drops, and calls its normalization by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.bn = nn.Linear(4, 5), nn.BatchNorm1d(5)

    def forward(self, x):
        x.mul_(2)
        return self.bn(input=functional.dropout(self.fc(x), 0.5, training=True))


def test_a_network_that_draws_and_writes_into_its_input():
    torch.manual_seed(0)
    reference, x = Awkward().eval(), torch.randn(64, 4)
    changed = copy.deepcopy(reference)
    with torch.no_grad():
        changed.fc.weight.mul_(2)
        changed.fc.bias.mul_(2)
    before, state = x.clone(), torch.get_rng_state()
    assert reestimate_batchnorm(reference, changed, [x, x], call_model) == ("bn",)
    assert torch.equal(x, before)
    assert torch.equal(torch.get_rng_state(), state)
    ratio = (changed.bn.running_var + changed.bn.eps) / (
        reference.bn.running_var + reference.bn.eps
    )
    torch.testing.assert_close(ratio, torch.full((5,), 4.0))  # both drop alike: exactly doubled


@pytest.mark.parametrize("dead", ["float", "quantized", "both"])
def test_a_dead_channel_takes_the_shift_only(dead):
    reference = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).eval()
    with torch.no_grad():
        reference[1].running_var.fill_(2)
    changed = copy.deepcopy(reference)
    with torch.no_grad():
        if dead != "quantized":
            reference[0].weight[1] *= 1e-6
        if dead != "float":
            changed[0].weight[1] = 0
        changed[0].bias[1] += 1
    batches = [torch.randn(64, 4, generator=torch.Generator().manual_seed(2))]
    with torch.no_grad():
        means = [float(net[0](batches[0])[:, 1].mean()) for net in (reference, changed)]
    reestimate_batchnorm(reference, changed, batches, call_model)
    torch.testing.assert_close(changed[1].running_var[1].item(), 2.0, rtol=1e-5, atol=0)
    shift = means[1] - means[0]
    torch.testing.assert_close(changed[1].running_mean[1].item(), shift, rtol=1e-4, atol=1e-4)


def test_batches_weigh_by_their_number_of_values():
    reference = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).eval()
    x = torch.randn(99, 4, generator=torch.Generator().manual_seed(3)) + torch.arange(99)[:, None]
    answers = []
    for batches in ([x], [x[:90], x[90:]]):
        changed = copy.deepcopy(reference)
        with torch.no_grad():
            changed[0].weight.mul_(torch.tensor([[0.5], [2.0], [1.5]])).add_(0.25)
        reestimate_batchnorm(reference, changed, batches, call_model)
        answers.append(torch.cat([changed[1].running_mean, changed[1].running_var]))
    torch.testing.assert_close(answers[0], answers[1], rtol=1e-4, atol=1e-4)
