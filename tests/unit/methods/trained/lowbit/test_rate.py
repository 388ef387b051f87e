"""The rate term of LowBit: its gradient, what it does to a training, and where it is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fewbits
from fewbits import LowBit, Ramp
from fewbits.errors import ConfigError
from fewbits.ops.rate_distortion.soft_entropy import joint_histogram, soft_brackets


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)
    )


def batch(count=256):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 8, generator=generator)
    return x, x[:, :4].argmax(1)


def prepared(**settings):
    net = network()
    tuner = fewbits.prepare(net, LowBit(activations=32, first_last="same", **settings))
    return net.train(), tuner


def test_the_gradient_is_that_of_the_soft_bits_where_it_leads_towards_zero():
    net, tuner = prepared(weights=3, slope=0.5)
    tuner.penalty().backward()
    weight = net[2].parametrizations.weight
    original, quantizer = weight.original, weight[0]
    step = quantizer.step.value
    values = original.detach().clone().requires_grad_()
    units = (values / step).reshape(-1)
    group = soft_brackets(units, torch.arange(-4.0, 4.0), 4)
    (0.5 * joint_histogram([group], 1).smoothed().entropy() * units.numel()).backward()
    units = units.detach().reshape(values.shape)
    away = (units - units.round()).abs() > 2e-3  # on a level there are two derivatives
    inside = (units > -4) & (units < 3)
    towards = values.grad * values > 0
    wanted = values.grad.where(towards & inside, 0.0)
    assert (wanted[away] != 0).float().mean() > 0.2
    error = (original.grad - wanted)[away].abs()
    assert error.max() < 0.01 * wanted.abs().max()


def test_bits_are_those_of_the_loss():
    _, tuner = prepared(weights=4, slope=1e-3)
    _, other = prepared(weights=4, slope=Ramp(0.0, 1e-3, until=0.5))
    assert other.penalty().item() == 0
    other.advance(0.5)
    assert other.penalty().item() == pytest.approx(tuner.penalty().item())
    bits = tuner.penalty().item() / 1e-3
    weights = 8 * 32 + 32 * 32 + 32 * 4
    assert 2 * weights < bits < 4 * weights


def test_a_stage_with_weights_in_float_has_no_bits():
    _, tuner = prepared(weights=4, slope=1e-3, schedule="32/32, 4/32")
    assert tuner.penalty().item() == 0
    tuner.advance(0.6)
    assert tuner.penalty().item() > 0


def trained(slope):
    net, tuner = prepared(weights=4, slope=slope)
    x, labels = batch()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    for step in range(120):
        optimizer.zero_grad()
        (nn.functional.cross_entropy(net(x), labels) + tuner.penalty()).backward()
        optimizer.step()
        tuner.step()
        tuner.advance((step + 1) / 120)
    coded = tuner.finish()
    net = coded.load_into(network()).eval()
    with torch.no_grad():
        return coded, float((net(x).argmax(1) == labels).float().mean())


def test_it_makes_the_file_smaller_than_the_same_training_without_it():
    plain, accuracy = trained(0.0)
    small, other = trained(1e-4)
    assert len(small.data) < 0.95 * len(plain.data)
    assert other > accuracy - 0.02


@pytest.mark.parametrize(
    "settings",
    [
        {"quantizer": "dorefa"},
        {"quantizer": "pact"},
        {"weights": 32},
    ],
)
def test_a_grid_without_zero_has_no_rate_term(settings):
    with pytest.raises(ConfigError, match="slope must be 0 unless"):
        LowBit(slope=1e-6, **settings)


@pytest.mark.parametrize("slope", [-1.0, float("nan"), "much"])
def test_slopes_are_numbers(slope):
    with pytest.raises(ConfigError, match="slope"):
        LowBit(slope=slope)
