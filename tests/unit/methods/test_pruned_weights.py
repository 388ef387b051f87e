"""Zeros of pruned layers stay zero, and error feedback goes on around them."""

from dataclasses import replace

import pytest
import torch

from fewbits.engine.layers.layer import LayerMatrix
from fewbits.engine.layers.statistics import StatisticsAccumulator
from fewbits.methods import GPFQ, GPTQ, Nearest, Qronos

METHODS = [
    GPFQ(bits=3),
    GPFQ(bits=3, radius="objective", per="tensor"),
    GPFQ(bits=4, group=16),
    GPFQ(bits=3, threshold="hard", threshold_size=0.4),
    GPFQ(bits=3, levels="lloyd"),
    GPTQ(bits=3, passes=1),
    GPTQ(levels=(-2.0, -0.5, 0.0, 0.4, 1.0)),
    Qronos(bits=3),
    Qronos(bits=4, group=16),
]


def layer(share, rows=200):
    """A layer of which so many weights are zero, more in some rows than in others."""
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(1, 24, 64, generator=g)
    chance = 2 * share * torch.rand(1, 24, 1, generator=g)
    weight = weight.where(torch.rand(1, 24, 64, generator=g) >= chance, 0.0)
    mix = torch.randn(64, 64, generator=g) / 8
    x = (torch.randn(1, rows, 64, generator=g) @ mix).relu() + 0.3
    y = x + 0.1 * torch.randn(x.shape, generator=g)
    accumulator = StatisticsAccumulator(1, 64, weight)
    accumulator.add(x, y)
    return LayerMatrix("fc.weight", weight, accumulator.finish(), 0, has_bias=False), x, y


def output_error(matrix, x, y, quantized):
    return float((x @ matrix.weight.mT - y @ quantized.dequantize().mT).norm())


@pytest.mark.parametrize("rows", [40, 200])
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_zeros_stay_zero(method, rows):
    matrix, x, y = layer(0.4, rows)
    quantized = method.encode(matrix)
    values = quantized.dequantize()
    assert values.isfinite().all()
    assert not values[matrix.weight == 0].any()
    assert values[matrix.weight != 0].any()
    if not isinstance(method.levels, tuple):
        plain = Nearest(bits=method.bits, group=method.group).encode(matrix)
        assert output_error(matrix, x, y, quantized) < output_error(matrix, x, y, plain)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_layer_with_few_zeros_is_not_pruned(method):
    matrix, _, _ = layer(0.1)
    moved = method.encode(matrix).dequantize()[matrix.weight == 0]
    assert moved.any()


@pytest.mark.parametrize("method", [GPFQ(levels=4), GPTQ(levels=4), Qronos(levels=(-1.0, 1.0))])
def test_levels_without_a_zero_leave_none(method):
    matrix, _, _ = layer(0.4)
    values = method.encode(matrix).dequantize()
    assert values.isfinite().all()
    assert (values != 0).all()


def test_stochastic_rounding_is_of_all_values():
    matrix, _, _ = layer(0.4)
    assert GPFQ(rounding="stochastic").pruned(matrix) is None


def test_a_quarter_of_zeros_is_a_pruned_layer():
    weight = torch.ones(1, 4, 4)
    weight[0, 0] = 0
    matrix = replace(layer(0.4)[0], weight=weight)
    assert torch.equal(GPTQ().pruned(matrix), weight == 0)
    weight[0, 0, 0] = 1
    assert GPTQ().pruned(matrix) is None
