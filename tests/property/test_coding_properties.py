"""Whatever the integers, the coder gives them back, and never takes more than raw packing."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from fewbits.coding import CODECS, decode_stream, encode_stream
from fewbits.coding.bits import BitReader, BitWriter
from fewbits.coding.table import decode_table, encode_table
from fewbits.coding.varint import Cursor, signed_varint, varint
from fewbits.errors import CorruptFileError

BOUNDED = settings(derandomize=True, deadline=None, max_examples=150, database=None)


@st.composite
def matrices(draw):
    low = draw(st.integers(-(2**31), 2**31 - 1))
    span = draw(st.sampled_from([0, 1, 2, 15, 255, 70_000, 2**32 - 1]))
    shape = draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    elements = st.integers(low, min(low + span, 2**31 - 1))
    return draw(npst.arrays(np.int32, shape, elements=elements))


@BOUNDED
@given(matrices())
def test_every_codec_gives_back_what_it_took(symbols):
    limit = len(CODECS["raw"].encode(symbols))
    for name, codec in CODECS.items():
        data = codec.encode(symbols)
        if data is not None:
            np.testing.assert_array_equal(decode_stream(name, data, *symbols.shape), symbols)
    name, data = encode_stream(symbols)
    assert len(data) <= limit
    assert encode_stream(symbols) == (name, data)


@BOUNDED
@given(st.sampled_from(list(CODECS)), st.binary(max_size=60), st.integers(1, 40), st.integers(1, 9))
def test_any_bytes_are_refused_or_give_a_matrix_of_32_bit_integers(name, data, rows, columns):
    try:
        got = decode_stream(name, data, rows, columns)
    except CorruptFileError:
        return
    assert got.shape == (rows, columns)
    assert got.dtype in (np.int32, np.uint8)


@BOUNDED
@given(st.integers(0, 2**64 - 1), st.integers(-(2**31), 2**31 - 1))
def test_integers_of_variable_length(plain, signed):
    cursor = Cursor(varint(plain) + signed_varint(signed))
    assert (cursor.varint(), cursor.symbol()) == (plain, signed)
    cursor.finish()


@BOUNDED
@given(st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 7)), max_size=30))
def test_exp_golomb_codes(values):
    writer = BitWriter()
    for value, order in values:
        writer.golomb(value, order)
    reader = BitReader(writer.to_bytes())
    assert [(reader.golomb(order), order) for _, order in values] == values
    assert reader.finish() == len(writer.to_bytes())


@BOUNDED
@given(st.lists(st.one_of(st.just(0), st.integers(0, 2**40)), min_size=2, max_size=60))
def test_frequency_tables(counts):
    counts[0] += 1
    table, want = encode_table(np.array(counts, np.int64))
    got, used = decode_table(table, len(counts))
    assert used == len(table)
    np.testing.assert_array_equal(got, want)
    assert ((want > 0) == (np.array(counts) > 0)).all()
