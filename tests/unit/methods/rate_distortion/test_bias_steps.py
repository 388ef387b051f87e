"""Biases as fine as a slope pays for: their steps, and what is saved."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import fewbits
from fewbits.engine.layers.layer import Sensitivity
from fewbits.errors import ConfigError
from fewbits.methods.rate_distortion.bias_steps import bias_steps


def _sensitivity(*biases):
    known = torch.tensor([biases], dtype=torch.float64)
    columns = torch.eye(3)[None]
    return Sensitivity(torch.ones_like(known), columns, None, 8, biases=known)


@pytest.mark.parametrize("slope", [1e-6, 1e-2])
def test_no_other_step_costs_less(slope):
    """Of the distortion of uniform errors, and a bit for every half."""
    (step,) = bias_steps(_sensitivity(0.7), slope).double()

    def cost(h):
        return 0.7 * h**2 / 12 - slope * h.log2()

    assert float(step.log2()) == round(float(step.log2()))
    assert cost(step) <= min(cost(step / 2), cost(2 * step))


def test_a_step_follows_the_slope_and_the_sensitivity():
    fine, coarse = (bias_steps(_sensitivity(1, 16), slope) for slope in (1e-4, 4e-4))
    assert torch.equal(coarse, 2 * fine)
    assert fine[0] > fine[1]
    few = bias_steps(_sensitivity(0, 16, 16), 1e-4)
    assert few[0] <= 2 * few[1]  # no gradient in the samples seen


def test_steps_stay_within_what_16_bits_hold():
    assert bias_steps(_sensitivity(1), 1e-40).tolist() == [2.0**-24]
    assert bias_steps(_sensitivity(1e-30), 1.0).tolist() == [2.0**15]


def test_nothing_is_rounded_without_a_sensitivity():
    assert bias_steps(None, 1e-4) is None
    assert bias_steps(replace(_sensitivity(1), biases=None), 1e-4) is None
    assert bias_steps(_sensitivity(0, 0), 1e-4) is None


def _network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 96, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(96 * 16, 10),
    ).eval()  # fmt: skip


def _compressed(slope=1e-8, **settings):
    batches = [torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(k)) for k in (0, 1)]
    method = fewbits.RDOQ(slope=slope, rate="static", **settings)
    return fewbits.compress(_network(), fewbits.Recipe.of(method), calibration=batches)


def test_biases_of_a_file_are_rounded_and_the_plan_says_so(tmp_path):
    rounded, exact = _compressed(), _compressed(bias_rounding=False)
    note = "rounded as finely as the slope pays for"
    names = {"1.bias", "3.bias", "6.bias"}
    assert {name for name, why in rounded.plan.kept.items() if note in why} == names
    assert not any(note in why for why in exact.plan.kept.values())
    for name in names:
        values, before = (coded.state_dict()[name].double() for coded in (rounded, exact))
        assert not torch.equal(values, before)
        assert float((values - before).abs().max()) < 0.05
        assert torch.equal((2**14 * values).round(), 2**14 * values)
    assert len(rounded.encode()) < len(exact.encode()) - 100
    rounded.save(tmp_path / "net.fewbits")
    loaded = fewbits.load(tmp_path / "net.fewbits", into=_network()).state_dict()
    for name, tensor in rounded.state_dict().items():
        assert torch.equal(loaded[name], tensor)


def test_biases_are_rounded_without_a_correction_too():
    coded = _compressed(bias_correction=False)
    assert coded.plan.kept["6.bias"] == "biases are kept; rounded as finely as the slope pays for"


def test_bias_rounding_is_a_switch():
    with pytest.raises(ConfigError, match="bias_rounding"):
        fewbits.RDOQ(bias_rounding="slope")
