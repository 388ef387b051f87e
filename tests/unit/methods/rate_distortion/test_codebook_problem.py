"""RDOQ onto given levels: the least cost that tiny layers allow, and less error at equal bytes."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import fewbits
from fewbits.coded import CodebookTensor
from fewbits.coding import Layout, measure
from fewbits.container.reader import open_file
from fewbits.engine.layers.layer import LayerMatrix, Levels, Sensitivity
from fewbits.engine.layers.statistics import StatisticsAccumulator
from fewbits.errors import CalibrationError, ConfigError
from fewbits.methods import RDOQ, Qronos, from_settings, to_settings
from fewbits.methods.rate_distortion.codebook_problem import CodebookProblem
from fewbits.methods.rate_distortion.rate_problem import RateProblem
from fewbits.ops.levels.codebook import lloyd_max
from fewbits.ops.rate_distortion.cheapest_levels import level_bits, total_bits
from fewbits.ops.rate_distortion.entropy_constrained import assign_priced

GIVEN = (-0.3, -0.1, 0.0, 0.05, 0.25)
TINY = torch.tensor([-1.7, -0.4, 0.0, 0.9], dtype=torch.float64)


def tiny(seed):
    """A layer of two neurons and three columns, whose errors interact."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(1, 5, 3, generator=g, dtype=torch.float64)
    rows = 0.5 + torch.rand(1, 2, generator=g, dtype=torch.float64)
    target = torch.randn(1, 2, 3, generator=g, dtype=torch.float64)
    levels = Levels(TINY, torch.ones(1))
    return CodebookProblem.like(RateProblem.at(target, x.mT @ x, rows), levels)


def cost(problem, levels, slope):
    """Distortion + slope * bits (trials,) of levels (trials, groups, neurons, columns)."""
    distortion = problem.distortion(levels, torch.ones(len(levels)))
    places = torch.searchsorted(TINY, levels.contiguous())
    return distortion + slope * total_bits(places.flatten(1), len(TINY) - 1)


def every_assignment():
    choices = itertools.product(TINY.tolist(), repeat=6)
    return torch.tensor(list(choices), dtype=torch.float64).reshape(-1, 1, 2, 3)


@pytest.mark.parametrize("slope", [0.0, 0.05, 0.3])
def test_it_comes_near_the_best_of_all_assignments(slope):
    """On average, and never below it; the nearest values are far from it."""
    everything, excess = every_assignment(), []
    for seed in range(20):
        problem = tiny(seed)
        least = float(cost(problem, everything, slope).min())
        step = problem.search(slope or 1e-6, 0.25, slope > 0)
        found = problem.quantize(step, slope, "static" if slope else "none")
        near = TINY[(problem.target[..., None] - TINY).abs().argmin(-1)]
        ours, rounded = (float(cost(problem, q[None], slope)) for q in (found, near))
        assert ours >= least - 1e-9
        excess.append((ours - least, rounded - least, least))
    ours, rounded, least = np.array(excess).mean(0)
    assert ours < 0.2 * rounded
    assert ours < 0.15 * least


@pytest.mark.parametrize("coupled", [False, True])
def test_units_of_rows_change_no_cost(coupled):
    """The distortion of values in units of their row's step is that of the values themselves."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(1, 9, 4, generator=g, dtype=torch.float64)
    target = torch.randn(1, 3, 4, generator=g, dtype=torch.float64)
    rows = 0.5 + torch.rand(1, 3, generator=g, dtype=torch.float64)
    outputs = torch.randn(1, 3, 9, generator=g, dtype=torch.float64)
    outputs = outputs @ outputs.mT
    coupling = outputs / outputs.diagonal(dim1=1, dim2=2)[..., None] - torch.eye(3)
    steps = torch.tensor([0.5, 2.0, 0.25])
    plain = RateProblem.at(target, x.mT @ x, rows, coupling if coupled else None)
    scaled = CodebookProblem.like(plain, Levels(TINY, steps))
    places = torch.randint(0, len(TINY), target.shape, generator=g)
    values = TINY[places] * steps[:, None]
    one = torch.tensor(1.0)
    assert scaled.cost(TINY[places], one, 0.0) == pytest.approx(plain.cost(values, one, 0.0))
    one = one[None]
    assert scaled.distortion(TINY[places][None], one) == pytest.approx(
        plain.distortion(values[None], one)
    )


def test_no_single_value_can_be_changed_for_less():
    problem = tiny(3)
    levels = problem.quantize(torch.tensor(0.01), 0.0, "none")
    least = float(cost(problem, levels[None], 0.0))
    for place, value in itertools.product(range(6), TINY):
        other = levels.clone()
        other.view(-1)[place] = value
        assert float(cost(problem, other[None], 0.0)) >= least - 1e-9


def test_rows_are_in_units_of_their_own_values():
    """What the problem calls a level is a value, so its distortion needs no step."""
    problem, levels = tiny(1), TINY[[0, 1, 2, 3, 0, 1]].reshape(1, 2, 3)
    error = problem.target - levels
    wanted = sum(
        problem.rows[0, n] * error[0, n] @ problem.metric[0] @ error[0, n] for n in range(2)
    )
    for step in (0.1, 7.0):
        assert torch.allclose(problem.distortion(levels[None], torch.tensor([step])), wanted)
    assert problem.index(levels).tolist() == [[[0, 1, 2], [3, 0, 1]]]


def layer(neurons=24, columns=36, rows=600):
    """A layer whose inputs are correlated, and an output that feels its rows unequally."""
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(1, neurons, columns, generator=g)
    mixing = torch.randn(columns, columns, generator=g) / columns**0.5 + torch.eye(columns)
    x = (torch.randn(1, rows, columns, generator=g) @ mixing).relu()
    sums = StatisticsAccumulator(1, columns)
    sums.add(x, x)
    jacobian = torch.randn(10, neurons, generator=g).double()
    outputs = (jacobian.T @ jacobian)[None]
    second = (x.mT @ x).double() / rows
    sensitivity = Sensitivity(outputs.diagonal(dim1=1, dim2=2), second, None, 8)
    return LayerMatrix("layer.weight", weight, sums.finish(), sensitivity=sensitivity)


def bits(index):
    matrix = np.ascontiguousarray(index[0].to(torch.int32).numpy())
    return measure(matrix, Layout(*matrix.shape), "smallest")


def nearest_at(matrix, levels, price):
    """The values of least squared distance + price * bits, one by one, without feedback."""
    index = torch.bucketize(matrix.weight, (levels[1:] + levels[:-1]) / 2)
    top = len(levels) - 1
    for _ in range(10):
        lengths = level_bits(index.reshape(1, -1), top)[0, top:]
        index = assign_priced(matrix.weight, levels, lengths.float(), price)
    return index


@pytest.mark.parametrize("count", [5, 64])
def test_at_equal_bits_errors_are_less_than_those_of_rounding_and_of_qronos(count):
    matrix = layer()
    levels = lloyd_max(matrix.weight, count)
    given = tuple(levels.tolist())
    problem = RateProblem.of(matrix, matrix.weight, matrix.statistics)

    def harm(index):
        return float(problem.distortion(levels.double()[index.long()][None], torch.ones(1)))

    slopes = (3.0, 1.0, 0.3, 0.1, 0.03, 1e-6)
    ours = [RDOQ(slope=s, levels=given).encode(matrix).index for s in slopes]
    curve = [bits(index) for index in ours], [np.log(harm(index)) for index in ours]
    tried = [nearest_at(matrix, levels, p) for p in (0.0, 0.01, 0.1)]
    tried.append(Qronos(levels=given).encode(matrix).index)
    for index in tried:
        assert np.exp(np.interp(bits(index), *curve)) < 0.95 * harm(index)


def test_a_larger_slope_means_fewer_bits_and_more_distortion():
    matrix, given = layer(), tuple(lloyd_max(layer().weight, 32).tolist())
    for rate in ("static", "adaptive"):
        slopes = (1e-3, 0.1, 1.0, 3.0)
        found = [RDOQ(slope=s, rate=rate, levels=given).encode(matrix) for s in slopes]
        sizes, harms = [bits(r.index) for r in found], [r.info["distortion"] for r in found]
        assert sizes == sorted(sizes, reverse=True)
        assert harms == sorted(harms)
        assert sizes[-1] < 0.5 * sizes[0]


def test_a_layer_of_zeros_keeps_them():
    matrix = replace(layer(), weight=torch.zeros(1, 24, 36))
    result = RDOQ(levels=GIVEN).encode(matrix)
    assert not result.dequantize().any()
    assert result.levels.tolist() == pytest.approx(GIVEN)


def test_pruned_layers_need_a_zero_among_the_levels():
    matrix = layer()
    pruned = replace(matrix, weight=matrix.weight * (matrix.weight.abs() > 0.7))
    with pytest.raises(ConfigError, match=r"'layer.weight': 5\d% of its weights are zero.*Add 0"):
        RDOQ(slope=0.1, levels=(-1.0, 1.0)).encode(pruned)
    values = RDOQ(slope=0.1, levels=(-1.0, 1.0)).encode(matrix).dequantize()
    assert set(values.unique().tolist()) == {-1.0, 1.0}


def test_what_arithmetic_cannot_hold_is_an_error():
    matrix = layer()
    broken = replace(matrix.sensitivity, columns=matrix.sensitivity.columns * torch.nan)
    with pytest.raises(CalibrationError, match="too large or too small"):
        RDOQ(slope=0.1, levels=GIVEN).encode(replace(matrix, sensitivity=broken))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 16)).eval()
    for linear in (model[0], model[2]):
        nn.init.normal_(linear.weight, std=0.1)
    return model


@pytest.fixture(scope="module")
def inputs():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(256, 48, generator=generator) @ torch.randn(48, 48, generator=generator) / 7


def test_a_network_holds_nothing_else_and_stores_its_codebook_once(network, inputs, tmp_path):
    coded = fewbits.compress(network, RDOQ(slope=1e-3, levels=GIVEN), [inputs])
    for name in ("0.weight", "2.weight"):
        assert torch.isin(coded.state_dict()[name], torch.tensor(GIVEN)).all()
    assert open_file(coded.data).header.codebooks == (5,)
    coded.save(tmp_path / "net.fewbits")
    again = fewbits.load(tmp_path / "net.fewbits")
    assert all(torch.equal(again[name], value) for name, value in coded.state_dict().items())
    kept = coded.contents.metadata["recipe"]["rules"][0]
    assert from_settings({k: v for k, v in kept.items() if k != "match"}).levels == GIVEN


def test_budgets_find_the_slope(network, inputs):
    free = len(fewbits.compress(network, RDOQ(slope=1e-9, levels=GIVEN), [inputs]).data)
    target = int(0.8 * free)
    coded = fewbits.compress(network, RDOQ(levels=GIVEN), [inputs], target_bytes=target)
    assert 0.9 * target < len(coded.data) <= target


def test_what_has_no_gradients_is_rounded_to_the_same_levels():
    model = nn.Sequential(nn.Linear(8, 4), nn.LSTM(4, 4))

    class First(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = model

        def forward(self, x):
            return self.parts(x)[0]

    rows = torch.randn(32, 8, generator=torch.Generator().manual_seed(0))
    coded = fewbits.compress(First(), RDOQ(slope=1e-3, levels=GIVEN), [rows])
    books = [t for t in coded.tensors.values() if isinstance(t, CodebookTensor)]
    assert len(books) == 3
    assert {tuple(t.codebook.values) for t in books} == {tuple(np.float32(GIVEN))}


def test_embeddings_are_coded_by_how_they_are_used():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(300, 16), nn.Linear(16, 4))
    coded = fewbits.compress(model, RDOQ(slope=1e-4, levels=GIVEN), [torch.arange(300)])
    table = coded.tensors["0.weight"]
    assert isinstance(table, CodebookTensor)
    assert table.scale.tolist() == [1.0]


def test_settings_come_back_from_yaml():
    method = RDOQ(slope=1e-3, levels=GIVEN)
    settings = to_settings(method)
    assert settings == {"method": "rdoq", "slope": 1e-3, "levels": list(GIVEN)}
    assert from_settings(settings) == method
    assert hash(from_settings(settings)) == hash(method)
    assert not method.absorbs_scales


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"levels": 15}, "None or a tuple of 2 to 256.*the slope says how many levels pay"),
        ({"levels": "lloyd"}, "None or a tuple of 2 to 256"),
        ({"levels": (0.0,)}, "2 to 256 increasing"),
        ({"levels": (0.0, 0.0)}, "float32 tells apart"),
        ({"levels": tuple(range(257))}, "2 to 256"),
        ({"levels": GIVEN, "quantizer": "trellis"}, "'scalar' with given levels"),
        ({"levels": GIVEN, "quantizer": "auto"}, "'scalar' with given levels"),
        ({"levels": GIVEN, "ratio": 0.5}, "left alone with given levels"),
    ],
)
def test_what_does_not_go_with_a_codebook_is_named(settings, told):
    with pytest.raises(ConfigError, match=told):
        RDOQ(**settings)


def test_levels_beyond_the_dtype_are_refused():
    with pytest.raises(ConfigError, match=r"which 'layer.weight' can hold"):
        RDOQ(levels=(0.0, 1e6)).encode(replace(layer(), limit=65504.0))
