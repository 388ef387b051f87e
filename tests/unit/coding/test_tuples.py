"""Pairs and triples as one symbol: near their joint entropy, strict about their bytes."""

import numpy as np
import pytest

from fewbits.coding import CODECS, encode_stream
from fewbits.coding.tuples import join
from fewbits.coding.varint import signed_varint, varint
from fewbits.errors import CorruptFileError

TUPLE = CODECS["tuple"]


def test_cells_are_numbers_in_base_a():
    places = np.array([1, 2, 0, 1, 2])
    assert join(places, 3, 2).tolist() == [5, 1, 6]
    assert join(places, 3, 3).tolist() == [15, 15]


def pairs(count, seed=0):
    """Pairs of a law of 7 by 7 whose joint entropy is far below twice that of one symbol."""
    rng = np.random.default_rng(seed)
    law = rng.random((7, 7)) ** 12
    law /= law.sum()
    cells = rng.choice(49, count, p=law.reshape(-1))
    joint = float(-(law * np.log2(law)).sum())
    return np.stack([cells // 7, cells % 7], axis=1).reshape(1, -1).astype(np.int32) - 3, joint


def test_a_joint_entropy_is_reached_within_one_per_cent():
    symbols, joint = pairs(500_000)
    name, data = encode_stream(symbols)
    assert name == "tuple"
    assert 8 * len(data) <= 1.01 * 500_000 * joint
    assert len(CODECS["static"].encode(symbols)) > 1.2 * len(data)


@pytest.mark.parametrize("shape", [(1, 2), (1, 3), (5, 7), (3, 101), (40, 1)])
@pytest.mark.parametrize("levels", [2, 5, 40, 41, 256])
def test_round_trip(shape, levels):
    symbols = np.random.default_rng(levels).integers(0, levels, shape).astype(np.int32) - 9
    data = TUPLE.encode(symbols)
    if data is not None:
        np.testing.assert_array_equal(TUPLE.decode(data, *shape), symbols)


def test_alphabets_that_are_too_wide_or_too_narrow():
    assert TUPLE.encode(np.array([[0, 256, 3, 4]], np.int32)) is None
    assert TUPLE.encode(np.zeros((4, 4), np.int32)) is None
    assert TUPLE.encode(np.array([[5]], np.int32)) is None


@pytest.mark.parametrize(
    ("size", "length", "message"),
    [(3, 1, "tuples of 1"), (3, 4, "tuples of 4"), (257, 2, "tuples of 2"), (41, 3, "tuples of 3")],
)
def test_lengths_and_alphabets_are_bounded(size, length, message):
    body = CODECS["static"].encode(np.array([[0, 1, 2, 1]], np.int32))
    data = signed_varint(0) + varint(size - 2) + bytes([length]) + body
    with pytest.raises(CorruptFileError, match=message):
        TUPLE.decode(data, 2, 4)


def test_cells_outside_and_a_filling_that_is_not_zero():
    body = CODECS["static"].encode(np.array([[0, 8, 3, 9]], np.int32))
    with pytest.raises(CorruptFileError, match="outside"):
        TUPLE.decode(signed_varint(0) + varint(1) + b"\2" + body, 2, 4)
    body = CODECS["static"].encode(np.array([[0, 8, 3, 7]], np.int32))
    assert TUPLE.decode(signed_varint(0) + varint(1) + b"\2" + body, 2, 4).max() == 2
    with pytest.raises(CorruptFileError, match="not filled"):
        TUPLE.decode(signed_varint(0) + varint(1) + b"\2" + body, 1, 7)
    with pytest.raises(CorruptFileError, match="symbols from"):
        TUPLE.decode(signed_varint(2**31 - 2) + varint(1) + b"\2" + body, 2, 4)
