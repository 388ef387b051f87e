"""What effort buys: fewer bytes, never other symbols."""

import numpy as np
import pytest

from fewbits.coding import EFFORTS, decode_stream, encode_stream
from fewbits.errors import ConfigError


def rows(outputs, columns):
    rng = np.random.default_rng(0)
    scale = np.exp(0.7 * rng.normal(size=(outputs, 1)))
    return np.rint(scale * rng.laplace(0, 1, (outputs, columns))).clip(-20, 20).astype(np.int32)


@pytest.mark.parametrize(
    ("symbols", "names"),
    [
        (rows(128, 128), ("static", "binary", "binary")),
        (rows(512, 1024), ("static", "tuple", "adaptive")),
    ],
)
def test_more_effort_takes_fewer_bytes(symbols, names):
    coded = [encode_stream(symbols, effort) for effort in ("fast", "balanced", "smallest")]
    assert tuple(name for name, _ in coded) == names
    sizes = [len(data) for _, data in coded]
    assert sizes == sorted(sizes, reverse=True)
    for name, data in coded:
        np.testing.assert_array_equal(decode_stream(name, data, *symbols.shape), symbols)


def test_balanced_asks_a_gain_of_what_is_slow():
    """0.5 % of the bytes, of ``binary`` for every 16,384 symbols; "smallest" takes any byte."""
    balanced, smallest = EFFORTS["balanced"], EFFORTS["smallest"]
    assert [balanced.limit(name, 1000.0, 100) for name in ("tuple", "context", "binary")] == [
        1000.0,
        995.0,
        995.0,
    ]
    assert balanced.limit("adaptive", 1000.0, 1 << 18) == 995.0
    assert balanced.limit("binary", 1000.0, 1 << 18) == 920.0
    assert smallest.limit("binary", 1000.0, 1 << 18) == 1000.0


def test_how_large_a_stream_each_codec_is_tried_on():
    balanced = EFFORTS["balanced"]
    assert balanced.tries("binary", 1 << 18)
    assert not balanced.tries("binary", (1 << 18) + 1)
    assert balanced.tries("static", 1 << 40)
    assert not EFFORTS["fast"].tries("binary", 10)


def test_balanced_is_the_default():
    symbols = rows(64, 64)
    assert encode_stream(symbols) == encode_stream(symbols, "balanced")
    assert list(EFFORTS) == ["fast", "balanced", "smallest"]


def test_an_unknown_effort_is_refused():
    with pytest.raises(ConfigError, match="Did you mean 'smallest'"):
        encode_stream(rows(2, 2), "smalest")
