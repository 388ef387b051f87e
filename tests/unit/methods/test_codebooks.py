"""Levels that are not evenly spaced: fitted to a layer, or given for the whole network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import fewbits
from fewbits.coded import CodebookTensor
from fewbits.container.reader import open_file
from fewbits.errors import ConfigError
from fewbits.methods import GPFQ, GPTQ, Nearest, Qronos, from_settings, to_settings
from fewbits.ops.levels.codebook import lloyd_max

METHODS = (Nearest, GPFQ, GPTQ, Qronos)
GIVEN = (-0.3, -0.1, 0.0, 0.05, 0.25)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 16)).eval()
    for layer in (model[0], model[2]):
        nn.init.normal_(layer.weight, std=0.1)  # rows with tails, unlike those of torch's own
    return model


@pytest.fixture(scope="module")
def inputs():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(256, 48, generator=generator) @ torch.randn(48, 48, generator=generator) / 7


def codebooks(coded):
    return [t.codebook.values for t in coded.tensors.values() if isinstance(t, CodebookTensor)]


@torch.no_grad()
def error(coded, network, inputs):
    loaded = coded.load_into(nn.Sequential(nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 16)))
    return float((loaded(inputs) - network(inputs)).square().mean())


@pytest.mark.parametrize("method", METHODS)
def test_fitted_levels_are_those_of_lloyd_and_have_less_error(method, network, inputs):
    coded = fewbits.compress(network, method(bits=2, levels="lloyd"), [inputs])
    first = network[0].weight.detach()
    step = first.abs().amax(1, keepdim=True)
    fitted, _ = codebooks(coded)
    assert 0 in fitted
    assert len(fitted) == 4
    wanted = lloyd_max(first / step, 4).numpy()  # or its mirror image, as there are four
    assert np.allclose(np.sort(abs(fitted)), np.sort(abs(wanted)), atol=0.02)
    even = fewbits.compress(network, method(levels=4), [inputs])
    assert error(coded, network, inputs) < error(even, network, inputs)


@pytest.mark.parametrize("method", METHODS)
def test_given_levels_are_all_that_the_network_holds_and_are_stored_once(
    method, network, inputs, tmp_path
):
    coded = fewbits.compress(network, method(levels=GIVEN), [inputs])
    given = torch.tensor(GIVEN)
    for name in ("0.weight", "2.weight"):
        assert torch.isin(coded.state_dict()[name], given).all()
    assert open_file(coded.data).header.codebooks == (5,)
    coded.save(tmp_path / "net.fewbits")
    again = fewbits.load(tmp_path / "net.fewbits")
    assert all(torch.equal(again[name], value) for name, value in coded.state_dict().items())


def test_feedback_onto_given_levels_beats_rounding(network, inputs):
    found = [
        error(fewbits.compress(network, method(levels=GIVEN), [inputs]), network, inputs)
        for method in METHODS
    ]
    assert max(found[1:]) < 0.7 * found[0]


def test_groups_have_steps_beside_fitted_levels(network, inputs, tmp_path):
    coded = fewbits.compress(network, GPFQ(bits=3, group=16, levels="lloyd"), [inputs])
    assert coded.tensors["0.weight"].scale.size == 32 * 3
    coded.save(tmp_path / "net.fewbits")
    again = fewbits.load(tmp_path / "net.fewbits")
    assert torch.equal(again["0.weight"], coded.state_dict()["0.weight"])


def test_levels_of_one_network_carry_another(network, inputs):
    """As PWFN's values do, or those of any file with a codebook."""
    first = fewbits.compress(network, Nearest(bits=3, per="tensor", levels="lloyd"))
    levels = tuple(np.unique(first.state_dict()["0.weight"].numpy()).tolist())
    coded = fewbits.compress(network, Qronos(levels=levels), [inputs])
    assert torch.isin(coded.state_dict()["2.weight"], torch.tensor(levels)).all()


@pytest.mark.parametrize("levels", ["lloyd", GIVEN])
def test_what_cannot_be_calibrated_is_rounded_to_such_levels_too(levels):
    model = nn.Sequential(nn.Embedding(20, 16), nn.Linear(16, 4))
    coded = fewbits.compress(model, Qronos(levels=levels), [torch.arange(20)])
    assert len(codebooks(coded)) == 2


def test_float16_holds_fitted_levels():
    model = nn.Linear(8, 4).half()
    with torch.no_grad():
        model.weight.fill_(torch.finfo(torch.float16).max)
    coded = fewbits.compress(model, Nearest(bits=4, levels="lloyd"))
    assert coded.state_dict()["weight"].isfinite().all()


def test_settings_come_back_from_yaml():
    method = GPTQ(levels=GIVEN)
    settings = to_settings(method)
    assert settings["levels"] == list(GIVEN)
    assert from_settings(settings) == method
    assert hash(from_settings(settings)) == hash(method)
    assert fewbits.Recipe.of(from_settings({"method": "gpfq", "levels": "lloyd"}))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"levels": "kmeans"}, "'lloyd', or a tuple of 2 to 256"),
        ({"levels": (0.0,)}, "2 to 256 increasing"),
        ({"levels": (0.0, 0.0)}, "float32 tells apart"),
        ({"levels": (0.1, 0.1 + 1e-12)}, "float32 tells apart"),
        ({"levels": (0.0, float("nan"))}, "increasing"),
        ({"levels": (0.0, "a")}, "increasing"),
        ({"levels": tuple(range(257))}, "2 to 256"),
        ({"levels": 3.5}, "2 to 256"),
        ({"levels": GIVEN, "group": 16}, "which have no steps"),
        ({"levels": "lloyd", "radius": "mse"}, "left alone"),
        ({"levels": GIVEN, "clip": 0.5}, "left alone"),
        ({"levels": "lloyd", "threshold": "soft"}, "'none' with a codebook"),
        ({"levels": "lloyd", "rounding": "stochastic"}, "'nearest' with a codebook"),
    ],
)
def test_what_does_not_go_with_a_codebook_is_named(settings, told):
    with pytest.raises(ConfigError, match=told):
        GPFQ(**settings)


def test_levels_beyond_the_dtype_are_refused():
    model = nn.Linear(8, 4).half()
    with pytest.raises(ConfigError, match="which 'weight' can hold"):
        fewbits.compress(model, Nearest(levels=(0.0, 1e6)))
