"""The trellis, and what the codec that knows it gains."""

import numpy as np
import pytest

from fewbits.coding import CODECS, Layout, encode_run, encode_symbols
from fewbits.coding.trellis import STATES, follows, transitions
from paths import path


def halves(seed=0, shape=(40, 90)):
    return np.rint(np.random.default_rng(seed).laplace(0, 0.8, shape)).astype(np.int32)


def test_the_trellis_is_ungerboecks_of_eight_states():
    """Remainders z modulo 4 satisfy the parity checks 13 and 4 (octal), given zeros before."""
    found = path(halves(1, (200, 30)))
    even = np.concatenate([np.zeros((3, 30), np.int64), found & 1])
    half = np.concatenate([np.zeros((3, 30), np.int64), found >> 1 & 1])
    checked = even[3:] ^ even[2:-1] ^ even[:-3] ^ half[1:-2]
    assert not checked.any()


def test_every_state_is_left_and_entered_twice():
    after = transitions()
    assert (np.bincount(after.reshape(-1)) == 2).all()
    assert after.shape == (STATES, 2)
    assert (after[:, 0] != after[:, 1]).all()


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.int64])
def test_paths_are_recognised(dtype):
    found = path(halves()).astype(dtype)
    assert follows(found)
    assert follows(np.zeros((5, 3), dtype))
    assert follows(found[:0])
    for place in ((0, 0), (3, 7), (39, 89)):
        wrong = found.copy()
        wrong[place] += 1
        assert not follows(wrong)


def test_a_path_costs_no_more_than_its_halves():
    values, layout = halves(), Layout(40, 90)
    name, data = encode_symbols(path(values), layout, "smallest")
    assert name == "trellis"
    alone = CODECS["mix"].encode(values, layout)
    assert len(data) < 1.02 * len(alone)
    assert len(data) < 0.8 * len(CODECS["mix"].encode(path(values), layout))
    assert CODECS["trellis"].measure(path(values), layout) == pytest.approx(8 * len(data), rel=0.02)


def test_the_fast_codec_knows_the_trellis_too():
    values, layout = path(halves(2, (200, 90))), Layout(200, 90)
    name, data = encode_symbols(values, layout, "fast")
    assert name == "rans_trellis"
    assert len(data) < 0.75 * len(CODECS["rans"].encode(values, layout))
    np.testing.assert_array_equal(CODECS[name].decode(data, layout), values)


def test_few_symbols_and_rows_without_odd_ones_are_coded():
    dead = halves(3, (30, 64)) // 9
    dead[:, ::2] = 0
    for values in (path(dead), path(np.tile(np.array([1, 0, 0], np.int32), (40, 1)))):
        layout = Layout(*values.shape)
        data = CODECS["rans_trellis"].encode(values, layout)
        np.testing.assert_array_equal(CODECS["rans_trellis"].decode(data, layout), values)


def test_other_matrices_are_left_to_other_codecs():
    values, layout = halves(), Layout(40, 90)
    assert CODECS["trellis"].encode(values, layout) is None
    assert CODECS["trellis"].measure(values, layout) is None
    assert CODECS["trellis"].encode_group([path(values), values], [layout, layout]) is None
    assert encode_symbols(values, layout, "smallest")[0] != "trellis"


def test_paths_share_a_stream():
    matrices, layouts = [path(halves(k, (12, 20))) for k in range(4)], [Layout(12, 20)] * 4
    (stream,) = encode_run(matrices, layouts, "smallest")
    assert (stream.codec, stream.members) == ("trellis", range(4))
    found = CODECS["trellis"].decode_group(stream.data, layouts)
    for one, other in zip(found, matrices, strict=True):
        np.testing.assert_array_equal(one, other)


def test_prices_are_those_of_both_parities():
    values, layout = path(halves()), Layout(40, 90)
    lowest, prices = CODECS["trellis"].prices(values, layout)
    shares = np.exp2(-prices.astype(float))
    numbers = np.arange(prices.shape[2]) + lowest
    for odd in (0, 1):
        assert shares[..., numbers % 2 == odd].sum(axis=2) == pytest.approx(1, abs=0.01)
    paid = np.take_along_axis(prices, (values - lowest)[..., None], 2).sum() / 8
    assert paid == pytest.approx(len(CODECS["trellis"].encode(values, layout)), abs=12)
