"""How near the coder comes to the entropy of order 0, and where bytes go."""

import numpy as np
import pytest

from fewbits.coding import CODECS, encode_stream


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
    name, data = encode_stream(symbols)
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
