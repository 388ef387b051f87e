"""Statistics: both forms, batches of any size, and data that cannot be used."""

import pytest
import torch

from fewbits.engine.layers import statistics
from fewbits.engine.layers.statistics import Statistics, StatisticsAccumulator, second_moments
from fewbits.errors import CalibrationError
from fewbits.ops.levels.grid import Grid
from fewbits.ops.rounding.path_following import follow_gram, follow_samples


def data(groups=2, rows=50, columns=12, dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(groups, rows, columns, generator=g, dtype=dtype)
    return x, x + 0.1 * torch.randn(x.shape, generator=g, dtype=dtype)


def collect(x, y, sizes, **kwargs):
    accumulator = StatisticsAccumulator(x.shape[0], x.shape[2], **kwargs)
    for a, b in zip(x.split(sizes, 1), y.split(sizes, 1), strict=True):
        accumulator.add(a, a if x is y else b)
    return accumulator.finish()


@pytest.mark.parametrize("rows", [1, 12, 13, 50])
def test_the_form_follows_the_rows(rows):
    x, y = data(rows=rows)
    found = collect(x, y, [1] * rows)
    second, cross = found.moments()
    assert found.rows == rows
    assert (found.samples is None) == (rows > 12)
    assert (found.gram is None) == (rows <= 12)
    torch.testing.assert_close(second, y.mT @ y, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(cross, y.mT @ x, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.reference_mean, x.mean(1))
    torch.testing.assert_close(found.quantized_mean, y.mean(1))
    if found.samples is not None:
        assert torch.equal(found.samples[0], x)
        assert torch.equal(found.samples[1], y)


@pytest.mark.parametrize("rows", [8, 50])
def test_one_object_stays_one_object(rows):
    x, _ = data(rows=rows)
    found = collect(x, x, [rows // 2, rows - rows // 2])
    second, cross = found.moments()
    assert second is cross
    assert found.reference_mean is found.quantized_mean
    assert found.samples is None or found.samples[0] is found.samples[1]
    torch.testing.assert_close(second, x.mT @ x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("late", [False, True])
def test_one_differing_batch_makes_two_objects(late):
    x, y = data(rows=60)
    accumulator = StatisticsAccumulator(2, 12)
    for k, (a, b) in enumerate(zip(x.split(20, 1), y.split(20, 1), strict=True)):
        accumulator.add(a, b if k == (2 if late else 0) else a)
    mixed = x.clone()
    part = slice(40, 60) if late else slice(0, 20)
    mixed[:, part] = y[:, part]
    second, cross = accumulator.finish().moments()
    torch.testing.assert_close(second, mixed.mT @ mixed, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(cross, mixed.mT @ x, rtol=1e-5, atol=1e-5)
    found = accumulator.finish()
    torch.testing.assert_close(found.reference_mean, x.mean(1), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.quantized_mean, mixed.mean(1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rows", [30, 120])
def test_a11_batches_do_not_matter(rows):
    x, y = data(groups=1, rows=rows, columns=40, dtype=torch.float64)
    splits = [[rows], [rows // 3, rows // 2, rows - rows // 3 - rows // 2]]
    splits.append([1, 2, 3, 4, 5, 6, 1, 1, 1, rows - 24])
    w = torch.randn(1, 5, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    whole = (y.mT @ y, y.mT @ x)
    results = []
    for sizes in splits:
        found = collect(x, y, sizes)
        for ours, exact in zip(found.moments(), whole, strict=True):
            torch.testing.assert_close(ours, exact, rtol=1e-10, atol=1e-10)
        results.append(follow_gram(w, *found.moments(), Grid(3).project_))
        if found.samples is not None:
            results.append(follow_samples(w, *found.samples, Grid(3).project_)[0])
    assert all(torch.equal(q, results[0]) for q in results)


def test_totals_are_double_precision():
    x = torch.full((1, 1, 1), 1.0)
    accumulator = StatisticsAccumulator(1, 1)
    big = torch.full((1, 2, 1), 4096.0)
    accumulator.add(big, big)
    for _ in range(100):
        accumulator.add(x, x)  # each is below the float32 resolution of the total
    assert accumulator.finish().moments()[0].item() == 2 * 4096.0**2 + 100


@pytest.mark.parametrize("neurons", [2, 7, 30])  # from X w or from X^T X
@pytest.mark.parametrize(("rows", "same"), [(10, 0), (50, 0), (50, 20), (50, 47)])
def test_reference_energy_is_the_analog_output(neurons, rows, same):
    x, y = data(rows=rows)
    w = torch.randn(2, neurons, 12, generator=torch.Generator().manual_seed(1))
    accumulator = StatisticsAccumulator(2, 12, w)
    for start, stop in ((0, same), (same, rows - 2), (rows - 2, rows)):
        part = x[:, start:stop]  # alike in both networks in the first and in the last batch
        accumulator.add(part, y[:, start:stop] if start == same else part)
    expected = (x @ w.mT).double().square().sum(1)
    torch.testing.assert_close(accumulator.finish().reference_energy, expected, rtol=1e-5, atol=0)
    assert collect(x, y, [rows]).reference_energy is None


def test_without_mismatch_the_energy_is_left_to_the_moments():
    x, _ = data(rows=50)
    w = torch.randn(2, 3, 12, generator=torch.Generator().manual_seed(1))
    assert collect(x, x, [20, 30], weight=w).reference_energy is None


@pytest.mark.parametrize(("groups", "columns"), [(1, 500), (1, 192), (3, 200), (1, 193)])
def test_second_moments_are_the_product(groups, columns):
    x = torch.randn(groups, 40, columns, generator=torch.Generator().manual_seed(2))
    found = second_moments(x)
    torch.testing.assert_close(found, x.mT @ x, rtol=1e-5, atol=1e-4)
    assert torch.equal(found, found.mT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("same", [True, False])
def test_many_tiny_groups_have_the_same_moments(dtype, same):
    x, y = data(groups=12, rows=200, columns=9, dtype=dtype)
    found = collect(x, x if same else y, [80, 120])
    actual = x if same else y
    for ours, wanted in zip(found.moments(), (actual.mT @ actual, actual.mT @ x), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-4)
    assert (found.moments()[0] is found.moments()[1]) == same


def test_half_precision_is_cast_before_any_product():
    x = torch.full((1, 3, 2), 300.0, dtype=torch.float16)  # its square is infinite in float16
    accumulator = StatisticsAccumulator(1, 2)
    accumulator.add(x, x)
    second = accumulator.finish().moments()[0]
    assert second.dtype == torch.float32
    assert second.unique().tolist() == [270_000.0]


def test_moments_do_not_hold_on_to_the_batches():
    x = torch.ones(1, 5, 2)
    accumulator = StatisticsAccumulator(1, 2)
    accumulator.add(x, x)
    x.zero_()
    assert accumulator.finish().moments()[0].unique().tolist() == [5.0]


def test_nothing_added_is_no_rows():
    found = StatisticsAccumulator(2, 3).finish()
    assert found.rows == 0
    assert found.moments()[0].shape == (2, 3, 3)
    assert found.reference_mean.tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("side", ["float", "quantized"])
def test_values_that_are_not_finite_are_refused(value, side):
    good = torch.ones(1, 2, 3)
    bad = good.clone()
    bad[0, 1, 2] = value
    accumulator = StatisticsAccumulator(1, 3, name="head.weight")
    pair = (bad, good) if side == "float" else (good, bad)
    with pytest.raises(CalibrationError, match=rf"head\.weight.*{side} network.*NaN"):
        accumulator.add(*pair)


def test_shapes_are_checked():
    accumulator = StatisticsAccumulator(1, 3)
    with pytest.raises(CalibrationError, match=r"\(1, rows, 3\).*\(1, 2, 4\)"):
        accumulator.add(torch.ones(1, 2, 4), torch.ones(1, 2, 3))
    with pytest.raises(CalibrationError, match="same batches"):
        accumulator.add(torch.ones(1, 2, 3), torch.ones(1, 4, 3))


def test_statistics_of_neither_form_say_so():
    mean = torch.zeros(1, 2)
    with pytest.raises(CalibrationError, match="collect"):
        Statistics(0, mean, mean, None).moments()


def test_totals_of_very_wide_layers_are_float32_and_the_same(monkeypatch):
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(1, 3, 6, generator=generator)
    batches = [torch.randn(1, 9, 6, generator=generator) for _ in range(4)]
    pairs = [(x, x) if place < 2 else (x, x + 0.1) for place, x in enumerate(batches)]

    def collected():
        sums = StatisticsAccumulator(1, 6, weight)
        for reference, quantized in pairs:
            sums.add(reference, quantized)
        return sums.finish()

    plain = collected()
    monkeypatch.setattr(statistics, "WIDE", 5)
    wide = collected()
    for ours, theirs in zip(wide.moments(), plain.moments(), strict=True):
        assert ours.dtype == torch.float32
        assert torch.allclose(ours, theirs, atol=1e-4)
    assert torch.allclose(wide.reference_energy, plain.reference_energy, rtol=1e-5)
