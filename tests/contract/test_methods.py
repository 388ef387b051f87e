"""What every registered method must do, whatever it is."""

import math
from dataclasses import FrozenInstanceError, dataclass, fields

import pytest
import torch

from fewbits.engine.layers.layer import LayerMatrix, QuantizedTransform, Sensitivity
from fewbits.engine.layers.statistics import StatisticsAccumulator
from fewbits.errors import ConfigError
from fewbits.methods import (
    METHODS,
    Capabilities,
    PostTrainingMethod,
    from_settings,
    is_method,
    post_training_methods,
    to_settings,
)

NAMES = pytest.mark.parametrize("name", sorted(post_training_methods()))
SHAPES = {
    "linear": (1, 5, 20),
    "depthwise": (4, 1, 9),
    "grouped": (2, 3, 18),
    "one column": (1, 5, 1),
    "one neuron": (1, 1, 30),
    "no neurons": (1, 0, 4),
    "wider than a block": (1, 2, 150),
}
VARIANTS = [
    {},
    {"bits": 2, "per": "tensor"},
    {"bits": 4, "group": 10},
    {"levels": 4, "group": 9, "radius": "mse"},
    {"levels": 4},
    {"levels": 256, "radius": "mse"},
    {"slope": 1e-2},
    {"slope": 1e-2, "levels": (-1.0, -0.25, 0.0, 0.5, 1.5)},
    {"slope": 1e-7, "rate": "static"},
    {"slope": 0.5, "ratio": 0.1},
    {"slope": 1e-8, "basis": "klt", "side": "row"},
    {"slope": 1e-5, "side": "column", "bias_correction": False},
    {"slope": 1e-3, "basis": "elt", "side": "row", "rate": "static"},
    {"slope": 1e-3, "side": "best", "feedback": False},
    {"slope": 1e-3, "form": "blocks", "feedback": False, "rate": "none"},
]
# The last of them takes as long as all others together: every depth of every block is measured.
BLOCKS = VARIANTS[-1]
BLOCKS_SOON = ("depthwise", "grouped", "one column", "no neurons")


def variants(name):
    """The settings above that the method has."""
    kind = METHODS[name]
    known = {entry.name for entry in fields(kind)}
    found = [settings for settings in VARIANTS if set(settings) <= known]
    numbers = counts_levels(kind)
    return [one for one in found if numbers or not isinstance(one.get("levels"), int)]


def counts_levels(kind):
    """Whether ``levels`` may be a number, not only a codebook."""
    return kind.capabilities.has_levels or isinstance(getattr(kind, "levels", None), int)


def sensitivity(groups, neurons, columns):
    g = torch.Generator().manual_seed(2)
    gradients = torch.randn(groups, 40, neurons, columns, generator=g).double() * torch.rand(
        columns
    )
    flat, across = gradients.flatten(1, 2), gradients.transpose(1, 2).flatten(2)
    inputs, outputs = flat.mT @ flat / 40, across @ across.mT / 40
    energy = max(columns, 1)
    rows = outputs.diagonal(dim1=1, dim2=2) / energy
    scale = rows.sum(1).clamp_min(1e-9)[:, None, None]
    return Sensitivity(rows, inputs / scale, outputs, 40)


def statistics(groups, columns, rows):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(groups, rows, columns, generator=g).relu()
    accumulator = StatisticsAccumulator(groups, columns)
    accumulator.add(x, x + 0.1 * torch.randn(x.shape, generator=g))
    return accumulator.finish()


def layer(weight, rows, seed=0):
    groups, neurons, columns = weight.shape
    kernel = 9 if columns % 9 == 0 else 1
    seen, found = statistics(groups, columns, rows), sensitivity(groups, neurons, columns)
    return LayerMatrix("layer.weight", weight, seen, seed, sensitivity=found, kernel=kernel)


def check(method, matrix):
    before = matrix.weight.clone()
    result = method.encode(matrix)
    again = method.encode(matrix)
    assert torch.equal(matrix.weight, before)
    assert torch.equal(result.index, again.index)
    assert dict(result.info) == dict(again.info)
    assert all(isinstance(v, float) and math.isfinite(v) for v in result.info.values())
    assert result.index.dtype == torch.int32
    assert result.index.is_contiguous()
    values = result.dequantize()
    assert values.shape == matrix.weight.shape
    assert values.dtype == torch.float32
    assert values.isfinite().all()
    if isinstance(result, QuantizedTransform):
        assert result.basis.shape[1:] == result.step.shape == result.index.shape[:1]
        spacing = torch.cat([result.step, result.basis_step])
    else:
        assert result.index.shape == matrix.weight.shape
        spacing = result.step if result.levels is None else result.scale
        if result.levels is not None and spacing is None:
            spacing = torch.ones(1)  # the levels are the values
        groups, neurons, columns = matrix.weight.shape
        blocks = columns // result.group if result.group else 1
        assert blocks * (result.group or columns) == columns
        assert spacing.shape in ((1,), (groups * neurons * blocks,))
        inside(result)
    assert spacing.dtype == torch.float32
    assert spacing.isfinite().all()
    assert (spacing > 0).all()
    assert torch.equal(spacing, spacing.bfloat16().float())
    return result


def inside(result):
    if result.index.numel() == 0:
        return
    low, high = int(result.index.min()), int(result.index.max())
    if isinstance(result.offset, torch.Tensor):  # blocks of several kinds: their own tests look
        return
    if result.levels is not None:
        count = len(result.levels)
        assert result.info.get("levels", count) == count
        assert (result.levels.diff() > 0).all()
        assert low >= 0
        assert high < count
    elif "levels" in result.info:
        top = (result.info["levels"] - 1) / 2
        assert low - result.offset >= -top
        assert high - result.offset <= top


# Every other setting with few rows, the others with many; all with both in the slow tests.
HALVES = [
    *((3, 0), (200, 1)),
    *(pytest.param(*half, marks=pytest.mark.slow) for half in [(3, 1), (200, 0)]),
]


@NAMES
@pytest.mark.parametrize(("rows", "half"), HALVES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_any_shape(name, shape, rows, half):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    for settings in variants(name)[half::2]:
        if settings is not BLOCKS:
            check(from_settings({"method": name, **settings}), layer(weight, rows))


@pytest.mark.parametrize(
    "name", [n for n in sorted(post_training_methods()) if BLOCKS in variants(n)]
)
@pytest.mark.parametrize(
    ("shape", "rows"),
    [
        pytest.param(
            shape,
            rows,
            marks=() if shape in BLOCKS_SOON and rows == 3 else pytest.mark.slow,
        )
        for shape in SHAPES
        for rows in (3, 200)
    ],
)
def test_any_shape_in_blocks(name, shape, rows):
    weight = torch.randn(SHAPES[shape], generator=torch.Generator().manual_seed(1))
    check(from_settings({"method": name, **BLOCKS}), layer(weight, rows))


@NAMES
@pytest.mark.parametrize("rows", [3, 200])
def test_rows_of_zeros_constants_and_extremes(name, rows):
    weight = torch.randn(1, 6, 20, generator=torch.Generator().manual_seed(1))
    weight[0, 0] = 0
    weight[0, 1] = 0.3
    weight[0, 2] = -1e-30
    weight[0, 3] *= 1e30
    weight[0, 4, 1:] = 0
    result = check(METHODS[name](), layer(weight, rows))
    if not isinstance(result, QuantizedTransform):  # which may mix the rows
        assert (result.dequantize()[0, 0] == 0).all()
    check(METHODS[name](), layer(torch.zeros(1, 3, 20), rows))


@NAMES
def test_dead_inputs(name):
    accumulator = StatisticsAccumulator(1, 20)
    accumulator.add(torch.zeros(1, 50, 20), torch.zeros(1, 50, 20))
    weight = torch.randn(1, 6, 20, generator=torch.Generator().manual_seed(1))
    dead = torch.zeros(1, 20, 20, dtype=torch.float64)
    found = Sensitivity(dead[:, 0, :6], dead, dead[:, :6, :6], 50)
    matrix = LayerMatrix("w", weight, accumulator.finish(), sensitivity=found)
    result = check(METHODS[name](), matrix)
    if METHODS[name].capabilities.needs_gradients:
        return  # and errors cost nothing: any value will do
    error = (result.dequantize()[0] - weight[0]).abs()
    assert (error <= nearest_error(result, weight[0]) * (1 + 1e-6)).all()


def nearest_error(result, rows):
    """Return how far a value is from the nearest one that its row has, or may be in a grid."""
    if result.levels is None:
        return result.step[:, None] / 2
    scale = torch.ones(1) if result.scale is None else result.scale
    values = (scale[:, None] * result.levels).expand(len(rows), -1)
    return (rows[:, :, None] - values[:, None]).abs().amin(2)


@NAMES
def test_settings_round_trip(name):
    kind = METHODS[name]
    for settings in variants(name):
        method = kind(**settings)
        assert from_settings(to_settings(method)) == method
    told = {key: getattr(kind(), key, None) for key in ("bits", "slope")}
    told = {key: value for key, value in told.items() if value is not None}
    assert to_settings(kind()) == {"method": name, **told}
    if counts_levels(kind):
        assert to_settings(kind(levels=3)) == {"method": name, "levels": 3}


@NAMES
def test_the_descriptor(name):
    kind = METHODS[name]
    assert kind.name == name
    assert kind.capabilities.needs
    settings = {entry.name for entry in fields(kind)}
    assert kind.capabilities.has_slope == ("slope" in settings)
    grid = not kind.capabilities.trains and {"levels", "bits"} <= settings
    assert kind.capabilities.has_levels == grid
    assert kind.summary
    assert kind.paper
    assert kind.__doc__
    assert is_method(kind())
    assert not is_method(kind)
    with pytest.raises(FrozenInstanceError):
        setattr(kind(), fields(kind)[0].name, 3)
    with pytest.raises(TypeError):
        kind(4)
    assert len(fields(kind)) <= 12


@NAMES
def test_statistics_are_asked_for_only_if_needed(name):
    method = METHODS[name]()
    matrix = LayerMatrix("layer.weight", torch.ones(1, 2, 3))
    if not method.capabilities.needs_data:
        method.encode(matrix)
    else:
        with pytest.raises(ConfigError, match=r"layer\.weight.*calibration"):
            method.encode(matrix)


BAD = {
    "bits": [1, 9, 2.5, "4", True, None],
    "levels": [1, 0, -3, 2.5, "3", True, 2**24 + 1],
    "clip": [0, -1, math.nan, math.inf, "1", None, True],
    "radius": ["largest", 3, None],
    "per": ["row", None],
    "percentile": [0, 101, math.nan, "99"],
    "order": ["ascending", None],
    "damping": [0, -1, math.nan, math.inf, "x"],
    "threshold": ["firm", None, 3],
    "threshold_size": [0, -1, math.nan, "x"],
    "rounding": ["up", None],
    "slope": [0, -1, math.nan, math.inf, "1", [], True],
    "ratio": [0, -1, math.nan, "1"],
    "rate": ["exact", None, 3],
    "passes": [-1, 1.5, 101, "1", True],
    "bias_correction": [1, "yes", None],
    "basis": ["dct", None, 2],
    "side": ["left", None],
    "form": ["entropies", None],
    "basis_bits": [1, 9, 2.5, "4", True],
    "feedback": [1, "yes", None],
}


@NAMES
def test_every_setting_refuses_bad_values_by_name(name):
    for entry in fields(METHODS[name]):
        for value in BAD.get(entry.name, [object()]):  # of a setting that only a package has
            with pytest.raises(ConfigError, match=rf"^{entry.name} must be"):
                from_settings({"method": name, entry.name: value})


def _class(**members):
    parts = {"name": "mine", "summary": "s", "paper": "p", "capabilities": Capabilities()}
    return dataclass(frozen=True)(type("Mine", (PostTrainingMethod,), parts | members))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (_class(), "method 'encode' of its own"),
        (_class(encode=print, capabilities=None), "capabilities"),
        (_class(encode=print, capabilities=Capabilities(has_slope=True)), "setting 'slope'"),
        (_class(encode=print, capabilities=Capabilities(has_levels=True)), "setting 'levels'"),
        (_class(encode=print, name="other"), "must be 'mine'"),
        (type("Mine", (), {"name": "mine"}), "dataclass"),
    ],
)
def test_a_malformed_method_is_not_registered(kind, message):
    with pytest.raises(ConfigError, match=message):
        METHODS.register("mine")(kind)
    assert "mine" not in METHODS
