"""Variable-length integers, bits and frequency tables, against what is written by hand."""

import numpy as np
import pytest

from fewbits.coding.bits import BitReader, BitWriter, golomb_bits
from fewbits.coding.table import decode_table, encode_table, weights
from fewbits.coding.varint import Cursor, signed_varint, varint
from fewbits.errors import CorruptFileError


@pytest.mark.parametrize(
    ("value", "data"),
    [(0, b"\0"), (127, b"\x7f"), (128, b"\x80\x01"), (300, b"\xac\x02"), (2**64 - 1, None)],
)
def test_varint(value, data):
    coded = varint(value)
    assert data in (None, coded)
    cursor = Cursor(coded)
    assert cursor.varint() == value
    cursor.finish()


@pytest.mark.parametrize("value", [0, -1, 1, 63, -64, 2**31 - 1, -(2**31)])
def test_signed_varint(value):
    assert Cursor(signed_varint(value)).symbol() == value
    assert len(signed_varint(value)) == (1 if -64 <= value < 64 else 5)


def test_a_cursor_never_runs_past_the_end():
    cursor = Cursor(b"ab")
    assert cursor.take(1) == b"a"
    with pytest.raises(CorruptFileError, match="2 bytes wanted, 1 left"):
        cursor.take(2)
    with pytest.raises(CorruptFileError, match="1 bytes too many"):
        cursor.finish()
    assert cursor.rest() == b"b"
    with pytest.raises(CorruptFileError, match="ends early"):
        cursor.byte()


def test_exp_golomb_codes_of_order_0_are_the_textbook_ones():
    writer = BitWriter()
    for value in (0, 1, 2, 3, 6):
        writer.golomb(value, 0)
    # 1 010 011 00100 00111, filled up with zeros
    assert writer.to_bytes() == bytes([0b10100110, 0b01000011, 0b10000000])


@pytest.mark.parametrize("order", range(8))
def test_exp_golomb_round_trip_and_length(order):
    values = [0, 1, 2, 3, 7, 100, 1000, 65535]
    writer = BitWriter()
    for value in values:
        writer.golomb(value, order)
    reader = BitReader(writer.to_bytes())
    assert [reader.golomb(order) for _ in values] == values
    total = sum(golomb_bits(value, order) for value in values)
    assert reader.finish() == len(writer.to_bytes()) == (total + 7) // 8


def test_weights_are_powers_of_two_in_steps():
    for resolution in range(5):
        levels = np.arange(0, (20 << resolution) + 2)
        got = weights(levels, resolution)
        want = np.round(2.0 ** (15 + (levels - 1) / 2**resolution))
        assert got[0] == 0
        np.testing.assert_allclose(got[1:], want[1:], rtol=2e-5)
        assert (np.diff(got) > 0).all()
        assert got.max() < 2**37


@pytest.mark.parametrize(
    "counts",
    [[1, 1], [5, 0, 0, 3], [1, 2**40], [10, 400, 3000, 390, 12], [1] + [0] * 5000 + [9, 0, 2]],
)
def test_table_round_trip(counts):
    table, want = encode_table(np.array(counts, np.int64))
    got, used = decode_table(table + b"more", len(counts))
    assert used == len(table)
    np.testing.assert_array_equal(got, want)
    assert ((got > 0) == (np.array(counts) > 0)).all()


def test_the_resolution_follows_what_is_at_stake():
    few = np.array([3, 20, 60, 20, 4], np.int64)
    assert encode_table(few)[0][0] & 7 < encode_table(few * 100_000)[0][0] & 7


@pytest.mark.parametrize("most", [1 << 21, 3_899_242, (1 << 24) + 1])
def test_the_most_frequent_symbol_of_a_large_stream_keeps_its_share(most):
    counts = np.array([1, 3, 50, 4_000, 60_000, most, 70_000, 900, 7, 1], np.int64)
    shares = counts / counts.sum()
    table = encode_table(counts)[1]
    bits = float((shares * np.log2(table.sum() / table)).sum())
    least = float(-(shares * np.log2(shares)).sum())
    assert bits < least + 1e-4


def test_a_table_of_zeros_alone_is_refused():
    writer = BitWriter()
    writer.golomb(0, 0)
    writer.golomb(1, 0)
    with pytest.raises(CorruptFileError, match="does not fit"):
        decode_table(b"\0" + writer.to_bytes(), 2)


def test_a_run_beyond_the_alphabet_is_refused():
    writer = BitWriter()
    for value in (2, 1, 7):  # level 1, level 0, seven more
        writer.golomb(value, 0)
    with pytest.raises(CorruptFileError, match="does not fit"):
        decode_table(b"\0" + writer.to_bytes(), 4)


def test_a_level_out_of_range_is_refused():
    writer = BitWriter()
    writer.golomb(2 * 22, 0)
    with pytest.raises(CorruptFileError, match="level 22"):
        decode_table(b"\0" + writer.to_bytes(), 2)
