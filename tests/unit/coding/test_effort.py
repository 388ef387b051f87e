"""What effort buys: fewer bytes, never other symbols."""

import numpy as np
import pytest

from fewbits.coding import EFFORTS, decode_stream, encode_stream
from fewbits.coding.choose import preferred
from fewbits.errors import ConfigError


def rows(outputs, columns):
    rng = np.random.default_rng(0)
    scale = np.exp(0.7 * rng.normal(size=(outputs, 1)))
    return np.rint(scale * rng.laplace(0, 1, (outputs, columns))).clip(-20, 20).astype(np.int32)


@pytest.mark.parametrize(
    ("symbols", "names"),
    [
        (rows(128, 128), ("static", "adaptive", "adaptive")),
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


def test_a_slow_codec_must_be_worth_its_time():
    """At balanced effort 1 % of a short stream, in proportion more of a long one."""
    balanced, smallest = EFFORTS["balanced"], EFFORTS["smallest"]
    sizes = {"raw": 2000, "static": 1000, "adaptive": 990}
    assert preferred(balanced, 1 << 10, sizes) == "adaptive"
    assert preferred(balanced, 1 << 16, sizes) == "adaptive"
    assert preferred(balanced, 1 << 17, sizes) == "static"
    assert preferred(balanced, 1 << 17, {**sizes, "adaptive": 980}) == "adaptive"
    assert preferred(balanced, 1 << 10, {**sizes, "adaptive": 991}) == "static"
    assert preferred(smallest, 1 << 20, {**sizes, "adaptive": 999}) == "adaptive"
    assert preferred(smallest, 1 << 20, {**sizes, "adaptive": 1000}) == "static"
    assert preferred(balanced, 1 << 20, {"adaptive": 5}) == "adaptive"


def test_balanced_is_the_default():
    symbols = rows(64, 64)
    assert encode_stream(symbols) == encode_stream(symbols, "balanced")
    assert list(EFFORTS) == ["fast", "balanced", "smallest"]


def test_an_unknown_effort_is_refused():
    with pytest.raises(ConfigError, match="Did you mean 'smallest'"):
        encode_stream(rows(2, 2), "smalest")
