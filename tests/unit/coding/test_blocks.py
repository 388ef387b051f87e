"""Large matrices as blocks of rows: the cut, the stream, and what is refused."""

import numpy as np
import pytest

from fewbits.coding import CODECS, EFFORTS, cut, decode_stream, encode_stream, estimate
from fewbits.coding.blocks import pack_blocks, unpack_blocks
from fewbits.coding.choose import is_cut
from fewbits.coding.cut import block_rows
from fewbits.coding.varint import varint
from fewbits.errors import CorruptFileError


@pytest.fixture
def small(monkeypatch):
    """Cut matrices into blocks of about 1,000 symbols and 8 rows."""
    monkeypatch.setattr(cut, "SYMBOLS", 1000)
    monkeypatch.setattr(cut, "ROWS", 8)


def matrix(rows, columns, seed=0):
    rng = np.random.default_rng(seed)
    scale = np.exp(0.5 * rng.normal(size=(rows, 1)))
    return np.rint(scale * rng.laplace(0, 1.5, (rows, columns))).clip(-20, 20).astype(np.int32)


@pytest.mark.parametrize(
    ("rows", "columns", "height"),
    [
        (1, 1, 1),
        (1, 2**25, 1),
        (2048, 2048, 2048),
        (2047, 8192, 2047),  # blocks have 1,024 rows at least
        (2048, 4096, 1024),
        (4096, 4096, 1024),
        (4096, 25_088, 1024),
        (50_257, 768, 5585),
        (2**26, 4, 2**20),
        (1000, 2**17, 512),  # more symbols than `adaptive` takes
    ],
)
def test_the_cut_follows_from_the_sizes(rows, columns, height):
    assert block_rows(rows, columns) == height
    blocks = -(-rows // height)
    assert rows - height * (blocks - 1) > height // 2
    assert block_rows(height, columns) == height


def test_no_block_is_cut_again():
    rng = np.random.default_rng(0)
    for rows, columns in np.rint(2.0 ** rng.uniform(0, 28, (10_000, 2))).astype(int).tolist():
        height = block_rows(rows, columns)
        assert 1 <= height <= rows
        assert height * columns <= 2**26 or height == 1
        assert block_rows(height, columns) == height


@pytest.mark.parametrize("shape", [(96, 54), (17, 200), (3000, 2)])
def test_blocks_give_the_matrix_back(small, shape):
    symbols = matrix(*shape)
    data = CODECS["blocks"].encode(symbols)
    pieces = unpack_blocks(data, shape[0])
    assert len(pieces) == shape[0] // pieces[0][2] + (shape[0] % pieces[0][2] > 0) > 1
    np.testing.assert_array_equal(decode_stream("blocks", data, *shape), symbols)


def test_every_block_has_the_codec_that_suits_it(small):
    symbols = matrix(96, 54)
    symbols[:20] = 5
    symbols[40:58] = np.arange(54) % 2
    name, data = encode_stream(symbols, "smallest")
    assert name == "blocks"
    assert len({codec for codec, _, _ in unpack_blocks(data, 96)}) > 1
    np.testing.assert_array_equal(decode_stream(name, data, 96, 54), symbols)


def test_wide_symbols_survive(small):
    symbols = matrix(40, 60)
    symbols[-1, -1] = -(2**31)
    symbols[0, 0] = 2**31 - 1
    data = CODECS["blocks"].encode(symbols)
    np.testing.assert_array_equal(decode_stream("blocks", data, 40, 60), symbols)


def test_what_is_not_cut_is_not_coded_as_blocks():
    assert CODECS["blocks"].encode(matrix(64, 64)) is None
    for effort, blocks in (("fast", False), ("balanced", False), ("smallest", True)):
        assert is_cut(EFFORTS[effort], 4096, 4096) == blocks


def test_the_estimate_knows_of_blocks(small):
    symbols = matrix(80, 50) + 9 * (np.arange(80) // 20)[:, None]
    name, data = encode_stream(symbols, "smallest")
    found = estimate(symbols, "smallest")
    assert (found.codec, name) == ("blocks", "blocks")
    assert abs(found.bits / (8 * len(data)) - 1) < 0.02


def block(number, body):
    return varint(number) + varint(len(body)) + body


ONE = block(0, b"\x04")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "ends early"),
        (varint(0) + ONE + ONE, "blocks of 0 rows"),
        (varint(4) + ONE, "blocks of 4 rows"),
        (varint(9) + ONE, "blocks of 9 rows"),
        (varint(2**63), "blocks of 9223372036854775808 rows"),
        (varint(1) + ONE + ONE, "blocks of 1 rows"),  # bytes for two of four blocks
        (varint(2) + ONE + ONE + b"\0", "1 bytes too many"),
        (varint(2) + ONE + varint(0) + varint(5) + b"\x04", "5 bytes wanted"),
        (varint(2) + ONE + block(99, b"\0"), "unknown"),
        (varint(2) + ONE + block(9, varint(1) + ONE + ONE), "blocks inside blocks"),
        (varint(2) + ONE + block(0, b"\x04\0"), "too many"),
        (varint(2) + ONE + block(4, b"\x04\x3e\0\x01"), "settings beyond|ends early"),
    ],
)
def test_hostile_blocks_are_refused(data, message):
    with pytest.raises(CorruptFileError, match=message):
        decode_stream("blocks", data, 4, 3)


def test_a_stream_of_a_billion_blocks_is_refused_before_anything_is_done():
    with pytest.raises(CorruptFileError, match="blocks of 1 rows in 1001 bytes"):
        CODECS["blocks"].decode(varint(1) + bytes(1000), 10**9, 1)


def test_planes_and_blocks_do_not_nest_without_end():
    inner = pack_blocks(1, [("constant", b"\x04")] * 2)
    plane = varint(16 * len(inner) + 9) + inner
    data = pack_blocks(2, [("planes", plane + plane), ("constant", b"\x04")])
    assert decode_stream("blocks", data, 4, 2).tolist() == [[2, 2]] * 4
    nested = pack_blocks(1, [("planes", plane + plane)] * 2)
    with pytest.raises(CorruptFileError, match="planes of 1 columns"):
        decode_stream("planes", 2 * (varint(16 * len(nested) + 9) + nested), 2, 2)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(4096, 2048), (2048, 4096)])
def test_a_cut_costs_a_thousandth_at_most(shape):
    rng = np.random.default_rng(3)
    scale = 2.2 * np.exp(rng.normal(0, 0.25, (shape[0], 1)) + rng.normal(0, 0.35, (1, shape[1])))
    symbols = np.rint(rng.normal(size=shape) * scale).clip(-8, 7).astype(np.int32)
    whole, blocks = (len(CODECS[name].encode(symbols)) for name in ("adaptive", "blocks"))
    assert blocks <= 1.001 * whole
