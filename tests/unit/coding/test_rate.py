"""How near the coder comes to the entropy of order 0, and where bytes go."""

import numpy as np
import pytest

from fewbits.coding import CODECS, encode_stream, entropy, estimate
from fewbits.errors import ConfigError


def entropy_bytes(symbols):
    _, counts = np.unique(symbols, return_counts=True)
    share = counts / counts.sum()
    return float(-(counts * np.log2(share)).sum()) / 8


def laplace(size, spread, seed=0):
    return np.rint(np.random.default_rng(seed).laplace(0, spread, (size, 1))).astype(np.int32)


def test_a_million_laplace_symbols_stay_within_a_thousandth_of_a_bit():
    symbols = laplace(1_000_000, 1.5)
    _, data = encode_stream(symbols)
    assert 8 * (len(data) - entropy_bytes(symbols)) / symbols.size <= 0.001


def test_a_million_symbols_of_which_most_are_zero():
    symbols = laplace(1_000_000, 0.2)
    _, data = encode_stream(symbols)
    assert (symbols == 0).mean() > 0.9
    assert 8 * (len(data) - entropy_bytes(symbols)) / symbols.size <= 0.002


@pytest.mark.parametrize(
    ("size", "spread", "extra"),
    [(432, 3.0, 20), (2304, 2.0, 24), (2304, 0.3, 12), (36864, 2.0, 40)],
)
def test_the_table_of_a_small_layer_costs_few_bytes(size, spread, extra):
    symbols = laplace(size, spread)
    name, data = encode_stream(symbols, "fast")
    assert name == "static"
    assert len(data) - entropy_bytes(symbols) <= extra


@pytest.mark.parametrize("size", [1, 2, 3, 7, 20, 100])
@pytest.mark.parametrize("spread", [0.3, 3.0, 300.0])
def test_never_more_than_raw(size, spread):
    symbols = laplace(size, spread)
    assert len(encode_stream(symbols)[1]) <= len(CODECS["raw"].encode(symbols))


def test_a_wide_alphabet_with_gaps_has_a_short_table():
    symbols = 1000 * laplace(5000, 2.0)
    table = len(CODECS["static"].encode(symbols)) - entropy_bytes(symbols)
    assert table < 150


def markov(size, seed=0):
    """Symbols whose law depends on the two before: (symbols, conditional entropy in bits)."""
    rng = np.random.default_rng(seed)
    law = rng.dirichlet(np.full(4, 0.3), size=(4, 4))
    below = law.cumsum(axis=2).tolist()
    draws = rng.random(size).tolist()
    out, a, b = [], 0, 0
    for draw in draws:
        row = below[a][b]
        a, b = b, next((s for s in range(3) if draw < row[s]), 3)
        out.append(b)
    pairs = np.zeros((16, 16))
    for x in range(4):
        for y in range(4):
            pairs[4 * x + y, 4 * y : 4 * y + 4] = law[x, y]
    share = np.linalg.matrix_power(pairs, 2000)[0]
    information = -(law * np.log2(np.maximum(law, 1e-300))).sum(axis=2).reshape(-1)
    return np.array(out, np.int32).reshape(1, -1), float(share @ information)


def test_entropies_of_a_source_of_order_two():
    symbols, conditional = markov(200_000)
    orders = [entropy(symbols, order) for order in (0, 1, 2, 3)]
    assert orders == sorted(orders, reverse=True)
    assert orders[0] == pytest.approx(8 * entropy_bytes(symbols) / symbols.size)
    assert orders[2] == pytest.approx(conditional, rel=0.01)
    assert orders[3] == pytest.approx(conditional, rel=0.01)


def test_entropy_agrees_with_counting_by_hand():
    symbols = np.array([[5, 5, -7, 5], [5, -7, 5, 5]])
    assert entropy(symbols) == pytest.approx(-(0.75 * np.log2(0.75) + 0.25 * np.log2(0.25)))
    # after 5: 5 -7 5 -7 5, after -7: 5 5
    want = 5 / 7 * -(3 / 5 * np.log2(3 / 5) + 2 / 5 * np.log2(2 / 5))
    assert entropy(symbols, 1) == pytest.approx(want)
    assert entropy(np.array([[3]]), 1) == entropy(np.zeros((0, 3)), 0) == 0.0


@pytest.mark.parametrize("effort", ["fast", "balanced"])
@pytest.mark.parametrize("shape", [(64, 64), (300, 90), (17, 405)])
@pytest.mark.parametrize("spread", [0.4, 2.0, 60.0])
def test_the_estimate_is_what_the_coder_writes(effort, shape, spread):
    rng = np.random.default_rng(3)
    scale = np.exp(0.5 * rng.normal(size=(shape[0], 1)))
    symbols = np.rint(scale * rng.laplace(0, spread, shape)).astype(np.int32)
    name, data = encode_stream(symbols, effort)
    rate = estimate(symbols, effort)
    assert rate.bits / 8 == pytest.approx(len(data), rel=0.002, abs=5)
    assert rate.bits_per_symbol == rate.bits / symbols.size
    assert rate.codec == name or abs(rate.bits / 8 - len(data)) < 5


def test_estimates_of_what_takes_nothing():
    assert estimate(np.zeros((4, 0), np.int32)).bits == 0
    assert estimate(np.full((4, 4), 9, np.int32)).codec == "constant"
    assert estimate(np.array([[0, 2**31 - 1]], np.int32)).codec == "raw"
    with pytest.raises(ConfigError, match="unknown effort"):
        estimate(laplace(100, 2.0), "most")
