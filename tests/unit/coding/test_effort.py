"""What effort buys: fewer bytes, never other symbols."""

import numpy as np
import pytest

from fewbits.coding import EFFORTS, decode_stream, encode_stream
from fewbits.coding.choose import select
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


def taken(effort, symbols, sizes):
    found = select(
        EFFORTS[effort], (symbols, 1), lambda name, _: sizes.get(name) and (sizes[name], name)
    )
    return found[0]


@pytest.mark.parametrize(
    ("effort", "symbols", "slow", "size", "name"),
    [
        ("balanced", 1 << 10, "adaptive", 989, "adaptive"),
        ("balanced", 1 << 10, "adaptive", 991, "static"),
        ("balanced", 1 << 17, "adaptive", 981, "static"),
        ("balanced", 1 << 17, "adaptive", 979, "adaptive"),
        ("balanced", 1 << 17, "binary", 961, "static"),
        ("balanced", 1 << 17, "binary", 959, "binary"),
        ("balanced", (1 << 18) + 1, "adaptive", 5, "static"),
        ("smallest", 1 << 10, "binary", 997, "binary"),
        ("smallest", 1 << 10, "binary", 999, "static"),
        ("smallest", 1 << 19, "binary", 967, "binary"),
        ("smallest", 1 << 19, "binary", 969, "static"),
        ("smallest", 1 << 19, "adaptive", 999, "adaptive"),
        ("smallest", 1 << 19, "adaptive", 1000, "static"),
        ("fast", 1 << 10, "adaptive", 5, "static"),
    ],
)
def test_a_slow_codec_must_be_worth_its_time(effort, symbols, slow, size, name):
    """At balanced effort 1 % of a short stream, in proportion more of a long one."""
    assert taken(effort, symbols, {"raw": 2000, "static": 1000, slow: size}) == name


def test_the_slowest_must_save_over_the_slow_ones():
    sizes = {"static": 1000, "adaptive": 900, "binary": 895}
    assert taken("balanced", 100, sizes) == "adaptive"
    assert taken("balanced", 100, {**sizes, "binary": 890}) == "binary"
    assert taken("smallest", 100, sizes) == "binary"


def test_quick_leaves_out_what_is_slow():
    symbols = rows(128, 128)
    assert encode_stream(symbols, "smallest", quick=True)[0] in ("static", "tuple")


def test_balanced_is_the_default():
    symbols = rows(64, 64)
    assert encode_stream(symbols) == encode_stream(symbols, "balanced")
    assert list(EFFORTS) == ["fast", "balanced", "smallest"]


def test_an_unknown_effort_is_refused():
    with pytest.raises(ConfigError, match="Did you mean 'smallest'"):
        encode_stream(rows(2, 2), "smalest")
