"""Wide alphabets: high parts, what lies beyond, low bits."""

import numpy as np
import pytest

from fewbits.coding import CODECS, encode_stream, entropy, estimate
from fewbits.coding.varint import signed_varint, varint
from fewbits.errors import CorruptFileError

CODEC = CODECS["split"]


def uneven(shape, spread, seed=0):
    """Rows of unlike size."""
    rng = np.random.default_rng(seed)
    sizes = np.exp(0.7 * rng.normal(size=(shape[0], 1)))
    return np.rint(spread * rng.laplace(size=shape) * sizes).astype(np.int32)


def framed(name, matrix):
    body = CODECS[name].encode(matrix)
    return varint(16 * len(body) + CODECS[name].number) + body


@pytest.mark.parametrize("shape", [(8, 8), (1, 300), (40, 27), (300, 90)])
@pytest.mark.parametrize("spread", [10.0, 300.0, 5e4])
@pytest.mark.parametrize("offset", [0, -(10**6), 2**30])
def test_round_trip(shape, spread, offset):
    index = uneven(shape, spread) + np.int32(offset)
    data = CODEC.encode(index)
    if data is None:
        assert int(index.max()) - int(index.min()) < 64
        return
    np.testing.assert_array_equal(CODEC.decode(data, *shape), index)


def test_the_ends_of_32_bits():
    index = np.zeros((20, 20), np.int32)
    index[0, 0], index[5, 5] = 2**31 - 1, -(2**31)
    data = CODEC.encode(index)
    np.testing.assert_array_equal(CODEC.decode(data, 20, 20), index)
    assert len(data) < 100


@pytest.mark.parametrize(("spread", "most"), [(9.0, 0.975), (40.0, 0.985), (150.0, 0.99)])
def test_structure_pays_in_wide_alphabets(spread, most):
    index = uneven((256, 256), spread)
    codec, data = encode_stream(index, "smallest")
    assert codec == "split"
    assert 8 * len(data) / index.size < most * entropy(index)
    assert estimate(index, "smallest").bits / 8 == pytest.approx(len(data), rel=0.003)


def test_narrow_alphabets_and_small_matrices_are_for_others():
    assert CODEC.encode(np.arange(64, dtype=np.int32).repeat(2).reshape(2, 64)) is None
    assert CODEC.encode(np.array([[0, 1000]], np.int32)) is None
    assert CODEC.encode(np.arange(100, dtype=np.int32).reshape(100, 1)) is None


PLACES = np.arange(66, dtype=np.int32).reshape(2, 33) % 63 + 1
HEAD = signed_varint(0) + b"\0"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (signed_varint(0) + b"\x19", "25 low bits"),
        (HEAD + framed("raw", PLACES + 1), "outside its alphabet"),
        (HEAD + framed("raw", PLACES - 2), "outside its alphabet"),
        (HEAD + framed("raw", PLACES - 1) + framed("raw", np.full((2, 1), -1, np.int32)), "back"),
        (signed_varint(0) + b"\x01" + framed("raw", PLACES[:, :]) * 2, "too many"),
        (HEAD + varint(16 + 10) + b"x", "part of a split coded by 'split'"),
        (HEAD + framed("raw", PLACES % 60 + 1) + b"x", "1 bytes too many"),
        (signed_varint(2**31 - 1) + b"\x05" + framed("raw", PLACES % 60 + 1) * 2, "32 bits|many"),
    ],
)
def test_parts_that_do_not_fit_are_refused(data, message):
    with pytest.raises(CorruptFileError, match=message):
        CODEC.decode(data, 2, 33)
