"""Every codec on every kind of matrix: exact, bounded, and strict about its bytes."""

import numpy as np
import pytest

from fewbits.coding import CODECS, decode_stream, encode_stream, name_of
from fewbits.errors import ConfigError, CorruptFileError

LOW, HIGH = -(2**31), 2**31 - 1


def laplace(rows, columns, spread=2.0, seed=0):
    values = np.random.default_rng(seed).laplace(0, spread, (rows, columns))
    return np.rint(values).astype(np.int32)


MATRICES = {
    "one": np.array([[7]], np.int32),
    "one zero": np.zeros((1, 1), np.int32),
    "row": laplace(1, 300),
    "column": laplace(300, 1),
    "constant": np.full((30, 20), -5, np.int32),
    "zeros": np.zeros((30, 20), np.int32),
    "zero rows": laplace(40, 30) * (np.arange(40) % 3 == 0)[:, None].astype(np.int32),
    "extremes": np.array([[LOW, HIGH], [0, -1]], np.int32),
    "lowest": np.full((3, 3), LOW, np.int32),
    "highest two": np.array([[HIGH, HIGH - 1, HIGH]], np.int32),
    "two symbols": (laplace(50, 40, seed=3) > 0).astype(np.int32),
    "65536 symbols": np.arange(65536, dtype=np.int32).reshape(256, 256),
    "65537 symbols": np.arange(65537, dtype=np.int32).reshape(1, 65537),
    "rare and far": np.where(laplace(90, 90, 9) > 30, 50_000, laplace(90, 90)).astype(np.int32),
    "depthwise": laplace(32, 9, 20),
    "bytes of floats": laplace(500, 1, 9).astype("<f4").view(np.uint8).reshape(500, 4),
    "noise of 8 bits": np.random.default_rng(1).integers(0, 256, (700, 8), np.uint8),
    "noise of 13 bits": np.random.default_rng(2).integers(-4096, 4096, (70, 8), np.int32),
}
ALL = [(codec, matrix) for codec in CODECS for matrix in MATRICES]


@pytest.mark.parametrize(("name", "matrix"), ALL)
def test_round_trip(name, matrix):
    symbols = MATRICES[matrix]
    data = CODECS[name].encode(symbols)
    if data is None:
        assert name != "raw", "raw must code everything"
        return
    got = decode_stream(name, data, *symbols.shape)
    assert got.shape == symbols.shape
    np.testing.assert_array_equal(got, symbols)
    assert CODECS[name].encode(symbols) == data


@pytest.mark.parametrize("matrix", MATRICES)
def test_raw_bytes_too_few_or_too_many_are_refused(matrix):
    symbols = MATRICES[matrix]
    data = CODECS["raw"].encode(symbols)
    for piece in (data + b"\0", data + b"\1\2\3\4", data[:-1], data[: len(data) // 2], b""):
        with pytest.raises(CorruptFileError):
            decode_stream("raw", piece, *symbols.shape)


@pytest.mark.parametrize("matrix", ["row", "two symbols", "rare and far", "bytes of floats"])
@pytest.mark.parametrize("name", ["static", "planes"])
def test_coded_bytes_too_many_are_refused(name, matrix):
    symbols = MATRICES[matrix]
    data = CODECS[name].encode(symbols)
    if data is None:
        return
    for piece in (data + b"\0", data + b"\1\2\3\4", data + data):
        with pytest.raises(CorruptFileError):
            decode_stream(name, piece, *symbols.shape)


@pytest.mark.parametrize(("name", "matrix"), ALL)
def test_damage_is_refused_or_gives_some_matrix_of_the_shape(name, matrix):
    """A coder of entropy has no redundancy: the checksum of the stream tells the difference."""
    symbols = MATRICES[matrix]
    data = CODECS[name].encode(symbols)
    if not data:
        return
    rng = np.random.default_rng(4)
    for _ in range(8):
        piece = bytearray(data)
        piece[rng.integers(len(piece))] ^= 1 << int(rng.integers(8))
        for wrong in (bytes(piece), bytes(piece[: rng.integers(len(piece))])):
            try:
                got = decode_stream(name, wrong, *symbols.shape)
            except CorruptFileError:
                continue
            assert got.shape == symbols.shape


@pytest.mark.parametrize("matrix", MATRICES)
def test_the_choice_is_the_fewest_bytes(matrix):
    symbols = MATRICES[matrix]
    name, data = encode_stream(symbols, "smallest")
    sizes = [len(coded) for codec in CODECS for coded in [CODECS[codec].encode(symbols)] if coded]
    assert len(data) <= min(sizes)
    assert len(data) <= len(CODECS["raw"].encode(symbols))
    np.testing.assert_array_equal(decode_stream(name, data, *symbols.shape), symbols)


def test_the_expected_codec_wins():
    winners = {name: encode_stream(symbols, "smallest")[0] for name, symbols in MATRICES.items()}
    assert winners["constant"] == winners["zeros"] == winners["lowest"] == "constant"
    assert winners["noise of 13 bits"] == "raw"
    assert winners["two symbols"] == winners["rare and far"] == "static"
    assert winners["row"] == winners["zero rows"] == "binary"
    assert winners["bytes of floats"] == "planes"
    assert encode_stream(MATRICES["zeros"])[1] == b""


def test_a_matrix_without_symbols_takes_no_bytes():
    assert encode_stream(np.zeros((0, 5), np.int32)) == ("constant", b"")
    assert decode_stream("constant", b"", 0, 5).shape == (0, 5)
    with pytest.raises(CorruptFileError, match="without symbols"):
        decode_stream("constant", b"\x02", 5, 0)


def test_symbols_beyond_32_bits_are_refused():
    with pytest.raises(ValueError, match="32 bits"):
        encode_stream(np.array([[2**31]], np.int64))


def test_numbers_in_files_are_fixed_for_ever():
    assert {name: codec.number for name, codec in CODECS.items()} == {
        "constant": 0,
        "raw": 1,
        "static": 2,
        "planes": 3,
        "adaptive": 4,
        "tuple": 5,
        "context": 6,
        "binary": 7,
        "blocks": 9,
        "split": 10,
        "joined": 8,
    }
    assert all(name_of(codec.number) == name for name, codec in CODECS.items())
    with pytest.raises(CorruptFileError, match="newer fewbits"):
        name_of(99)
    with pytest.raises(ConfigError, match="Did you mean 'static'"):
        decode_stream("statik", b"x", 1, 1)


@pytest.mark.parametrize("columns", [1, 2, 8, 9])
def test_planes_take_two_to_eight_columns_of_bytes(columns):
    symbols = np.zeros((4, columns), np.int32)
    assert (CODECS["planes"].encode(symbols) is None) == (columns in (1, 9))
    assert CODECS["planes"].encode(symbols + 256) is None
    assert CODECS["planes"].encode(symbols - 1) is None


@pytest.mark.parametrize(
    ("name", "data", "rows", "columns", "message"),
    [
        ("constant", b"\xff" * 11, 1, 1, "malformed"),
        ("constant", b"\x80\x00", 1, 1, "malformed"),
        ("constant", b"\x00", 1, 1, "takes no bytes"),
        ("constant", b"\x02\x02", 1, 1, "too many"),
        ("constant", b"\xff\xff\xff\xff\x7f", 1, 1, "32 bits"),
        ("raw", b"\x00\x21", 1, 1, "33 bits"),
        ("raw", b"\x00\x03\x1f", 1, 1, "not zero"),
        ("raw", b"\xfe\xff\xff\xff\x0f\x08\x01", 1, 1, "32 bits"),
        ("static", b"\x00\xff\xff\x7f", 1, 1, "alphabet"),
        ("static", b"\xfe\xff\xff\xff\x0f\x00", 1, 1, "alphabet"),
        ("static", b"\x00\x00\x05", 1, 1, "frequency table"),
        ("static", b"\x00\x00\x40", 1, 1, "frequency table"),
        ("static", b"\x00\x00\x00\x00\x00\x00\x00\x00\x00", 1, 1, "endless"),
        ("planes", b"\x00", 1, 9, "9 columns"),
        ("planes", b"\x03\x03", 1, 2, "planes inside planes"),
        ("planes", b"\x20\x80\x04\x00", 1, 2, "not a byte"),
        ("planes", b"\x0f\x0f", 1, 2, "codec number 15"),
    ],
)
def test_malformed_bytes_are_told_apart(name, data, rows, columns, message):
    with pytest.raises(CorruptFileError, match=message):
        decode_stream(name, data, rows, columns)


def test_chunks_of_a_long_stream_are_coded_on_their_own():
    symbols = laplace(3, 700_001, 3.0, seed=5)
    data = CODECS["static"].encode(symbols)
    np.testing.assert_array_equal(CODECS["static"].decode(data, *symbols.shape), symbols)
    raw = CODECS["raw"].encode(symbols)
    np.testing.assert_array_equal(CODECS["raw"].decode(raw, *symbols.shape), symbols)
