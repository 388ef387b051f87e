"""Distortion and bits at one slope: what the slope does, and that choices beat plain ones."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch

import fewbits
from fewbits.coding import Layout, measure
from fewbits.coding.trellis import follows
from fewbits.engine.layers.layer import LayerMatrix, Sensitivity
from fewbits.engine.layers.statistics import StatisticsAccumulator
from fewbits.methods.rate_distortion import rate_problem, rdoq
from fewbits.methods.rate_distortion.rate_problem import RateProblem


def layer(neurons=24, columns=36, rows=600, sensitive=True, seed=0):
    """A layer whose inputs are correlated, and an output that feels its rows unequally."""
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(1, neurons, columns, generator=g)
    mixing = torch.randn(columns, columns, generator=g) / columns**0.5 + torch.eye(columns)
    x = (torch.randn(1, rows, columns, generator=g) @ mixing).relu()
    sums = StatisticsAccumulator(1, columns)
    sums.add(x, x + 0.05 * torch.randn(x.shape, generator=g))
    statistics = sums.finish()
    if not sensitive:
        return LayerMatrix("layer.weight", weight, statistics)
    jacobian = torch.randn(10, neurons, generator=g).double()
    outputs = (jacobian.T @ jacobian)[None]
    second = (x.mT @ x).double() / rows
    centred = second - x.mean(1)[..., None].double() @ x.mean(1)[:, None].double()
    sensitivity = Sensitivity(outputs.diagonal(dim1=1, dim2=2), centred, outputs, 8)
    return LayerMatrix("layer.weight", weight, statistics, sensitivity=sensitivity)


def bits(result):
    index = result.index[0].numpy()
    return measure(index, Layout(*index.shape), "fast")


def harm(matrix, result):
    problem = RateProblem.of(matrix, matrix.weight, matrix.statistics)
    return float(problem.distortion(result.index[None].double(), result.step.double()))


@pytest.mark.parametrize("rate", ["none", "static", "adaptive"])
def test_a_larger_slope_means_fewer_bits_and_more_distortion(rate):
    matrix = layer()
    found = [fewbits.RDOQ(slope=s, rate=rate).encode(matrix) for s in (1e-3, 1e-2, 1e-1, 1.0)]
    sizes, harms = [bits(r) for r in found], [harm(matrix, r) for r in found]
    assert sizes == sorted(sizes, reverse=True)
    assert harms == sorted(harms)
    assert sizes[-1] < 0.6 * sizes[0]


@pytest.mark.parametrize("rate", ["none", "static", "adaptive"])
def test_a_slope_of_next_to_nothing_is_served_as_well_as_many_levels_can(rate):
    matrix = layer()
    usual = harm(matrix, fewbits.RDOQ(slope=1e-3, rate=rate).encode(matrix))
    for slope in (1e-5, 1e-9, 1e-20, 1e-40):
        assert harm(matrix, fewbits.RDOQ(slope=slope, rate=rate).encode(matrix)) < 1.25 * usual


@pytest.mark.parametrize("slope", [3e-3, 3e-2, 3e-1])
def test_paying_for_bits_costs_less_at_that_slope(slope):
    matrix = layer()
    costs = {}
    for rate in ("none", "static", "adaptive"):
        result = fewbits.RDOQ(slope=slope, rate=rate).encode(matrix)
        costs[rate] = harm(matrix, result) + slope * bits(result)
    assert costs["static"] < costs["none"]
    assert costs["adaptive"] < 1.02 * costs["none"]


def test_it_costs_less_than_rounding_to_the_same_step():
    matrix, slope = layer(), 3e-2
    result = fewbits.RDOQ(slope=slope).encode(matrix)
    rounded = (matrix.weight / result.step).round().clamp(-31, 31).to(torch.int32)
    plain = type(result)(rounded, result.step)
    ours = harm(matrix, result) + slope * bits(result)
    assert ours < 0.98 * (harm(matrix, plain) + slope * bits(plain))


def test_rows_that_matter_more_are_more_exact():
    matrix = layer()
    result = fewbits.RDOQ(slope=0.1).encode(matrix)
    error = (result.dequantize() - matrix.weight)[0].square().mean(1)
    order = matrix.sensitivity.rows[0].argsort()
    assert error[order[-6:]].mean() < 0.8 * error[order[:6]].mean()


def test_coupled_rows_cancel_in_the_output():
    """With the coupling the output itself (10 numbers made of 24 rows) is more exact."""
    matrix = layer()
    apart = Sensitivity(
        matrix.sensitivity.rows,
        matrix.sensitivity.columns,
        torch.diag_embed(matrix.sensitivity.outputs.diagonal(dim1=1, dim2=2)),
        8,
    )
    alone = LayerMatrix("layer.weight", matrix.weight, matrix.statistics, sensitivity=apart)
    changes = {}
    for name, problem in (("together", matrix), ("alone", alone)):
        result = fewbits.RDOQ(slope=0.03).encode(problem)
        error = (result.dequantize() - matrix.weight)[0].double()
        metric = matrix.sensitivity.columns[0]
        changes[name] = float((matrix.sensitivity.outputs[0] @ error @ metric * error).sum())
    assert changes["together"] < 0.97 * changes["alone"]


def test_many_rows_that_feel_alike_do_not_overshoot():
    """Hundreds of rows of an output of ten: rows that change at once must not add up."""
    matrix = layer(neurons=300, columns=8)
    alone = replace(matrix.sensitivity, outputs=torch.diag_embed(matrix.sensitivity.rows))
    apart = replace(matrix, sensitivity=alone)
    harms = [harm(matrix, fewbits.RDOQ(slope=1e-2).encode(m)) for m in (matrix, apart)]
    assert harms[0] < 3 * harms[1]


def test_without_gradients_it_works_on_the_layers_own_output():
    matrix = layer(sensitive=False)
    found = [fewbits.RDOQ(slope=s).encode(matrix) for s in (1e-4, 1e-2)]
    assert bits(found[1]) < bits(found[0])


def test_the_bias_takes_the_mean_error():
    matrix = layer(rows=6000)
    corrected = fewbits.RDOQ(slope=0.1).encode(matrix)
    assert corrected.bias_shift.abs().max() > 0
    inputs = matrix.statistics.moments()[0][0].double() / matrix.statistics.rows
    for alone in (
        fewbits.RDOQ(slope=0.1, bias_correction=False).encode(matrix),
        fewbits.RDOQ(slope=0.1).encode(replace(matrix, has_bias=False)),
    ):
        assert alone.bias_shift is None
        errors = [(r.index * r.step - matrix.weight)[0].double() for r in (alone, corrected)]
        whole = [float(((error @ inputs) * error).sum()) for error in errors]
        assert whole[0] < 0.7 * whole[1]


def test_a_recipe_by_name_makes_a_smaller_file(digits_net, digits):
    x = digits[0][:256]
    small = fewbits.compress(digits_net, "smallest", calibration=x)
    large = fewbits.compress(digits_net, fewbits.RDOQ(slope=1e-6), calibration=x)
    assert len(small.data) < len(large.data)
    assert small.contents.metadata["recipe"]["rules"][0]["method"] == "rdoq"
    alone = fewbits.compress(digits_net, "rdoq", calibration=x)
    assert alone.plan.recipe.rules == small.plan.recipe.rules
    with pytest.raises(fewbits.ConfigError, match=r"unknown method or recipe.*'smallest'"):
        fewbits.compress(digits_net, "smalest", calibration=x)


@pytest.mark.parametrize("slope", [3e-3, 3e-2])
def test_large_layers_cost_little_more_with_one_distribution(slope, monkeypatch):
    matrix = layer(neurons=48)
    exact = fewbits.RDOQ(slope=slope).encode(matrix)
    monkeypatch.setattr(rate_problem, "_LARGE", 100)
    monkeypatch.setattr(rate_problem, "_SAMPLED", 12)
    quick = fewbits.RDOQ(slope=slope).encode(matrix)
    costs = [harm(matrix, found) + slope * bits(found) for found in (exact, quick)]
    assert costs[1] < 1.15 * costs[0]


def test_blocks_of_a_tall_layer_hold_rows_of_similar_sensitivity():
    matrix = layer(neurons=500, columns=6)
    weights = torch.logspace(0, 3, 500, dtype=torch.float64)[None]
    problem = RateProblem.of(matrix, matrix.weight, matrix.statistics)
    problem = replace(problem, rows=weights, coupling=None)
    blocks = problem.blocks(tall=100)
    assert sorted(torch.cat(blocks).tolist()) == list(range(500))
    for block in blocks[:-1]:
        most, least = weights[0, block].max(), weights[0, block].min()
        assert most <= 2 * least or len(block) == 64
    assert len(problem.blocks(tall=500)) == 1
    whole = problem.distortion(torch.zeros(1, *problem.target.shape), torch.ones(1))
    parts = [problem.part(b) for b in blocks]
    each = [p.distortion(torch.zeros(1, *p.target.shape), torch.ones(1)) for p in parts]
    assert float(sum(each)) == pytest.approx(float(whole))


def test_a_few_huge_weights_do_not_cost_all_others_their_levels():
    matrix = layer()
    weight = matrix.weight.clone()
    weight[0, 3, 5], weight[0, 7, 2] = 300.0, -200.0
    plain = fewbits.RDOQ(slope=1e-2).encode(matrix)
    huge = fewbits.RDOQ(slope=1e-2).encode(replace(matrix, weight=weight))
    assert bits(huge) < 1.2 * bits(plain) + 100
    aim = RateProblem.of(matrix, weight, matrix.statistics).target  # others compensate for them
    assert float((huge.dequantize() - aim).abs().max()) < 3 * float(huge.step.max())
    assert float((huge.index != 0).double().mean()) > 0.8 * float(
        (plain.index != 0).double().mean()
    )


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("kind", [fewbits.RDOQ, fewbits.Transform])
def test_no_error_is_free_but_what_a_bias_takes(kind, bias):
    """Inputs have a large mean, as those of attention; an error along it is free with a bias."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(24, 12, bias=bias)).eval()
    x = torch.randn(600, 24) + 4 * torch.randn(24)
    coded = fewbits.compress(net, kind(slope=0.02), x.split(100))
    with torch.no_grad():
        moved = coded.load_into(deepcopy(net))(x) - net(x)
    moved = moved - moved.mean(1, keepdim=True)
    expected = coded.info["0.weight"]["distortion"]
    assert float(moved.square().sum(1).mean()) < 1.5 * expected


def index_of(result):
    return result.rows.numpy()


@pytest.mark.parametrize("slope", [3e-3, 3e-2, 3e-1])
def test_paths_of_a_trellis_cost_less_at_the_same_slope(slope):
    matrix, costs = layer(neurons=64), {}
    for quantizer in ("scalar", "trellis"):
        result = fewbits.RDOQ(slope=slope, quantizer=quantizer).encode(matrix)
        index = index_of(result)
        assert follows(index) == (quantizer == "trellis")
        size = measure(index, Layout(*index.shape), "smallest")
        costs[quantizer] = harm(matrix, result) + slope * size
    assert costs["trellis"] < 0.985 * costs["scalar"]


@pytest.mark.parametrize("rate", ["none", "static", "adaptive"])
def test_every_rate_gives_paths(rate):
    result = fewbits.RDOQ(slope=1e-2, rate=rate, quantizer="trellis").encode(layer())
    assert follows(index_of(result))


def test_a_path_runs_through_all_groups():
    g = torch.Generator().manual_seed(3)
    sums = StatisticsAccumulator(6, 9)
    x = torch.randn(6, 200, 9, generator=g)
    sums.add(x, x)
    matrix = LayerMatrix("w", torch.randn(6, 2, 9, generator=g), sums.finish())
    result = fewbits.RDOQ(slope=1e-2, quantizer="trellis").encode(matrix)
    assert result.index.shape == (6, 2, 9)
    assert follows(index_of(result))


def test_outliers_stay_on_the_path():
    matrix = layer(neurons=64, sensitive=False)
    weight = matrix.weight.clone()
    weight[0, 3, 5], weight[0, 40, 7] = 60.0, -45.0
    result = fewbits.RDOQ(slope=1e-2, quantizer="trellis").encode(replace(matrix, weight=weight))
    assert follows(index_of(result))
    values = result.dequantize()
    assert float(values[0, 3, 5]) == pytest.approx(60, rel=0.1)
    assert float(values[0, 40, 7]) == pytest.approx(-45, rel=0.1)


def test_a_layer_of_more_than_a_chunk_is_no_path(monkeypatch):
    monkeypatch.setattr(rdoq, "_CHUNK", 800)
    result = fewbits.RDOQ(slope=1e-2, quantizer="trellis").encode(layer())
    assert not follows(index_of(result))


@pytest.mark.parametrize(
    ("rows", "slope", "kind"), [(64, 3e-3, "trellis"), (6, 3e-3, "scalar"), (6, 6.0, "scalar")]
)
def test_auto_takes_what_costs_less(rows, slope, kind):
    matrix = layer(neurons=rows)
    found = {
        quantizer: fewbits.RDOQ(slope=slope, quantizer=quantizer).encode(matrix)
        for quantizer in ("scalar", "trellis", "auto")
    }
    assert torch.equal(found["auto"].index, found[kind].index)
    assert torch.equal(found["auto"].step, found[kind].step)
    assert torch.equal(found["auto"].bias_shift, found[kind].bias_shift)


def test_rows_of_a_path_that_feel_each_other_cancel_in_the_output():
    matrix = layer(neurons=64)
    alone = replace(matrix.sensitivity, outputs=torch.diag_embed(matrix.sensitivity.rows))
    changes = {}
    for name, problem in (("together", matrix), ("alone", replace(matrix, sensitivity=alone))):
        result = fewbits.RDOQ(slope=0.03, quantizer="trellis").encode(problem)
        assert follows(index_of(result))
        error = (result.dequantize() - matrix.weight)[0].double()
        metric = matrix.sensitivity.columns[0]
        changes[name] = float((matrix.sensitivity.outputs[0] @ error @ metric * error).sum())
    assert changes["together"] < 0.97 * changes["alone"]


def test_few_rows_are_believed_less():
    """From half as many rows as columns: on other inputs, harm and bits together cost less."""
    g = torch.Generator().manual_seed(0)
    mix, weight = torch.randn(32, 32, generator=g), torch.randn(1, 24, 32, generator=g)
    few, others = (torch.randn(1, rows, 32, generator=g) @ mix for rows in (16, 4000))
    slope, costs = 0.3, []
    for share in (rate_problem._FEW, 0.0):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rate_problem, "_FEW", share)
            sums = StatisticsAccumulator(1, 32)
            sums.add(few, few)
            found = fewbits.RDOQ(slope=slope).encode(LayerMatrix("w", weight, sums.finish()))
        error = (found.dequantize() - weight)[0] @ others[0].T
        bits = measure(index_of(found), Layout(24, 32), "smallest")
        costs.append(float(error.square().sum(0).mean()) + slope * bits)
    assert costs[0] < 0.7 * costs[1]
