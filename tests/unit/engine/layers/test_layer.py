"""Parts of a layer: some of its neurons, and what they give together."""

import pytest
import torch

from fewbits.engine.layers.layer import LayerMatrix, QuantizedTransform, join_neurons
from fewbits.engine.layers.statistics import StatisticsAccumulator
from fewbits.methods import GPFQ, GPTQ, METHODS, Nearest, Qronos, post_training_methods

COLUMNS, NEURONS = 32, 13
PARTS = (slice(0, 4), slice(4, 5), slice(5, 13))


def layer(rows=200, has_bias=True):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(1, NEURONS, COLUMNS, generator=generator)
    weight[:, 4] = 0  # a part without any output
    x = torch.randn(1, rows, COLUMNS, generator=generator).relu()
    accumulator = StatisticsAccumulator(1, COLUMNS, weight)
    accumulator.add(x, x + 0.1 * torch.randn(x.shape, generator=generator))
    return LayerMatrix("fc.weight", weight, accumulator.finish(), has_bias=has_bias)


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("rows", [20, 200])
@pytest.mark.parametrize(
    "method",
    [
        *(kind(bits=3) for kind in (Nearest, GPFQ, GPTQ, Qronos)),
        GPFQ(bits=3, radius="objective"),
        GPFQ(bits=3, group=8),
        GPFQ(bits=3, threshold="hard", threshold_size=0.4),
        Qronos(bits=3, radius="mse", bias_correction=False),
    ],
)
def test_neurons_that_are_rounded_apart_are_those_of_the_layer(method, rows, has_bias):
    assert method.rounds_neurons_apart
    matrix = layer(rows, has_bias)
    whole = method.encode(matrix)
    joined = join_neurons([method.encode(matrix.neurons(part)) for part in PARTS])
    assert torch.equal(joined.index, whole.index)
    assert torch.equal(joined.dequantize(), whole.dequantize())
    assert (joined.bias_shift is None) == (whole.bias_shift is None)
    if whole.bias_shift is not None:
        torch.testing.assert_close(joined.bias_shift, whole.bias_shift)
    assert joined.info.keys() == whole.info.keys()
    assert joined.info == pytest.approx(dict(whole.info), rel=1e-4)
    assert joined.group == whole.group


def test_methods_that_look_at_the_whole_layer_say_so():
    for method in (
        Nearest(per="tensor"),
        GPTQ(per="tensor"),
        Qronos(radius="median"),
        GPFQ(radius="mean_max"),
        GPFQ(rounding="stochastic"),
    ):
        assert not method.rounds_neurons_apart
    apart = {name for name in post_training_methods() if METHODS[name]().rounds_neurons_apart}
    assert apart == {"nearest", "gpfq", "gptq", "qronos"}


def test_transforms_have_no_neurons_to_join():
    part = QuantizedTransform(*(torch.zeros(1),) * 5, "row", (1, 1, 1), 1)
    assert join_neurons([part]) is part
    with pytest.raises(TypeError, match="matrices"):
        join_neurons([part, part])
