"""Symbols that follow from those before them: near the conditional entropy, strict about bounds."""

import numpy as np
import pytest

from fewbits.coding import CODECS, encode_stream
from fewbits.coding.varint import signed_varint, varint
from fewbits.errors import CorruptFileError

CONTEXT = CODECS["context"]


def markov(order, size, levels=4, seed=0):
    """A source of ``order`` 1 or 2, and the information of what was drawn, in bits."""
    rng = np.random.default_rng(seed)
    law = rng.dirichlet(np.full(levels, 0.3), size=levels**order)
    below, draws = law.cumsum(axis=1).tolist(), rng.random(size).tolist()
    out, context, information = [], 0, 0.0
    for draw in draws:
        symbol = next((s for s in range(levels - 1) if draw < below[context][s]), levels - 1)
        information -= np.log2(law[context, symbol])
        context = (context * levels + symbol) % levels**order
        out.append(symbol)
    return np.array(out, np.int32).reshape(1, -1), information


@pytest.mark.parametrize("order", [1, 2])
def test_a_conditional_entropy_is_reached_within_one_per_cent(order):
    symbols, information = markov(order, 200_000)
    name, data = encode_stream(symbols)
    assert name == "context"
    assert 8 * len(data) <= 1.01 * information
    np.testing.assert_array_equal(CONTEXT.decode(data, *symbols.shape), symbols)


@pytest.mark.parametrize("shape", [(1, 1024), (1, 1025), (2049, 1), (3, 1001), (50, 97)])
@pytest.mark.parametrize("levels", [2, 5, 32])
def test_shapes_and_alphabets(shape, levels):
    count = int(np.prod(shape))
    steps = np.random.default_rng(levels).integers(0, 9, count) // 8 + 1
    symbols = (steps.cumsum() % levels).astype(np.int32).reshape(shape) - 3
    data = CONTEXT.encode(symbols)
    if levels == 2:
        assert data is None or len(data) < count // 8 + 8
    if data is not None:
        np.testing.assert_array_equal(CONTEXT.decode(data, *shape), symbols)


def test_where_neighbours_tell_nothing_it_is_not_tried():
    rng = np.random.default_rng(0)
    assert CONTEXT.encode(rng.integers(0, 4, (100, 100)).astype(np.int32)) is None
    assert CONTEXT.encode(np.zeros((100, 100), np.int32)) is None
    assert CONTEXT.encode(np.arange(10_000, dtype=np.int32).reshape(100, 100) % 33) is None
    assert CONTEXT.encode(np.arange(1000, dtype=np.int32).reshape(1, 1000) % 3) is None


@pytest.mark.parametrize(
    ("size", "order", "lanes"),
    [(33, 1, 4), (4, 0, 4), (4, 3, 4), (4, 1, 0), (4, 1, 2001), (4, 1, 1999), (4, 2, 2**40)],
)
def test_settings_beyond_their_bounds_are_refused(size, order, lanes):
    data = signed_varint(0) + bytes([size - 2, order]) + varint(lanes) + b"\1"
    with pytest.raises(CorruptFileError, match="beyond their bounds"):
        CONTEXT.decode(data, 40, 50)


def test_hostile_sizes_are_refused_before_anything_is_allocated():
    data = signed_varint(0) + bytes([2, 1]) + varint(4) + b"\1"
    for rows in (2**15, 2**26, 2**60):
        with pytest.raises(CorruptFileError, match="beyond their bounds"):
            CONTEXT.decode(data, rows, 1)
    with pytest.raises(CorruptFileError, match="beyond their bounds"):
        CONTEXT.decode(signed_varint(2**31 - 2) + data[1:], 40, 50)
