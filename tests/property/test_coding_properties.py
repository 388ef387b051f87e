"""Whatever the integers, the coder gives them back, and never takes more than raw packing."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from fewbits.coding import CODECS, EFFORTS, decode_group, decode_stream, encode_stream, join_small
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


@st.composite
def layers(draw):
    """Matrices that the codecs which learn take: narrow alphabets, rows and taps alike or not."""
    taps = draw(st.sampled_from([1, 4, 9, 25]))
    shape = (draw(st.integers(1, 70)), draw(st.integers(2, 12)), taps)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    values = rng.laplace(0, draw(st.sampled_from([0.2, 1.0, 5.0, 40.0])), shape)
    values[..., 1:] += draw(st.sampled_from([0.0, 0.9])) * values[..., :-1]
    values *= np.exp(draw(st.sampled_from([0.0, 1.0])) * rng.normal(size=(shape[0], 1, 1)))
    clip = draw(st.sampled_from([1, 7, 31]))
    low = draw(st.sampled_from([-(2**31), -5, 0, 2**31 - 1 - 2 * clip]))
    places = np.rint(values).clip(-clip, clip) + clip
    return (places + low).astype(np.int32).reshape(shape[0], -1)


LEARNING = settings(BOUNDED, max_examples=60)


@LEARNING
@given(layers(), st.sampled_from(["adaptive", "tuple", "context", "joined", "binary"]))
def test_layers_come_back(symbols, name):
    data = CODECS[name].encode(symbols)
    if data is not None:
        np.testing.assert_array_equal(decode_stream(name, data, *symbols.shape), symbols)
    for effort in EFFORTS:
        assert len(encode_stream(symbols, effort)[1]) <= len(CODECS["raw"].encode(symbols))


@settings(LEARNING, max_examples=25)
@given(st.lists(st.one_of(layers(), layers(), matrices(), st.none()), min_size=3, max_size=6))
def test_joined_matrices_come_back_and_take_no_more_bytes(found):
    own = [("raw", b"") if m is None else encode_stream(m, "fast") for m in found]
    coded = join_small(found, own)
    stored = sum(len(data) + 4 for name, data in coded if data or name != "joined")
    assert stored <= sum(len(data) + 4 for _, data in own)
    waiting = []
    for symbols, (name, data), alone in zip(found, coded, own, strict=True):
        if name != "joined":
            assert (name, data) == alone
            continue
        waiting.append(symbols)
        if data:
            shapes = [joined.shape for joined in waiting]
            for want, got in zip(waiting, decode_group(data, shapes), strict=True):
                np.testing.assert_array_equal(got, want)
            waiting = []
    assert not waiting


@LEARNING
@given(
    layers(),
    st.sampled_from(["adaptive", "tuple", "context", "joined", "binary"]),
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 255)), min_size=1, max_size=4),
    st.integers(0, 9),
)
def test_damaged_layers_are_refused_or_give_a_matrix(symbols, name, damage, cut):
    data = bytearray(CODECS[name].encode(symbols) or b"\0\5\0")
    for place, bits in damage:
        data[place % len(data)] ^= bits
    try:
        got = decode_stream(name, bytes(data[: len(data) - cut]), *symbols.shape)
    except CorruptFileError:
        return
    assert got.shape == symbols.shape
    assert got.dtype == np.int32


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
