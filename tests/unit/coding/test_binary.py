"""Flags mixed from contexts: exact on every shape, strict about bounds, worth its time."""

import tracemalloc

import numpy as np
import pytest

from fewbits.coding import CODECS, encode_stream
from fewbits.coding.binary import encode_below, measure_below
from fewbits.coding.queue import FlagDecoder, FlagEncoder, FlagMeter
from fewbits.coding.varint import Cursor, signed_varint, varint
from fewbits.errors import CorruptFileError

BINARY = CODECS["binary"]


def sparse(rows, columns, share=0.1, spread=1.5, seed=0):
    rng = np.random.default_rng(seed)
    values = np.rint(rng.laplace(0, spread, (rows, columns))).clip(-9, 9)
    return (values * (rng.random((rows, columns)) < share)).astype(np.int32)


def structured(rows, columns, seed=0):
    """Nine tenths zeros because of dead rows and columns, as pruning leaves them."""
    rng = np.random.default_rng(seed)
    alive = (rng.random((rows, 1)) < 0.6) & (rng.random(columns) < 0.4)
    return sparse(rows, columns, 0.45, 2.0, seed) * alive.astype(np.int32)


def pictures(rows, side, seed=0):
    """Rows that are pictures: signs and magnitudes spread to neighbours in both directions."""
    rng = np.random.default_rng(seed)
    fresh = rng.normal(size=(rows, side + 2, side + 2))
    smooth = fresh[:, 1:-1, 1:-1] + fresh[:, :-2, 1:-1] + fresh[:, 1:-1, :-2] + fresh[:, :-2, :-2]
    y, x = np.divmod(np.arange(side**2), side)
    inside = (y - side / 2) ** 2 + (x - side / 2) ** 2 < (0.4 * side) ** 2
    index = np.rint(0.6 * smooth.reshape(rows, -1)) * inside
    return np.where(np.abs(index) > 1, index, 0).astype(np.int32)


def back(symbols):
    data = BINARY.encode(symbols)
    np.testing.assert_array_equal(BINARY.decode(data, *symbols.shape), symbols)
    return data


@pytest.mark.parametrize(
    "shape", [(1, 30), (30, 1), (1, 500), (500, 1), (2, 20), (3, 17), (9, 9), (40, 25), (60, 16)]
)
@pytest.mark.parametrize("low", [-(2**31), -5, 0, 2**31 - 21])
def test_shapes_and_alphabets(shape, low):
    symbols = sparse(*shape, 0.4)
    symbols[0, 0], symbols[-1, -1] = -9, 9
    back((symbols.astype(np.int64) + 10 + low).astype(np.int32))


@pytest.mark.parametrize("symbols", [np.abs(sparse(20, 30)), -np.abs(sparse(20, 30))])
def test_where_the_centre_is_at_an_edge_no_signs_are_coded(symbols):
    data = back(symbols)
    signed = back(symbols * np.where(np.random.default_rng(1).random((20, 30)) < 0.5, -1, 1))
    assert len(data) < len(signed)


def test_the_widest_alphabet():
    symbols = sparse(30, 40, 0.3)
    symbols[3, 4], symbols[20, 20] = 31, -32
    back(symbols)
    symbols[3, 4] = 32
    assert BINARY.encode(symbols) is None
    assert BINARY.encode(np.full((9, 9), 4, np.int32)) is None
    assert BINARY.encode(np.arange(4096, dtype=np.int32).reshape(64, 64) % 60) is None


@pytest.mark.parametrize("shape", [(1, 70_000), (70_000, 1), (1025, 1024)])
def test_what_is_too_long_is_not_coded_or_turned(shape):
    symbols = np.zeros(shape, np.int32)
    if symbols.size > 1 << 20:
        assert BINARY.encode(symbols) is None
    else:
        symbols[np.random.default_rng(0).random(shape) < 0.01] = 1
        assert (back(symbols)[1] >= 64) == (shape[0] == 1)


def test_a_matrix_of_nearly_nothing_is_left_to_others():
    symbols = np.zeros((900, 1000), np.int32)
    symbols[0, 0] = 1
    assert BINARY.encode(symbols) is None


def test_dead_rows_and_columns():
    symbols = structured(256, 256)
    got = len(back(symbols))
    assert got < 0.98 * len(CODECS["adaptive"].encode(symbols))
    assert got < 0.77 * len(CODECS["static"].encode(symbols))
    assert encode_stream(symbols)[0] == "binary"


def test_pictures_are_seen_in_two_directions():
    symbols = pictures(60, 12)
    data = back(symbols)
    cursor = Cursor(data)
    assert (cursor.symbol(), cursor.take(2)[0] >> 6, cursor.varint() // 16) == (-4, 0, 12)
    others = [CODECS[name].encode(symbols) for name in ("static", "adaptive", "context", "tuple")]
    assert len(data) < 0.88 * min(len(other) for other in others if other is not None)


def test_independent_symbols_cost_little_above_their_entropy():
    symbols = sparse(256, 256, 0.09, 3.0)
    _, counts = np.unique(symbols, return_counts=True)
    entropy = -(counts * np.log2(counts / counts.sum())).sum() / 8
    assert len(back(symbols)) < 1.02 * entropy


def test_a_limit_ends_the_trial():
    symbols = structured(100, 100)
    whole = BINARY.encode(symbols)
    assert encode_below(symbols, len(whole) + 1) == whole
    assert encode_below(symbols, len(whole) // 2) is None
    assert measure_below(symbols, len(whole) // 2) is None
    assert measure_below(symbols, len(whole)) == pytest.approx(8 * len(whole), abs=24)


HEAD = signed_varint(-1)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (bytes([63, 64]) + varint(3), "65 symbols around 64"),
        (bytes([128, 0]) + varint(3), "beyond their bounds"),
        (bytes([1, 3]) + varint(3), "3 symbols around 3"),
        (bytes([1, 1]) + varint(0), "pace 0"),
        (bytes([1, 1]) + varint(16 + 3), "width 1"),
        (bytes([1, 1]) + varint(16 * 51 + 3), "width 51"),
        (bytes([65, 1]) + varint(16 * 41 + 3), "width 41"),
        (bytes([1, 1]) + varint(2**63), "beyond their bounds"),
    ],
)
def test_settings_beyond_their_bounds_are_refused(head, message):
    with pytest.raises(CorruptFileError, match=message):
        BINARY.decode(HEAD + head + b"\1\2\3\4", 40, 50)


def test_hostile_sizes_are_refused_before_anything_is_allocated():
    data = HEAD + bytes([1, 1]) + varint(3)
    tracemalloc.start()
    for rows, columns, tail in (
        (2**60, 1, 400),
        (2, 2**17, 400),
        (2**10, 2**10, 100),
        (1, 20_000, 0),
        (2**21, 1, 4000),
    ):
        with pytest.raises(CorruptFileError, match="beyond their bounds"):
            BINARY.decode(data + b"\1" * tail, rows, columns)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    with pytest.raises(CorruptFileError, match="an alphabet"):
        BINARY.decode(signed_varint(2**31 - 2) + bytes([1, 1]) + varint(3) + b"\1", 4, 5)


def test_too_many_or_too_few_bytes():
    symbols = structured(50, 60)
    data = BINARY.encode(symbols)
    for piece in (data + b"\0", data + b"\1" * 12, data + data, data[:2], b""):
        with pytest.raises(CorruptFileError):
            BINARY.decode(piece, 50, 60)


def test_damage_is_refused_or_gives_a_matrix():
    symbols, rng = structured(30, 40), np.random.default_rng(2)
    data = BINARY.encode(symbols)
    outcomes = set()
    for _ in range(200):
        piece = bytearray(data)
        piece[rng.integers(len(piece))] ^= 1 << int(rng.integers(8))
        try:
            got = BINARY.decode(bytes(piece), 30, 40)
        except CorruptFileError:
            outcomes.add("refused")
            continue
        outcomes.add("decoded")
        assert got.shape == (30, 40)
        assert got.dtype == np.int32
    assert outcomes == {"refused", "decoded"}


def test_flags_one_at_a_time_are_those_coded_together():
    rng = np.random.default_rng(0)
    chances = [1, 4095, 2048, *rng.integers(1, 4096, 70_000).tolist()]
    flags = [
        int(draw < chance)
        for draw, chance in zip(rng.integers(0, 4096, 70_003), chances, strict=True)
    ]
    encoder, meter = FlagEncoder(), FlagMeter()
    for chance, flag in zip(chances, flags, strict=True):
        assert encoder.take_flag(chance, flag) == meter.take_flag(chance, flag) == flag
    data = encoder.to_bytes()
    assert 8 * len(data) == pytest.approx(meter.bits, abs=64)
    decoder = FlagDecoder(data)
    assert [decoder.take_flag(chance, 0) for chance in chances] == flags
    decoder.finish()
