"""The slope that a network suggests."""

import pytest
import torch
from torch import nn

import fewbits
from fewbits.compression import pipeline
from fewbits.engine.layers.layer import LayerMatrix
from fewbits.engine.layers.statistics import StatisticsAccumulator
from fewbits.methods import RDOQ, Transform, slope_of, suggested_slope, with_open_slope


def network(width, gain=1.0):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(32, width), nn.ReLU(), nn.Linear(width, 10)).eval()
    with torch.no_grad():
        net[2].weight *= gain
        net[2].bias *= gain
    return net


INPUTS = torch.randn(512, 32, generator=torch.Generator().manual_seed(1))


def change(net, coded):
    """Return the squared change of the centred output, relative to its energy."""
    with torch.no_grad():
        before, after = net(INPUTS), coded.load_into(network(net[0].out_features))(INPUTS)
    centred = before - before.mean(1, keepdim=True)
    moved = after - before - (after - before).mean(1, keepdim=True)
    return float(moved.square().sum() / centred.square().sum())


@pytest.mark.parametrize("width", [16, 400])
@pytest.mark.parametrize("method", [RDOQ(), Transform()], ids=["rdoq", "transform"])
def test_the_output_changes_by_a_few_percent_whatever_the_size(width, method):
    net = network(width)
    coded = fewbits.compress(net, method, INPUTS.split(64))
    assert 0.005 < change(net, coded) < 0.1


def test_the_scale_of_the_output_does_not_matter():
    slopes, codes = [], []
    for gain in (1.0, 64.0):
        coded = fewbits.compress(network(100, gain), RDOQ(), INPUTS.split(64))
        slopes.append(coded.plan.recipe.rules[0].method.slope)
        codes.append(coded.contents.tensors["0.weight"].index)
    assert slopes[1] == pytest.approx(64**2 * slopes[0])
    assert (torch.as_tensor(codes[0]) != torch.as_tensor(codes[1])).float().mean() < 0.01


def test_it_is_told_and_stored():
    net = network(50)
    coded = fewbits.compress(net, "smallest", INPUTS.split(64))
    slope = slope_of(coded.plan.recipe.rules[0].method)
    assert any(note.startswith(f"slope: {slope:.2g}") for note in coded.notes)
    assert (
        fewbits.Recipe.from_dict(coded.contents.metadata["recipe"]).rules[0].method.slope == slope
    )
    again = fewbits.compress(net, coded.plan.recipe, INPUTS.split(64))
    state = coded.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in again.state_dict().items())
    assert not any(note.startswith("slope") for note in again.notes)


def test_a_search_begins_with_it_and_measures_once(monkeypatch):
    calls, probe = [], pipeline.probe
    monkeypatch.setattr(pipeline, "probe", lambda *a, **k: calls.append(1) or probe(*a, **k))
    net = network(50)
    slope = fewbits.compress(net, "smallest", INPUTS.split(64)).plan.recipe.rules[0].method.slope
    calls.clear()
    coded = fewbits.compress(net, "smallest", INPUTS.split(64), target_bits=4.0)
    assert coded.trace.trials[0].slope == pytest.approx(slope)
    assert len(calls) == 1


def test_a_slope_that_is_set_stays():
    assert with_open_slope(RDOQ(slope=3.0), 1.0) == RDOQ(slope=3.0)
    assert with_open_slope(RDOQ(), 1.0) == RDOQ(slope=1.0)
    assert with_open_slope(fewbits.GPFQ(), 1.0) == fewbits.GPFQ()
    assert with_open_slope(None, 1.0) is None


def test_a_layer_alone_suggests_its_own():
    weight, x = torch.randn(1, 40, 32), torch.randn(1, 900, 32)
    seen = StatisticsAccumulator(1, 32)
    seen.add(x, x)
    coded = RDOQ(bias_correction=False).encode(LayerMatrix("layer", weight, seen.finish()))
    error = coded.index * coded.step - weight
    share = float((error @ x.mT).square().sum() / (weight @ x.mT).square().sum())
    assert 0.01 < share < 0.1


def test_nothing_is_worth_next_to_nothing():
    assert suggested_slope(0.0, 10) > 0
    assert suggested_slope(1.0, 0) > 0
