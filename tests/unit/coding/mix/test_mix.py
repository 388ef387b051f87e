"""What ``mix`` learns, and how fast."""

import numpy as np
import pytest

from cpu_time import within
from fewbits.coding import CODECS, Layout, kernels
from fewbits.coding.bitcoder import MEASURE, bits_of
from fewbits.coding.mix import mix

RNG = np.random.default_rng(2)
MIX = CODECS["mix"]


def _order_0(values):
    counts = np.unique(values, return_counts=True)[1]
    return -(counts * np.log2(counts / values.size)).sum() / 8


def _laplace(rows, columns, *scales):
    found = RNG.laplace(0, 1, (rows, columns))
    for scale in scales:
        found = found * scale
    return np.rint(found).astype(np.int32)


def _smooth():
    found = RNG.normal(size=(64, 64, 3, 3))
    found[..., 1:] += found[..., :-1]
    found[..., 1:, :] += found[..., :-1, :]
    return np.rint(found).reshape(64, 576).astype(np.int32), Layout(64, 576, 9, 3)


def _dead():
    alive = (RNG.random((300, 1)) < 0.5) * (RNG.random(200) < 0.4)
    return _laplace(300, 200, alive), Layout(300, 200)


def _pairs():
    law = RNG.random(49) ** 12
    cells = RNG.choice(49, 40_000, p=law / law.sum())
    return np.stack([cells // 7, cells % 7], 1).reshape(200, 400).astype(np.int32), Layout(200, 400)


def _pairs_in_kernels():
    values, _ = _pairs()
    return values.reshape(-1)[: 63 * 1260].reshape(63, 1260), Layout(63, 1260, 9, 3)


def _embedding():
    return _laplace(500, 64, np.exp(RNG.normal(0, 0.8, (500, 1)))), Layout(500, 64)


LEARNT = {
    "filters": (_smooth, 0.87),
    "dead": (_dead, 0.75),
    "pairs": (_pairs, 0.78),
    "pairs in kernels": (_pairs_in_kernels, 0.78),
    "rows": (_embedding, 0.95),
}


@pytest.mark.parametrize("name", LEARNT)
def test_structure_is_worth_bits(name):
    make, share = LEARNT[name]
    values, layout = make()
    data = MIX.encode(values, layout)
    assert len(data) < share * _order_0(values)
    assert np.array_equal(MIX.decode(data, layout), values)
    assert MIX.measure(values, layout) == pytest.approx(8 * len(data), rel=0.02)


def test_prices_follow_neighbours_and_sizes():
    values, layout = _smooth()
    lowest, prices = MIX.prices(values, layout)
    assert prices.shape == (64, 576, int(values.max()) - lowest + 1)
    assert np.exp2(-prices.astype(float)).sum(axis=2) == pytest.approx(1, abs=0.01)
    paid = np.take_along_axis(prices, (values - lowest)[..., None], 2).sum() / 8
    assert paid == pytest.approx(len(MIX.encode(values, layout)), abs=12)
    assert paid < 0.87 * _order_0(values)


@pytest.mark.parametrize("bounds", [(-9, 9), (0, 20), (-13, 0), (-40, 3)])
def test_a_price_is_what_coding_another_symbol_takes(bounds):
    """Of the last symbol, which changes the chances of no other."""
    values = np.clip(_laplace(6, 18, 4) + sum(bounds) // 2, *bounds)
    values[0, :2] = bounds
    layout = Layout(6, 18, 9, 3)
    settings = mix._settings(values, layout)
    prices = np.empty((*values.shape, bounds[1] - bounds[0] + 1), np.float32)
    priced = mix._Stream(MEASURE, values.size)
    priced.walk(values, layout, settings, prices=prices.reshape(-1))
    costs = []
    for symbol in range(bounds[0], bounds[1] + 1):
        values[-1, -1] = symbol
        stream = mix._Stream(MEASURE, values.size)
        stream.walk(values, layout, settings)
        costs.append(bits_of(stream.state))
    found = prices[-1, -1] - prices[-1, -1].min()
    assert found == pytest.approx(np.array(costs) - min(costs), abs=1e-3)


@pytest.mark.parametrize("reach", [0, 1, 2, 5])
def test_prices_within_reach_are_exact_and_no_others_are_low(reach):
    values = _laplace(12, 18, 9)
    values[0, :2] = -40, 30
    layout = Layout(12, 18, 9, 3)
    lowest, exact = MIX.prices(values, layout)
    _, found = MIX.prices(values, layout, reach)
    settings = mix._settings(values, layout)
    symbols, centre = np.arange(lowest, lowest + exact.shape[2]), settings.centre
    low = np.minimum(values, centre)[..., None] - reach
    high = np.maximum(values, centre)[..., None] + reach
    inside = (symbols >= low) & (symbols <= high)
    np.testing.assert_allclose(found[inside], exact[inside], rtol=1e-6)
    assert np.isfinite(found).all()
    shares = np.exp2(-found.astype(float)).sum(axis=2)
    assert shares.max() < 1.01  # no more than all chances


def test_a_single_symbol_has_no_alternatives():
    lowest, prices = MIX.prices(np.full((3, 4), 7), Layout(3, 4))
    assert lowest == 7
    assert prices.shape == (3, 4, 1)
    assert not prices.any()


def test_speed_is_that_of_compiled_code():
    kernels.compiled()
    values, layout = _smooth()
    data = MIX.encode(values, layout)
    with within(values.size / 0.2e6):
        MIX.decode(data, layout)


def test_rows_that_are_square_pictures_are_found():
    smooth = RNG.normal(size=(64, 16, 16))
    for axis in (1, 2):
        smooth += np.roll(smooth, 1, axis)
    values = np.rint(smooth).reshape(64, 256).astype(np.int32)
    data = MIX.encode(values, Layout(64, 256))
    assert len(data) <= len(MIX.encode(values, Layout(64, 256, 1, 16))) < 0.9 * _order_0(values)
    assert np.array_equal(MIX.decode(data, Layout(64, 256)), values)
    assert MIX.measure(values, Layout(64, 256)) < 8.2 * len(data)
