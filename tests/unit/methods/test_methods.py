"""The methods: their radius rules, settings, and what they report."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fewbits.coded import Codebook, CodebookTensor, GridTensor
from fewbits.engine.layers.layer import LayerMatrix, QuantizedMatrix
from fewbits.engine.layers.statistics import StatisticsAccumulator, check_float64
from fewbits.errors import CalibrationError, ConfigError, ModelError
from fewbits.methods import GPFQ, GPTQ, Nearest, Qronos, from_settings, to_settings, uniform


def layer(*, rows=300, columns=64, neurons=24, groups=1, noise=0.1, energy=True, seed=0):
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(groups, neurons, columns, generator=g)
    mix = torch.randn(groups, columns, columns, generator=g) / columns**0.5
    x = (torch.randn(groups, rows, columns, generator=g) @ mix).relu()
    y = x + noise * torch.randn(x.shape, generator=g) if noise else x
    accumulator = StatisticsAccumulator(groups, columns, w if energy else None)
    accumulator.add(x, y)
    return LayerMatrix("fc.weight", w, accumulator.finish(), seed), x, y


def about_mean(outputs, matrix):
    return outputs - outputs.mean(1, keepdim=True) if matrix.has_bias else outputs


def true_error(matrix, x, y, quantized):
    """What a bias, if there is one, cannot repay."""
    target = about_mean(x @ matrix.weight.mT, matrix)
    found = about_mean(y @ quantized.dequantize().mT, matrix)
    return float((target - found).norm() / target.norm())


@pytest.mark.parametrize("rows", [40, 300])
@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.parametrize(
    "method",
    [
        GPFQ(bits=3),
        GPFQ(bits=3, passes=2, per="tensor", order="natural"),
        GPFQ(levels=4, threshold="soft"),
        GPFQ(bits=3, threshold="hard", threshold_size=0.4),
        GPFQ(bits=3, rounding="stochastic"),
        Qronos(bits=3),
    ],
    ids=lambda method: str(to_settings(method)),
)
@pytest.mark.parametrize("has_bias", [True, False])
def test_the_reported_objective_is_the_output_error(method, has_bias, rows, noise):
    matrix, x, y = layer(rows=rows, noise=noise)
    matrix = replace(matrix, has_bias=has_bias)
    quantized = method.encode(matrix)
    error = true_error(matrix, x, y, quantized)
    assert quantized.info["objective"] == pytest.approx(error, rel=1e-3)


@pytest.mark.parametrize("has_bias", [True, False])
def test_the_objective_of_gptq_is_that_of_its_own_inputs(has_bias):
    matrix, _, y = layer()
    matrix = replace(matrix, has_bias=has_bias)
    quantized = GPTQ(bits=3).encode(matrix)
    error = true_error(matrix, y, y, quantized)
    assert quantized.info["objective"] == pytest.approx(error, rel=1e-3)


@pytest.mark.parametrize("rows", [40, 300])
@pytest.mark.parametrize("method", [GPFQ(bits=3), GPTQ(bits=3), Qronos(bits=3)])
def test_errors_of_the_mean_are_free_only_where_a_bias_takes_them(method, rows):
    matrix, x, y = layer(rows=rows)
    away, near = (
        accumulated(matrix.weight, x + offset, y + offset, matrix) for offset in (5.0, 0.0)
    )
    with_bias, without = (replace(away, has_bias=flag) for flag in (True, False))
    moved = (method.encode(with_bias).index != method.encode(near).index).float().mean()
    assert moved < 0.01  # the last bits of float32 sums
    kept = replace(method, bias_correction=False)
    for taken in (method.encode(without), kept.encode(with_bias)):
        assert (taken.index != method.encode(near).index).float().mean() > 0.1
        assert true_error(without, x + 5, y + 5, taken) < true_error(
            without, x + 5, y + 5, method.encode(with_bias)
        )


@pytest.mark.parametrize("method", [GPFQ(bits=4), GPTQ(bits=4), Qronos(bits=4)])
def test_inputs_that_hardly_vary_beside_their_mean_are_rounded(method):
    """In float32 moments, their variance is noise: it is not even positive everywhere."""
    matrix, x, _ = layer(columns=16, rows=300, noise=0)
    x[..., 4:] = 100 + 0.01 * x[..., 4:]
    matrix = accumulated(matrix.weight, x, x, matrix)
    coded = method.encode(matrix)
    away = (coded.dequantize() - matrix.weight)[..., 4:].abs()
    assert (away <= 0.501 * coded.step.reshape(1, -1, 1)).all()


def accumulated(weight, x, y, matrix):
    accumulator = StatisticsAccumulator(*weight.shape[::2], weight)
    accumulator.add(x, y)
    return replace(matrix, statistics=accumulator.finish())


def test_an_unknown_objective_is_left_out():
    matrix, *_ = layer(energy=False)
    assert "objective" not in GPFQ().encode(matrix).info
    matrix, *_ = layer(energy=False, noise=0)
    assert "objective" in GPFQ().encode(matrix).info


@pytest.mark.parametrize("bits", [2, 4])
def test_feedback_beats_rounding(bits):
    matrix, x, y = layer(rows=2000)
    nearest = Nearest(bits=bits, radius="mse").encode(matrix)
    for method in (GPFQ(bits=bits, radius="mse"), Qronos(bits=bits, radius="mse")):
        found = true_error(matrix, x, y, method.encode(matrix))
        assert found < 0.95 * true_error(matrix, x, y, nearest)
    found = GPTQ(bits=bits, radius="mse").encode(matrix)  # it does not know of x
    assert true_error(matrix, y, y, found) < 0.9 * true_error(matrix, y, y, nearest)


@pytest.mark.parametrize("rows", [40, 300])
def test_the_searched_radius_is_the_best_of_its_candidates(rows):
    matrix, *_ = layer(rows=rows)
    clips = [1.25 * 5 ** (-k / 11) for k in range(12)]
    each = [GPFQ(bits=2, clip=clip, per="tensor").encode(matrix) for clip in clips]
    best = min(q.info["objective"] for q in each)
    searched = GPFQ(bits=2, radius="objective", per="tensor").encode(matrix)
    assert searched.info["objective"] == pytest.approx(best, rel=1e-6)
    assert searched.step.shape == (1,)
    rowwise = GPFQ(bits=2, radius="objective").encode(matrix)
    assert rowwise.step.shape == (24,)
    assert rowwise.info["objective"] < best
    assert best < 0.9 * GPFQ(bits=2).encode(matrix).info["objective"]


def test_a10_neurons_alone_or_together_choose_the_same():
    matrix, x, y = layer(rows=40)
    together = GPFQ(bits=2, radius="objective").encode(matrix)
    for i in (0, 13):
        accumulator = StatisticsAccumulator(1, 64)
        accumulator.add(x, y)
        row = LayerMatrix("one", matrix.weight[:, i : i + 1], accumulator.finish())
        alone = GPFQ(bits=2, radius="objective").encode(row)
        assert alone.step[0] == together.step[i]
        assert torch.equal(alone.index[0, 0], together.index[0, i])


def test_radius_rules_set_the_top_level():
    w = torch.tensor([[[1.0, -4.0, 2.0, 0.5], [0.0, 3.0, -1.0, 8.0]]])
    matrix = LayerMatrix("w", w)

    def tops(**settings):
        quantized = Nearest(levels=5, **settings).encode(matrix)
        return (quantized.step * 2).tolist()

    assert tops() == [4, 8]
    assert tops(per="tensor") == [8]
    assert tops(clip=0.5) == [2, 4]
    assert tops(radius="percentile", percentile=75) == [2, 3]
    assert tops(radius="median", clip=3.0) == [3]
    assert tops(radius="mean_max") == [6]
    rows = Nearest(levels=5, radius="mse").encode(matrix)
    fine = [
        min(
            float((w[0, i] - (w[0, i] / s).round().clamp(-2, 2) * s).square().sum())
            for s in torch.linspace(0.05, 5, 4000).tolist()
        )
        for i in range(2)
    ]
    found = (rows.dequantize() - w).square().sum(2)[0]
    assert (found <= 1.1 * torch.tensor(fine) + 1e-2).all()


@pytest.mark.parametrize("radius", ["absmax", "mse", "median", "mean_max"])
def test_radius_rules_scale_with_the_weight(radius):
    w = torch.randn(1, 6, 40, generator=torch.Generator().manual_seed(2))
    expected = Nearest(bits=2, radius=radius).encode(LayerMatrix("w", w))
    for factor in (2.0**120, 2.0**-110):
        found = Nearest(bits=2, radius=radius).encode(LayerMatrix("w", w * factor))
        assert torch.equal(found.step, expected.step * factor)
        assert torch.equal(found.index, expected.index)


def test_bits_and_levels_give_the_alphabet():
    matrix, *_ = layer()
    ternary = Nearest(bits=2, clip=0.3).encode(matrix)
    assert ternary.index.unique().tolist() == [-1, 0, 1]
    even = Nearest(levels=4, clip=0.3).encode(matrix)
    assert even.index.unique().tolist() == [-1, 0, 1, 2]
    assert even.offset == 0.5
    assert even.dequantize().abs().min() > 0
    wide = Nearest(levels=17, clip=0.3).encode(matrix)
    assert wide.index.unique().tolist() == list(range(-8, 9))


def test_the_bias_shift_is_the_mean_output_error():
    for rows in (40, 300):
        matrix, x, y = layer(rows=rows, groups=2, neurons=5)
        quantized = GPFQ(bits=2).encode(matrix)
        gap = (x @ matrix.weight.mT - y @ quantized.dequantize().mT).mean(1)
        torch.testing.assert_close(quantized.bias_shift, gap.flatten(), rtol=1e-3, atol=1e-4)
        for method in (GPFQ, GPTQ, Qronos):
            assert method(bits=2, bias_correction=False).encode(matrix).bias_shift is None
            assert method(bits=2).encode(matrix).bias_shift is not None


def test_hard_thresholds_give_a_codebook():
    matrix, *_ = layer()
    quantized = GPFQ(bits=3, threshold="hard", threshold_size=0.6).encode(matrix)
    expected = [-3, -2.2, -1.4, -0.6, 0, 0.6, 1.4, 2.2, 3]
    torch.testing.assert_close(quantized.levels, torch.tensor(expected))
    assert quantized.step is None
    plain = GPFQ(bits=3).encode(matrix)
    assert quantized.info["zeros"] > plain.info["zeros"]
    soft = GPFQ(bits=3, threshold="soft", threshold_size=0.6).encode(matrix)
    assert soft.info["zeros"] > plain.info["zeros"]


def test_info_counts_zeros_and_saturation():
    w = torch.tensor([[[0.0, 0.1, 1.0, -1.0, 0.5, 3.0, -2.0, 0.0]]])
    info = Nearest(levels=3, clip=1 / 3).encode(LayerMatrix("w", w)).info
    assert info == {"levels": 3.0, "zeros": 4 / 8, "saturation": 4 / 8}


@pytest.mark.parametrize(
    "method", [Nearest(levels=4, clip=0.7), GPFQ(bits=3, threshold="hard", per="tensor"), GPFQ()]
)
def test_dequantizing_is_bit_identical_to_the_file(method):
    matrix, *_ = layer(groups=3, neurons=5)
    quantized = method.encode(matrix)
    index = quantized.index.flatten(0, 1).numpy()
    if quantized.levels is None:
        coded = GridTensor(
            index.shape,
            "float32",
            index,
            quantized.step.numpy(),
            np.full(1, quantized.offset, np.float32),
        )
    else:
        codebook = Codebook(quantized.levels.numpy())
        coded = CodebookTensor(index.shape, "float32", index, codebook, quantized.scale.numpy())
    ours = quantized.dequantize().flatten(0, 1).numpy()
    assert np.array_equal(ours.view(np.int32), coded.dequantize().view(np.int32))


def test_a_matrix_without_step_or_levels_says_so():
    with pytest.raises(ValueError, match="either a step or levels"):
        QuantizedMatrix(torch.zeros(1, 1, 1, dtype=torch.int32), None).dequantize()


def test_very_wide_layers_are_cut_into_parts_of_neurons(monkeypatch):
    matrix, *_ = layer(neurons=600, rows=40)
    whole = GPFQ(bits=3).encode(matrix)
    monkeypatch.setattr("fewbits.ops.rounding.path_following._PART", 1)
    parts = GPFQ(bits=3).encode(matrix)
    assert (whole.index != parts.index).double().mean() < 1e-3
    assert parts.info["objective"] == pytest.approx(whole.info["objective"], rel=1e-4)


def test_weights_that_are_not_finite_are_named():
    for value in (float("nan"), float("inf")):
        matrix = LayerMatrix("body.3.weight", torch.full((1, 2, 2), value))
        with pytest.raises(ModelError, match=r"body\.3\.weight"):
            Nearest().encode(matrix)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(
    "method",
    [
        Nearest(),
        Nearest(radius="mean_max", clip=2.0),
        GPFQ(),
        GPFQ(threshold="hard"),
        GPFQ(radius="objective"),
        GPTQ(),
        Qronos(),
    ],
    ids=lambda method: str(to_settings(method)),
)
def test_the_largest_weight_of_a_dtype_stays_finite(method, dtype):
    limit = torch.finfo(dtype).max
    w = torch.linspace(-limit / 2, limit / 2, 32).reshape(1, 4, 8)
    w[0, 1, 3], w[0, 2, 5] = limit, -limit
    statistics = StatisticsAccumulator(1, 8)
    x = torch.randn(1, 20, 8, generator=torch.Generator().manual_seed(0)) * 1e-3
    statistics.add(x, x)
    matrix = LayerMatrix("w", w, statistics.finish(), limit=limit)
    quantized = method.encode(matrix)
    assert quantized.dequantize().abs().max() <= limit
    assert quantized.dequantize().to(dtype).isfinite().all()
    assert quantized.dequantize().abs().max() >= 0.9 * limit


def test_devices_without_float64_are_named(monkeypatch):
    with pytest.raises(ModelError, match=r"layer 'fc'.*float64.*'mps:0'.*CPU"):
        check_float64(torch.device("mps", 0), "layer 'fc'")
    matrix, *_ = layer()
    monkeypatch.setattr("fewbits.engine.layers.statistics.WITHOUT_FLOAT64", ("cpu",))
    for method in (GPFQ(), GPTQ(), Qronos()):
        with pytest.raises(ModelError, match=r"'fc\.weight'.*'cpu'"):
            method.encode(matrix)
    Nearest().encode(matrix)


def test_levels_without_a_scale():
    levels = torch.tensor([-1.0, 2.0], device="meta")
    index = torch.zeros(1, 2, 3, dtype=torch.int32, device="meta")
    assert QuantizedMatrix(index, None, levels=levels).dequantize().shape == (1, 2, 3)


def test_settings_are_plain_python_values():
    settings = to_settings(GPFQ(clip=np.float64(0.9), order=np.str_("natural")))
    assert settings == {"method": "gpfq", "bits": 4, "clip": 0.9, "order": "natural"}
    assert [type(value) for value in settings.values()] == [str, int, float, str]


def test_inputs_beyond_single_precision_are_named():
    accumulator = StatisticsAccumulator(1, 4)
    x = torch.full((1, 9, 4), 1e25)
    accumulator.add(x, x)
    matrix = LayerMatrix("fc.weight", torch.ones(1, 2, 4), accumulator.finish())
    with pytest.raises(CalibrationError, match=r"fc\.weight.*float32"):
        GPFQ().encode(matrix)


def test_settings_name_what_differs():
    assert to_settings(GPFQ()) == {"method": "gpfq", "bits": 4}
    assert to_settings(GPFQ(bits=3, levels=4)) == {"method": "gpfq", "bits": 3, "levels": 4}
    with pytest.raises(ConfigError, match="Did you mean 'bits'"):
        from_settings({"method": "gpfq", "bit": 3})
    with pytest.raises(ConfigError, match="Did you mean 'gpfq'"):
        from_settings({"method": "gpfk"})
    with pytest.raises(ConfigError, match="'method'"):
        from_settings({"bits": 3})


def test_settings_that_do_not_go_together():
    with pytest.raises(ConfigError, match="passes"):
        GPFQ(rounding="stochastic", passes=1)
    with pytest.raises(ConfigError, match="rounding"):
        GPFQ(rounding="stochastic", threshold="hard")
    with pytest.raises(ConfigError, match="levels"):
        GPFQ(levels=4, threshold="hard")
    with pytest.raises(ConfigError, match="threshold_size"):
        GPFQ(levels=3, threshold="hard", threshold_size=1.0)
    with pytest.raises(ConfigError, match="levels=3"):
        GPFQ(bits=1)


@pytest.mark.parametrize("per", ["channel", "tensor"])
def test_clips_of_rows_in_blocks_are_those_of_all_rows(per, monkeypatch):
    weight = torch.randn(2, 50, 24, generator=torch.Generator().manual_seed(0))
    layer = LayerMatrix("layer.weight", weight, None, 0)
    method = Nearest(bits=3, radius="mse", per=per)
    whole = method.encode(layer)
    monkeypatch.setattr(uniform, "_BLOCK", 100)
    parts = method.encode(layer)
    assert torch.equal(parts.index, whole.index)
    assert torch.equal(parts.step, whole.step)
