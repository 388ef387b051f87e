"""Steps for groups of columns: where they are, what they cost, and what is refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fewbits
from fewbits.coded import GridTensor
from fewbits.engine.layers.layer import LayerMatrix
from fewbits.engine.layers.statistics import StatisticsAccumulator
from fewbits.errors import ConfigError
from fewbits.methods import GPFQ, GPTQ, Nearest, Qronos, from_settings, to_settings
from fewbits.methods.path_inputs import Units, expand_step
from fewbits.recipe.plan import fallback_of

METHODS = [Nearest, GPFQ, GPTQ, Qronos]


def layer(*, rows=300, columns=64, neurons=20, groups=1, noise=0.1, seed=0):
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(groups, neurons, columns, generator=g)
    w[..., : columns // 4] *= 8  # what one step for all would spoil
    mix = torch.randn(groups, columns, columns, generator=g) / columns**0.5
    x = (torch.randn(groups, rows, columns, generator=g) @ mix).relu()
    y = x + noise * torch.randn(x.shape, generator=g) if noise else x
    accumulator = StatisticsAccumulator(groups, columns, w)
    accumulator.add(x, y)
    return LayerMatrix("fc.weight", w, accumulator.finish(), seed), x, y


def error(matrix, x, y, result):
    """What a bias cannot repay."""
    target, found = x @ matrix.weight.mT, y @ result.dequantize().mT
    target, found = (outputs - outputs.mean(1, keepdim=True) for outputs in (target, found))
    return float((target - found).norm() / target.norm())


@pytest.mark.parametrize("radius", ["absmax", "mse"])
@pytest.mark.parametrize("kind", METHODS)
def test_each_group_has_the_step_that_it_would_have_alone(kind, radius):
    matrix, *_ = layer(groups=2, neurons=5)
    result = kind(group=16, radius=radius).encode(matrix)
    alone = LayerMatrix("w", matrix.weight.reshape(1, -1, 16))
    expected = Nearest(radius=radius).encode(alone)
    assert result.group == 16
    assert torch.equal(result.step, expected.step)
    if kind is Nearest:
        assert torch.equal(result.index.reshape(1, -1, 16), expected.index)
        assert torch.equal(result.dequantize().reshape(1, -1, 16), expected.dequantize())


@pytest.mark.parametrize("rows", [40, 300])
@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.parametrize(
    "method",
    [
        GPFQ(bits=3, group=16),
        GPFQ(bits=3, group=8, passes=0, order="natural"),
        GPFQ(bits=3, group=16, radius="objective"),
        GPFQ(levels=4, group=16, threshold="soft"),
        GPFQ(bits=3, group=16, threshold="hard", threshold_size=0.4),
        GPFQ(bits=3, group=16, rounding="stochastic"),
        Qronos(bits=3, group=16),
        GPTQ(bits=3, group=16),
    ],
    ids=lambda method: str(to_settings(method)),
)
def test_the_reported_objective_is_the_output_error(method, rows, noise):
    matrix, x, y = layer(rows=rows, noise=noise)
    result = method.encode(matrix)
    seen = y if isinstance(method, GPTQ) else x
    assert result.info["objective"] == pytest.approx(error(matrix, seen, y, result), rel=1e-3)
    if method.bias_correction:
        shift = (x @ matrix.weight.mT - y @ result.dequantize().mT).mean(1).flatten()
        assert torch.allclose(result.bias_shift, shift, atol=1e-4)


@pytest.mark.parametrize("kind", METHODS)
def test_groups_serve_weights_of_different_sizes(kind):
    matrix, x, y = layer()
    whole, grouped = kind(bits=3).encode(matrix), kind(bits=3, group=16).encode(matrix)
    assert error(matrix, x, y, grouped) < 0.9 * error(matrix, x, y, whole)
    if kind is not Nearest:
        plain = error(matrix, x, y, Nearest(bits=3, group=16).encode(matrix))
        assert error(matrix, x, y, grouped) < 0.95 * plain


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("group", [24, 64, 128])
def test_a_group_that_does_not_divide_is_none(kind, group):
    matrix, *_ = layer(neurons=6)
    grouped, whole = kind(group=group).encode(matrix), kind().encode(matrix)
    assert not grouped.group
    assert torch.equal(grouped.index, whole.index)
    assert torch.equal(grouped.step, whole.step)
    assert bool(kind(group=group).remark(64)) == (group != 64)
    assert not kind().remark(64)


@pytest.mark.parametrize("levels", [4, 7])
@pytest.mark.parametrize("kind", METHODS)
def test_groups_of_zeros_and_extremes(kind, levels):
    matrix, *_ = layer(neurons=5)
    w = matrix.weight
    w[0, 0] = 0
    w[0, 1, 16:32] = 0
    w[0, 2] *= 1e30
    w[0, 2, :16] *= 1e-30
    w[0, 3] *= 1e-30
    w[0, 3, 16:32] = 0
    values = kind(levels=levels, group=16).encode(matrix).dequantize()
    assert bool(values.isfinite().all())
    assert bool((values[0, 3].abs() <= 4 * w[0, 3].abs().max()).all())
    if levels % 2:
        assert not bool(values[0, 0].any())
        assert kind is not Nearest or not bool(values[0, 1, 16:32].any())


@settings(max_examples=40, deadline=None)
@given(
    groups=st.integers(1, 2),
    neurons=st.integers(1, 4),
    blocks=st.integers(1, 3),
    group=st.sampled_from([8, 10, 32]),
    size=st.floats(-20, 20),
    seed=st.integers(0, 100),
)
def test_units_are_exact(groups, neurons, blocks, *, group, size, seed):
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(groups, neurons, blocks * group, generator=g) * 2.0**size
    step = (
        Nearest()
        .spacing(LayerMatrix("w", weight.reshape(1, -1, group)))
        .step(weight.reshape(1, -1, group))
    )
    units = Units.of(step, weight)
    steps = 1.0 if units.steps is None else units.steps
    assert torch.equal(
        (units.size * steps).expand_as(weight), expand_step(step, weight).expand_as(weight)
    )
    assert torch.equal(weight / units.size * units.size, weight) or units.steps is None


def test_settings():
    method = GPTQ(group=32)
    assert to_settings(method) == {"method": "gptq", "bits": 4, "group": 32}
    assert from_settings(to_settings(method)) == method
    assert fallback_of(method) == Nearest(radius="mse", group=32)
    assert "group" not in to_settings(GPTQ())


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"group": 7}, "group"),
        ({"group": 0}, "group"),
        ({"group": True}, "group"),
        ({"group": "32"}, "group"),
        ({"group": 32.0}, "group"),
        ({"group": 32, "per": "tensor"}, "per"),
        ({"group": 32, "radius": "median"}, "radius"),
        ({"group": 32, "radius": "mean_max"}, "radius"),
        ({"group": 32, "levels": 2**15 + 1}, "levels"),
    ],
)
def test_what_is_refused(given, named):
    with pytest.raises(ConfigError, match=rf"^{named} must be"):
        Nearest(**given)


def test_a_group_costs_its_steps_and_is_told_where_it_does_not_fit():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(256, 64), torch.nn.ReLU(), torch.nn.Linear(64, 9))
    plain, grouped = (fewbits.compress(net, Nearest(group=group)) for group in (None, 128))
    first = grouped.tensors["0.weight"]
    assert isinstance(first, GridTensor)
    assert first.index.shape == (128, 128)
    assert first.step.shape == (128,)
    rows = [{r.name: r for r in c.size_report().rows} for c in (plain, grouped)]
    more = sum(r.bytes for r in rows[1].values()) - sum(r.bytes for r in rows[0].values())
    assert 0 < more < 2 * 64 * 2 + 300
    notes = {e.target.name: e.reason for e in grouped.plan.entries}
    assert notes["0.weight"] == ""
    assert notes["2.weight"] == "one step per channel: its 64 columns are no multiple of group=128"
    assert notes["2.weight"] in str(grouped.plan)
